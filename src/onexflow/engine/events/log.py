"""Reading the log as deliveries: rows of a shard, from an offset on, whose events match a filter.

Whose rows they are is known by a cache, so rows of others cost no decoding; what is decoded for one reader is kept for
the others who come along soon.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog

from onexflow.codec.rows import decode_row, decode_snapshot
from onexflow.core.errors import Unavailable
from onexflow.core.events import WorkflowCreated
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey
from onexflow.core.queue_state import is_system_type
from onexflow.engine import stream, views
from onexflow.engine.event_records import record_of
from onexflow.engine.events.topics import Topics, partition_of
from onexflow.engine.kernel import Kernel
from onexflow.engine.recovery import graph_of
from onexflow.engine.run import Run
from onexflow.ports.event_store import Row, RunRecord
from onexflow.ports.events import Delivery, EventRecord, Filter

log = structlog.get_logger("onexflow.events")

#: Rows of one read.
PAGE: Final = 128
#: Bytes of events of one page, about.
PAGE_BYTES: Final = 4 << 20
#: Rows whose decoded events are kept, and runs whose names are.
KEPT_ROWS: Final = 2048
KEPT_BYTES: Final = 16 << 20
KEPT_SOURCES: Final = 20_000


class Located(NamedTuple):
    """An event and what is delivered with it."""

    offset: int
    event: EventRecord
    topic: str
    partition: int
    partition_key: str


class Source:
    """Whose rows these are. `key` None: nobody's that the bus knows."""

    __slots__ = ("causation_id", "correlation_id", "graph", "is_stream", "key")

    def __init__(self, key: RunKey | None, *, is_stream: bool = False) -> None:
        self.key = key
        self.is_stream = is_stream
        self.graph: Graph | None = None
        self.correlation_id: str | None = None  #: None: not read yet
        self.causation_id = ""


