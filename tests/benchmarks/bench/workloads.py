"""The workloads: single tasks, chains, fan-outs and one at a time, all through the public client library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import msgspec

import onexflow
from onexflow.client import Client, connect
from onexflow.core.definition import WorkflowDefinition

from ..probe.client import Probe
from .processes import Cluster, cpu_seconds

#: About 100 bytes of JSON.
PAYLOAD = {"order_id": "ORD-12345", "customer_id": "CUST-67890", "amount": 99.99, "note": "x" * 30}
CHAIN = 10  #: tasks
TRIPLE = 3  #: tasks of a short chain
WIDTH = 1000  #: items of a fan-out


@dataclass
class Sample:
    """One run of a workload."""

    workload: str
    tasks: int
    seconds: float
    cpu_us: dict[str, float]
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tasks / self.seconds


def definitions(role: str = "compute") -> list[WorkflowDefinition]:
    """The workflow types of all workloads; `role` is that of the plain tasks."""
    handler = "noop" if role == "compute" else "noop_effect"

    def add(flow: Any, name: str, **options: Any) -> Any:
        return getattr(flow, role)(name, handler=handler, **options)

    single = onexflow.workflow(f"bench-single-{role}")
    add(single, "only", input="input")
    chain = onexflow.workflow(f"bench-chain-{role}")
    task = None
    for number in range(CHAIN):
        task = add(chain, f"step{number}", input="input", depends_on=[task] if task else [])
    triple = onexflow.workflow(f"bench-triple-{role}")
    task = None
    for number in range(TRIPLE):
        task = add(triple, f"step{number}", input="input", depends_on=[task] if task else [])
    fan = onexflow.workflow(f"bench-fan-{role}")
    items = add(fan, "item", map="input.items")
    fan.reducer("merge", handler="count", depends_on=[items])
    return [single.build(), chain.build(), triple.build(), fan.build()]


async def in_flight(total: int, width: int, one: Callable[[], Awaitable[None]]) -> list[float]:
    """Call `one` so often, `width` at a time. No single one is timed."""
    left = iter(range(total))

    async def lane() -> None:
        for _ in left:
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(width, total)):
            group.create_task(lane())
    return []


class Runner(Protocol):
    """A client and the processes that serve it."""

    @property
    def pids(self) -> dict[str, int]: ...

    async def single(self) -> None:
        """One run of one task, to its result."""

    async def chain(self) -> None:
        """One run of ten tasks, one after the other."""

    async def fan(self) -> None:
        """One run of `WIDTH` parallel tasks and a reducer."""


class Onexflow:
    """The shipped binaries, through the public client library."""

    def __init__(self, cluster: Cluster, client: Client, role: str) -> None:
        self._cluster = cluster
        self._client = client
        self._role = role
        self._items = {"items": [PAYLOAD] * WIDTH}

    @classmethod
    async def open(cls, cluster: Cluster, role: str) -> Self:
        return await cls.of(cluster, await connect(cluster.address), role)

    @classmethod
    async def of(cls, cluster: Cluster, client: Client, role: str) -> Self:
        """With a client that is connected."""
        for definition in definitions(role):
            await client.register(definition)
        return cls(cluster, client, role)

    async def close(self) -> None:
        await self._client.close()

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def pids(self) -> dict[str, int]:
        return self._cluster.pids

    async def single(self) -> None:
        await self._client.run(f"bench-single-{self._role}", input=PAYLOAD)

    async def chain(self) -> None:
        await self._client.run(f"bench-chain-{self._role}", input=PAYLOAD)

    async def triple(self) -> None:
        """One run of three tasks, one after the other."""
        await self._client.run(f"bench-triple-{self._role}", input=PAYLOAD)

    async def fan(self) -> None:
        result = await self._client.run(f"bench-fan-{self._role}", input=self._items)
        assert result == WIDTH, result


class Bare:
    """The probe: the same runs with nothing but what a durable task needs."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._payload = msgspec.json.encode(PAYLOAD)
        self._items = [self._payload] * WIDTH

    @property
    def pids(self) -> dict[str, int]:
        return self._probe.pids

    async def single(self) -> None:
        await self._probe.run(1, [self._payload])

    async def chain(self) -> None:
        await self._probe.run(CHAIN, [self._payload])

    async def fan(self) -> None:
        await self._probe.run(WIDTH + 1, self._items)


class Load:
    """Drives one runner, and says what it took."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def _measure(self, name: str, tasks: int, work: Callable[[], Awaitable[list[float]]]) -> Sample:
        pids = self._runner.pids
        before = {process: cpu_seconds(pid) for process, pid in pids.items()}
        own, began = time.process_time(), time.perf_counter()
        latencies = await work()
        seconds = time.perf_counter() - began
        cpu = {process: (cpu_seconds(pid) - before[process]) / tasks * 1e6 for process, pid in pids.items()}
        cpu["client"] = (time.process_time() - own) / tasks * 1e6
        return Sample(name, tasks, seconds, cpu, latencies)

    async def single(self, runs: int, width: int = 200) -> Sample:
        """W1: workflows of one task, 200 in flight."""
        return await self._measure("W1 single", runs, lambda: in_flight(runs, width, self._runner.single))

    async def chain(self, runs: int, width: int = 200) -> Sample:
        """W2: chains of ten tasks, 200 in flight."""
        return await self._measure("W2 chain", runs * CHAIN, lambda: in_flight(runs, width, self._runner.chain))

    async def fan(self, times: int) -> Sample:
        """W3: one workflow of 1,000 parallel tasks and a reducer, `times` in a row."""
        return await self._measure("W3 fan", times * (WIDTH + 1), lambda: in_flight(times, 1, self._runner.fan))

    async def latency(self, samples: int) -> Sample:
        """W4: one workflow of one task at a time, start with wait."""

        async def work() -> list[float]:
            latencies = []
            for _ in range(samples):
                began = time.perf_counter()
                await self._runner.single()
                latencies.append((time.perf_counter() - began) * 1e3)
            return sorted(latencies)

        return await self._measure("W4 latency", samples, work)
