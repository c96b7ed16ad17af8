"""How a worker of the in-process cluster calls: the engine of the moment, for as long as the worker lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from onexflow.core.ids import RunKey
from onexflow.engine import asking
from onexflow.ports.client_link import OrchestratorService, RunOutcome, StartOutcome, StartRequest
from onexflow.spi.exceptions import SPIError

T = TypeVar("T")


class Host(Protocol):
    """The cluster that the worker belongs to."""

    async def running_engine(self) -> tuple[OrchestratorService, asyncio.Event]:
        """An orchestrator, once one is running, and what is set when it has ended."""


class WorkerCalls:
    """The part of `RunService` that orchestrations use. A call that an orchestrator took to its grave is made again on
    the next one, as clients do; one of a worker that was killed is never answered."""

    def __init__(self, cluster: Host) -> None:
        self.killed = asyncio.Event()
        self._cluster = cluster
        self._tasks: set[asyncio.Task[None]] = set()

    def start_run(self, request: StartRequest, reply: Callable[[StartOutcome | SPIError], None]) -> None:
        self._answer(self._ask(lambda engine: asking.start(engine, request)), reply)

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome | SPIError], None]) -> Callable[[], None]:
        return self._answer(self._ask(lambda engine: asking.end_of(engine, key)), reply)

    async def register_definition(self, namespace: str, definition: bytes) -> Any:
        return await self._ask(lambda engine: engine.register_definition(namespace, definition))

    async def get_definition(self, namespace: str, workflow_type: str, version: int = 0) -> Any:
        return await self._ask(lambda engine: engine.get_definition(namespace, workflow_type, version))

    async def list_nodes(self) -> Any:
        return await self._ask(lambda engine: engine.list_nodes())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, call: Callable[[OrchestratorService], Awaitable[T]]) -> T:
        while True:
            engine, gone = await self._cluster.running_engine()
            asked = asyncio.ensure_future(call(engine))
            ends = [asyncio.ensure_future(event.wait()) for event in (gone, self.killed)]
            try:
                await asyncio.wait([asked, *ends], return_when=asyncio.FIRST_COMPLETED)
                if self.killed.is_set():
                    await asyncio.Event().wait()
                if not gone.is_set():
                    return asked.result()
            finally:
                for waiting in (asked, *ends):
                    waiting.cancel()
                await asyncio.gather(asked, *ends, return_exceptions=True)

    def _answer(self, asking: Coroutine[Any, Any, T], reply: Callable[[T | SPIError], None]) -> Callable[[], None]:
        async def answer() -> None:
            try:
                found: T | SPIError = await asking
            except SPIError as error:
                found = error
            reply(found)

        task = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def stop() -> None:
            task.cancel()

        return stop
