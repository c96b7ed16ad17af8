"""External streams: events that others publish, in the same log as those of runs.

A stream is an entity beside the runs, known by the key of what it tells of under a type of its own (`stream_key`). In the
log its events are dense; their published numbers, which stand in the events, grow and may have gaps. What was published
once is known for ever by registers of the stream's shard, written with the event: by its id, and by its idempotency key
within its stream when that is not its id.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from uuid import UUID

import msgspec

from onexflow.codec.payload import UNREADABLE
from onexflow.codec.rows import decode_row
from onexflow.core.errors import StoreUnusable
from onexflow.core.events import Event, StateTransitioned
from onexflow.core.ids import RunKey
from onexflow.core.payload import NULL, Payload
from onexflow.engine.cuts import uncut
from onexflow.engine.recovery import PAGE
from onexflow.engine.run import SNAPSHOT_EVERY
from onexflow.ports.event_store import EventStore, Row, RunRecord, SnapshotRecord
from onexflow.ports.events import EventRecord

if TYPE_CHECKING:
    from onexflow.engine.kernel import Kernel
    from onexflow.engine.shard import Shard

STREAM_PREFIX: Final = "$stream:"
PUBLISHED: Final = "stream.published"
ENCODING: Final = "onexflow.event.1"
#: Streams kept in memory; others are read back when they are asked for.
KEPT: Final = 2000


def stream_key(key: RunKey) -> RunKey:
    """The entity of the stream `key`."""
    return RunKey(key.namespace, STREAM_PREFIX + key.workflow_type, key.instance_id)


def published_key(entity: RunKey) -> RunKey:
    """The stream's own key, as its readers know it."""
    return RunKey(entity.namespace, entity.workflow_type[len(STREAM_PREFIX) :], entity.instance_id)


def is_stream(workflow_type: str) -> bool:
    return workflow_type.startswith(STREAM_PREFIX)


def id_register(event_id: UUID) -> str:
    return f"published/{event_id}"


