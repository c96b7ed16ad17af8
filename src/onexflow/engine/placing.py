"""Attempts on their way to workers: known by token, placed against a credit, and sent with the flush of this loop turn.

A pure attempt leaves at once, an effect when its `task.started` is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from onexflow.core.commands import AuthoriseAttempt, FireTimer
from onexflow.core.errors import Coded
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.ids import Token, idempotency_key
from onexflow.core.instructions import SendAuthorised
from onexflow.core.payload import NULL
from onexflow.core.turn import SECOND
from onexflow.engine.dispatcher import Dispatcher
from onexflow.engine.kernel import Kernel
from onexflow.engine.run import Attempt
from onexflow.engine.sessions import WorkerSession
from onexflow.engine.timers import Timers
from onexflow.ports.worker_link import Assignment, Role

#: As many undurable events again may be ahead of a pure task for each so many attempts of its run that are under way side
#: by side: they are no depth.
WIDTH = 16


class Placing:
    """All attempts of this orchestrator, by token, and those that wait for a worker."""

    def __init__(self, kernel: Kernel, timers: Timers, *, ahead: int) -> None:
        """`ahead`: events of a run that may be undurable while its next pure task leaves."""
        self._kernel = kernel
        self._ahead = ahead
        self._timers = timers
        self.attempts: dict[Token, Attempt] = {}
        self.dispatcher = Dispatcher(self._place)
        self._dirty: dict[WorkerSession, None] = {}
        self._flushing = False
        #: Loop time of the turn of the loop in which the next flush was asked for.
        self._marked_at = 0.0
        #: Called with an effect that was told to stop before it could leave: it never began.
        self.give_back: Callable[[Attempt], None] = _ignore
        #: Called with a fed attempt that the worker has begun before.
        self.on_sent_again: Callable[[WorkerSession, Token], None] = _ignore
        #: Called in the next turn of the loop with a worker that has a credit back.
        self.on_returned: Callable[[WorkerSession], None] = _ignore

    def keep(self, attempt: Attempt) -> None:
        """Know it by its token."""
        self.attempts[attempt.token] = attempt
        attempt.run.attempts[attempt.token] = attempt

    def forget(self, attempt: Attempt) -> None:
        """It has ended, or is not wanted: know nothing more of it."""
        token, session = attempt.token, attempt.session
        self.attempts.pop(token, None)
        attempt.run.attempts.pop(token, None)
        if session is not None:
            if attempt.sent:
                session.inflight.pop(token, None)
            else:
                self.take_away(attempt)
        attempt.withdrawn = True

    def take_away(self, attempt: Attempt) -> None:
        """It is not for the worker any more on which it was placed, if it was: what has not left never will."""
        session = attempt.session
        if session is not None:
            session.inflight.pop(attempt.token, None)
            if not (attempt.sent or attempt.withdrawn) and session.is_open:
                self._return_credit(session, attempt.role)

    def _return_credit(self, session: WorkerSession, role: Role) -> None:
        """It was placed there and never leaves: the worker knows nothing of it, and will not give its slot again."""
        session.credits[role] = session.credits.get(role, 0) + 1
        asyncio.get_running_loop().call_soon(self.on_returned, session)

    # ---- placing

    def _place(self, attempt: Attempt, session: WorkerSession) -> bool:
        run, role = attempt.run, attempt.role
        if attempt.withdrawn or attempt.session is not None:
            return False
        state = run.state
        if run.is_broken or state.status not in run.graph.active[attempt.task]:
            self.forget(attempt)  # dispatched anew when the run is read back, or taken up
            return False
        if role == "effect":
            return self._place_effect(attempt, session)
        attempt.session = session
        session.inflight[attempt.token] = attempt
        undurable, ahead = state.seq - run.durable_seq, self._ahead
        # An orchestration makes calls as soon as it runs: what it was scheduled by must be durable by then.
        if role == "orchestrator" or (undurable > ahead and undurable > ahead * (1 + len(run.attempts) // WIDTH)):
            attempt.leaves_with = self._kernel.lane.covering
            self._kernel.lane.when_durable(lambda error: self._send(attempt, session, error), run.shard)
        elif session.is_open:
            self._let_go(attempt, session)
        return True

    def _place_effect(self, attempt: Attempt, session: WorkerSession) -> bool:
        """Write that the effect may run there; send it when that is durable."""
        run = attempt.run
        turn = self._kernel.decide(
            run,
            AuthoriseAttempt(
                attempt.task,
                attempt.item,
                session.worker_id,
                session.incarnation,
                session.is_idempotent("effect", attempt.info.handler),
            ),
        )
        authorised = next((entry for entry in turn.instructions if isinstance(entry, SendAuthorised)), None)
        self.forget(attempt)
        if authorised is None:
            return False
        token = Token(run.shard.id, authorised.epoch, authorised.offset, attempt.item)
        started = Attempt(run, attempt.task, attempt.item, token)
        started.session = session
        self.keep(started)
        session.inflight[token] = started
        started.leaves_with = self._kernel.lane.covering
        self._kernel.lane.when_durable(lambda error: self._send_effect(started, session, error), run.shard)
        return True

    def _send_effect(self, attempt: Attempt, session: WorkerSession, error: Coded | None) -> None:
        """As `_send`; what was told to stop meanwhile never leaves."""
        if (
            error is None
            and not attempt.withdrawn
            and attempt.session is session
            and session.is_open
            and attempt.run.state.tasks[attempt.task].items[attempt.item].stopping
        ):
            self.give_back(attempt)
        else:
            self._send(attempt, session, error)

    # ---- sending

    def _send(self, attempt: Attempt, session: WorkerSession, error: Coded | None) -> None:
        if error is not None or attempt.withdrawn or attempt.session is not session:
            return
        if session.is_open:  # else its end has made the attempt an orphan; it was never sent
            self._let_go(attempt, session)

    def _let_go(self, attempt: Attempt, session: WorkerSession) -> None:
        """It leaves with the flush at the end of this turn of the loop."""
        if session not in self._dirty:
            self.mark(session)
        attempt.sent = True
        attempt.sent_at = attempt.progress_at = self._marked_at
        run, task, index, token, info = attempt.run, attempt.task, attempt.item, attempt.token, attempt.info
        state, key = run.state, run.key
        item = state.tasks[task].items[index]
        source = item.source
        if source == RUN_INPUT:
            payload = state.input
        elif source == INLINE:
            payload = item.input or NULL
        else:
            payload = state.tasks[source].result or NULL
        if info.timeout or info.heartbeat:
            self.arm_pure(attempt)
        session.outbox.append(
            Assignment(
                token, info, key.namespace, run.instance_id, item.attempt, payload,
                idempotency_key(key, info.name, index, state.causation_id) if info.role == "effect" else "",
                state.trace,
                run.progress.get((task, index)) if run.progress else None,
            )
        )  # fmt: skip
        if session.fed and token in session.fed:  # it has it already
            self.on_sent_again(session, token)

    def arm_pure(self, attempt: Attempt) -> None:
        """A pure attempt is with a worker: nothing in the log says so, its timers are the engine's own."""
        if attempt.role == "effect":
            return
        now, token, info = self._kernel.now(), attempt.token, attempt.info
        for kind, seconds in (("start_to_close", info.timeout), ("heartbeat", info.heartbeat)):
            if seconds:
                command = FireTimer(kind, attempt.task, attempt.item, token.epoch, token.offset)  # type: ignore[arg-type]  # a timer's kind is one of its own words
                self._timers.add(now + int(seconds * SECOND), attempt.run, command)

    def mark(self, session: WorkerSession) -> None:
        """Something waits to leave for that worker."""
        self._dirty[session] = None
        if not self._flushing:
            self._flushing = True
            self._marked_at = loop_time()
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        dirty, self._dirty = self._dirty, {}
        for session in dirty:
            session.flush()


def _ignore(*_: object) -> None:
    """Until the book of attempts sets the real one."""


def loop_time() -> float:
    return asyncio.get_running_loop().time()
