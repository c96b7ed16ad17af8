"""The names of the bus's registers, and what stands in them. Every part of a name is quoted: names may have slashes."""

from __future__ import annotations

from typing import Final, TypeVar
from urllib.parse import quote, unquote

import msgspec

from onexflow.codec.rows import storable
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.core.payload import Failure, Payload
from onexflow.ports.events import DeadLetter, Delivery, Filter

GROUPS: Final = "group-config/"
TOPICS: Final = "topic/"
DEAD: Final = "dead/"
POSITIONS: Final = "group/"
STATES: Final = "projection-state/"
#: Of what is kept of a failure with a dead letter.
MAX_TEXT: Final = 16 << 10

T = TypeVar("T")


def quoted(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def group_config(namespace: str, name: str) -> str:
    return GROUPS + quoted(namespace, name)


def position(namespace: str, name: str) -> str:
    return POSITIONS + quoted(namespace, name)


def topic(namespace: str, name: str) -> str:
    return TOPICS + quoted(namespace, name)


def dead_letters(namespace: str, group: str) -> str:
    """The prefix of a group's dead letters. The group of those who read for themselves has no name."""
    return DEAD + quoted(namespace, group) + "/"


def dead_letter(namespace: str, group: str, offset: int) -> str:
    return f"{dead_letters(namespace, group)}{offset:020d}"


def states(namespace: str, name: str) -> str:
    return STATES + quoted(namespace, name) + "/"


def state(namespace: str, name: str, key: RunKey) -> str:
    return states(namespace, name) + quoted(str(key))


def parts_of(name: str) -> list[str]:
    """A name's parts behind the first, as they were before they were quoted."""
    return [unquote(part) for part in name.split("/")[1:]]


def home(kind: str, namespace: str, name: str) -> RunKey:
    """What says by its slot in which shard a register without a run has its place."""
    return RunKey(namespace, f"${kind}", derived_uuid(f"{kind}:{name}"))


class GroupConfig(msgspec.Struct, array_like=True, frozen=True):
    """A group. What is stored of an older group of that name has another `born`, and counts no more."""

    born: int
    topics: tuple[str, ...]
    event_types: tuple[str, ...]
    projection: bool

    def where(self, namespace: str) -> Filter:
        return Filter(namespace=namespace, topics=self.topics, event_types=self.event_types)


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """How far a group is in a shard: all below `next` but the `open` ones is dealt with."""

    born: int
    next: int
    at: int  #: when this was written
    open: list[tuple[int, int]] = []  #: (offset, deliveries so far)
    begins: int = 0  #: where the group began to read
    told: int = 0  #: cuts up to this time are known to it
    ahead: list[int] = []  #: at or above `next`, and dealt with


class TopicRecord(msgspec.Struct, array_like=True, frozen=True):
    """A topic, or what is left of it: events before `begins` (shard → offset) are of one that was deleted."""

    partitions: int
    created_at: int
    exists: bool = True
    begins: dict[int, int] = {}


class DeadRecord(msgspec.Struct, array_like=True, frozen=True):
    """A dead letter, with the whole event: it may be cut out of its history."""

    delivery: bytes
    error: Failure
    at: int


class StateRecord(msgspec.Struct, array_like=True, frozen=True):
    """A projection's state of one run; it counts when `born` is that of the projection."""

    born: int
    state: Payload


encode: Final = msgspec.msgpack.Encoder().encode


def decode(data: bytes, type_: type[T]) -> T:
    return msgspec.msgpack.decode(data, type=type_)


def encode_dead(delivery: Delivery, error: Failure, at: int) -> bytes:
    return encode(DeadRecord(encode(delivery), _storable(error), at))


def _storable(error: Failure) -> Failure:
    """The failure in a form that can be stored, and told: it may hold what a handler raised, of any length."""
    texts = {
        field: getattr(error, field)[:MAX_TEXT].encode("utf-8", "replace").decode()
        for field in ("type", "message", "traceback", "code")
    }
    return storable(msgspec.structs.replace(error, **texts))


def decode_dead(data: bytes) -> DeadLetter:
    record = decode(data, DeadRecord)
    delivery = decode(record.delivery, Delivery)
    return DeadLetter(delivery=delivery, error=record.error, at=record.at)
