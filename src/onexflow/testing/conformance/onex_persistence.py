"""What every ProtocolWorkflowPersistence of ours must do. Subclass `PersistenceConformance`, give it a `service`.

class TestMine(PersistenceConformance):
    @pytest.fixture
    async def service(self, script: Script) -> AsyncIterator[Service]:
        ...  # with onex_orchestrator.definitions() registered and `script.worker()` connected
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.engine.protocols.persistence import WorkflowPersistence
from onexflow.spi import (
    Context,
    InvalidProtocolStateError,
    ProtocolWorkflowPersistence,
    RegistryError,
    SPIError,
    TaskStatus,
)
from onexflow.testing.conformance.onex_persistence_cuts import CleanUpConformance
from onexflow.testing.conformance.orchestrator_kit import ORDER, TERMINAL, Script, state_when
from onexflow.testing.conformance.persistence_kit import TYPE, Service, event_of, replaced, state_of

__all__ = ["PersistenceConformance", "Service"]


class PersistenceConformance(CleanUpConformance):
    """The contract, member by member."""

    # ---- shape

    async def test_it_is_one(self, persistence: WorkflowPersistence) -> None:
        assert isinstance(persistence, ProtocolWorkflowPersistence)

    async def test_members_have_the_names_order_and_defaults_of_the_specification(
        self, persistence: WorkflowPersistence
    ) -> None:
        names = [name for name in vars(ProtocolWorkflowPersistence) if not name.startswith("_")]
        assert len(names) == 7
        for name in names:
            wanted, ours = (getattr(one, name) for one in (ProtocolWorkflowPersistence, type(persistence)))
            assert inspect.iscoroutinefunction(ours)
            shapes = [
                [(p.name, p.kind, p.default) for p in inspect.signature(one).parameters.values()]
                for one in (wanted, ours)
            ]
            assert shapes[0] == shapes[1]

    # ---- unknown names

    async def test_what_is_not_known_loads_as_nothing(self, persistence: WorkflowPersistence) -> None:
        for name in (TYPE, "no-such-type"):
            ins = (name, uuid4())
            assert await persistence.load_workflow_state(*ins) is None
            assert await persistence.load_workflow_events(*ins) == []
            assert await persistence.load_workflow_events(*ins, 5, 7) == []
            assert await persistence.load_snapshot(*ins) is None

    async def test_what_changes_an_unknown_name_is_a_registry_error(self, persistence: WorkflowPersistence) -> None:
        ins = (TYPE, uuid4())
        with pytest.raises(RegistryError):
            await persistence.create_snapshot(*ins, 1)
        with pytest.raises(RegistryError):
            await persistence.cleanup_old_events(*ins, 5)

    @pytest.mark.parametrize(
        ("member", "arguments"),
        [
            ("load_workflow_events", (-1,)),
            ("load_workflow_events", (0, -1)),
            ("create_snapshot", (-1,)),
            ("cleanup_old_events", (-1,)),
        ],
    )
    async def test_a_negative_sequence_is_refused(
        self, persistence: WorkflowPersistence, member: str, arguments: tuple[int, ...]
    ) -> None:
        with pytest.raises(SPIError) as raised:
            await getattr(persistence, member)(TYPE, uuid4(), *arguments)
        assert isinstance(raised.value, ValueError)
        assert raised.value.context["field"]

    # ---- states

    async def test_a_run_s_state_is_what_the_orchestrator_says(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        state = await persistence.load_workflow_state(TYPE, instance)
        assert state == await orchestrator.get_workflow_state(TYPE, instance)

    async def test_a_run_s_state_can_be_confirmed_and_not_changed(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        state = await orchestrator.get_workflow_state(TYPE, instance)
        assert await persistence.save_workflow_state(TYPE, instance, state) is True
        last = state.sequence_number
        forged = [
            replace(state, state="failed"),
            replace(state, sequence_number=last + 1),
            replace(state, sequence_number=last - 1),
            replace(state, state="running", sequence_number=last + 5),
        ]
        for one in forged:
            with pytest.raises(InvalidProtocolStateError) as raised:
                await persistence.save_workflow_state(TYPE, instance, one)
            assert raised.value.context["current_state"] == "completed"
            assert raised.value.context["required_state"] == one.state
        assert await orchestrator.get_workflow_state(TYPE, instance) == state

    async def test_an_old_state_of_a_run_at_work_is_refused(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence, script: Script
    ) -> None:
        instance, gate = await self.halfway(orchestrator, script)
        state = await persistence.load_workflow_state(TYPE, instance)
        assert state is not None
        gate.set()
        await state_when(orchestrator, instance, "completed")
        with pytest.raises(InvalidProtocolStateError):
            await persistence.save_workflow_state(TYPE, instance, state)

    async def test_a_state_elsewhere_is_kept_as_it_is(self, persistence: WorkflowPersistence) -> None:
        instance, at = uuid4(), datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
        context: Context = {"a": [1, {"b": None}], "c": 1.5, "ü": True}
        done = TaskStatus(task_id="t", state="completed", progress=1.0, result={"n": 1}, enqueued_at=at, finished_at=at)
        full = state_of(
            instance, 3, state="waiting_for_dependency", context=context, tasks={"t": done}, started_at=at,
            updated_at=at, error="E: no", metadata={"by": "me"},
        )  # fmt: skip
        assert await persistence.save_workflow_state("elsewhere", instance, full) is True
        assert await persistence.load_workflow_state("elsewhere", instance) == full
        assert await persistence.load_workflow_state("elsewhere", uuid4()) is None
        assert await persistence.load_workflow_state("elsewhere/x", instance) is None

    async def test_an_older_state_changes_nothing(self, persistence: WorkflowPersistence) -> None:
        instance = uuid4()
        assert await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 5)) is True
        assert await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 4)) is False
        kept = await persistence.load_workflow_state("elsewhere", instance)
        assert kept == state_of(instance, 5)
        again = state_of(instance, 5, state="paused")
        assert await persistence.save_workflow_state("elsewhere", instance, again) is True
        assert await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 8)) is True
        kept = await persistence.load_workflow_state("elsewhere", instance)
        assert kept is not None
        assert (kept.state, kept.sequence_number) == ("running", 8)

    async def test_of_states_saved_at_the_same_time_the_newest_is_kept(self, persistence: WorkflowPersistence) -> None:
        instance = uuid4()
        states = [state_of(instance, number) for number in (3, 9, 1, 7, 2, 8)]
        saved = await asyncio.gather(
            *(persistence.save_workflow_state("elsewhere", instance, state) for state in states)
        )
        assert saved[1] is True
        kept = await persistence.load_workflow_state("elsewhere", instance)
        assert kept is not None
        assert kept.sequence_number == 9

    @pytest.mark.parametrize(
        "wrong",
        [
            {"state": "done"},
            {"sequence_number": -1},
            {"workflow_type": "another"},
            {"instance_id": UUID(int=1)},
            {"context": {"o": object()}},
            {"context": {"n": float("nan")}},
            {"tasks": {"t": 1}},
            {"started_at": "yesterday at noon", "tasks": {"t": {"x": object()}}},
        ],
    )
    async def test_a_state_that_is_none_is_refused(
        self, persistence: WorkflowPersistence, wrong: dict[str, Any]
    ) -> None:
        instance = uuid4()
        state = replace(state_of(instance, 1), **wrong)
        with pytest.raises(SPIError) as raised:
            await persistence.save_workflow_state("elsewhere", instance, state)
        assert raised.value.context["field"]
        assert await persistence.load_workflow_state("elsewhere", instance) is None

    # ---- events

    async def test_a_run_s_events_are_its_history(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        events = await orchestrator.get_workflow_history(TYPE, instance)
        assert await persistence.load_workflow_events(TYPE, instance) == events
        assert await persistence.load_workflow_events(TYPE, instance, 1) == events
        assert await persistence.load_workflow_events(TYPE, instance, 2, 4) == events[1:4]
        assert await persistence.load_workflow_events(TYPE, instance, 3, 3) == events[2:3]
        assert await persistence.load_workflow_events(TYPE, instance, 4, 2) == []
        assert await persistence.load_workflow_events(TYPE, instance, 0, 0) == []
        assert await persistence.load_workflow_events(TYPE, instance, 10_000) == []

    async def test_an_event_that_a_run_has_is_accepted_and_changes_nothing(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        events = await orchestrator.get_workflow_history(TYPE, instance)
        assert [await persistence.save_workflow_event(event) for event in events] == [True] * len(events)
        assert await orchestrator.get_workflow_history(TYPE, instance) == events

    async def test_no_event_can_be_forged_for_a_run(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence, script: Script
    ) -> None:
        instance, gate = await self.halfway(orchestrator, script)
        events = await orchestrator.get_workflow_history(TYPE, instance)
        last = len(events)
        forged = [
            event_of(instance, last + 1, workflow_type=TYPE, event_type="workflow.completed"),
            event_of(instance, last + 2, workflow_type=TYPE, event_type="task.completed"),
            event_of(instance, None, workflow_type=TYPE, event_type="task.completed"),
            event_of(instance, last, workflow_type=TYPE, event_type="task_failed"),
            replaced(events[1], event_type="workflow.failed"),
            replaced(events[1], sequence_number=last + 1),
            replaced(events[1], payload={"forged": True}),
            replaced(events[1], event_id=uuid4()),
        ]
        for one in forged:
            with pytest.raises(InvalidProtocolStateError) as raised:
                await persistence.save_workflow_event(one)
            assert raised.value.context["current_state"]
            assert raised.value.context["required_state"]
        assert (await orchestrator.get_workflow_history(TYPE, instance))[:last] == events
        gate.set()
        await state_when(orchestrator, instance, "completed")

    async def test_forging_while_the_run_goes_on_does_not_reach_it(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = uuid4()
        await orchestrator.start_workflow(TYPE, instance, dict(ORDER))
        accepted = 0
        while (await orchestrator.get_workflow_state(TYPE, instance)).current_state not in TERMINAL:
            head = (await orchestrator.get_workflow_state(TYPE, instance)).sequence_number
            forged = [
                event_of(instance, head + step, workflow_type=TYPE, event_type="workflow.cancelled")
                for step in range(1, 6)
            ]
            answers = await asyncio.gather(
                *(persistence.save_workflow_event(one) for one in forged), return_exceptions=True
            )
            accepted += sum(not isinstance(one, InvalidProtocolStateError) for one in answers)
        assert accepted == 0
        events = await orchestrator.get_workflow_history(TYPE, instance)
        assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
        assert events[-1].event_type == "workflow.completed"
        assert "workflow.cancelled" not in [str(event.event_type) for event in events]
        assert (await orchestrator.get_workflow_state(TYPE, instance)).sequence_number == len(events)

    async def test_events_elsewhere_are_kept_as_they_are(self, persistence: WorkflowPersistence) -> None:
        instance = uuid4()
        first = event_of(
            instance, 1, data={"a": [1, {"b": None}]}, metadata={"by": "me"}, correlation_id="req-1",
            causation_id=uuid4(), correlation_chain=[uuid4()], source="crm",
        )  # fmt: skip
        rest = [event_of(instance, 4), event_of(instance, None, event_type="workflow_paused")]
        for one in (first, *rest):
            assert await persistence.save_workflow_event(one) is True
        events = await persistence.load_workflow_events("elsewhere", instance)
        assert [event.sequence_number for event in events] == [1, 4, 5]
        assert events[0] == first
        assert (events[2].event_type, events[2].event_id) == ("workflow.paused", rest[1].event_id)
        assert await persistence.save_workflow_event(rest[0]) is True
        assert await persistence.load_workflow_events("elsewhere", instance) == events
        assert await persistence.load_workflow_events("elsewhere", instance, 2, 4) == events[1:2]
        assert await persistence.load_workflow_events("elsewhere", instance, 5) == events[2:]
        with pytest.raises(InvalidProtocolStateError) as raised:
            await persistence.save_workflow_event(event_of(instance, 4))
        assert raised.value.context["current_state"]
        assert raised.value.context["required_state"]

    async def test_many_events_are_loaded_in_their_order(self, persistence: WorkflowPersistence) -> None:
        instance = uuid4()
        for first in range(0, 1100, 100):
            for number in range(first + 1, first + 101):
                await persistence.save_workflow_event(event_of(instance, number))
        events = await persistence.load_workflow_events("elsewhere", instance)
        assert [event.sequence_number for event in events] == list(range(1, 1101))
        assert await persistence.load_workflow_events("elsewhere", instance, 1050, 1060) == events[1049:1060]

    # ---- snapshots

    async def test_a_snapshot_is_the_state_at_exactly_that_event(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        ins = (TYPE, instance)
        assert await persistence.load_snapshot(*ins) is None
        assert await persistence.create_snapshot(*ins, 0) is False
        events = await orchestrator.get_workflow_history(*ins)
        done = next(event.sequence_number for event in events if event.event_type == "task.completed")
        assert await persistence.create_snapshot(*ins, done) is True
        snapshot = await persistence.load_snapshot(*ins)
        assert snapshot is not None
        assert (snapshot.workflow_type, snapshot.instance_id, snapshot.sequence_number) == (*ins, done)
        assert snapshot.state == "running"
        assert {name: task.state for name, task in snapshot.tasks.items()}["reserve"] == "completed"
        assert snapshot.tasks["payment_processing"].state != "completed"
        assert snapshot.context["tasks"] == {"reserve": {"by": "reserve"}}
        assert snapshot.context["input"] == ORDER
        assert snapshot.created_at is not None
        assert await snapshot.validate_snapshot()

    async def test_every_event_can_be_folded_to(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        state = await orchestrator.get_workflow_state(TYPE, instance)
        snapshots = []
        for number in range(1, state.sequence_number + 1):
            assert await persistence.create_snapshot(TYPE, instance, number) is True
            snapshot = await persistence.load_snapshot(TYPE, instance)
            assert snapshot is not None
            assert snapshot.sequence_number == number
            snapshots.append(snapshot)
        assert (snapshots[0].state, snapshots[-1].state) == ("pending", "completed")
        assert (snapshots[-1].context, snapshots[-1].tasks) == (state.context, state.tasks)

    async def test_there_is_no_snapshot_beyond_the_head(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        last = (await orchestrator.get_workflow_state(TYPE, instance)).sequence_number
        assert await persistence.create_snapshot(TYPE, instance, last + 1) is False
        assert await persistence.load_snapshot(TYPE, instance) is None

    async def test_the_newest_snapshot_by_number_counts(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        for number in (3, 5, 2):
            assert await persistence.create_snapshot(TYPE, instance, number) is True
        snapshot = await persistence.load_snapshot(TYPE, instance)
        assert snapshot is not None
        assert snapshot.sequence_number == 5

    async def test_a_snapshot_elsewhere_is_the_saved_state(self, persistence: WorkflowPersistence) -> None:
        instance = uuid4()
        ins = ("elsewhere", instance)
        await persistence.save_workflow_event(event_of(instance, 1))
        assert await persistence.create_snapshot(*ins, 1) is False
        await persistence.save_workflow_state(*ins, state_of(instance, 4, context={"n": 4}))
        assert await persistence.create_snapshot(*ins, 3) is False
        assert await persistence.create_snapshot(*ins, 4) is True
        await persistence.save_workflow_state(*ins, state_of(instance, 6, context={"n": 6}))
        snapshot = await persistence.load_snapshot(*ins)
        assert snapshot is not None
        assert (snapshot.sequence_number, snapshot.context) == (4, {"n": 4})
