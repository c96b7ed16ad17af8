"""Publishing to external streams, and reading streams and runs by their sequence numbers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from onexflow.codec.payload import decode_value
from onexflow.codec.rows import decode_row
from onexflow.core.errors import InternalError, InvalidArgument, InvalidTransition, OutOfRange, UnknownRun
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.core.queue_state import is_system_type
from onexflow.engine import event_records, stream, views
from onexflow.engine.cuts import uncut
from onexflow.engine.events.checks import MAX_NUMBER, MAX_STREAMS, check_key, check_publish, check_text
from onexflow.engine.events.log import Located, Log
from onexflow.engine.events.topics import DEFAULT_PARTITIONS, Topics, partition_of
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard, Watch
from onexflow.engine.stream import Place, Stream, Streams
from onexflow.ports.clock import IdSource
from onexflow.ports.event_store import RunRecord
from onexflow.ports.events import EventRecord, Position, Publish, Published

PAGE: Final = 1000

T = TypeVar("T")


class Publisher:
    """`publish`, `read` and `find` of the event service."""

    def __init__(
        self,
        kernel: Kernel,
        topics: Topics,
        log: Log,
        ids: IdSource,
        payload_limit: int,
        admit: Callable[[], None],
        create_topic: Callable[[str, str, int], Awaitable[object]],
    ) -> None:
        """`create_topic` asks whoever owns the topic's home."""
        self._create_topic = create_topic
        self._kernel = kernel
        self._topics = topics
        self._log = log
        self._ids = ids
        self._payload_limit = payload_limit
        self._admit = admit
        self._streams = Streams(kernel)

    # ---- publish

    async def publish(self, request: Publish) -> Published:
        check_publish(request, self._payload_limit)
        event = self._completed(request)
        if (repeated := await self._of_run(event)) is not None:
            return repeated
        shard = self._kernel.shard_of(stream.stream_key(event.key))
        await self._know_topic(event.key.namespace, request.topic or event.key.workflow_type)
        with ExitStack() as watching:
            # Read before the lock is waited for: those who publish side by side do not wait for each other's reads.
            known = {name: watching.enter_context(shard.watch(name)) for name in _registers_of(event)}
            for watch in known.values():
                await watch.read(self._kernel.store)
            async with self._streams.lock(shard):
                published = await self._decide(request, event, shard, known)
        await self._kernel.lane.durable()
        return published

    async def _know_topic(self, namespace: str, name: str) -> None:
        """A topic that is kept by another orchestrator is looked up, and comes to be there."""
        await self._topics.fresh(namespace, name)
        if self._topics.exists(namespace, name) or self._topics.is_here(namespace, name):
            return
        if not await self._topics.learn(namespace, name):
            await self._create_topic(namespace, name, DEFAULT_PARTITIONS)
            await self._topics.learn(namespace, name)

    async def _decide(
        self, request: Publish, event: EventRecord, shard: Shard, registers: Mapping[str, Watch]
    ) -> Published:
        """With the shard's lock held: what stands in the registers stays true until the event is recorded."""
        kernel = self._kernel
        assert event.event_id is not None, "it was given one"
        by_id = stream.id_register(event.event_id)
        known = await self._streams.get(event.key)
        shard.check()  # else what it is known by here is another's
        places = stream.decode_places(registers[by_id].value)
        name = event.key.to_bytes()
        before = next((place for place in places if place.key == name), None)
        if before is None and known is not None and event.idempotency_key != str(event.event_id):
            before = _of_key(registers, event.key, event.idempotency_key)
        if before is not None:
            return _published(shard.id, before, created=False)
        if kernel.number_of(event.key) in kernel.shards:
            run = kernel.resident(event.key)
            if run is not None or kernel.has_started(event.key):
                raise _of_a_run(event.key, run.state.seq if run is not None else 0)  # it was started meanwhile
        self._admit()
        head = known.state.head if known is not None else 0
        number = event.sequence or head + 1
        if number <= head:
            raise InvalidTransition(
                f"stream {event.key} has come to {head}: another event cannot be number {number}",
                {"run": str(event.key), "current_state": f"sequence {head}",
                 "required_state": f"a sequence number above {head}, or none"},
            )  # fmt: skip
        if len(places) >= MAX_STREAMS:
            raise InvalidArgument(f"this event_id was published to {MAX_STREAMS:,} streams already", field="event_id")
        topic = request.topic or event.key.workflow_type
        if not self._topics.exists(event.key.namespace, topic) and self._topics.is_here(event.key.namespace, topic):
            self._topics.create(event.key.namespace, topic)
        partition_key = request.partition_key or str(event.key.instance_id)
        partition = partition_of(partition_key, self._topics.partitions(event.key.namespace, topic))
        event = msgspec.structs.replace(event, sequence=number)
        into = known if known is not None else self._streams.create(event.key)
        offset = into.append(stream.stored_event(event, topic, partition_key, partition), kernel.now())
        own = event.idempotency_key == str(event.event_id)
        place = Place(name, offset, into.state.seq, number, topic, partition, own)
        shard.put(by_id, stream.encode_places([*places, place]))
        if not own:
            shard.put(stream.key_register(event.key, event.idempotency_key), stream.encode_places([place]))
        kernel.lane.mark()
        return _published(shard.id, place, created=True)

    async def _of_run(self, event: EventRecord) -> Published | None:
        """For a run only what it has recorded itself can be said again."""
        kernel, key = self._kernel, event.key
        number = kernel.number_of(key)
        is_here = number in kernel.shards  # a run is in another shard than the stream that would have its name
        run = kernel.resident(key) if is_here else None
        if run is not None:
            head = run.state.seq
        else:
            if started := is_here and kernel.has_started(key):
                await kernel.lane.durable()  # its entry may be on the way
            record = await kernel.store.find_run(number, key.to_bytes())
            if record is None:
                if started:
                    raise InternalError(f"run {key} is not listed", {"run": str(key)})
                return None
            head = record.head
        number = event.sequence
        if 0 < number <= head and event.event_id == event_records.event_id_of(key, number):
            for recorded in await self.read(key, number, number, 1):
                if not _is_same(recorded, event):
                    break
                notes = decode_value(recorded.metadata)
                partitions = self._topics.partitions(key.namespace, key.workflow_type)
                return Published(
                    sequence=number,
                    position=Position(notes["shard"], notes["offset"]),
                    topic=key.workflow_type,
                    partition=partition_of(str(key.instance_id), partitions),
                    created=False,
                )
        raise _of_a_run(key, head)

    def _completed(self, request: Publish) -> EventRecord:
        """The event with an id, a key and a time. An event without an id is known by its idempotency key."""
        event = request.event
        event_id = event.event_id
        if event_id is None:
            said = event.idempotency_key
            event_id = derived_uuid(f"published:{event.key}:{said}") if said else self._ids.uuid()
        return msgspec.structs.replace(
            event,
            event_id=event_id,
            idempotency_key=event.idempotency_key or str(event_id),
            timestamp=event.timestamp or self._kernel.now(),
        )

    # ---- read

    async def read(self, key: RunKey, first: int, last: int | None, limit: int) -> Sequence[EventRecord]:
        if first < 0 or (last is not None and last < 0):
            raise InvalidArgument("sequence numbers must not be negative", field="from_sequence")
        if limit < 1:
            raise InvalidArgument("limit must be at least 1", field="limit")
        check_key(key)
        first = min(MAX_NUMBER, first)  # beyond every head
        first = max(1, first)
        await self._kernel.lane.durable()
        system = is_system_type(key.workflow_type)
        record = None if system else await self._kernel.store.find_run(self._kernel.number_of(key), key.to_bytes())
        if record is not None:
            shard = self._kernel.shard_of(key)
            return await _whole(shard, lambda: self._read_run(shard.id, record, key, first, last, limit))
        external = await self.stream(key)
        if external is None:
            raise UnknownRun(f"there is no run and no stream {key}", {"run": str(key)})
        return await _whole(external.shard, lambda: self._read_stream(external, key, first, last, limit))

    async def stream(self, key: RunKey) -> Stream | None:
        """The external stream of that key."""
        check_key(key)
        if is_system_type(key.workflow_type):
            return None
        shard = self._kernel.shard_of(stream.stream_key(key))
        async with self._streams.lock(shard):
            return await self._streams.get(key)

    async def _read_run(
        self, shard: int, record: RunRecord, key: RunKey, first: int, last: int | None, limit: int
    ) -> list[EventRecord]:
        source = await self._log.ids_of(record, shard)
        await self._refuse_cut(shard, record.iid, first)
        found: list[EventRecord] = []
        while len(found) < limit and (last is None or first <= last):
            rows = await self._kernel.store.read_run(shard, record.iid, first, min(limit, PAGE))
            if not rows:
                break
            found.extend(
                event_records.record_of(view, key, source.correlation_id or "", source.causation_id)
                for view in views.event_views(rows, shard, source.graph, first)
                if last is None or view.sequence <= last
            )
            first = rows[-1].seq + rows[-1].count
        return found[:limit]

    async def _read_stream(
        self, external: Stream, key: RunKey, first: int, last: int | None, limit: int
    ) -> list[EventRecord]:
        shard, iid = external.shard.id, external.iid
        graves = await self._kernel.store.tombstones(shard, 0, iid)
        kept = max((grave.last_seq for grave in graves), default=0) + 1
        seq = await stream.inner_sequence(self._kernel.store, external, first, kept)
        if seq == kept > 1:
            earliest = await stream.published_number(self._kernel.store, external, kept)
            earliest = min(earliest, external.state.head + 1)
            if first < earliest:  # what is asked for may have been before the cut
                raise _cut(key, earliest)
        found: list[EventRecord] = []
        while len(found) < limit:
            rows = await self._kernel.store.read_run(shard, iid, seq, min(limit, PAGE))
            if not rows:
                break
            for row in rows:
                for event in decode_row(row.data)[1][max(0, seq - row.seq) :]:
                    stored = stream.unpack(event)
                    if stored is None or stored.number < first:
                        continue
                    if last is not None and stored.number > last:
                        return found[:limit]
                    found.append(stream.record_of(stored, key))
            seq = rows[-1].seq + rows[-1].count
        return found[:limit]

    async def _refuse_cut(self, shard: int, iid: int, first: int) -> None:
        graves = await self._kernel.store.tombstones(shard, 0, iid)
        earliest = max((grave.last_seq for grave in graves), default=0) + 1
        if first < earliest:
            records = await self._kernel.store.get_runs(shard, [iid])
            raise _cut(RunKey.from_bytes(records[0].key), earliest)

    # ---- find

    async def find(self, namespace: str, event_id: UUID) -> tuple[int, Located] | None:
        """(shard, the event) of a published event."""
        check_text(namespace, "namespace")
        await self._kernel.lane.durable()
        for shard, data in await self._kernel.store.find_register(stream.id_register(event_id)):
            for place in stream.decode_places(data):
                if RunKey.from_bytes(place.key).namespace == namespace:
                    located = await self._log.at(shard, place.offset)
                    if located is not None:
                        return shard, located
        return None


