"""The specification's orchestrator in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from onexflow.app.system import SystemClock
from onexflow.client.remote import RemoteService
from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.ports.client_link import RunService
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster, virtual_time
from onexflow.testing.conformance.onex_orchestrator import OrchestratorConformance, Script, definitions
from support.grpc_cluster import grpc_cluster


class TestInProcess(OrchestratorConformance):
    @pytest.fixture
    async def service(self, script: Script) -> AsyncIterator[RunService]:
        async with Cluster(seed=1) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(script.worker())
            yield cluster.engine


class TestInProcessOnSqlite(OrchestratorConformance):
    @pytest.fixture
    async def service(self, script: Script, tmp_path: Path) -> AsyncIterator[RunService]:
        clock = SystemClock()
        async with Cluster(store=SqliteStore(tmp_path / "onex.db", clock=clock), clock=clock) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(script.worker())
            yield cluster.engine


class TestOverGrpc(OrchestratorConformance):
    @pytest.fixture
    async def service(self, script: Script) -> AsyncIterator[RunService]:
        async with grpc_cluster(script.worker()) as client:
            for definition in definitions():
                await client.register(definition)
            remote = RemoteService.of(client)
            yield remote
            await remote.close()


@virtual_time
async def test_what_it_said_is_true_after_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        for definition in definitions():
            await cluster.register(definition)
        instance = uuid4()
        orchestrator = WorkflowOrchestrator(cluster.engine)
        started = await orchestrator.start_workflow("order-processing", instance, {"a": 1}, "req-abc123")
        await orchestrator.pause_workflow("order-processing", instance)
        before = await orchestrator.get_workflow_history("order-processing", instance)
        await cluster.crash_orchestrator()
        orchestrator = WorkflowOrchestrator(await cluster.restart_orchestrator())
        again = await orchestrator.start_workflow("order-processing", instance, {"a": 1}, "req-abc123")
        assert (again.correlation_id, again.created_at) == (started.correlation_id, started.created_at)
        assert again.state == "paused"
        after = await orchestrator.get_workflow_history("order-processing", instance)
        assert after[: len(before)] == before
        assert await orchestrator.pause_workflow("order-processing", instance) is False
