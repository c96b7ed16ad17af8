"""What the worker's tests share: a clock that tests move, a link that remembers, and short ways to say things."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from onexflow.core.ids import Token
from onexflow.core.payload import Payload
from onexflow.ports.worker_link import (
    Ack,
    Assignment,
    Assignments,
    AttemptResult,
    Credits,
    FromWorker,
    Results,
    Role,
    TaskInfo,
    Welcome,
)
from onexflow.worker import Worker
from onexflow.worker.peers import OrchestratorPeer
from onexflow.worker.runtime import WorkerRuntime

INSTANCE = "0192d3a0-0000-7000-8000-000000000000"
M = TypeVar("M")


#: What an assignment has of its task, and so by other names.
_OF_TASK = ("timeout", "heartbeat", "fed")


class ManualClock:
    """Clock port: time stands still until `advance`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now(self) -> int:
        return 1_700_000_000_000_000_000 + int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self.seconds + seconds, self._order, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, and everyone who waited for it run."""
        end = self.seconds + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self.seconds = max(self.seconds, due)
            if not future.done():
                future.set_result(None)
            await settle()
        self.seconds = end
        await settle()


class FakeLink:
    """The worker's end of a link: keeps what was sent; acknowledges results at once if told to."""

    def __init__(self, *, acks: bool = True) -> None:
        self.peer: OrchestratorPeer | None = None
        self.sent: list[FromWorker] = []
        self.acks = acks
        self.closed = False
        self._news = asyncio.Event()

    def send(self, message: FromWorker) -> None:
        self.sent.append(message)
        if self.acks and isinstance(message, Results):
            self.say(Ack([result.token for result in message.results]))
        self._news.set()

    def close(self) -> None:
        self.closed = True

    def say(self, message: Any) -> None:
        """The orchestrator says something."""
        assert self.peer is not None
        self.peer.on_message(message)

    def assign(self, *assignments: Assignment) -> None:
        self.say(Assignments(list(assignments)))

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.sent if isinstance(message, kind)]

    @property
    def results(self) -> dict[Token, AttemptResult]:
        """The last result of each token."""
        return {result.token: result for message in self.of(Results) for result in message.results}

    @property
    def credits(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for message in self.of(Credits):
            for role, count in message.granted.items():
                total[role] = total.get(role, 0) + count
        return total

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for messages until `condition`; a deadline of real time stands behind it."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def result(self, assignment: Assignment) -> AttemptResult:
        """The result of an assignment, once it has been sent."""
        await self.until(lambda: assignment.token in self.results)
        return self.results[assignment.token]


class Assigner:
    """Makes assignments with tokens that count up."""

    def __init__(self, shard: int = 0, epoch: int = 1) -> None:
        self._offset = 0
        self.shard = shard
        self.epoch = epoch

    def __call__(self, role: Role, handler: str, value: Any = None, **more: Any) -> Assignment:
        self._offset += 1
        return Assignment(
            token=Token(more.pop("shard", self.shard), more.pop("epoch", self.epoch), self._offset),
            info=TaskInfo("order", handler, role, handler, **{one: more.pop(one) for one in _OF_TASK if one in more}),
            namespace="default", instance_id=INSTANCE, attempt=more.pop("attempt", 1),
            input=Payload(msgspec.json.encode(value)), **more,
        )  # fmt: skip


def runtime(worker: Worker, *, clock: ManualClock | None = None, **slots: int) -> WorkerRuntime:
    """A runtime of `worker` on a clock that stands still."""
    return WorkerRuntime(
        worker, worker_id="w1", incarnation="i1", clock=clock or ManualClock(),
        slots={"effect": 4, "compute": 2, "reducer": 2} | slots,
    )  # fmt: skip


@asynccontextmanager
async def serving(worker: Worker, *, clock: ManualClock | None = None, **slots: int) -> AsyncIterator[WorkerRuntime]:
    """A started runtime, closed at the end with as much time as that takes."""
    clock = clock or ManualClock()
    running = runtime(worker, clock=clock, **slots)
    await running.start()
    try:
        yield running
    finally:
        closing = asyncio.ensure_future(running.close())
        await settle()
        while not closing.done():
            await clock.advance(1.0)
            await asyncio.sleep(0.001)  # child processes end on their own time
        await closing


def connect(
    runtime: WorkerRuntime, epochs: dict[int, int] | None = None, *, name: str = "o1", acks: bool = True
) -> FakeLink:
    """A link whose orchestrator has said Welcome."""
    link = FakeLink(acks=acks)
    link.peer = runtime.attach(link)
    link.say(Welcome(orchestrator_id=name, epochs={0: 1} if epochs is None else epochs))
    return link


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(30):
        await asyncio.sleep(0)


class Shop:
    """A worker whose handlers wait until they are told."""

    def __init__(self) -> None:
        self.worker = Worker("shop")
        self.gate = asyncio.Event()
        self.ran: list[int] = []
        self.effect = self.worker.effect("hold")(self._hold)
        self.worker.compute("fast")(self._fast)
        self.worker.effect("fast")(self._fast)

    async def _hold(self, contract: Any) -> Any:
        self.ran.append(contract)
        await self.gate.wait()
        return {"held": contract}

    async def _fast(self, contract: Any) -> Any:
        self.ran.append(contract)
        return contract
