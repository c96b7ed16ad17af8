"""In-memory registries for tests: one hub, one clock that is turned by hand."""

from __future__ import annotations

import asyncio
import heapq

from onexflow.ports.registry import Registry
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.testing.conformance.registry import Condition, holds


class ManualClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def now(self) -> int:
        return int(self.time * 1e9)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._sleepers, (self.time + seconds, self._number, future))
        await future

    def advance(self, seconds: float) -> None:
        self.time += seconds
        while self._sleepers and self._sleepers[0][0] <= self.time:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)


class MemoryHarness:
    """Registries on one hub and one manual clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hub = MemoryRegistryHub(self.clock)
        self.registries: dict[Registry, bool] = {}

    async def open(self) -> MemoryRegistry:
        registry = MemoryRegistry(self.hub)
        self.registries[registry] = True
        return registry

    async def started(self) -> MemoryRegistry:
        registry = await self.open()
        await registry.start()
        return registry

    def hang(self, registry: Registry) -> None:
        self.registries[registry] = False

    def wake(self, registry: Registry) -> None:
        self.registries[registry] = True

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.clock.advance(0.1)
            for registry, beaten in self.registries.items():
                if beaten:
                    registry.beat()
            for _ in range(5):
                await asyncio.sleep(0)

    async def until(self, condition: Condition) -> None:
        for _ in range(300):
            await asyncio.sleep(0)
            if await holds(condition):
                return
            await self.pass_time(0.1)
        raise AssertionError("not within 30 s of virtual time")
