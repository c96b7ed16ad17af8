"""What every ProtocolWorkflowOrchestrator of ours must do. Subclass `OrchestratorConformance`, give it a `service`.

class TestMine(OrchestratorConformance):
    @pytest.fixture
    async def service(self, script: Script) -> AsyncIterator[RunService]:
        ...  # with `definitions()` registered and `script.worker()` connected
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.ports.client_link import RunService
from onexflow.spi import (
    InvalidProtocolStateError,
    ProtocolHandlerError,
    ProtocolWorkflowOrchestrator,
    RegistryError,
    SPIError,
    WorkflowEvent,
)
from onexflow.testing.conformance.onex_orchestrator_steering import SteeringConformance
from onexflow.testing.conformance.orchestrator_kit import ORDER, TERMINAL, Script, definitions, state_when, until

__all__ = ["OrchestratorConformance", "Script", "definitions"]


class OrchestratorConformance(SteeringConformance):
    """The contract, member by member."""

    # ---- shape

    async def test_it_is_one(self, orchestrator: WorkflowOrchestrator) -> None:
        assert isinstance(orchestrator, ProtocolWorkflowOrchestrator)

    async def test_members_have_the_names_order_and_defaults_of_the_specification(
        self, orchestrator: WorkflowOrchestrator
    ) -> None:
        names = [name for name in vars(ProtocolWorkflowOrchestrator) if not name.startswith("_")]
        assert len(names) == 8
        for name in names:
            wanted, ours = getattr(ProtocolWorkflowOrchestrator, name), getattr(type(orchestrator), name)
            assert inspect.iscoroutinefunction(ours)
            assert _shape(ours) == _shape(wanted)

    # ---- start

    async def test_a_start_returns_the_running_instance(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        gate, instance, correlation = script.gate("reserve"), uuid4(), uuid4()
        started = await orchestrator.start_workflow(
            workflow_type="order-processing", instance_id=instance, initial_data=dict(ORDER), correlation_id=correlation
        )
        assert (started.workflow_type, started.instance_id) == ("order-processing", instance)
        assert started.correlation_id == correlation
        assert started.state == started.current_state == "running"
        assert started.initial_data == ORDER
        assert started.created_at is not None
        assert started.started_at is not None
        types = [event.event_type for event in await orchestrator.get_workflow_history("order-processing", instance)]
        assert types[:3] == ["workflow.created", "workflow.started", "task.scheduled"]
        gate.set()
        await state_when(orchestrator, instance, "completed")

    async def test_the_same_start_again_returns_the_run(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        gate, instance, correlation = script.gate("reserve"), uuid4(), uuid4()
        first, again = [
            await orchestrator.start_workflow("order-processing", instance, dict(ORDER), correlation) for _ in range(2)
        ]
        assert (first.instance_id, first.created_at) == (again.instance_id, again.created_at)
        assert (first.metadata["created"], again.metadata["created"]) == (True, False)
        gate.set()
        await state_when(orchestrator, instance, "completed")
        later = await orchestrator.start_workflow("order-processing", instance, dict(ORDER), correlation)
        assert later.state == "completed"

    @pytest.mark.parametrize("other", ["data", "correlation_id"])
    async def test_another_start_of_an_instance_is_refused(
        self, orchestrator: WorkflowOrchestrator, other: str
    ) -> None:
        instance, correlation = uuid4(), uuid4()
        await orchestrator.start_workflow("order-processing", instance, dict(ORDER), correlation)
        data = {**ORDER, "amount": 1} if other == "data" else dict(ORDER)
        with pytest.raises(InvalidProtocolStateError) as raised:
            await orchestrator.start_workflow(
                "order-processing", instance, data, uuid4() if other == "correlation_id" else correlation
            )
        assert raised.value.context["current_state"]
        assert raised.value.context["required_state"]

    async def test_starts_at_the_same_time_make_one_run(self, orchestrator: WorkflowOrchestrator) -> None:
        instance = uuid4()
        started = await asyncio.gather(
            *(orchestrator.start_workflow("order-processing", instance, dict(ORDER)) for _ in range(5))
        )
        assert sum(bool(one.metadata["created"]) for one in started) == 1

    @pytest.mark.parametrize("given", ["req-abc123", "6BA7B810-9DAD-11D1-80B4-00C04FD430C8", None])
    async def test_a_correlation_id_may_be_text(self, orchestrator: WorkflowOrchestrator, given: str | None) -> None:
        instance = uuid4()
        started = await orchestrator.start_workflow("order-processing", instance, {}, given)
        again = await orchestrator.start_workflow("order-processing", instance, {}, given)
        assert isinstance(started.correlation_id, UUID)
        assert started.correlation_id == again.correlation_id
        events = await orchestrator.get_workflow_history("order-processing", instance)
        assert {event.correlation_id for event in events} == {started.correlation_id}
        if given == "req-abc123":
            assert started.metadata["correlation_id"] == given
            assert events[-1].metadata["correlation_id"] == given
        else:
            assert started.correlation_id == (UUID(given) if given else instance)

    async def test_an_unknown_type_is_a_registry_error(self, orchestrator: WorkflowOrchestrator) -> None:
        with pytest.raises(RegistryError) as raised:
            await orchestrator.start_workflow("no-such-type", uuid4(), {})
        assert raised.value.context["workflow_type"] == "no-such-type"

    @pytest.mark.parametrize("data", [{"n": float("nan")}, {"o": object()}, [1], None])
    async def test_data_that_is_no_json_object_is_refused(self, orchestrator: WorkflowOrchestrator, data: Any) -> None:
        instance = uuid4()
        with pytest.raises(SPIError) as raised:
            await orchestrator.start_workflow("order-processing", instance, data)
        assert raised.value.context["field"]
        with pytest.raises(RegistryError):
            await orchestrator.get_workflow_state("order-processing", instance)

    async def test_a_run_that_cannot_be_initialised_is_a_handler_error(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        script.failures["prepare"] = 1
        instance = uuid4()
        with pytest.raises(ProtocolHandlerError) as raised:
            await orchestrator.start_workflow("guided", instance, {})
        assert raised.value.context["state"] == "failed"
        assert "prepare does not work" in str(raised.value)
        assert (await orchestrator.get_workflow_state("guided", instance)).current_state == "failed"

    async def test_a_start_returns_when_the_run_is_initialised(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        prepare, ship = script.gate("prepare"), script.gate("ship")
        starting = asyncio.ensure_future(orchestrator.start_workflow("guided", uuid4(), {}))

        async def waits() -> bool:
            return (await orchestrator.get_workflow_metrics("guided")).by_state.get("initializing") == 1

        await until(waits)
        assert not starting.done()
        prepare.set()
        assert (await starting).state == "running"
        ship.set()

    async def test_the_wait_for_initialisation_has_an_end(self, service: RunService, script: Script) -> None:
        gate = script.gate("prepare")
        orchestrator = WorkflowOrchestrator(service, start_timeout=0.05)
        assert (await orchestrator.start_workflow("guided", uuid4(), {})).state == "initializing"
        gate.set()

    async def test_a_first_task_that_fails_for_good_is_raised_when_asked_for(
        self, service: RunService, script: Script
    ) -> None:
        script.failures["reserve"] = 2
        with pytest.raises(ProtocolHandlerError) as raised:
            await WorkflowOrchestrator(service, first_task_timeout=10).start_workflow("order-processing", uuid4(), {})
        assert raised.value.context["task"] == "reserve"
        assert raised.value.context["error"] == "ValueError"
        gate = script.gate("payment_processing")
        started = await WorkflowOrchestrator(service, first_task_timeout=10).start_workflow(
            "order-processing", uuid4(), {}
        )
        assert started.state == "running"
        gate.set()

    async def test_a_later_task_that_fails_is_not_the_start_s(self, service: RunService, script: Script) -> None:
        script.failures["payment_processing"] = 1
        orchestrator, instance = WorkflowOrchestrator(service, first_task_timeout=10), uuid4()
        started = await orchestrator.start_workflow("order-processing", instance, {})
        assert started.state in {"running", "failed"}
        await state_when(orchestrator, instance, "failed")

    # ---- looking

    async def test_an_unknown_run_is_a_registry_error(self, orchestrator: WorkflowOrchestrator) -> None:
        ins = ("order-processing", uuid4())
        calls = [
            orchestrator.pause_workflow(*ins),
            orchestrator.resume_workflow(*ins),
            orchestrator.cancel_workflow(*ins),
            orchestrator.get_workflow_state(*ins),
            orchestrator.get_workflow_history(*ins),
            orchestrator.replay_workflow(*ins, 5, 3),
            orchestrator.get_workflow_metrics("no-such-type"),
        ]
        for call in calls:
            with pytest.raises(RegistryError) as raised:
                await call
            assert raised.value.context

    async def test_the_state_says_what_the_run_has_done(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        script.failures["reserve"] = 1
        instance = uuid4()
        await orchestrator.start_workflow("order-processing", instance, dict(ORDER))
        state = await state_when(orchestrator, instance, *TERMINAL)
        assert (state.workflow_type, state.instance_id) == ("order-processing", instance)
        assert state.current_state == state.state == "completed"
        assert state.sequence_number == len(await orchestrator.get_workflow_history("order-processing", instance))
        assert state.data == state.context
        assert state.context["input"] == ORDER
        assert state.context["result"] == {"by": "payment_processing"}
        assert state.context["tasks"] == {name: {"by": name} for name in ("reserve", "payment_processing")}
        reserve, payment = state.tasks["reserve"], state.tasks["payment_processing"]
        assert (reserve.state, reserve.retry_count, reserve.priority) == ("completed", 1, "high")
        assert (payment.retry_count, payment.priority) == (0, "normal")
        assert payment.worker_id
        assert state.started_at is not None
        assert state.completed_at is not None
        assert state.started_at <= state.completed_at
        assert state.error is None

    async def test_the_state_of_a_failed_run_says_why(self, orchestrator: WorkflowOrchestrator, script: Script) -> None:
        script.failures["payment_processing"] = 1
        instance = uuid4()
        await orchestrator.start_workflow("order-processing", instance, {})
        state = await state_when(orchestrator, instance, *TERMINAL)
        assert state.current_state == "failed"
        assert "payment_processing does not work" in (state.error or "")
        assert "ValueError" in (state.tasks["payment_processing"].error or "")
        assert "result" in state.context

    async def test_the_history_is_numbered_from_one_without_a_gap(self, orchestrator: WorkflowOrchestrator) -> None:
        instance = await self.ended(orchestrator)
        events = await orchestrator.get_workflow_history("order-processing", instance)
        assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
        assert {(type(event), event.instance_id) for event in events} == {(WorkflowEvent, instance)}
        assert len({event.event_id for event in events}) == len({event.idempotency_key for event in events})
        assert [event.timestamp for event in events] == sorted(event.timestamp for event in events)
        again = await orchestrator.get_workflow_history("order-processing", instance)
        assert again == events

    async def test_event_types_equal_both_spellings(self, orchestrator: WorkflowOrchestrator) -> None:
        instance = await self.ended(orchestrator)
        events = await orchestrator.get_workflow_history("order-processing", instance)
        done = [event for event in events if event.event_type == "task_completed"]
        assert done == [event for event in events if event.event_type == "task.completed"]
        assert [event.data.get("task") for event in done] == ["reserve", "payment_processing"]
        assert all(event.data == event.payload for event in events)

    @pytest.mark.parametrize(
        ("bounds", "wanted"),
        [
            ((0,), slice(0, None)),
            ((1,), slice(0, None)),
            ((0, None), slice(0, None)),
            ((3,), slice(2, None)),
            ((2, 4), slice(1, 4)),
            ((3, 3), slice(2, 3)),
            ((0, 0), slice(0, 0)),
            ((4, 2), slice(0, 0)),
            ((0, 10_000), slice(0, None)),
            ((10_000,), slice(0, 0)),
        ],
    )
    async def test_a_replay_has_both_its_ends(
        self, orchestrator: WorkflowOrchestrator, bounds: tuple[int, ...], wanted: slice
    ) -> None:
        instance = await self.ended(orchestrator)
        events = await orchestrator.get_workflow_history("order-processing", instance)
        assert await orchestrator.replay_workflow("order-processing", instance, *bounds) == events[wanted]

    async def test_a_replay_changes_nothing(self, orchestrator: WorkflowOrchestrator) -> None:
        instance = await self.ended(orchestrator)
        before = await orchestrator.get_workflow_state("order-processing", instance)
        await orchestrator.replay_workflow("order-processing", instance, 1)
        assert await orchestrator.get_workflow_state("order-processing", instance) == before

    @pytest.mark.parametrize("bounds", [(-1,), (0, -1)])
    async def test_a_negative_sequence_is_refused(
        self, orchestrator: WorkflowOrchestrator, bounds: tuple[int, ...]
    ) -> None:
        with pytest.raises(SPIError) as raised:
            await orchestrator.replay_workflow("order-processing", uuid4(), *bounds)
        assert raised.value.context["field"].endswith("_sequence")

    async def test_metrics_are_true(self, orchestrator: WorkflowOrchestrator, script: Script) -> None:
        empty = await orchestrator.get_workflow_metrics("order-processing")
        assert (empty.workflow_type, empty.by_state, empty.started) == ("order-processing", {}, 0)
        events = 0
        for _ in range(3):
            instance = await self.ended(orchestrator)
            events += len(await orchestrator.get_workflow_history("order-processing", instance))
        script.failures["payment_processing"] = 1
        instance = uuid4()
        await orchestrator.start_workflow("order-processing", instance, {})
        await state_when(orchestrator, instance, "failed")
        events += len(await orchestrator.get_workflow_history("order-processing", instance))
        await orchestrator.start_workflow("guided", uuid4(), {})
        orders = await orchestrator.get_workflow_metrics("order-processing")
        assert orders.by_state == {"completed": 3, "failed": 1}
        assert (orders.started, orders.completed, orders.failed) == (4, 3, 1)
        assert (orders.events, orders.tasks) == (events, 8)
        assert 0 < orders.durations.p50 <= orders.durations.p95 <= orders.durations.p99 <= orders.window_seconds
        assert orders.throughput == pytest.approx(4 / orders.window_seconds)
        everything = await orchestrator.get_workflow_metrics()
        assert (everything.workflow_type, everything.started) == (None, 5)


def _shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
