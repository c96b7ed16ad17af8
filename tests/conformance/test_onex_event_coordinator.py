"""The specification's event coordinator in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from onexflow.client import Client
from onexflow.client.remote import RemoteService
from onexflow.engine.orchestrator import Orchestrator
from onexflow.engine.protocols.coordinator import WorkflowEventCoordinator
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.engine.protocols.node_registry import WorkflowNodeRegistry
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_event_bus import Connect
from onexflow.testing.conformance.onex_event_coordinator import EventCoordinatorConformance
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from support.grpc_cluster import grpc_cluster


class TestOverGrpc(EventCoordinatorConformance):
    @pytest.fixture
    async def client(self) -> AsyncIterator[Client]:
        async with grpc_cluster(Script().worker()) as client:
            for definition in definitions():
                await client.register(definition)
            yield client

    @pytest.fixture
    async def service(self, client: Client) -> AsyncIterator[RemoteService]:
        remote = RemoteService.of(client)
        yield remote
        await remote.close()

    @pytest.fixture
    def connect(self, client: Client) -> Connect:
        return client.event_bus

    @pytest.fixture
    async def coordinator(self, client: Client) -> AsyncIterator[WorkflowEventCoordinator]:
        coordinator = client.event_coordinator()
        yield coordinator
        await coordinator.close()


class TestInProcess(EventCoordinatorConformance):
    @pytest.fixture
    async def service(self) -> AsyncIterator[Orchestrator]:
        async with Cluster(seed=1) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(Script().worker())
            yield cluster.engine

    @pytest.fixture
    def connect(self, service: Orchestrator) -> Connect:
        return lambda **options: WorkflowEventBus(service.events, **options)

    @pytest.fixture
    async def coordinator(self, service: Orchestrator) -> AsyncIterator[WorkflowEventCoordinator]:
        registry = WorkflowNodeRegistry(service.node_registry)
        coordinator = WorkflowEventCoordinator(service.events, WorkflowEventBus(service.events), registry)
        yield coordinator
        await coordinator.close()
