"""What is done by the clock and by nobody's request: beats for the lease, demand for the workers, parking idle runs,
waking parked ones, and forgetting old request ids."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

import structlog

from onexflow.core.errors import ShardMoved
from onexflow.core.turn import SECOND
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.blocking import Blocking, encode_parked
from onexflow.engine.kernel import Kernel
from onexflow.engine.readback import next_wake
from onexflow.ports.registry import Registry
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.housekeeping")

TICK_SECONDS = 0.1
SWEEP_SECONDS = 2.0
#: The store's time is ahead of what has passed by more than this: it has jumped.
JUMP_SECONDS = 0.5
#: A run with nothing under way for so long is paged out, unless a timer of it is due sooner than this.
IDLE_SECONDS = 10.0
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
            if is_idle and loop.time() - swept >= SWEEP_SECONDS:
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
        self.park_idle(now)
        await self.wake_parked()

    def park_idle(self, now: float) -> int:
        """Page out the runs that have been idle long enough. Returns how many."""
        horizon = self._kernel.now() + int(IDLE_SECONDS * SECOND)
        idle = []
        for run in self._kernel.runs():
            if run.attempts or run.durable_seq < run.state.seq:
                run.idle_since = 0.0
            elif not run.idle_since:
                run.idle_since = now
            elif now - run.idle_since >= IDLE_SECONDS:
                wake = next_wake(run)
                if not wake or wake > horizon:
                    idle.append((run, wake))
        look = self._blocking.look()
        for run, wake in idle:
            blocked = look.run(run)
            if blocked is not None and blocked.is_valid:  # else the watchdog sees to it
                run.shard.park(run, wake, encode_parked(blocked))
        if idle:
            self._kernel.lane.mark()
        return len(idle)

    async def wake_parked(self) -> int:
        """Read back the parked runs whose timers are due soon. Returns how many."""
        until = self._kernel.now() + int(IDLE_SECONDS * SECOND)
        woken = 0
        for shard in list(self._kernel.shards.values()):
            with suppress(ShardMoved):  # its next owner wakes them
                for record in await self._kernel.store.due_parked(shard.id, until):
                    if await self._kernel.find_numbered(shard, record.iid) is not None:
                        woken += 1
        return woken
