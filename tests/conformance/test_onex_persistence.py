"""The specification's persistence in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from onexflow.app.system import SystemClock
from onexflow.client.remote import RemoteService
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from onexflow.testing.conformance.onex_persistence import PersistenceConformance, Service
from support.grpc_cluster import grpc_cluster


class TestInProcess(PersistenceConformance):
    @pytest.fixture
    async def service(self, script: Script) -> AsyncIterator[Service]:
        async with Cluster(seed=1) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(script.worker())
            yield cluster.engine


class TestInProcessOnSqlite(PersistenceConformance):
    @pytest.fixture
    async def service(self, script: Script, tmp_path: Path) -> AsyncIterator[Service]:
        clock = SystemClock()
        async with Cluster(store=SqliteStore(tmp_path / "onex.db", clock=clock), clock=clock) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(script.worker())
            yield cluster.engine


class TestOverGrpc(PersistenceConformance):
    @pytest.fixture
    async def service(self, script: Script) -> AsyncIterator[Service]:
        async with grpc_cluster(script.worker()) as client:
            for definition in definitions():
                await client.register(definition)
            remote = RemoteService.of(client)
            yield remote
            await remote.close()
