"""The slots of one role: a queue of attempts, and long-lived runners that take from it, one a slot.

An async handler runs inside its runner, without an asyncio task of its own: a batch of short ones costs one wake-up. Each
attempt still has its own `contextvars` context. Sync handlers are awaited by the runner on their thread or child process.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Final, Protocol

from onexflow.core.ids import Token
from onexflow.core.payload import NULL, Failure, Payload
from onexflow.ports.clock import Clock
from onexflow.ports.worker_link import Assignment, AttemptResult, Role
from onexflow.worker.context import Context
from onexflow.worker.credits import Ledger
from onexflow.worker.errors import Cancelled, failure_of
from onexflow.worker.feeding import Items

#: A runner lets the loop go on after this many seconds, or this many attempts, of work without a pause.
_STINT_SECONDS: Final = 0.002
_STINT_ATTEMPTS: Final = 64

QUEUED: Final = 0
RUNNING: Final = 1
ENDED: Final = 2


class Attempt:
    """One attempt that is queued or running here."""

    __slots__ = ("assignment", "cancel_reason", "cancelling", "context", "discard", "fed_by", "items", "program", "runner",
                 "started_at", "state", "stop")  # fmt: skip

    def __init__(self, assignment: Assignment, program: Program) -> None:
        self.assignment = assignment
        self.program = program
        self.state = QUEUED
        self.runner: Runner | None = None
        self.context: Context | None = None
        self.started_at = 0
        self.cancelling = False  #: it was asked to stop
        self.cancel_reason = ""
        self.discard = False  #: nobody wants its result any more
        self.items: Items | None = None  #: of a fed one that has been begun
        self.fed_by: object = None  #: the link on which it has asked for its items
        self.stop: Callable[[], None] | None = None  #: how its executor is asked to stop; None: cancel the runner


class Program(Protocol):
    """A handler made ready to run: how one of its attempts is executed."""

    def start(self, attempt: Attempt, slot: Slot) -> Payload | Awaitable[Payload]:
        """Begin it. Returns the result of a handler that waits for nothing, else what to await for it. Either raises what
        the handler raises."""


class Slot:
    """What a runner owns beside its task: executors (a thread, a child process) keep themselves here."""

    __slots__ = ("executors", "number", "role")

    def __init__(self, role: Role, number: int) -> None:
        self.role = role
        self.number = number
        self.executors: dict[str, Any] = {}


class Runner:
    """One slot's task."""

    __slots__ = ("slot", "task")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.task: asyncio.Task[None] | None = None


