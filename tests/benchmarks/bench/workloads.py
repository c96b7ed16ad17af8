"""The workloads: single tasks, chains, fan-outs and one at a time, all through the public client library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import onexflow
from onexflow.client import Client, connect
from onexflow.core.definition import WorkflowDefinition

from .processes import Cluster, cpu_seconds

#: About 100 bytes of JSON.
PAYLOAD = {"order_id": "ORD-12345", "customer_id": "CUST-67890", "amount": 99.99, "note": "x" * 30}


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
    for number in range(10):
        task = add(chain, f"step{number}", input="input", depends_on=[task] if task else [])
    fan = onexflow.workflow(f"bench-fan-{role}")
    items = add(fan, "item", map="input.items")
    fan.reducer("merge", handler="count", depends_on=[items])
    return [single.build(), chain.build(), fan.build()]


async def _in_flight(total: int, width: int, one: Callable[[int], Awaitable[None]]) -> None:
    """Call `one` for 0 … total - 1, `width` at a time."""
    numbers = iter(range(total))

    async def lane() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(width, total)):
            group.create_task(lane())


class Load:
    """Drives one cluster with one client."""

    def __init__(self, cluster: Cluster, client: Client, role: str) -> None:
        self._cluster = cluster
        self._client = client
        self._role = role

    @classmethod
    async def open(cls, cluster: Cluster, role: str) -> Load:
        client = await connect(cluster.address)
        for definition in definitions(role):
            await client.register(definition)
        return cls(cluster, client, role)

    async def close(self) -> None:
        await self._client.close()

    async def _measure(self, name: str, tasks: int, work: Callable[[], Awaitable[list[float]]]) -> Sample:
        pids = self._cluster.pids
        before = {process: cpu_seconds(pid) for process, pid in pids.items()}
        own, began = time.process_time(), time.perf_counter()
        latencies = await work()
        seconds = time.perf_counter() - began
        cpu = {process: (cpu_seconds(pid) - before[process]) / tasks * 1e6 for process, pid in pids.items()}
        cpu["client"] = (time.process_time() - own) / tasks * 1e6
        return Sample(name, tasks, seconds, cpu, latencies)

    async def single(self, runs: int, width: int = 200) -> Sample:
        """W1: workflows of one task, 200 in flight."""

        async def work() -> list[float]:
            await _in_flight(runs, width, self._one(f"bench-single-{self._role}"))
            return []

        return await self._measure("W1 single", runs, work)

    async def chain(self, runs: int, width: int = 200) -> Sample:
        """W2: chains of ten tasks, 200 in flight."""

        async def work() -> list[float]:
            await _in_flight(runs, width, self._one(f"bench-chain-{self._role}"))
            return []

        return await self._measure("W2 chain", runs * 10, work)

    async def fan(self, times: int, width: int = 1000) -> Sample:
        """W3: one workflow of 1,000 parallel tasks and a reducer, `times` in a row."""
        items = [PAYLOAD] * width

        async def work() -> list[float]:
            for _ in range(times):
                result = await self._client.run(f"bench-fan-{self._role}", input={"items": items})
                assert result == width, result
            return []

        return await self._measure("W3 fan", times * (width + 1), work)

    async def latency(self, samples: int) -> Sample:
        """W4: one workflow of one task at a time, start with wait."""

        async def work() -> list[float]:
            latencies = []
            for _ in range(samples):
                began = time.perf_counter()
                await self._client.run(f"bench-single-{self._role}", input=PAYLOAD)
                latencies.append((time.perf_counter() - began) * 1e3)
            return sorted(latencies)

        return await self._measure("W4 latency", samples, work)

    def _one(self, workflow_type: str) -> Callable[[int], Awaitable[None]]:
        async def one(_: int) -> None:
            await self._client.run(workflow_type, input=PAYLOAD)

        return one
