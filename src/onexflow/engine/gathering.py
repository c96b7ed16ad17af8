"""Results of a wide mapped task are gathered, so that its history does not grow by two events with each of its items.

Only of pure items, and only where nothing waits for one of them alone: what is held is not recorded, not acknowledged, and
its attempts are still their worker's. If this process ends, the worker says it again to the next owner; if both end, the
items run again. (docs/decisions/0010-results-of-a-fan-out.md)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from onexflow.engine.run import Attempt, Run
from onexflow.ports.worker_link import AttemptResult

if TYPE_CHECKING:
    from onexflow.engine.sessions import WorkerSession

#: Results are held for so long, and recorded sooner when so many are there, or when they are the last of their task.
HOLD_SECONDS: Final = 0.05
HOLD_ITEMS: Final = 256
#: They are held on, while they are fewer than this part of the task's items, but no longer than so many seconds.
PART: Final = 500
HOLD_AT_MOST: Final = 5.0


class _Group:
    """Results of one task of one run, from one worker."""

    __slots__ = ("results", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.results: list[AttemptResult] = []


class Gatherer:
    """`record` is called with what was held long enough, in the order in which it came."""

    def __init__(self, record: Callable[[WorkerSession, Sequence[AttemptResult]], None]) -> None:
        self._record = record
        self._groups: dict[tuple[WorkerSession, Run, int], _Group] = {}
        self._held: Counter[tuple[Run, int]] = Counter()
        self._look: asyncio.TimerHandle | None = None

    def hold(self, session: WorkerSession, attempt: Attempt, result: AttemptResult) -> None:
        run, task = attempt.run, attempt.task
        key = session, run, task
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(asyncio.get_running_loop().time())
            self._arm()
        group.results.append(result)
        self._held[run, task] += 1
        state = run.state.tasks[task]
        if state.done + self._held[run, task] >= state.of:
            self.let_go(run)  # nothing more of it comes
        elif len(group.results) >= HOLD_ITEMS or session.is_draining:
            self._flush(key)

    def let_go(self, run: Run) -> None:
        """Record what is held of that run."""
        for key in [key for key in self._groups if key[1] is run]:
            self._flush(key)

    def left(self, session: WorkerSession) -> None:
        """Record what is held from that worker: it goes, or takes no more."""
        for key in [key for key in self._groups if key[0] is session]:
            self._flush(key)

    def stop(self) -> None:
        """What is held is the next owner's to hear of."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._groups.clear()
        self._held.clear()

    def _flush(self, key: tuple[WorkerSession, Run, int]) -> None:
        group = self._groups.pop(key, None)
        if group is None:
            return
        session, run, task = key
        self._held[run, task] -= len(group.results)
        if self._held[run, task] <= 0:
            del self._held[run, task]
        self._record(session, group.results)

    def _arm(self) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._look_at_all)

    def _look_at_all(self) -> None:
        self._look = None
        now = asyncio.get_running_loop().time()
        for key, group in list(self._groups.items()):
            enough = key[1].state.tasks[key[2]].of // PART
            age = now - group.since
            if (age >= HOLD_SECONDS and len(group.results) >= enough) or age >= HOLD_AT_MOST:
                self._flush(key)
        if self._groups:
            self._arm()
