"""The node registry in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from onexflow.client.remote import RemoteService
from onexflow.engine.protocols import WorkflowNodeRegistry
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_node_registry import NodeRegistryConformance, Scene, definitions, worker
from support.grpc_cluster import grpc_cluster


class TestInProcess(NodeRegistryConformance):
    @pytest.fixture
    async def scene(self) -> AsyncIterator[Scene]:
        made: list[WorkflowNodeRegistry] = []
        async with Cluster(seed=1) as cluster:
            for name in ("one", "two"):
                await cluster.add_worker(worker(name))
            for definition in definitions():
                await cluster.register(definition)

            def registry(ttl: float) -> WorkflowNodeRegistry:
                made.append(WorkflowNodeRegistry(cluster.engine.node_registry, ttl_seconds=ttl))
                return made[-1]

            yield Scene(registry, cluster.engine, "orchestrator-1", ("worker-1", "worker-2"))
            for each in made:
                await each.close()


class TestOverGrpc(NodeRegistryConformance):
    @pytest.fixture
    async def scene(self) -> AsyncIterator[Scene]:
        async with grpc_cluster(worker("one"), worker("two")) as client:
            for definition in definitions():
                await client.register(definition)
            remote = RemoteService.of(client)
            yield Scene(lambda ttl: client.node_registry(ttl_seconds=ttl), remote, "o1", ("w0", "w1"))
            await remote.close()
