"""Where a handler runs: async ones on the loop, sync ones on a thread, sync computes in a child process of their slot."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import structlog
from opentelemetry.trace import SpanKind

from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload, PayloadCodec
from onexflow.ports import orchestration
from onexflow.ports.clock import Clock
from onexflow.ports.orchestration import NodeCaller
from onexflow.telemetry import names, tracing
from onexflow.worker.children import Child, ChildPool, Job, importable
from onexflow.worker.context import Context
from onexflow.worker.contracts import dumper_for, loader_for
from onexflow.worker.errors import ContractError
from onexflow.worker.feeding import Items
from onexflow.worker.handlers import Handler
from onexflow.worker.lanes import Attempt, Program, Slot, go_on, not_thrown_away, run_until_it_waits

ReportProgress = Callable[[Attempt, Payload], None]
#: Tells the orchestrator how many items an attempt has taken.
SayFed = Callable[[Attempt, int], None]

_log = structlog.get_logger("onexflow.worker")


class Programs:
    """Makes programs of handlers, and owns what they run on."""

    def __init__(
        self,
        *,
        clock: Clock,
        codec: PayloadCodec,
        report: ReportProgress,
        say_fed: SayFed,
        caller: NodeCaller | None = None,
    ) -> None:
        self.say_fed = say_fed
        self.caller = caller
        self.clock = clock
        self.codec = codec
        self.report = report
        self.children = ChildPool(clock)
        self._threads: list[SlotThread] = []

    def program(self, handler: Handler) -> Program:
        """A handler made ready. Raises InvalidConfiguration when its annotation cannot be resolved."""
        if handler.is_async:
            return LoopProgram(handler, self)
        if handler.role == "compute":
            place, reason = importable(handler)
            if place is not None:
                loader_for(handler, self.codec)  # a wrong annotation is refused here, not in the child
                return ChildProgram(handler, self, Job(place, handler.role, handler.name, handler.takes_context))
            _log.warning("compute.threaded", handler=handler.name, place=handler.place, reason=reason,
                         consequence="it cannot be killed when it is cancelled, and holds the interpreter lock")  # fmt: skip
        return ThreadProgram(handler, self)

    def context(self, attempt: Attempt, report: Callable[[Payload], None]) -> Context:
        """The context of an attempt that runs in this process."""
        return Context(
            attempt.assignment,
            codec=self.codec,
            report=report,
            now=self.clock.now,
            started_at=attempt.started_at,
            caller=self.caller,
            items=attempt.items,
        )

    def items(self, attempt: Attempt) -> Items:
        """What a fed attempt takes its items from."""
        return Items(self.codec, lambda count: self.say_fed(attempt, count))

    def thread(self, slot: Slot) -> SlotThread:
        """The slot's own thread, started when first needed."""
        thread: SlotThread | None = slot.executors.get("thread")
        if thread is None:
            thread = slot.executors["thread"] = SlotThread(f"{slot.role}-{slot.number}")
            self._threads.append(thread)
        return thread

    async def close(self) -> None:
        """End threads (those that are busy end by themselves, or with the process) and child processes."""
        for thread in self._threads:
            thread.close()
        await self.children.close()


class LoopProgram:
    """An async handler, run inside its runner."""

    __slots__ = ("_dump", "_function", "_handler", "_load", "_orchestrates", "_owner", "_takes_context")

    def __init__(self, handler: Handler, owner: Programs) -> None:
        self._handler = handler
        self._function = handler.function
        self._takes_context = handler.takes_context
        self._load = loader_for(handler, owner.codec)
        self._dump = dumper_for(handler, owner.codec)
        self._orchestrates = handler.role == "orchestrator"
        self._owner = owner

    def start(self, attempt: Attempt, slot: Slot) -> Payload | Awaitable[Payload]:
        contract = self._load(attempt.assignment.input)
        if attempt.assignment.info.fed:
            if not self._takes_context:
                raise ContractError(f"{_fed(self._handler)} must take `ctx`: its items come by `ctx.items()`")
            attempt.items = self._owner.items(attempt)
        if self._takes_context:
            report = self._owner.report
            attempt.context = self._owner.context(attempt, lambda details: report(attempt, details))
            coroutine = self._function(contract, attempt.context)
        else:
            coroutine = self._function(contract)
        if tracing.active():
            coroutine = _traced(attempt, coroutine)
        context = contextvars.copy_context()
        if self._orchestrates:
            told = attempt.assignment
            run = RunKey(told.namespace, told.info.workflow_type, UUID(told.instance_id))
            context.run(orchestration.begin, run, told.info.name, told.token.item)
        try:
            has_ended, value = run_until_it_waits(context, coroutine)
        except GeneratorExit as error:
            raise not_thrown_away(error) from error
        if not has_ended:
            return self._go_on(attempt, context, coroutine, value)
        return self._dump(value) if attempt.items is None else self._folded(attempt.items, value)

    async def _go_on(
        self, attempt: Attempt, context: contextvars.Context, coroutine: Coroutine[Any, Any, Any], step: Any
    ) -> Payload:
        value = await go_on(context, coroutine, step)
        return self._dump(value) if attempt.items is None else self._folded(attempt.items, value)

    def _folded(self, items: Items, value: Any) -> Payload:
        if not items.is_over:
            raise ContractError(
                f"{_fed(self._handler)} ended before `ctx.items()` did: it must take its items to the last"
            )
        return self._dump(value)


