"""Runs that come into memory: read once, however many ask for them, and many with one read where many are to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from onexflow.codec.rows import decode_snapshot
from onexflow.core.errors import StoreUnavailable, Unavailable
from onexflow.core.ids import RunKey
from onexflow.engine.catalog import Catalog
from onexflow.engine.cuts import uncut
from onexflow.engine.lane import CommitLane
from onexflow.engine.recovery import made_run, read_run
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import EventStore, ParkedRecord, RunRecord, StoredRun

log = structlog.get_logger("onexflow.loader")

#: Runs that are read back at a time: what they need of the loop is a few milliseconds.
READ_TOGETHER = 64
#: What could not be read back is tried again after so long.
READ_AGAIN_SECONDS = 0.25
#: Rows of a run that are read with those of the others; one that has more is read by itself.
ROWS_TOGETHER = 64


class Loader:
    """Of one kernel. `on_loaded` is called with each run that enters memory."""

    def __init__(self, store: EventStore, catalog: Catalog, lane: CommitLane, on_loaded: Callable[[Run], None]) -> None:
        self._store = store
        self._catalog = catalog
        self._lane = lane
        self._on_loaded = on_loaded
        self._loading: dict[tuple[Shard, int], asyncio.Future[Run | None]] = {}
        self._tasks: set[asyncio.Task[dict[int, Run | None]]] = set()
        #: Why runs cannot be read back, by (shard, number).
        self.unreadable: dict[tuple[int, int], str] = {}

    def is_loading(self, shard: Shard, iid: int) -> bool:
        return (shard, iid) in self._loading

    async def load(self, shard: Shard, record: RunRecord) -> Run | None:
        """One run. An unreadable one is reported and hurts nothing else; an ended one is read for the caller alone."""
        if (shard, record.iid) not in self._loading:
            self._begin(shard, [record])
        return await asyncio.shield(self._loading[shard, record.iid])

    async def load_all(self, shard: Shard, records: Sequence[RunRecord]) -> int:
        """Many, so many with one read. Returns how many there are now."""
        count = 0
        for first in range(0, len(records), READ_TOGETHER):
            part = records[first : first + READ_TOGETHER]
            fresh = [one for one in part if one.iid not in shard.runs and (shard, one.iid) not in self._loading]
            if fresh:
                self._begin(shard, fresh)
            loading = [self._loading[place] for one in part if (place := (shard, one.iid)) in self._loading]
            runs = await asyncio.gather(*(asyncio.shield(future) for future in loading))
            count += len(part) - len(loading) + sum(run is not None for run in runs)
        return count

    def _begin(self, shard: Shard, records: Sequence[RunRecord]) -> None:
        loop = asyncio.get_running_loop()
        for record in records:
            self._loading[shard, record.iid] = loop.create_future()
        task = loop.create_task(self._read(shard, records))
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, shard, records))

    def _end(self, shard: Shard, records: Sequence[RunRecord], task: asyncio.Task[dict[int, Run | None]]) -> None:
        self._tasks.discard(task)
        error = StoreUnavailable("the reading was ended") if task.cancelled() else task.exception()
        for record in records:
            future = self._loading.pop((shard, record.iid))
            if error is None:
                future.set_result(task.result()[record.iid])
            else:
                future.set_exception(error)
                future.exception()  # who asked may have given up: then nobody is to be told

    async def _read(self, shard: Shard, records: Sequence[RunRecord]) -> dict[int, Run | None]:
        found: dict[int, Run | None] = {}
        left = records
        while left:
            iids = {record.iid for record in left}
            shard.reading |= iids  # before the wait: what is decided at its end is not durable yet
            try:
                await self._lane.durable(shard)  # their parked rows may be on the way
                stored = await self._stored(shard, left)
            finally:
                outdated = shard.outdated & iids
                shard.reading -= iids
                shard.outdated -= iids
            shard.check()
            again = []
            for record in left:
                resident = shard.runs.get(record.iid)
                if resident is not None or record.iid not in outdated:
                    found[record.iid] = resident or self._enter(shard, record.iid, *stored[record.iid])
                else:  # it was in memory meanwhile, and has gone on, and has left it again
                    again.append(record)
            left = again
        return found

    async def _stored(
        self, shard: Shard, records: Sequence[RunRecord]
    ) -> dict[int, tuple[Run | None, ParkedRecord | None]]:
        """Each run as the log has it, and its parked row. None: its events make no sense to this release."""
        while True:
            cuts = await uncut(shard)
            stored = await self._store.read_back(shard.id, [record.iid for record in records], ROWS_TOGETHER)
            if shard.cuts == cuts:  # else rows may have gone behind a newer snapshot
                break
        by_number = {one.record.iid: one for one in stored}
        made: dict[int, tuple[Run | None, ParkedRecord | None]] = {}
        for record in records:
            try:
                one = by_number[record.iid]
                made[record.iid] = await self._make(shard, one), one.parked
            except Unavailable:
                raise
            except Exception as error:  # in whatever way
                key = str(RunKey.from_bytes(record.key))
                log.exception("run.unreadable", run=key, shard=shard.id, iid=record.iid, error=str(error))
                self.unreadable[shard.id, record.iid] = f"{type(error).__name__}: {error}"
                made[record.iid] = None, None
        return made

    async def _make(self, shard: Shard, one: StoredRun) -> Run:
        state = decode_snapshot(one.snapshot.data) if one.snapshot is not None else None
        if len(one.rows) == ROWS_TOGETHER or (state is None and one.snapshot is not None):
            return await read_run(self._store, self._catalog, shard, one.record)
        return made_run(self._catalog, shard, one.record, state, one.snapshot.seq if one.snapshot else 0, one.rows)

    def _enter(self, shard: Shard, iid: int, run: Run | None, parked: ParkedRecord | None) -> Run | None:
        shard.unread.discard(iid)
        if run is None:
            shard.absent.add(iid)
            return None
        self.unreadable.pop((shard.id, iid), None)
        shard.absent.discard(iid)
        if parked is not None:
            shard.unpark(iid)
            self._lane.mark()
        if not run.is_over:
            shard.add(run)
            self._on_loaded(run)
        return run
