"""The specification's event bus in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from onexflow.engine.orchestrator import Orchestrator
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_event_bus import Connect, EventBusConformance
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from onexflow.testing.conformance.onex_projections import ProjectionConformance


class InProcess:
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


class TestInProcess(InProcess, EventBusConformance):
    pass


class TestProjectionsInProcess(InProcess, ProjectionConformance):
    pass