class ThreadProgram:
    """A sync handler on its slot's thread. It stops when it looks at `ctx.cancelled`; else the slot stays taken."""

    __slots__ = ("_dump", "_function", "_handler", "_load", "_owner", "_takes_context")

    def __init__(self, handler: Handler, owner: Programs) -> None:
        self._handler = handler
        self._function = handler.function
        self._takes_context = handler.takes_context
        self._load = loader_for(handler, owner.codec)
        self._dump = dumper_for(handler, owner.codec)
        self._owner = owner

    def start(self, attempt: Attempt, slot: Slot) -> Awaitable[Payload]:
        if attempt.assignment.info.fed:
            raise ContractError(f"{_fed(self._handler)} must be async: a thread cannot wait for items")
        loop = asyncio.get_running_loop()
        report = self._owner.report

        def report_from_thread(details: Payload) -> None:
            loop.call_soon_threadsafe(report, attempt, details)

        attempt.context = context = self._owner.context(attempt, report_from_thread)
        attempt.stop = _nothing  # the flag that the context holds is all that a thread can be told

        def work() -> Payload:
            contract = self._load(attempt.assignment.input)
            with _span(attempt):
                result = self._function(contract, context) if self._takes_context else self._function(contract)
            return self._dump(result)

        return self._owner.thread(slot).run(work, loop)


class ChildProgram:
    """A sync compute in its slot's child process, which is killed when the attempt is to stop."""

    __slots__ = ("_job", "_owner")

    def __init__(self, handler: Handler, owner: Programs, job: Job) -> None:
        self._job = job
        self._owner = owner

    async def start(self, attempt: Attempt, slot: Slot) -> Payload:
        child: Child | None = slot.executors.get("child")
        if child is None:
            child = slot.executors["child"] = self._owner.children.child()
        attempt.stop = child.stop
        report = self._owner.report
        with _span(attempt):
            return await child.run(
                self._job, attempt.assignment, attempt.started_at, lambda details: report(attempt, details)
            )


class SlotThread:
    """One daemon thread that runs one function at a time: a handler that hangs in it keeps no process from ending."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"onexflow-{name}", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], Payload], loop: asyncio.AbstractEventLoop) -> asyncio.Future[Payload]:
        """A future of what `work` returns or raises."""
        future: asyncio.Future[Payload] = loop.create_future()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                done, value, error = True, context.run(work), None
            except BaseException as raised:  # noqa: BLE001 — whatever it is, it is the handler's, and goes to the attempt
                done, value, error = False, None, raised
            _tell(loop, future, done, value, error)

        self._work.put(call)
        return future

    def close(self) -> None:
        """End the thread after what it is doing now."""
        self._work.put(None)

    def _serve(self) -> None:
        while (call := self._work.get()) is not None:
            call()
            del call  # or the last attempt's objects would live until the next one


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], done: bool, value: Any, error: Any) -> None:
    def settle() -> None:
        if future.done():
            return
        if done:
            future.set_result(value)
        elif isinstance(error, StopIteration | GeneratorExit):  # these end coroutines: nobody may raise them in one
            future.set_exception(RuntimeError(f"the handler raised {type(error).__name__}({error})"))
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return


def _span(attempt: Attempt) -> AbstractContextManager[Any]:
    """The span of an attempt, child of the run's. Costs a look at a flag when nobody records."""
    if not tracing.active():
        return tracing.span("")
    told = attempt.assignment
    attributes: tracing.Attributes = {
        names.NAMESPACE: told.namespace,
        names.WORKFLOW: told.info.workflow_type,
        names.RUN_ID: told.instance_id,
        names.TASK: told.info.name,
        names.ATTEMPT: told.attempt,
        names.ROLE: told.info.role,
    }
    return tracing.span(
        names.EXECUTE.of(told.info.name), parent=told.trace, kind=SpanKind.CONSUMER, attributes=attributes
    )


async def _traced(attempt: Attempt, handler: Coroutine[Any, Any, Any]) -> Any:
    with _span(attempt):
        return await handler


def _fed(handler: Handler) -> str:
    return f"reducer {handler.name!r} is fed here, so it"


def _nothing() -> None:
    return None