def _registers_of(event: EventRecord) -> list[str]:
    """Where it would stand that the event was published before."""
    assert event.event_id is not None, "it was given one"
    names = [stream.id_register(event.event_id)]
    if event.idempotency_key != str(event.event_id):
        names.append(stream.key_register(event.key, event.idempotency_key))
        if (event_id := _uuid(event.idempotency_key)) is not None:
            names.append(stream.id_register(event_id))
    return names


def _of_key(registers: Mapping[str, Watch], key: RunKey, idempotency_key: str) -> Place | None:
    """What was published to the stream under that key: under one of its own, or under an id that is its key too."""
    found = stream.decode_places(registers[stream.key_register(key, idempotency_key)].value)
    if not found and (event_id := _uuid(idempotency_key)) is not None:
        places = stream.decode_places(registers[stream.id_register(event_id)].value)
        found = [place for place in places if place.own_key and place.key == key.to_bytes()]
    return found[0] if found else None


async def _whole(shard: Shard, read: Callable[[], Awaitable[T]]) -> T:
    """What is read in several steps, again when a history was cut between them: else the gap would not be noticed."""
    while True:
        cuts = await uncut(shard)
        found = await read()
        if shard.cuts == cuts:
            return found


def _of_a_run(key: RunKey, head: int) -> InvalidTransition:
    return InvalidTransition(
        f"{key} is a run: its orchestrator alone writes its events",
        {"run": str(key), "current_state": f"a run at event {head}", "required_state": "an external stream"},
    )


def _published(shard: int, place: Place, *, created: bool) -> Published:
    return Published(
        sequence=place.number,
        position=Position(shard, place.offset),
        topic=place.topic,
        partition=place.partition,
        created=created,
    )


def _is_same(recorded: EventRecord, said: EventRecord) -> bool:
    """Does it say what was recorded? What is about an event (its notes, its time) is not compared."""
    return (recorded.type, recorded.idempotency_key) == (said.type, said.idempotency_key) and (
        decode_value(recorded.payload) == decode_value(said.payload)
    )


def _cut(key: RunKey, earliest: int) -> OutOfRange:
    return OutOfRange(
        f"events of {key} before number {earliest} were cut out of its history",
        {"run": str(key), "earliest": earliest},
    )


def _uuid(text: str) -> UUID | None:
    """The id that this text is, as an id is written."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None
