"""Timers of runs: a heap in memory, one loop timer. Due times are store time; they are rebuilt from the state when a
run is read back, so nothing here is durable. A timer that is no longer wanted is found stale when it fires."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from onexflow.core.commands import FireTimer
from onexflow.core.turn import SECOND
from onexflow.engine.run import Run

#: Store ns by which a timer that is set again is later than now, at least.
STEP = SECOND // 1000


def again_at(now: int, left: float) -> int:
    """When a timer that was found early is due, with `left` seconds to go: less than the clock can tell may be left, and
    a timer that is due at once would fire for ever without any time passing."""
    return now + max(int(left * SECOND), STEP)


class Timers:
    """`fire(run, command)` is called on the loop, in due order, never early by the store's clock.

    Timers of runs that are no longer `wanted` are swept out before they are most of the heap: an hour's timeout must not
    keep each run of that hour in memory."""

    SWEEP_AT = 1000

    def __init__(
        self,
        now: Callable[[], int],
        fire: Callable[[Run, FireTimer], None],
        wanted: Callable[[Run], bool],
    ) -> None:
        self._now = now
        self._fire = fire
        self._wanted = wanted
        self._sweep_at = self.SWEEP_AT
        self._heap: list[tuple[int, int, Run, FireTimer]] = []
        self._number = count()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due_at: int, run: Run, command: FireTimer) -> None:
        if len(self._heap) >= self._sweep_at:
            self.sweep()
        heapq.heappush(self._heap, (due_at, next(self._number), run, command))
        self._arm()

    def sweep(self) -> None:
        """Let go of the runs that are no longer wanted."""
        self._heap = [entry for entry in self._heap if self._wanted(entry[2])]
        heapq.heapify(self._heap)
        self._sweep_at = max(self.SWEEP_AT, 2 * len(self._heap))

    def wake(self) -> None:
        """Look at all that is due, whatever was armed."""
        if self._handle is not None:
            self._handle.cancel()
        self._turn()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._heap.clear()

    def _arm(self) -> None:
        if not self._heap:
            return
        due_at = self._heap[0][0]
        if self._handle is not None:
            if self._armed_for <= due_at:
                return
            self._handle.cancel()
        self._armed_for = due_at
        wait = max(0, due_at - self._now()) / SECOND
        # The wall clock may jump: look again at least once a minute.
        self._handle = asyncio.get_running_loop().call_later(min(wait, 60.0), self._turn)

    def _turn(self) -> None:
        self._handle = None
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            _, _, run, command = heapq.heappop(self._heap)
            self._fire(run, command)
        self._arm()
