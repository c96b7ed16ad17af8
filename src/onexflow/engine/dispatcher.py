"""Which attempt goes to which worker: one queue for each (role, handler), five priority bands, credits.

Attempts of a run that is assigned to a node wait in a queue of that node's own; when it goes, they join the others.

The worker is the authority over its slots: an attempt is placed only against a credit that it gave. Pure attempts leave
with the turn that scheduled them; an effect is placed first, its `task.started` written, and sent when that is durable.
Placement fills few workers in rotation instead of spreading one by one: messages with many attempts are cheap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onexflow.engine.run import Attempt

if TYPE_CHECKING:
    from onexflow.engine.sessions import WorkerSession

BANDS = {"urgent": 0, "critical": 1, "high": 2, "normal": 3, "low": 4}


class HandlerQueue:
    """Attempts of one handler that wait for a credit, and the workers that serve it."""

    __slots__ = ("_cursor", "bands", "sessions")

    def __init__(self) -> None:
        self.bands: tuple[deque[Attempt], ...] = tuple(deque() for _ in BANDS)
        self.sessions: list[WorkerSession] = []
        self._cursor = 0

    def __len__(self) -> int:
        return sum(len(band) for band in self.bands)

    def pop(self) -> Attempt | None:
        """The next attempt that is still wanted."""
        for band in self.bands:
            while band:
                attempt = band.popleft()
                if not attempt.withdrawn:
                    return attempt
        return None

    def free_session(self, role: str) -> WorkerSession | None:
        """A worker with a credit: the one last filled, else the next in rotation."""
        sessions = self.sessions
        for _ in sessions:
            session = sessions[self._cursor % len(sessions)]
            if session.credits.get(role, 0) > 0 and session.takes_work:
                return session
            self._cursor += 1
        return None


class Dispatcher:
    """The waiting attempts of this orchestrator. `place` is called for each pair of attempt and worker; False means
    that the attempt was not wanted any more and the credit is unused."""

    def __init__(self, place: Callable[[Attempt, WorkerSession], bool]) -> None:
        self._place = place
        self._queues: dict[tuple[str, str, str], HandlerQueue] = {}

    def queue(self, role: str, handler: str, node: str = "") -> HandlerQueue:
        key = (role, handler, node)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = HandlerQueue()
        return queue

    def enqueue(self, attempt: Attempt, *, first: bool = False) -> None:
        """Place the attempt on a worker now, or keep it until a credit comes: last in its band, or first."""
        role = attempt.role
        queue = self._queues.get((role, attempt.info.handler, ""))
        if queue is None or attempt.run.state.node:
            queue = self._queue_of(attempt)
        session = queue.free_session(role)
        if session is None:
            band = queue.bands[BANDS[attempt.run.graph.specs[attempt.task].priority]]
            if first:
                band.appendleft(attempt)
            else:
                band.append(attempt)
        else:
            session.credits[role] -= 1
            if not self._place(attempt, session):
                session.credits[role] += 1

    def _queue_of(self, attempt: Attempt) -> HandlerQueue:
        role, handler, node = attempt.role, attempt.info.handler, attempt.run.state.node
        if node:
            own = self._queues.get((role, handler, node))
            if own is not None and any(session.takes_work for session in own.sessions):
                return own
        queue = self._queues.get((role, handler, ""))
        return queue if queue is not None else self.queue(role, handler)

    def pump(self, session: WorkerSession) -> None:
        """The worker has credits: give it what waits for its handlers, urgent first within each handler."""
        if not session.takes_work:
            return
        for role, handler in session.handler_keys:
            for node in (session.worker_id, ""):
                queue = self._queues.get((role, handler, node))
                while queue is not None and session.credits.get(role, 0) > 0:
                    attempt = queue.pop()
                    if attempt is None:
                        break
                    session.credits[role] -= 1
                    if not self._place(attempt, session):
                        session.credits[role] += 1

    def pump_all(self) -> None:
        """`pump` for every worker."""
        sessions = {session: None for queue in self._queues.values() for session in queue.sessions}
        for session in sessions:
            self.pump(session)

    def add(self, session: WorkerSession) -> None:
        for role, handler in session.handler_keys:
            self.queue(role, handler).sessions.append(session)
            self.queue(role, handler, session.worker_id).sessions.append(session)

    def remove(self, session: WorkerSession) -> None:
        for role, handler in session.handler_keys:
            for node in (session.worker_id, ""):
                sessions = self.queue(role, handler, node).sessions
                if session in sessions:
                    sessions.remove(session)
        for role, handler in session.handler_keys:
            own = self.queue(role, handler, session.worker_id)
            if not own.sessions:
                del self._queues[role, handler, session.worker_id]
                self._move(own)

    def pass_over(self, session: WorkerSession) -> None:
        """The worker takes nothing new, for now or for good: what waits for it alone goes to the others."""
        for role, handler in session.handler_keys:
            own = self._queues.get((role, handler, session.worker_id))
            if own is not None and not any(other.takes_work for other in own.sessions):
                self._move(own)

    def _move(self, own: HandlerQueue) -> None:
        waiting = []
        while (attempt := own.pop()) is not None:
            waiting.append(attempt)
        for attempt in waiting:
            self.enqueue(attempt)

    def sessions_of(self, role: str, handler: str) -> Sequence[WorkerSession]:
        """The workers with that handler, whether they take work or not."""
        queue = self._queues.get((role, handler, ""))
        return queue.sessions if queue is not None else ()

    def queued(self, role: str, handler: str) -> frozenset[int]:
        """The ids (of the objects) of all attempts that wait for that handler."""
        queues = [queue for (one, name, _), queue in self._queues.items() if (one, name) == (role, handler)]
        return frozenset(id(attempt) for queue in queues for band in queue.bands for attempt in band)

    def serves(self, role: str, handler: str) -> bool:
        """Is any worker with this handler connected?"""
        queue = self._queues.get((role, handler, ""))
        return queue is not None and any(session.takes_work for session in queue.sessions)

    def served(self) -> frozenset[tuple[str, str]]:
        """(role, handler) of all workers that are connected."""
        return frozenset(
            (role, handler) for (role, handler, node), queue in self._queues.items() if not node and queue.sessions
        )

    def room(self, role: str, handler: str, capability: str = "") -> tuple[int, int]:
        """(credits of the workers with that handler that are not spoken for, number of these workers); both 0 when one
        of them lacks the capability, as nobody says which of them an attempt goes to."""
        queue = self._queues.get((role, handler, ""))
        sessions = [session for session in queue.sessions if session.takes_work] if queue is not None else []
        if queue is None or not sessions or not all(session.has(capability) for session in sessions):
            return 0, 0
        return sum(session.credits.get(role, 0) for session in sessions) - len(queue), len(sessions)

    def waiting(self) -> dict[str, int]:
        """Number of attempts that wait for a credit, by role."""
        counts: dict[str, int] = {}
        for (role, _, _), queue in self._queues.items():
            if queue:
                counts[role] = counts.get(role, 0) + len(queue)
        return counts
