"""`Context`: what a handler is told about its attempt, and how it answers while it runs. Usable from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from onexflow.core.errors import InvalidTransition, Unavailable
from onexflow.core.ids import RunKey
from onexflow.core.payload import NULL, Payload, PayloadCodec
from onexflow.ports.orchestration import NodeCaller
from onexflow.ports.worker_link import Assignment
from onexflow.worker.errors import Cancelled
from onexflow.worker.feeding import Items

_NS = 1_000_000_000


class CancelFlag:
    """Event-like: set once, when the attempt is to stop. True in a condition when set."""

    __slots__ = ("_event", "_set", "_waiters", "reason")

    def __init__(self) -> None:
        self._set = False
        self._event: threading.Event | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.reason = ""

    def is_set(self) -> bool:
        """Whether the attempt is to stop."""
        return self._set

    __bool__ = is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until set, at most `timeout` seconds. For sync handlers; never on the event loop."""
        # Event first, flag second; `set` does it the other way round: no lock is needed for one to see the other.
        event = self._event = self._event or threading.Event()
        return self._set or event.wait(timeout)

    def set(self, reason: str = "") -> None:
        """Called by the runtime, on its loop."""
        self.reason = reason
        self._set = True
        if self._event is not None:
            self._event.set()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait_async(self) -> None:
        """Return when set. On the runtime's loop only."""
        if self._set:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Context:
    """The attempt, as its handler sees it."""

    __slots__ = ("_assignment", "_caller", "_codec", "_items", "_now", "_report", "_started_at", "cancelled")

    def __init__(
        self,
        assignment: Assignment,
        *,
        codec: PayloadCodec,
        report: Callable[[Payload], None],
        now: Callable[[], int],
        started_at: int,
        caller: NodeCaller | None = None,
        items: Items | None = None,
    ) -> None:
        self._assignment = assignment
        self._items = items
        self._caller = caller
        self._codec = codec
        self._report = report
        self._now = now
        self._started_at = started_at
        #: Event-like: `is_set()`, truth, `wait(timeout)` in threads. An async handler gets CancelledError besides.
        self.cancelled = CancelFlag()

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._assignment.attempt

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt of this task of this run. Hand it to what you call."""
        return self._assignment.idempotency_key

    @property
    def token(self) -> str:
        """The identity of just this attempt."""
        return str(self._assignment.token)

    @property
    def namespace(self) -> str:
        return self._assignment.namespace

    @property
    def workflow_type(self) -> str:
        return self._assignment.info.workflow_type

    @property
    def instance_id(self) -> str:
        return self._assignment.instance_id

    @property
    def run_key(self) -> RunKey:
        """The run's full name."""
        return RunKey(self.namespace, self.workflow_type, UUID(self.instance_id))

    @property
    def task(self) -> str:
        """Name of the task in its workflow."""
        return self._assignment.info.name

    @property
    def item(self) -> int:
        """Index of the item of a mapped task; 0 otherwise."""
        return self._assignment.token.item

    @property
    def trace(self) -> str:
        """W3C traceparent; empty when the run is not traced."""
        return self._assignment.trace

    @property
    def deadline(self) -> datetime | None:
        """When the attempt will be cancelled, in UTC; None when it has no limit."""
        timeout = self._assignment.info.timeout
        return datetime.fromtimestamp(self._started_at / _NS + timeout, UTC) if timeout else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, never below 0; None when there is none."""
        timeout = self._assignment.info.timeout
        return max(0.0, timeout - (self._now() - self._started_at) / _NS) if timeout else None

    @property
    def last_progress(self) -> Any:
        """What the attempt before reported last; None when it reported nothing."""
        progress = self._assignment.progress
        return None if progress is None else self._codec.decode(progress)

    @property
    def log(self) -> Any:
        """A structlog logger that names the run, the task and the attempt."""
        import structlog  # not at the top: child processes start without it

        return structlog.get_logger("onexflow.handler").bind(
            workflow_type=self.workflow_type, instance_id=self.instance_id, task=self.task, attempt=self.attempt
        )

    def progress(self, details: Any = None) -> None:
        """Say that the attempt is alive, and how far it is: resets its heartbeat timeout.

        The last details are handed to the next attempt. Call it as often as you like: what goes out is limited to
        about one message a second. Raises InvalidArgument when `details` have no JSON form.
        """
        self._report(NULL if details is None else self._codec.encode(details))

    def items(self) -> AsyncIterator[tuple[int, Any]]:
        """What a fed reducer folds: (index, result) of each item of the mapped task, once in each attempt, in the order in
        which they come. It ends after the last one. The reducer must take them all.

            async for index, value in ctx.items():

        Raises InvalidTransition in a task that is not fed (`feed` in its definition).
        """
        if self._items is None:
            raise InvalidTransition(
                f"task {self.task} is not fed: it has no items to take; say `feed` in its definition",
                {"task": self.task, "current_state": "not fed", "required_state": "fed"},
            )
        return self._items

    def raise_if_cancelled(self) -> None:
        """For sync handlers, at points where stopping is safe: raises `Cancelled` when the attempt is to stop."""
        if self.cancelled.is_set():
            raise Cancelled(self.cancelled.reason)

    # ---- of orchestrations

    async def node(self, node_id: str, node_type: str = "", *, timeout: float = 0.0) -> Any:
        """The node of that id, to be called as if it were here; each call is made once, however often the orchestration
        is run. In orchestrations only.

        With `node_type` (effect, compute, reducer) nothing is looked up: a call waits for a worker that serves the node.
        Without it the workers of now are asked: raises UnknownNode when none serves it. `timeout` as in `Client.node`.
        """
        return await self._calling().node(self.namespace, node_id, node_type, timeout)

    async def run(self, workflow_type: str, input: Any = None, *, version: int = 0, timeout: float = 0.0) -> Any:
        """Run a workflow and return its result; it is started once, however often the orchestration is run, and
        cancelled when that ends before. In orchestrations only. Raises RunFailed, UnknownWorkflowType."""
        return await self._calling().run(self.namespace, workflow_type, input, version, timeout)

    def _calling(self) -> NodeCaller:
        info = self._assignment.info
        if info.role != "orchestrator":
            raise InvalidTransition(
                f"{info.handler} is no orchestration: what it calls would be called again with each attempt",
                {"current_state": info.role, "required_state": "orchestrator"},
            )
        if self._caller is None:
            raise Unavailable("this worker runtime was given no way to call: `WorkerRuntime(caller=…)`")
        return self._caller

    async def wait_cancelled(self) -> None:
        """Return when the attempt is to stop."""
        await self.cancelled.wait_async()
