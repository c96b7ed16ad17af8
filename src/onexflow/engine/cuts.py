"""Cutting histories: events that a snapshot has made unnecessary go, and a tombstone says which ones they were.

A cut goes with the next append, in its transaction, and only behind a snapshot that is stored or goes with it. Cuts of
one shard are made one after the other (`Shard.cutting`): each is computed from the rows as they are in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import structlog

from onexflow.codec.rows import split_row
from onexflow.core.errors import InternalError
from onexflow.ports.event_store import Cut, EventStore, Row, SnapshotRecord, Tombstone
from onexflow.spi.exceptions import SPIError

if TYPE_CHECKING:
    from onexflow.engine.lane import CommitLane
    from onexflow.engine.queue import Queue
    from onexflow.engine.shard import Shard

log = structlog.get_logger("onexflow.cuts")

#: One cut deletes about so many events at most, so that no append takes long: what is longer is cut in several.
STEP_EVENTS: Final = 8192
#: A queue's history is cut when so many events have come behind its snapshot.
TRIM_EVENTS: Final = 5000
_PAGE: Final = 256


async def build_cut(store: EventStore, shard: int, iid: int, before_seq: int) -> Cut | None:
    """The cut of a run's stored events below `before_seq`, or of the first STEP_EVENTS of them (then the cut's own
    `before_seq` is lower). None when there are none. The caller sees to it that nothing else cuts that run meanwhile:
    see `cut_history`."""
    digest = blake2b(digest_size=16)
    first: Row | None = None
    rest: Row | None = None
    seq = offset = count = 0
    async for row in _rows(store, shard, iid):
        if row.seq >= before_seq or count >= STEP_EVENTS:
            break
        first = first or row
        gone = min(row.count, before_seq - row.seq)
        data = row.data
        if gone < row.count:
            data, kept = split_row(row.data, gone)
            rest = Row(row.offset + gone, row.count - gone, row.epoch, iid, row.seq + gone, kept)
        digest.update(data)
        seq, offset, count = row.seq + gone - 1, row.offset + gone - 1, count + gone
    if first is None:
        return None
    grave = Tombstone(iid, first.seq, seq, first.offset, offset, count, digest.digest(), store.now())
    return Cut(seq + 1, grave, rest)


async def _rows(store: EventStore, shard: int, iid: int) -> AsyncIterator[Row]:
    seq = 1
    while page := await store.read_run(shard, iid, seq, _PAGE):
        for row in page:
            yield row
        seq = page[-1].seq + page[-1].count


async def cut_history(
    store: EventStore,
    lane: CommitLane,
    shard: Shard,
    iid: int,
    before_seq: int,
    snapshot: SnapshotRecord | None = None,
) -> list[Tombstone]:
    """Cut all events of a run below `before_seq`; returns, when that is durable, the tombstones that it has left (empty:
    nothing was there to cut).

    `snapshot`, folded at least up to `before_seq - 1`, is written in the transaction of the first cut. Without one, a
    stored snapshot must reach that far, else InternalError: then nothing was cut.
    """
    if snapshot is None:
        snapshot = await store.load_snapshot(shard.id, iid)
        known = True
    else:
        known = False
    if snapshot is None or snapshot.seq < before_seq - 1:
        raise InternalError(
            f"a history is cut behind its snapshot only, and the one of {iid} does not reach event {before_seq - 1}",
            {"shard": shard.id, "iid": iid, "snapshot": snapshot.seq if snapshot else 0},
        )
    graves: list[Tombstone] = []
    while True:
        cut = await _cut_next(store, lane, shard, iid, before_seq, None if known or graves else snapshot)
        await lane.durable()
        if cut is None:
            return graves
        graves.append(cut.tombstone)
        if cut.before_seq >= before_seq:
            return graves


async def _cut_next(
    store: EventStore, lane: CommitLane, shard: Shard, iid: int, before_seq: int, snapshot: SnapshotRecord | None
) -> Cut | None:
    """Take one cut into the next append. The shard's lock is held until that is durable, whoever is cancelled."""
    await shard.cutting.acquire()
    try:
        await lane.durable()  # the rows are read as the append finds them
        cut = await build_cut(store, shard.id, iid, before_seq)
        shard.check()
    except BaseException:
        shard.cutting.release()
        raise
    if cut is None:
        shard.cutting.release()
        return None
    if snapshot is not None:
        shard.keep(snapshot)
    shard.cut(cut)
    lane.mark()
    lane.when_durable(lambda _: shard.cutting.release())
    return cut


async def uncut(shard: Shard) -> int:
    """Wait for the cut under way, if there is one. A state that is read back afterwards, in several reads, is whole if
    `shard.cuts` is still the returned number when they are done."""
    async with shard.cutting:
        return shard.cuts


async def earliest_kept(store: EventStore, shard: int, iid: int) -> int:
    """Number of a run's first event that was not cut, whether it is there or still to come."""
    graves = await store.tombstones(shard, 0, iid)
    return max((grave.last_seq for grave in graves), default=0) + 1


class Trimmer:
    """Cuts the histories of work queues behind their snapshots, as these are stored.

    A tombstone stays for ever (about 100 bytes), so a cut waits until TRIM_EVENTS have come together."""

    def __init__(self, store: EventStore, lane: CommitLane) -> None:
        self._store = store
        self._lane = lane
        self._tasks: set[asyncio.Task[None]] = set()

    def on_stored(self, queue: Queue) -> None:
        """Its newest snapshot is durable."""
        if queue.snapshot_seq - queue.trimmed_seq >= TRIM_EVENTS and not queue.is_trimmed:
            queue.is_trimmed = True
            task = asyncio.get_running_loop().create_task(self._trim(queue, queue.snapshot_seq), name="trim")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _trim(self, queue: Queue, seq: int) -> None:
        try:
            await cut_history(self._store, self._lane, queue.shard, queue.iid, seq + 1)
            queue.trimmed_seq = seq
        except SPIError as error:  # it is tried again at the next snapshot
            log.warning("trim.failed", queue=str(queue.key), error=str(error))
        except Exception:
            log.exception("trim.failed", queue=str(queue.key))
        finally:
            queue.is_trimmed = False

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
