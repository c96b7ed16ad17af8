"""A worker whose results come through a narrow way, so many a second: an orchestrator at its limit, in virtual time."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from onexflow.core.builder import workflow
from onexflow.core.definition import Role
from onexflow.core.errors import Overloaded
from onexflow.ports.client_link import RunOutcome, StartOutcome, StartRequest
from onexflow.ports.worker_link import FromWorker, Results, WorkerPeer
from onexflow.spi.exceptions import SPIError
from onexflow.testing import Cluster
from onexflow.worker.handlers import Worker


class _Narrow:
    """`WorkerPeer` before another one: results wait in line."""

    def __init__(self, peer: WorkerPeer, rate: float) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._rate = rate
        self._free_at = 0.0

    def on_message(self, message: FromWorker) -> None:
        if isinstance(message, Results) and message.results:
            self._free_at = max(self._loop.time(), self._free_at) + len(message.results) / self._rate
            self._loop.call_at(self._free_at, self._peer.on_message, message)
        else:
            self._peer.on_message(message)

    def on_close(self, planned: bool) -> None:
        self._peer.on_close(planned)


class Load:
    """Starts with wait of single-task runs; what became of them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self.open = 0
        self.most_open = 0
        self.latencies: list[float] = []
        self.refused: list[Overloaded] = []
        self.idle = asyncio.Event()

    def start(self) -> asyncio.Future[None]:
        """One run. The future is done when it was refused, or has ended."""
        began, over = self._loop.time(), self._loop.create_future()
        self.open += 1
        self.most_open = max(self.most_open, self.open)

        def ended(outcome: RunOutcome | SPIError) -> None:
            assert isinstance(outcome, RunOutcome), outcome
            assert outcome.state == "completed"
            self.latencies.append(self._loop.time() - began)
            self._close(over)

        def started(outcome: StartOutcome | SPIError) -> None:
            if isinstance(outcome, Overloaded):
                self.refused.append(outcome)
                self._close(over)
            else:
                assert isinstance(outcome, StartOutcome), outcome
                self._cluster.engine.wait_run(outcome.key, ended)

        self._cluster.engine.start_run(StartRequest(workflow_type="one", wait=True), started)
        return over

    def _close(self, over: asyncio.Future[None]) -> None:
        self.open -= 1
        over.set_result(None)

    async def closed(self, width: int, runs: int) -> None:
        """So many runs, so many at a time."""
        left = iter(range(runs))

        async def line() -> None:
            for _ in left:
                await self.start()

        await asyncio.gather(*(line() for _ in range(width)))

    async def opened(self, rate: float, seconds: float) -> None:
        """So many a second, and then until none is open."""
        begun = []
        for _ in range(int(seconds * 1000)):
            begun += [self.start() for _ in range(int(rate / 1000))]
            await asyncio.sleep(0.001)
        await asyncio.gather(*begun)

    def p99(self) -> float:
        return sorted(self.latencies)[int(0.99 * len(self.latencies))]


class Handler(NamedTuple):
    """Of the one task."""

    role: Role
    slots: int
    seconds: float = 0.0


async def serve(cluster: Cluster, handler: Handler, rate: float) -> None:
    """A worker with that handler, whose results come at that rate at most."""
    worker = Worker("w")

    async def work(contract: object) -> None:
        if handler.seconds:
            await asyncio.sleep(handler.seconds)

    getattr(worker, handler.role)("work")(work)
    flow = workflow("one")
    getattr(flow, handler.role)("a", handler="work")
    await cluster.register(flow.build())
    added = await cluster.add_worker(worker, "w1", slots={handler.role: handler.slots})
    assert added.stream is not None
    added.stream._peer = _Narrow(added.stream._peer, rate)
