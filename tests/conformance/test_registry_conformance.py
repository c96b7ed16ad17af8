"""The registry suite on both adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from etcd_support import EtcdHarness, etcd, etcd_harness  # noqa: F401 - a fixture
from memory_registry_support import MemoryHarness
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.testing.conformance.registry import RegistryConformance


class TestMemoryRegistry(RegistryConformance):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[MemoryHarness]:
        harness = MemoryHarness()
        yield harness
        for registry in harness.registries:
            await registry.close()


class TestEtcdRegistry(RegistryConformance):
    @pytest.fixture
    async def harness(self, etcd: EmbeddedEtcd) -> AsyncIterator[EtcdHarness]:  # noqa: F811 - the fixture by its name
        async with etcd_harness(etcd.endpoint) as harness:
            yield harness