class RemoteFailure(Exception):
    """A handler failed in a child process: the failure is already data."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Lane:
    """Queue and runners of one role."""

    def __init__(
        self,
        role: Role,
        slots: int,
        *,
        clock: Clock,
        finish: Callable[[Attempt, AttemptResult], None],
    ) -> None:
        self.role = role
        self.ledger: Ledger[Any] = Ledger(slots, prefetch=role in {"compute", "reducer"})
        self.runners: list[Runner] = []
        self._clock = clock
        self._finish = finish
        self._queue: deque[Attempt] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._waking = 0  #: idle runners that were woken and have not run yet

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Queue attempts, and see to it that someone takes them."""
        self.ledger.queued += len(attempts)
        self._queue.extend(attempts)
        if not self._waking:
            self._wake_one()

    def drop(self, attempt: Attempt) -> None:
        """Take a queued attempt out. It stays in the deque until a runner passes by, and is skipped there."""
        attempt.state = ENDED
        self.ledger.queued -= 1

    def newest(self, wanted: Callable[[Token], bool], count: int) -> list[Attempt]:
        """Up to `count` queued attempts whose token is wanted, the last to come first."""
        found = (a for a in reversed(self._queue) if a.state == QUEUED and wanted(a.assignment.token))
        return [a for a, _ in zip(found, range(count), strict=False)]

    def interrupt(self, attempt: Attempt) -> None:
        """Ask a running attempt to stop. From a loop callback only: no runner is between two attempts then."""
        if attempt.state != RUNNING or attempt.runner is None:
            return
        if attempt.context is not None:
            attempt.context.cancelled.set(attempt.cancel_reason)
        if attempt.stop is not None:
            attempt.stop()
        elif attempt.runner.task is not None:
            attempt.runner.task.cancel()

    async def close(self) -> None:
        """End all runners, and say nothing more of what still runs in them. Waits a second for them, no longer."""
        self._closed = True
        tasks = [runner.task for runner in self.runners if runner.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.runners.clear()
        self._idle.clear()

    # ---- runners

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._waking += 1
                return
        if len(self.runners) < self.ledger.slots:
            self._waking += 1
            runner = Runner(Slot(self.role, len(self.runners)))
            self.runners.append(runner)
            runner.task = asyncio.get_running_loop().create_task(self._serve(runner), name=f"{self.role}-slot")

    def _woken(self) -> None:
        # Each woken runner wakes two more while there is work for them: many slots fill in a few turns of the loop,
        # and a batch of handlers that never wait is done by the first runner alone.
        self._waking -= 1
        for _ in range(min(2, len(self._queue) - 1 - self._waking)):
            self._wake_one()

    async def _serve(self, runner: Runner) -> None:
        self._woken()
        while not self._closed:
            if self._queue:
                await self._stint(runner)
                if self._queue:
                    await pause()
            else:
                waiter = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
                self._woken()

    async def _stint(self, runner: Runner) -> None:
        """Run attempts to their ends, whatever these are, until none is queued or the loop is to go on. Raises only
        CancelledError, when the lane closes."""
        queue, ledger, now, monotonic = self._queue, self.ledger, self._clock.now, self._clock.monotonic
        # Each attempt begins as the one before it ends: one look at each clock for an attempt.
        since = began = monotonic()
        at = now()
        for _ in range(_STINT_ATTEMPTS):
            if not queue or self._closed:
                return
            attempt = queue.popleft()
            if attempt.state != QUEUED:
                continue
            attempt.state = RUNNING
            attempt.runner = runner
            attempt.started_at = at
            ledger.queued -= 1
            ledger.running += 1
            try:
                begun = attempt.program.start(attempt, runner.slot)
                payload = begun if isinstance(begun, Payload) else await begun
                at = now()
                result = AttemptResult(attempt.assignment.token, "completed", payload, None, attempt.started_at, at)
            except asyncio.CancelledError as error:
                if self._closed:
                    raise
                at = now()
                result = _ended_badly(attempt, error, at)
            except GeneratorExit:  # thrown away with this coroutine: see `not_thrown_away`
                raise
            except BaseException as error:  # noqa: BLE001 — what a handler raises is data, or its slot would be lost with it
                at = now()
                result = _ended_badly(attempt, error, at)
            finally:
                attempt.state = ENDED
                attempt.context = attempt.items = None  # which know of it: no cycle is to be left
                ledger.running -= 1
            if runner.task is not None and runner.task.cancelling():
                _clear_cancels(runner.task)
            self._finish(attempt, result)
            ended = monotonic()
            ledger.took(ended - began)
            if ended - since > _STINT_SECONDS:
                return
            began = ended


def _ended_badly(attempt: Attempt, error: BaseException, at: int) -> AttemptResult:
    token = attempt.assignment.token
    if attempt.cancelling and isinstance(error, asyncio.CancelledError | Cancelled):
        return AttemptResult(token, "stopped", NULL, None, attempt.started_at, at)
    failure = error.failure if isinstance(error, RemoteFailure) else failure_of(error)
    return AttemptResult(token, "failed", NULL, failure, attempt.started_at, at)


def _clear_cancels(task: asyncio.Task[None]) -> None:
    """The task goes on with other attempts: `asyncio.timeout` and task groups in them look at this count."""
    while task.cancelling():
        task.uncancel()


@types.coroutine
def pause() -> Generator[None, None, None]:
    """Let the loop go round once."""
    yield


def run_until_it_waits(context: contextvars.Context, coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Run a coroutine in that context until it waits: whether it has ended, and its result or else what it waits for. One
    that waits for nothing needs no coroutine around it.

    Apart from all else: the end of a coroutine is an exception, and that costs more the longer the function is that sees it
    (in Python 3.11.2, which Debian 12 has: it looks its line up from the first one on)."""
    try:
        return False, context.run(coroutine.send, None)
    except StopIteration as end:
        return True, end.value


@types.coroutine
def go_on(context: contextvars.Context, coroutine: Coroutine[Any, Any, Any], step: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine, from what it waits for first (`step`) on, in a `contextvars` context of its own without a task:
    what it sets does not leak."""
    is_discarded = False
    try:
        while True:
            try:
                value = yield step
            except GeneratorExit:
                is_discarded = True
                context.run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001 — it is thrown on into the coroutine
                step = context.run(coroutine.throw, error)
            else:
                step = context.run(coroutine.send, value)
    except StopIteration as end:
        return end.value
    except GeneratorExit as error:
        if is_discarded:
            raise
        raise not_thrown_away(error) from error


def not_thrown_away(error: GeneratorExit) -> RuntimeError:
    """What a handler's own GeneratorExit comes as: elsewhere it says that a coroutine is thrown away."""
    return RuntimeError(f"the handler raised GeneratorExit({error})")
