"""Group commit: everything that was decided while one append was under way goes into the next.

One lane is one append in flight. An idle lane commits at once, a busy one in large batches; there is no artificial
delay. What must not be seen before it is durable (replies, acknowledgements, effects, cancels, query answers) is
handed to `when_durable` and released, in order, by the commit that covers it.

Failures: space missing → the same batch again until it fits, and `on_full` refuses new work meanwhile. Unknown outcome
→ the same batch again: the store compares heads, so it is stored once. Fenced, or a store that says it can no longer be
trusted → every waiting release gets the error, and `on_lost` ends this owner; nothing is undone in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from onexflow.core.errors import Coded, InternalError, ShardMoved, StoreFull, StoreUnavailable
from onexflow.engine.shard import Entity, Shard
from onexflow.ports.event_store import EventStore, ShardAppend

log = structlog.get_logger("onexflow.lane")

#: Called once: with None when durable, with the error when it never will be.
Release = Callable[[Coded | None], None]

RETRY_SECONDS = 0.25


class CommitLane:
    """The one writer of its shards."""

    def __init__(
        self,
        store: EventStore,
        shards: Callable[[], Iterable[Shard]],
        *,
        on_stored: Callable[[Sequence[tuple[Entity, int]]], None],
        on_full: Callable[[bool], None],
        on_lost: Callable[[Coded], None],
    ) -> None:
        self._store = store
        self._shards = shards
        self._on_stored = on_stored
        self._on_full = on_full
        self._on_lost = on_lost
        self._wake = asyncio.Event()
        self._collecting: list[Release] = []
        self._in_flight: list[Release] | None = None
        self._dirty = False
        self._lost: Coded | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        #: Loop time at which the append under way was begun; 0 when there is none.
        self.pending_since = 0.0
        self.commits = 0
        self.events = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="commit-lane")

    async def stop(self, within: float) -> None:
        """Commit what is decided, then end; give it up when the store does not take it `within` seconds."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(within):
                if self._lost is None:
                    await self._idle.wait()
        except TimeoutError:
            log.error("commit.abandoned", seconds=within)  # noqa: TRY400 - no traceback of ours says more
            await self.abort()
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def abort(self) -> None:
        """End at once, as a killed process would: what is not durable now never will be."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._lost is None:
            self._give_up(StoreUnavailable("the orchestrator was ended"), self._in_flight or [])

    def mark(self) -> None:
        """Something was decided: commit it soon."""
        if not self._dirty:
            self._dirty = True
            self._idle.clear()
            self._wake.set()

    def when_durable(self, release: Release) -> None:
        """Call `release` once everything decided so far is durable: now, if it is."""
        if self._lost is not None:
            _tell(release, self._lost)
        elif self._dirty:
            self._collecting.append(release)
        elif self._in_flight is not None:
            self._in_flight.append(release)
        else:
            _tell(release, None)

    async def durable(self) -> None:
        """Return when everything decided so far is durable. Raises when it never will be."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def release(error: Coded | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        self.when_durable(release)
        await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._dirty = False
            releases, self._collecting = self._collecting, []
            self._in_flight = releases
            self.pending_since = loop.time()
            try:
                batch, touched = self._take(loop.time())
                if batch:
                    await self._append(batch)
            except Coded as error:
                self._give_up(error, releases)
                return
            except Exception as error:
                log.exception("commit.failed")
                self._give_up(InternalError(f"a commit failed: {error!r}"), releases)
                return
            self.pending_since = 0.0
            self._in_flight = None
            for shard, append in touched:
                shard.stored(append)
                self.events += append.next - append.head
            self.commits += 1
            self._on_stored(self._taken_runs)
            for release in releases:
                _tell(release, None)
            if not self._dirty:
                self._idle.set()

    def _take(self, now: float) -> tuple[list[ShardAppend], list[tuple[Shard, ShardAppend]]]:
        self._taken_runs: list[tuple[Entity, int]] = []
        touched = []
        for shard in self._shards():
            if shard.is_dirty:
                self._taken_runs += [(run, run.state.seq) for run in shard.pending.runs.values()]
                touched.append((shard, shard.take(now)))
        return [append for _, append in touched], touched

    async def _append(self, batch: list[ShardAppend]) -> None:
        """Send the same batch until all of it is known to be stored."""
        full = False
        while True:
            try:
                outcome = await self._store.append(batch)
            except StoreFull:
                if not full:
                    full = True
                    self._on_full(True)
            except StoreUnavailable as error:
                if error.context.get("fatal"):
                    raise
            else:
                for part in batch:
                    if part.shard not in outcome.stored:
                        epoch, head = outcome.refused.get(part.shard, (0, 0))
                        if (epoch, head) != (part.epoch, part.next):
                            raise ShardMoved(
                                f"shard {part.shard} has epoch {epoch} and head {head} in the store",
                                {"shard": part.shard, "epoch": part.epoch, "head": part.head},
                            )
                if full:
                    self._on_full(False)
                return
            await asyncio.sleep(RETRY_SECONDS)

    def _give_up(self, error: Coded, releases: list[Release]) -> None:
        self._lost = error
        self._in_flight = None
        self._idle.set()
        waiting = [*releases, *self._collecting]
        self._collecting = []
        self._on_lost(error)
        for release in waiting:
            _tell(release, error)


def _tell(release: Release, error: Coded | None) -> None:
    """One that waits must not hurt the others, nor the lane."""
    try:
        release(error)
    except Exception:
        log.exception("release.failed")
