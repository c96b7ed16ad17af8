"""What the parts of the persistence's suite share: orders that have ended or wait, and records of streams elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol
from uuid import UUID, uuid4

import pytest

from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.engine.protocols.persistence import RecordsService, WorkflowPersistence
from onexflow.ports.events import EventService
from onexflow.spi import WorkflowEvent, WorkflowState
from onexflow.testing.conformance.orchestrator_kit import ORDER, TERMINAL, Script, state_when

TYPE = "order-processing"


class Service(RecordsService, Protocol):
    """What the suite is given: the event bus must know of cuts, too."""

    @property
    def events(self) -> EventService: ...


def event_of(instance: UUID, sequence: int | None = None, **fields: Any) -> WorkflowEvent:
    """An event of an external stream."""
    given: dict[str, Any] = {"event_type": "task.completed", "workflow_type": "elsewhere", **fields}
    return WorkflowEvent(instance_id=instance, sequence_number=sequence, **given)


def state_of(instance: UUID, sequence: int, **fields: Any) -> WorkflowState:
    """A state of an external stream."""
    given: dict[str, Any] = {"workflow_type": "elsewhere", "state": "running", **fields}
    return WorkflowState(instance_id=instance, sequence_number=sequence, **given)


def replaced(event: WorkflowEvent, **fields: Any) -> WorkflowEvent:
    """The event with other fields."""
    given = {name: getattr(event, name) for name in WorkflowEvent.__slots__}
    return WorkflowEvent(**{**given, **fields})


class PersistenceSuite:
    """An orchestrator and a persistence at the `service` that is tested."""

    @pytest.fixture
    def script(self) -> Script:
        return Script()

    @pytest.fixture
    def orchestrator(self, service: Service) -> WorkflowOrchestrator:
        return WorkflowOrchestrator(service)

    @pytest.fixture
    def persistence(self, service: Service) -> WorkflowPersistence:
        return WorkflowPersistence(service)

    async def ended(self, orchestrator: WorkflowOrchestrator, **data: Any) -> UUID:
        """An order that is completed."""
        instance = uuid4()
        await orchestrator.start_workflow(TYPE, instance, {**ORDER, **data})
        assert (await state_when(orchestrator, instance, *TERMINAL)).current_state == "completed"
        return instance

    async def halfway(self, orchestrator: WorkflowOrchestrator, script: Script) -> tuple[UUID, asyncio.Event]:
        """An order whose second task waits at a gate."""
        gate, instance = script.gate("payment_processing"), uuid4()
        await orchestrator.start_workflow(TYPE, instance, dict(ORDER))
        async with asyncio.timeout(10):
            while True:
                state = await orchestrator.get_workflow_state(TYPE, instance)
                if state.tasks["payment_processing"].state in {"scheduled", "running"}:
                    return instance, gate
                await asyncio.sleep(0.005)
