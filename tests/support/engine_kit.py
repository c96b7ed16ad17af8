"""A worker whose handlers do as a test says: wait at gates, fail, report, and keep count of who ran what, when."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.testing import Cluster
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker


class Call(NamedTuple):
    """A handler was called."""

    worker: str
    handler: str
    task: str
    attempt: int
    token: str
    at: float  #: loop time
    contract: Any


class Script:
    """What the handlers do, on all workers made by `worker()`. Handlers: effects `charge` (not idempotent) and `send`
    (idempotent), computes `calc` and `work`, reducer `sum`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        #: A handler named here waits until its event is set.
        self.gates: dict[str, asyncio.Event] = {}
        #: Errors to raise, in order, one a call.
        self.errors: dict[str, list[Exception]] = defaultdict(list)
        self.answers: dict[str, Callable[[Any], Any]] = {}
        #: Seconds between progress reports of a handler that waits at its gate.
        self.reports: dict[str, float] = {}
        #: How often a handler was cancelled; one named in `stubborn` goes on all the same.
        self.cancelled: Counter[str] = Counter()
        self.stubborn: set[str] = set()
        self.running: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()

    def gate(self, handler: str) -> asyncio.Event:
        return self.gates.setdefault(handler, asyncio.Event())

    def worker(self, name: str = "w") -> Worker:
        worker = Worker(name)
        for handler, idempotent in (("charge", False), ("send", True)):
            worker.effect(handler, idempotent=idempotent)(self._handler(name, handler))
        for handler in ("calc", "work"):
            worker.compute(handler)(self._handler(name, handler))
        worker.reducer("sum")(self._handler(name, "sum"))
        return worker

    def _handler(self, worker: str, name: str) -> Callable[..., Any]:
        async def handle(contract: Any, ctx: Context) -> Any:
            at = asyncio.get_running_loop().time()
            self.calls.append(Call(worker, name, ctx.task, ctx.attempt, ctx.token, at, contract))
            self.running[name] += 1
            self.peak[name] = max(self.peak[name], self.running[name])
            try:
                if name in self.gates:
                    await self._wait(name, ctx)
                if self.errors[name]:
                    raise self.errors[name].pop(0)
                return self.answers.get(name, _echo)(contract)
            finally:
                self.running[name] -= 1

        return handle

    async def _wait(self, name: str, ctx: Context) -> None:
        while not self.gates[name].is_set():
            try:
                await asyncio.wait_for(self.gates[name].wait(), self.reports.get(name))
            except TimeoutError:
                ctx.progress({"alive": True})
            except asyncio.CancelledError:
                self.cancelled[name] += 1
                if name not in self.stubborn:
                    raise

    def count(self, handler: str) -> int:
        return sum(call.handler == handler for call in self.calls)

    async def called(self, handler: str, times: int = 1) -> None:
        """Return when the handler was called so often."""
        await until(lambda: self.count(handler) >= times)


def _echo(contract: Any) -> Any:
    return contract


async def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Return when the condition holds; look at each step of (virtual) time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def single(role: str, handler: str, name: str = "single", **options: Any) -> WorkflowBuilder:
    """A workflow of one task `a`. Options of the workflow itself: retry_run, timeout."""
    run = {"retry": options.pop("retry_run", None), "timeout": options.pop("timeout", 0.0)}
    flow = workflow(name, **run)
    getattr(flow, role)("a", handler=handler, **options)
    return flow


async def ready(cluster: Cluster, script: Script, *flows: WorkflowBuilder, workers: int = 1) -> None:
    """Register definitions and start workers w1, w2, …"""
    for flow in flows:
        await cluster.register(flow.build())
    for number in range(1, workers + 1):
        await cluster.add_worker(script.worker(f"w{number}"), f"w{number}")


def types(events: Any) -> list[str]:
    return [f"{e.type}/{e.kind}" if e.kind else e.type for e in events]
