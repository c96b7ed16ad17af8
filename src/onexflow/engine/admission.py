"""Which new runs are taken when there is more to do than can be done (docs/decisions/0009-overload.md).

A run may be started as long as what is under way moves. It does not when results come in late: the time from an
assignment to its result, less what its handler took and less what the way takes at its best, is time in queues, of the
worker, of the wire, of this orchestrator. Nor does it when starts wait long before anybody looks at them. When the former is
more than LATE_SECONDS, or the latter more than WAITED_SECONDS, and FRESH_RUNS runs of the last few seconds have not ended or wait to be begun, a new start is
refused, and told when to come again. What was taken then has its end as soon as with FRESH_RUNS in flight, whatever else is
asked for.

Runs that wait for slots, for the world or for people do not count as late, however many there are: a backlog of long tasks
is what a durable queue is for. Two additions a run and one a message of results, no clock of its own.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import structlog

from onexflow.core.errors import Overloaded
from onexflow.core.turn import SECOND

log = structlog.get_logger("onexflow.admission")

#: Open runs of the last FRESH_SECONDS that are always taken: a client that keeps 200 in flight never hears of all this.
FRESH_RUNS: Final = 256
FRESH_SECONDS: Final = 5
#: Results that are later than this have stood in a queue. A worker alone may keep a pure task for 20 ms.
LATE_SECONDS: Final = 0.05
#: A start that nobody has looked at for so long stands in a queue. What it has waited is added to what a run takes with
#: FRESH_RUNS in flight: at 20 ms the slowest were taken after more than twice the time of a closed loop of 200.
WAITED_SECONDS: Final = 0.012
#: The least lateness in so many seconds is what stands; one late message says nothing.
WINDOW_SECONDS: Final = 0.02
#: What was heard is forgotten when nothing more has been for so many seconds.
HEARD_SECONDS: Final = 0.5
#: Seconds after which a refused start is to be tried again, at least and at most.
AGAIN: Final = (0.1, 5.0)
#: That pause is spread over a quarter, so that not all who were refused come at once.
SPREAD: Final = 16
#: For so many seconds the same errors are given out.
ERRORS_SECONDS: Final = 0.05
#: Seconds between lines of the log that say the same.
_SAID_EVERY: Final = 10.0


class Admission:
    """Of one orchestrator. Times are those of the loop, but for the seconds of store time in which runs were begun."""

    def __init__(self) -> None:
        #: Open runs by the second in which they were begun, the newest last.
        self._begun: deque[list[int]] = deque()
        #: Sum of these.
        self.fresh = 0
        #: The shortest way of a result that was ever seen.
        self._least = math.inf
        #: The least lateness of this window and of the one before, and when this one began and was heard of last.
        self._latest = [math.inf, math.inf]
        self._window_at = -math.inf
        self._heard_at = -math.inf
        #: Starts that were refused, ever; and, since the pause was last set, these and the runs that have ended.
        self.refused = 0
        self._refused = self._ended = 0
        self._pause = AGAIN[0]
        self._pause_at = -math.inf
        self._said_at = -math.inf
        self._errors: list[Overloaded] = []
        self._errors_at = -math.inf

    # ---- what is told

    def begun(self, created_at: int) -> None:
        """A run was begun, at that store time (ns)."""
        second = created_at // SECOND
        if not self._begun or self._begun[-1][0] < second:
            self._begun.append([second, 0])
            while self._begun[0][0] < second - FRESH_SECONDS:
                self.fresh -= self._begun.popleft()[1]
        self._begun[-1][1] += 1
        self.fresh += 1

    def ended(self, created_at: int) -> None:
        """A run that was begun then has ended."""
        self._ended += 1
        second = created_at // SECOND
        for place in reversed(self._begun):  # most end soon
            if place[0] == second and place[1]:
                place[1] -= 1
                self.fresh -= 1
                return

    def heard(self, now: float, sent_at: float, took: float, turns: float) -> None:
        """A result of what was sent then has come in; its handler took so many seconds, and so many turns like this one are
        before a task that comes now finds a slot."""
        way = now - sent_at - took
        self._least = min(self._least, way)
        late = way - self._least
        if way > took:  # slots wait for the way more than for the work: so do those who wait for them
            late *= 1 + turns
        if now - self._window_at > WINDOW_SECONDS:
            self._latest = [late, self._latest[0] if now - self._window_at <= 2 * WINDOW_SECONDS else math.inf]
            self._window_at = now
        elif late < self._latest[0]:
            self._latest[0] = late
        self._heard_at = now

    # ---- what is asked

    def late(self, now: float) -> float:
        """By how many seconds results come in late now."""
        if now - self._heard_at > HEARD_SECONDS:
            return 0.0
        return min(self._latest)

    def has_room(self, behind: int = 0) -> bool:
        """May a run be begun whatever the time, with so many other starts behind it?"""
        return self.fresh + behind < FRESH_RUNS

    def refusal(self, now: float, waited: float = 0.0, behind: int = 0) -> Overloaded | None:
        """Why no run is begun now for a start that has waited so long, with so many others behind it; None: it may be."""
        if self.has_room(behind):
            return None
        late = self.late(now)
        if late <= LATE_SECONDS:
            if waited <= WAITED_SECONDS:
                return None
            late = waited
        self.refused += 1
        self._refused += 1
        if now - self._errors_at > ERRORS_SECONDS:
            self._renew(now, late, behind)
        return self._errors[self.refused % SPREAD]

    def _renew(self, now: float, late: float, behind: int) -> None:
        """The errors that are given out for a moment: to make one for each would cost more than all else about it."""
        self._errors_at = now
        pause = self._pause_of(now)
        text = (
            f"{self.fresh + behind} runs are under way and {late * 1e3:.0f} ms late: no new one is begun until they have "
            "moved on"
        )
        self._errors = [
            Overloaded(text, {"late": round(late, 3), "retry_after": round(pause * (1 + part / (4 * SPREAD)), 3)})
            for part in range(SPREAD)
        ]
        if now - self._said_at > _SAID_EVERY:
            self._said_at = now
            log.warning("starts.refused", late=round(late, 3), open=self.fresh, behind=behind, ever=self.refused)

    def _pause_of(self, now: float) -> float:
        """As long as it takes until as many come again as end. Grows while more come."""
        if now - self._pause_at > 1.0:
            grown = self._pause * min(2.0, max(0.5, self._refused / max(1, self._ended)))
            fell_silent = now - self._pause_at > AGAIN[1] * 2
            self._pause = AGAIN[0] if fell_silent else min(AGAIN[1], max(AGAIN[0], grown))
            self._pause_at = now
            self._refused = self._ended = 0
        return self._pause
