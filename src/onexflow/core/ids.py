"""Identity: what a run, an attempt and a shard are called.

A run is named by (namespace, workflow_type, instance_id). Its hash picks one of 4,096 fixed slots, the store's map
picks the shard of the slot, and within the shard the run has a small integer, `iid`. An attempt is named by the
event that authorised it: `Token(shard, epoch, offset, item)` (see docs/guarantees.md).
"""

from __future__ import annotations

import hashlib
from typing import Final
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

SLOTS: Final = 4096
DEFAULT_NAMESPACE: Final = "default"


class RunKey(msgspec.Struct, frozen=True, order=True, cache_hash=True, gc=False):
    """The name of a run, unique in the cluster."""

    namespace: str
    workflow_type: str
    instance_id: UUID

    def __str__(self) -> str:
        return f"{self.namespace}/{self.workflow_type}/{self.instance_id}"

    def to_bytes(self) -> bytes:
        """The key as stored: 16 bytes of id, then namespace and type, parted by a null byte."""
        return self.instance_id.int.to_bytes(16, "big") + f"{self.namespace}\0{self.workflow_type}".encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> RunKey:
        namespace, _, workflow_type = raw[16:].partition(b"\0")
        return cls(namespace.decode(), workflow_type.decode(), UUID(bytes=raw[:16]))

    @property
    def slot(self) -> int:
        """The fixed slot (0 to 4,095) of this key: a property of the name alone, the same for ever."""
        return int.from_bytes(hashlib.blake2b(self.to_bytes(), digest_size=4).digest(), "big") % SLOTS


def shard_of_slot(slot: int, shards: int) -> int:
    """The shard that the default map gives a slot: neighbours lie together, so that a split is a range."""
    return slot * shards // SLOTS


class Token(msgspec.Struct, frozen=True, order=True, gc=False):
    """The identity of an attempt: the place of the event that authorised it, and its item.

    A result, a report or a fold is accepted if and only if the log holds that event at that epoch and offset.
    """

    shard: int
    epoch: int
    offset: int
    item: int = 0

    def __str__(self) -> str:
        return f"{self.shard}.{self.epoch}.{self.offset}.{self.item}"


#: How the type of a run that does a task of a work queue begins, and how its causation id does: what follows there is
#: the task's idempotency key, the same however often the queue gives the task out.
QUEUE_RUN: Final = "queue."
QUEUE_CAUSE: Final = "queue-task:"


def idempotency_key(key: RunKey, task: str, item: int, cause: str = "") -> str:
    """The key that an effect hands to its target: the same in every attempt of one task item of one run; and of one
    task of a work queue, each attempt of which is a run with that `cause`."""
    if cause.startswith(QUEUE_CAUSE) and key.workflow_type.startswith(QUEUE_RUN):
        return cause[len(QUEUE_CAUSE) :]
    return f"{key.instance_id}:{key.namespace}:{key.workflow_type}:{task}:{item}"


def instance_of_request(request_id: str) -> UUID:
    """The instance id of a start that names none: the same for the same request id, so that the start is made once.

    A request id that is a UUIDv7 is taken as it is: its time tells an owner whether it can have been seen before."""
    try:
        given = read_uuid(request_id)
    except ValueError:
        return derived_uuid(f"request:{request_id}")
    return given if is_uuid7(given) else derived_uuid(f"request:{request_id}")


def uuid_text(given: UUID) -> str:
    """As `str(given)`, which is written in Python and takes five times as long."""
    text: str = msgspec.to_builtins(given)
    return text


def read_uuid(text: str) -> UUID:
    """As `UUID(text)`, which takes three times as long. Raises ValueError."""
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError:
        return UUID(text)  # it takes braces, too, and dashes anywhere


def is_uuid7(given: UUID) -> bool:
    """As `given.version == 7`, which asks the same of the same bits at five times the price."""
    bits = given.int
    return bits >> 76 & 0xF == 7 and bits >> 62 & 0x3 == 2


def derived_uuid(text: str) -> UUID:
    """A UUID for an id that is not one: the same text gives the same UUID everywhere."""
    return uuid5(NAMESPACE_OID, f"onexflow:{text}")
