"""Store time, as both stores of one orchestrator keep it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StoreTime:
    """The wall clock, but never below what was said or stored before. Where the wall clock is set back, time goes on
    from there at its own pace: due times are in store time, and nothing that waits may wait for the clock to catch up.
    """

    def __init__(self, wall: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()  # a store's writer asks in its own thread
        self._latest = 0
        self._asked_at = monotonic()

    def now(self) -> int:
        """UTC nanoseconds."""
        with self._lock:
            at = self._monotonic()
            passed = int((at - self._asked_at) * 1e9) if at > self._asked_at else 0
            self._asked_at = at
            self._latest = max(self._latest + passed, self._wall())
            return self._latest

    def not_below(self, stored: int) -> None:
        """A time that was stored by an owner before."""
        with self._lock:
            self._latest = max(self._latest, stored)
