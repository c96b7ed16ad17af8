"""What each worker has done: counted as its results come in, at the price of a few additions each."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from onexflow.ports.worker_link import AttemptResult

#: Durations that are kept of a worker, for the percentiles.
KEPT_DURATIONS: Final = 512
#: Workers that are remembered after they have gone.
KEPT_WORKERS: Final = 1000


class Tally:
    """Of one worker, in one life of it."""

    __slots__ = ("completed", "durations", "failed", "incarnation", "nanoseconds", "saved")

    def __init__(self, incarnation: str, completed: int = 0, failed: int = 0, nanoseconds: int = 0) -> None:
        self.incarnation = incarnation
        self.completed = completed
        self.failed = failed
        #: That all of them took.
        self.nanoseconds = nanoseconds
        #: How many had ended when it was written last (engine.tally_store).
        self.saved = 0
        self.durations: deque[int] = deque(maxlen=KEPT_DURATIONS)

    def add(self, results: Iterable[AttemptResult]) -> None:
        """These attempts have ended: those that were stopped or never began do not count. A message of them at a time:
        one by one it costs twice as much."""
        durations = []
        failed = 0
        for result in results:
            status = result.status
            if status == "failed":
                failed += 1
            elif status != "completed":
                continue
            began, ended = result.started_at, result.finished_at
            # Who tells no times, or whose clock was set back, took none: one such must not spoil the mean.
            durations.append(ended - began if 0 < began < ended else 0)
        self.completed += len(durations) - failed
        self.failed += failed
        self.nanoseconds += sum(durations)
        self.durations.extend(durations)

    @property
    def ended(self) -> int:
        return self.completed + self.failed


class Tallies:
    """By worker. A new life begins anew."""

    def __init__(self) -> None:
        self.by_worker: OrderedDict[str, Tally] = OrderedDict()
        #: Workers whose tallies were dropped, and are to be dropped from the store.
        self.forgotten: set[str] = set()

    def of(self, worker: str, incarnation: str) -> Tally:
        tally = self.by_worker.pop(worker, None)
        if tally is None or tally.incarnation != incarnation:
            tally = Tally(incarnation)
        self.by_worker[worker] = tally  # the last that came stands last
        if len(self.by_worker) > KEPT_WORKERS:
            oldest, _ = self.by_worker.popitem(last=False)
            self.forgotten.add(oldest)
        self.forgotten.discard(worker)
        return tally