def key_register(key: RunKey, idempotency_key: str) -> str:
    return f"key/{quote(str(key), safe='')}/{quote(idempotency_key, safe='')}"


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where a published event stands."""

    key: bytes  #: `RunKey.to_bytes()` of the stream
    offset: int
    seq: int  #: within the stream, dense
    number: int  #: as published
    topic: str
    partition: int
    own_key: bool = False  #: its idempotency key is its id, so it has no register of its key


class Stored(msgspec.Struct, array_like=True, frozen=True):
    """A published event as it is stored: all but its key, which is that of its stream."""

    type: str
    number: int
    event_id: bytes
    topic: str
    partition_key: str
    partition: int
    correlation_id: str = ""
    causation_id: str = ""
    correlation_chain: tuple[str, ...] = ()
    timestamp: int = 0
    source: str = ""
    idempotency_key: str = ""
    payload: Payload = NULL
    metadata: Payload = NULL


_encode: Final = msgspec.msgpack.Encoder().encode
_stored: Final = msgspec.msgpack.Decoder(Stored)
_places: Final = msgspec.msgpack.Decoder(list[Place])


def encode_places(places: list[Place]) -> bytes:
    return _encode(places)


def decode_places(data: bytes | None) -> list[Place]:
    return _places.decode(data) if data else []


def stored_event(event: EventRecord, topic: str, partition_key: str, partition: int) -> Stored:
    assert event.event_id is not None, "it was given one before"
    return Stored(
        event.type, event.sequence, event.event_id.bytes, topic, partition_key, partition, event.correlation_id,
        event.causation_id, event.correlation_chain, event.timestamp, event.source, event.idempotency_key,
        event.payload, event.metadata,
    )  # fmt: skip


def record_of(stored: Stored, key: RunKey) -> EventRecord:
    return EventRecord(
        key=key,
        type=stored.type,
        sequence=stored.number,
        event_id=UUID(bytes=stored.event_id),
        correlation_id=stored.correlation_id,
        causation_id=stored.causation_id,
        correlation_chain=stored.correlation_chain,
        timestamp=stored.timestamp,
        source=stored.source,
        idempotency_key=stored.idempotency_key,
        payload=stored.payload,
        metadata=stored.metadata,
    )


def unpack(event: Event) -> Stored | None:
    """The published event that an event of the log carries; None for what a newer release has put there."""
    if not isinstance(event, StateTransitioned) or event.data is None or event.data.encoding != ENCODING:
        return None
    return _stored.decode(event.data.data)


class StreamState(msgspec.Struct, array_like=True):
    """All that publishing needs to know of a stream; its snapshot too."""

    seq: int = 0
    head: int = 0  #: the last published number
    created_at: int = 0
    updated_at: int = 0
    status: str = "running"
    version: int = 1


_state: Final = msgspec.msgpack.Decoder(StreamState)


class _Decision:
    """One event, decided."""

    __slots__ = ("events", "now")

    def __init__(self, now: int, event: Event) -> None:
        self.now = now
        self.events = [event]


class Stream:
    """One external stream, owned by its shard (`engine.shard.Entity`)."""

    __slots__ = (
        "durable_seq", "iid", "key", "listed_at", "listed_seq", "listed_state", "shard", "snapshot_after",
        "snapshot_seq", "start_hash", "state",
    )  # fmt: skip

    def __init__(self, shard: Shard, iid: int, key: RunKey, state: StreamState) -> None:
        self.shard = shard
        self.iid = iid
        self.key = key
        self.state = state
        self.start_hash = b""
        self.durable_seq = 0
        self.snapshot_seq = 0
        self.snapshot_after = SNAPSHOT_EVERY
        self.listed_state = ""
        self.listed_seq = 0
        self.listed_at = 0.0

    @property
    def is_over(self) -> bool:
        return False

    def snapshot(self) -> bytes:
        return _encode(self.state)

    def append(self, stored: Stored, now: int) -> int:
        """Record the event; returns its offset. The caller has seen to its number, and marks the lane."""
        state = self.state
        now = max(now, state.updated_at)
        data = Payload(_encode(stored), ENCODING)
        event = StateTransitioned(PUBLISHED, stored.type, "", data=data)
        state.seq += 1
        state.head = stored.number
        state.created_at = state.created_at or now
        state.updated_at = now
        offset = self.shard.next
        self.shard.record(self, _Decision(now, event))
        return offset


class Streams:
    """The external streams of one orchestrator, those in memory and the way to the others."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: dict[RunKey, Stream] = {}
        self._locks: dict[int, asyncio.Lock] = {}

    def lock(self, shard: Shard) -> asyncio.Lock:
        """Held from the look-up of what was published to the decision: nobody publishes to the shard between them."""
        return self._locks.setdefault(shard.id, asyncio.Lock())

    async def get(self, key: RunKey) -> Stream | None:
        """The stream `key` (as its readers know it), or None. Call it with the shard's lock held."""
        entity = stream_key(key)
        known = self._known.pop(entity, None)
        if known is not None and known.shard.moved is None:
            self._known[entity] = known  # the last used is forgotten last
            return known
        shard = self._kernel.shard_of(entity)
        record = await self._kernel.store.find_run(shard.id, entity.to_bytes())
        found = await read_stream(self._kernel.store, shard, record) if record is not None else None
        shard.check()
        return self._keep(found) if found is not None else None

    def create(self, key: RunKey) -> Stream:
        """A new one; it is listed with its first event."""
        entity = stream_key(key)
        shard = self._kernel.shard_of(entity)
        stream = Stream(shard, shard.next_iid, entity, StreamState())
        shard.next_iid += 1
        return self._keep(stream)

    def _keep(self, stream: Stream) -> Stream:
        self._known[stream.key] = stream
        if len(self._known) > KEPT:
            for key, old in list(self._known.items())[: KEPT // 2]:
                if old is not stream and old.durable_seq == old.state.seq:
                    del self._known[key]
        return stream


async def read_stream(store: EventStore, shard: Shard, record: RunRecord) -> Stream:
    """The stream as the log has it."""
    while True:
        cuts = await uncut(shard)
        snapshot = await store.load_snapshot(shard.id, record.iid)
        state = _decoded(record, snapshot)
        row: Row | None = None
        # The last event says all. The listing's head is at or before it.
        start = max(state.seq + 1, record.head)
        while page := await store.read_run(shard.id, record.iid, start, PAGE):
            row = page[-1]
            start = row.seq + row.count
        if shard.cuts == cuts:  # else rows may have gone behind a newer snapshot
            break
    if row is not None:
        at, events, _ = decode_row(row.data)
        stored = unpack(events[-1])
        if stored is None:
            raise StoreUnusable(f"stream {record.iid} ends with an event that this release cannot read")
        state.seq, state.head, state.updated_at = row.seq + row.count - 1, stored.number, at
    stream = Stream(shard, record.iid, RunKey.from_bytes(record.key), state)
    stream.durable_seq = state.seq
    stream.listed_state, stream.listed_seq = "running", record.head
    stream.snapshot_seq = snapshot.seq if snapshot is not None else 0
    return stream


def _decoded(record: RunRecord, snapshot: SnapshotRecord | None) -> StreamState:
    if snapshot is None:
        return StreamState(created_at=record.created_at)
    try:
        return _state.decode(snapshot.data)
    except UNREADABLE as error:
        raise StoreUnusable(f"the snapshot of stream {record.iid} cannot be read: {error}") from error


async def inner_sequence(store: EventStore, stream: Stream, number: int, earliest: int) -> int:
    """Place of the first event whose published number is `number` or above, not before `earliest`."""
    state = stream.state
    if number > state.head:
        return state.seq + 1
    if state.head == state.seq:  # no gaps
        return max(number, earliest)
    low, high = earliest, min(state.seq, max(number, earliest))
    while low < high:
        middle = (low + high) // 2
        found = await published_number(store, stream, middle)
        if found < number:
            low = middle + 1
        else:
            high = middle
    return low


async def published_number(store: EventStore, stream: Stream, seq: int) -> int:
    """The number that event `seq` was published under; beyond the last one, above all."""
    for row in await store.read_run(stream.shard.id, stream.iid, seq, 1):
        stored = unpack(decode_row(row.data)[1][seq - row.seq])
        return stored.number if stored is not None else 0
    return sys.maxsize
