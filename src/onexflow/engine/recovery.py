"""Reading runs back: one run on demand, and after a claim all that were lately at work.

Recovery follows recent activity, not the number of open runs: a shard's checkpoint names the runs that were hot, the
rows behind it those that became so. Those that only waited in memory are read while the shard is served. Everything else
is parked and read when its timer, a result or a call asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

import msgspec

from onexflow.codec.rows import decode_row, decode_snapshot
from onexflow.core.errors import StoreUnusable
from onexflow.core.events import WorkflowCreated
from onexflow.core.evolve import create, evolve
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey, is_uuid7
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES, WORKFLOW_STATES
from onexflow.core.state import RunState
from onexflow.engine.catalog import Catalog
from onexflow.engine.cuts import uncut
from onexflow.engine.run import Run
from onexflow.engine.shard import NONE_AT_WORK, Shard
from onexflow.ports.event_store import EventStore, Row, RunRecord

S = TypeVar("S")

PAGE = 1024


async def read_rows(store: EventStore, shard: int, iid: int, from_seq: int = 1, to_seq: int | None = None) -> list[Row]:
    """All rows of a run that hold a sequence number of that range, both ends in it."""
    rows: list[Row] = []
    while to_seq is None or from_seq <= to_seq:
        page = await store.read_run(shard, iid, from_seq, PAGE)
        rows.extend(row for row in page if to_seq is None or row.seq <= to_seq)
        if len(page) < PAGE:
            break
        from_seq = page[-1].seq + page[-1].count
    return rows


def fold(
    catalog: Catalog, state: RunState | None, rows: Sequence[Row], to_seq: int | None = None
) -> tuple[Graph, RunState]:
    """Fold rows into a state (None: from the run's first event on). Events at or below the state's are skipped, and those
    above `to_seq`."""
    graph: Graph | None = None
    if state is not None:
        graph = catalog.graph_of_run(state.namespace, state.workflow_type, state.version, state.definition)
    for row in rows:
        at, events, _ = decode_row(row.data)
        for index, event in enumerate(events):
            seq = row.seq + index
            if to_seq is not None and seq > to_seq:
                break
            if state is None or graph is None:
                if not isinstance(event, WorkflowCreated) or seq != 1:
                    raise StoreUnusable(f"run {row.iid} does not begin with workflow.created", {"seq": seq})
                graph = catalog.graph_of_run(event.namespace, event.workflow_type, event.version, event.definition)
                state = create(graph, event, at)
            elif seq > state.seq:
                if seq != state.seq + 1:
                    raise StoreUnusable(f"run {row.iid} lacks event {state.seq + 1}", {"seq": seq})
                evolve(graph, state, event, row.epoch, row.offset + index, at)
    if state is None or graph is None:
        raise StoreUnusable("a run without events")
    return graph, state


async def graph_of(store: EventStore, catalog: Catalog, shard: int, iid: int) -> Graph:
    """The graph that a run was started with, from its first event alone; when that was cut, from its snapshot."""
    for row in await store.read_run(shard, iid, 1, 1):
        event = decode_row(row.data)[1][0]
        if isinstance(event, WorkflowCreated):
            return catalog.graph_of_run(event.namespace, event.workflow_type, event.version, event.definition)
    snapshot = await store.load_snapshot(shard, iid)
    state = decode_snapshot(snapshot.data) if snapshot else None
    if state is not None:
        return catalog.graph_of_run(state.namespace, state.workflow_type, state.version, state.definition)
    raise StoreUnusable(f"run {iid} does not begin with workflow.created", {"shard": shard})


async def read_tail(
    store: EventStore, shard: Shard, iid: int, decode: Callable[[bytes], S | None]
) -> tuple[S | None, int, list[Row]]:
    """An entity's newest snapshot (None: it has none that can be used), the number of that snapshot's last event, and
    the rows that hold what came after it."""
    while True:
        cuts = await uncut(shard)
        snapshot = await store.load_snapshot(shard.id, iid)
        state = decode(snapshot.data) if snapshot else None
        seq = snapshot.seq if snapshot is not None else 0
        rows = await read_rows(store, shard.id, iid, seq + 1 if state is not None else 1)
        if shard.cuts == cuts:  # else rows may have gone behind a newer snapshot
            return state, seq, rows


async def read_run(store: EventStore, catalog: Catalog, shard: Shard, record: RunRecord) -> Run:
    """The run as the log has it: its newest snapshot and the events after it."""
    return made_run(catalog, shard, record, *await read_tail(store, shard, record.iid, decode_snapshot))


def made_run(
    catalog: Catalog,
    shard: Shard,
    record: RunRecord,
    state: RunState | None,
    snapshot_seq: int,
    rows: Sequence[Row],
) -> Run:
    """The run of what was read: the state in its snapshot, that one's last event, and the rows after it."""
    graph, state = fold(catalog, state, rows)
    run = Run(shard, record.iid, graph, state, record.start_hash)
    run.durable_seq = state.seq
    run.listed_state, run.listed_seq = WORKFLOW_STATES[record.state], record.head
    run.snapshot_seq = snapshot_seq
    return run


async def hot_runs(store: EventStore, shard: Shard) -> tuple[list[RunRecord], set[int]]:
    """The open runs that were at work when the shard's last owner ended, and the numbers of those that were in its memory
    and waited: nobody needs these at once."""
    checkpoint = await store.load_checkpoint(shard.id)
    named: list[int] = msgspec.msgpack.decode(checkpoint.data, type=list[int]) if checkpoint else []
    at_work = named.index(NONE_AT_WORK) if NONE_AT_WORK in named else len(named)
    iids = set(named[:at_work])
    offset = checkpoint.offset if checkpoint else 1
    iids.update(grave.iid for grave in await store.tombstones(shard.id, offset))
    while True:
        rows = await store.read_shard(shard.id, offset, PAGE)
        iids.update(row.iid for row in rows)
        if len(rows) < PAGE:
            break
        offset = rows[-1].offset + rows[-1].count
    records = await store.get_runs(shard.id, sorted(iids)) if iids else []
    hot = [record for record in records if WORKFLOW_STATES[record.state] not in TERMINAL_WORKFLOW_STATES]
    return hot, set(named[at_work + 1 :]) - iids


def id_time_ns(instance: UUID) -> int | None:
    """When a UUIDv7 was minted, in ns; None for any other UUID."""
    return _time_ns(instance) if is_uuid7(instance) else None


def _time_ns(instance: UUID) -> int:
    """The time in a UUIDv7; anything in another one."""
    return (instance.int >> 80) * 1_000_000


class RecentRuns:
    """Keys that this owner has seen, so that most starts need no look-up.

    The memory is complete for ids minted after `complete_since`: what was first sent after the takeover and has not
    been forgotten since. A client's clock may be ahead by `AHEAD_NS`, so ids from around the takeover are looked up; ids
    from further ahead are refused (`is_premature`), or a later owner would take them for new.
    """

    AHEAD_NS = 15_000_000_000

    def __init__(self, now: int, limit: int) -> None:
        self.complete_since = now + self.AHEAD_NS if now else 0
        self._limit = limit
        self._seen: OrderedDict[RunKey, None] = OrderedDict()

    def add(self, key: RunKey) -> None:
        self._seen[key] = None
        if len(self._seen) > self._limit:
            forgotten, _ = self._seen.popitem(last=False)
            # Any other UUID is looked up from now on, whenever it was made.
            self.complete_since = max(self.complete_since, id_time_ns(forgotten.instance_id) or 1)

    def has(self, key: RunKey) -> bool:
        return key in self._seen

    def must_be_new(self, key: RunKey) -> bool:
        """Is it certain that no run with this key exists?"""
        if key in self._seen:
            return False
        if not self.complete_since:
            return True
        minted = id_time_ns(key.instance_id)
        return minted is not None and minted > self.complete_since

    @classmethod
    def is_premature(cls, instance: UUID, now: int) -> bool:
        """Was it minted by a clock that is too far ahead?"""
        return _time_ns(instance) > now + cls.AHEAD_NS and is_uuid7(instance)
