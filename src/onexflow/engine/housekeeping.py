"""What is done by the clock and by nobody's request: beats for the lease, demand for the workers, parking idle runs,
waking parked ones, and forgetting old request ids."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress

import structlog

from onexflow.core.errors import ShardMoved
from onexflow.core.turn import SECOND
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.blocking import Blocking, encode_parked
from onexflow.engine.kernel import Kernel
from onexflow.engine.readback import next_wake
from onexflow.engine.run import Run
from onexflow.engine.shard import NEVER, Shard
from onexflow.ports.registry import Registry
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.housekeeping")

TICK_SECONDS = 0.1
SWEEP_SECONDS = 2.0
#: The store's time is ahead of what has passed by more than this: it has jumped.
JUMP_SECONDS = 0.5
#: A run with nothing under way for so long is paged out, unless a timer of it is due sooner than this.
IDLE_SECONDS = 10.0
#: When more than so many are idle, all go that were so at the sweep before, and the next sweep comes at once: else memory
#: would grow with the rate of starts.
IDLE_RUNS = 5000
#: Runs that are paged out with one append: what that needs of the loop is a few milliseconds.
PAGED_TOGETHER = 500
#: How long the answer to a request id is kept, for a caller that repeats it; and how often older ones are looked for.
ANSWER_SECONDS = 24 * 3600.0
FORGET_SECONDS = 600.0


class Housekeeping:
    """One task that turns with the loop; a sweep every two seconds."""

    def __init__(self, kernel: Kernel, book: AttemptBook, blocking: Blocking, registry: Registry) -> None:
        self._kernel = kernel
        self._book = book
        self._blocking = blocking
        self._registry = registry
        self._task: asyncio.Task[None] | None = None
        self._duties: asyncio.Task[None] | None = None
        self._forgot = 0.0
        #: More than IDLE_RUNS were idle at the last sweep, and there is something to be done about it.
        self._is_crowded = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="housekeeping")

    async def stop(self) -> None:
        tasks = [task for task in (self._task, self._duties) if task is not None]
        self._task = self._duties = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        """Nothing here waits for the store: one that hangs must not cost the membership."""
        loop = asyncio.get_running_loop()
        swept = self._forgot = loop.time()
        ahead = self._ahead()
        while True:
            before, ahead = ahead, self._ahead()
            if ahead - before > JUMP_SECONDS:  # timers go by the store's time, and are armed by the loop's
                log.warning("clock.jumped", seconds=round(ahead - before, 3))
                loop.call_soon(self._book.timers.wake)
                swept -= SWEEP_SECONDS
            self._registry.beat()
            self._book.tell_demand()
            is_idle = self._duties is None or self._duties.done()
            if is_idle and (self._is_crowded or loop.time() - swept >= SWEEP_SECONDS):
                swept = loop.time()
                self._duties = loop.create_task(self._do_duties(swept), name="duties")
            await asyncio.sleep(TICK_SECONDS)

    def _ahead(self) -> float:
        """Seconds that the store's time is ahead of the loop's."""
        return self._kernel.now() / SECOND - asyncio.get_running_loop().time()

    async def _do_duties(self, now: float) -> None:
        await self._guarded("parked runs", self._sweep(now))
        if now - self._forgot >= FORGET_SECONDS:
            self._forgot = now
            before = self._kernel.now() - int(ANSWER_SECONDS * SECOND)
            await self._guarded("old answers", self._kernel.store.forget_requests(before))

    async def _guarded(self, duty: str, work: Awaitable[object]) -> None:
        """One duty that fails must not end the others."""
        try:
            await work
        except SPIError as error:
            log.warning("duty.failed", duty=duty, error=str(error))
        except Exception:
            log.exception("duty.failed", duty=duty)

    async def _sweep(self, now: float) -> None:
        await self.park_idle(now)
        await self.wake_parked()

    async def park_idle(self, now: float) -> int:
        """Page out the runs that have been idle long enough. Returns how many."""
        idle, new = self._idle(now)
        is_crowded = len(idle) + new > IDLE_RUNS
        if not is_crowded:
            idle = [run for run in idle if now - run.idle_since >= IDLE_SECONDS]
        parked = 0
        while idle:
            part = idle[-PAGED_TOGETHER:]
            del idle[-PAGED_TOGETHER:]  # else this list would keep them in memory
            parked += self._park(part)
            with suppress(ShardMoved):  # of one of them: the others are paged out
                await self._kernel.lane.durable()
        if parked:
            self._book.timers.sweep()  # and so would their timers
        self._is_crowded = is_crowded and (parked > 0 or new > 0)
        return parked

    def _idle(self, now: float) -> tuple[list[Run], int]:
        """The runs that were idle before and still are; and how many are so since now."""
        idle, new = [], 0
        for run in self._kernel.runs():
            if _is_at_work(run):
                run.idle_since = 0.0
            elif run.idle_since:
                idle.append(run)
            else:
                run.idle_since = now
                new += 1
        return idle, new

    def _park(self, runs: Sequence[Run]) -> int:
        """Those that are still idle."""
        look = self._blocking.look()
        horizon = self._kernel.now() + int(IDLE_SECONDS * SECOND)
        parked = 0
        for run in runs:
            shard = run.shard
            if shard.moved is not None or shard.early is not None or shard.runs.get(run.iid) is not run:
                continue
            if _is_at_work(run):
                continue
            wake = next_wake(run)
            if wake and wake <= horizon:
                continue
            blocked = look.run(run)
            if blocked is not None and blocked.is_valid:  # else the watchdog sees to it
                shard.park(run, wake, encode_parked(blocked))
                parked += 1
        if parked:
            self._kernel.lane.mark()
        return parked

    async def wake_parked(self) -> int:
        """Read back the parked runs whose timers are due soon. Returns how many."""
        until = self._kernel.now() + int(IDLE_SECONDS * SECOND)
        woken = 0
        for shard in list(self._kernel.shards.values()):
            with suppress(ShardMoved):  # its next owner wakes them
                if shard.next_wake <= until:
                    due = [record.iid for record in await self._kernel.store.due_parked(shard.id, until)]
                    woken += await self._kernel.find_all_numbered(shard, due) if due else 0
                    await self._learn_next_wake(shard)
        return woken

    async def _learn_next_wake(self, shard: Shard) -> None:
        """So that a shard with nothing due costs no look at the store."""
        if shard.early is not None:
            return  # rows may wait for it to be whole
        shard.next_wake = NEVER  # what is parked from now on brings it forward
        try:
            await self._kernel.lane.durable(shard)  # what was parked before
            first = await self._kernel.store.due_parked(shard.id, NEVER, 1)
        except BaseException:
            shard.next_wake = 0
            raise
        shard.next_wake = min(shard.next_wake, first[0].wake_at if first else NEVER)


def _is_at_work(run: Run) -> bool:
    return bool(run.attempts) or run.durable_seq < run.state.seq