class Log:
    """The events of one orchestrator's shards, as its readers are given them."""

    def __init__(self, kernel: Kernel, topics: Topics) -> None:
        self._kernel = kernel
        self._topics = topics
        self._sources: dict[tuple[int, int], Source] = {}
        self._rows: OrderedDict[tuple[int, int, int], tuple[int, list[Located]]] = OrderedDict()
        self._bytes = 0

    # ---- reading

    async def page(self, shard: int, offset: int, where: Filter, limit: int) -> tuple[list[Located], int]:
        """Up to `limit` events from `offset` on that match, of those that one read gives; and the offset to go on from."""
        head = self._kernel.owned(shard).durable  # as of before the read: it may move during it
        rows = await self._kernel.store.read_shard(shard, offset, PAGE)
        if not rows:
            return [], max(offset, head)
        await self._know(shard, rows)
        found: list[Located] = []
        size = 0
        for row in rows:
            source = self._sources.get((shard, row.iid))
            if source is None or not matches(source, where):
                continue
            for located in await self._decoded(shard, row, source):
                await self._topics.fresh(located.event.key.namespace, located.topic)
                if located.offset < offset or not self._passes(shard, located, where):
                    continue
                if len(found) == limit or size > PAGE_BYTES:
                    return found, located.offset
                found.append(located)
                size += size_of(located.event)
        return found, rows[-1].offset + rows[-1].count

    def is_over(self, shard: int, located: Located) -> bool:
        """Is it of a topic that was deleted since?"""
        return located.offset < self._topics.begins(located.event.key.namespace, located.topic, shard)

    async def at(self, shard: int, offset: int) -> Located | None:
        """The event at that offset; None when it was cut, or is none that the bus knows."""
        rows = await self._kernel.store.read_shard(shard, offset, 1)
        if not rows or not rows[0].offset <= offset:
            return None
        await self._know(shard, rows)
        source = self._sources.get((shard, rows[0].iid))
        if source is None or source.key is None:
            return None
        decoded = await self._decoded(shard, rows[0], source)
        return next((located for located in decoded if located.offset == offset), None)

    def _passes(self, shard: int, located: Located, where: Filter) -> bool:
        return wants(where, located) and not self.is_over(shard, located)

    # ---- whose rows they are

    async def sources(self, shard: int, iids: Sequence[int]) -> list[Source]:
        """Whose these entities are, those that exist."""
        missing = [iid for iid in set(iids) if (shard, iid) not in self._sources]
        if missing:
            held = self._kernel.shards.get(shard)
            owned = held.runs if held is not None else {}
            absent = [iid for iid in missing if iid not in owned]
            for iid in missing:
                if iid in owned:
                    self._remember(shard, iid, _of_run(owned[iid]))
            for record in await self._kernel.store.get_runs(shard, absent) if absent else ():
                self._remember(shard, record.iid, _of_record(record))
        return [source for iid in iids if (source := self._sources.get((shard, iid))) is not None]

    async def _know(self, shard: int, rows: Sequence[Row]) -> None:
        if len(self._sources) > KEPT_SOURCES:
            for place in list(self._sources)[: KEPT_SOURCES // 2]:
                del self._sources[place]
        await self.sources(shard, [row.iid for row in rows])

    def _remember(self, shard: int, iid: int, source: Source) -> None:
        self._sources[shard, iid] = source

    # ---- decoding

    async def _decoded(self, shard: int, row: Row, source: Source) -> list[Located]:
        place = (shard, row.offset, row.count)
        if place in self._rows:
            return self._rows[place][1]
        try:
            found = _stream_events(row, source) if source.is_stream else await self._run_events(shard, row, source)
        except Unavailable:
            raise
        except Exception as error:  # whatever is wrong with it; told, and it must not stop all readers for ever
            log.exception("event.unreadable", shard=shard, offset=row.offset, error=str(error))
            found = []
        if place not in self._rows:
            self._rows[place] = (len(row.data), found)
            self._bytes += len(row.data)
        while self._rows and (len(self._rows) > KEPT_ROWS or self._bytes > KEPT_BYTES):
            _, (size, _) = self._rows.popitem(last=False)
            self._bytes -= size
        return found

    async def _run_events(self, shard: int, row: Row, source: Source) -> list[Located]:
        key = source.key
        assert key is not None, "who has no name matches nothing"
        if source.correlation_id is None:
            await self._read_source(shard, row.iid, source)
        await self._topics.fresh(key.namespace, key.workflow_type)
        partition = partition_of(str(key.instance_id), self._topics.partitions(key.namespace, key.workflow_type))
        return [
            Located(
                view.offset,
                record_of(view, key, source.correlation_id or "", source.causation_id),
                key.workflow_type,
                partition,
                str(key.instance_id),
            )
            for view in views.event_views([row], shard, source.graph)
        ]

    async def _read_source(self, shard: int, iid: int, source: Source) -> None:
        """The run's graph and ids: from its first event, or when that was cut from its snapshot."""
        store, catalog = self._kernel.store, self._kernel.catalog
        source.graph = await graph_of(store, catalog, shard, iid)
        for row in await store.read_run(shard, iid, 1, 1):
            event = decode_row(row.data)[1][0]
            if isinstance(event, WorkflowCreated):
                source.correlation_id, source.causation_id = event.correlation_id, event.causation_id
                return
        snapshot = await store.load_snapshot(shard, iid)
        state = decode_snapshot(snapshot.data) if snapshot is not None else None
        source.correlation_id, source.causation_id = (state.correlation_id, state.causation_id) if state else ("", "")

    async def ids_of(self, run: Run | RunRecord, shard: int) -> Source:
        """A run's graph and ids."""
        source = _of_run(run) if isinstance(run, Run) else _of_record(run)
        if source.correlation_id is None:
            await self._read_source(shard, run.iid, source)
        return source


def size_of(event: EventRecord) -> int:
    """About how much memory it takes."""
    chain = event.correlation_chain
    return 512 + len(event.payload.data) + len(event.metadata.data) + (sum(map(len, chain)) if chain else 0)


def wants(where: Filter, event: Located | Delivery) -> bool:
    """Does the event, which is of the filter's namespace, match it?"""
    if where.event_types and event.event.type not in where.event_types:
        return False
    return not where.topics or event.topic in where.topics


def matches(source: Source, where: Filter) -> bool:
    """May events of this source match? For those of a stream their own topics say more."""
    key = source.key
    if key is None or key.namespace != where.namespace:
        return False
    return source.is_stream or not where.topics or key.workflow_type in where.topics


def _of_run(run: Run) -> Source:
    source = Source(run.key)
    source.graph = run.graph
    source.correlation_id, source.causation_id = run.state.correlation_id, run.state.causation_id
    return source


def _of_record(record: RunRecord) -> Source:
    key = RunKey.from_bytes(record.key)
    if stream.is_stream(key.workflow_type):
        return Source(stream.published_key(key), is_stream=True)
    return Source(None if is_system_type(key.workflow_type) else key)


def _stream_events(row: Row, source: Source) -> list[Located]:
    assert source.key is not None, "a stream has a name"
    found = []
    for offset, event in enumerate(decode_row(row.data)[1], row.offset):
        stored = stream.unpack(event)
        if stored is not None:
            record = stream.record_of(stored, source.key)
            found.append(Located(offset, record, stored.topic, stored.partition, stored.partition_key))
    return found
