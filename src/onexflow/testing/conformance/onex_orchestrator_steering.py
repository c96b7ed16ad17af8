"""The part of the orchestrator's suite that is about pause, resume and cancel, and what they lead to."""

from __future__ import annotations

from uuid import uuid4

import pytest

from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.spi import InvalidProtocolStateError
from onexflow.testing.conformance.orchestrator_kit import ORDER, TERMINAL, OrchestratorSuite, Script, state_when, until


class SteeringConformance(OrchestratorSuite):
    """What may be asked of a run on its way, and what is refused."""

    async def test_pause_resume_cancel(self, orchestrator: WorkflowOrchestrator, script: Script) -> None:
        gate, instance = script.gate("reserve"), uuid4()
        ins = ("order-processing", instance)
        await orchestrator.start_workflow(*ins, {})
        assert await orchestrator.resume_workflow(*ins) is False
        assert await orchestrator.pause_workflow(*ins) is True
        assert await orchestrator.pause_workflow(*ins) is False
        assert (await orchestrator.get_workflow_state(*ins)).current_state == "paused"
        assert await orchestrator.resume_workflow(*ins) is True
        assert await orchestrator.resume_workflow(*ins) is False
        assert await orchestrator.cancel_workflow(*ins, reason="User cancelled") is True
        assert await orchestrator.cancel_workflow(*ins) is False
        state = await orchestrator.get_workflow_state(*ins)
        assert (state.current_state, state.metadata["reason"]) == ("cancelled", "User cancelled")
        types = [str(event.event_type) for event in await orchestrator.get_workflow_history(*ins)]
        assert [types.count(f"workflow.{what}") for what in ("paused", "resumed", "cancelled")] == [1, 1, 1]
        gate.set()

    async def test_a_paused_run_starts_nothing_until_it_is_resumed(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        gate, instance = script.gate("reserve"), uuid4()
        ins = ("order-processing", instance)
        await orchestrator.start_workflow(*ins, {})
        await orchestrator.pause_workflow(*ins)
        gate.set()

        async def reserved() -> bool:
            return (await orchestrator.get_workflow_state(*ins)).tasks["reserve"].state == "completed"

        await until(reserved)
        state = await orchestrator.get_workflow_state(*ins)
        assert state.current_state == "paused"
        assert state.tasks["payment_processing"].started_at is None
        await orchestrator.resume_workflow(*ins)
        assert (await state_when(orchestrator, instance, *TERMINAL)).current_state == "completed"

    async def test_a_cancel_with_something_to_undo_ends_compensated_and_keeps_its_outcome(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        shipping, refund, instance = script.gate("ship"), script.gate("refund"), uuid4()
        ins = ("trip", instance)
        await orchestrator.start_workflow(*ins, dict(ORDER))

        async def paid() -> bool:
            return (await orchestrator.get_workflow_state(*ins)).tasks["ship"].state == "running"

        await until(paid)
        assert await orchestrator.cancel_workflow(*ins, reason="User cancelled") is True
        state = await orchestrator.get_workflow_state(*ins)
        assert (state.current_state, state.metadata["outcome"]) == ("compensating", "cancelled")
        assert await orchestrator.cancel_workflow(*ins) is False
        with pytest.raises(InvalidProtocolStateError) as raised:
            await orchestrator.pause_workflow(*ins)
        assert raised.value.context["current_state"] == "compensating"
        refund.set()
        shipping.set()
        state = await state_when(orchestrator, instance, *TERMINAL, workflow_type="trip")
        assert (state.current_state, state.metadata["outcome"]) == ("compensated", "cancelled")
        assert state.metadata["reason"] == "User cancelled"
        undone = state.tasks["payment_processing.undo"]
        assert (undone.state, undone.priority) == ("completed", "high")
        assert await orchestrator.cancel_workflow(*ins) is False
        types = [str(event.event_type) for event in await orchestrator.get_workflow_history(*ins)]
        begun = types.index("workflow.cancelled")
        assert types[begun + 1] == "compensation.started"
        assert (types[-1], types.count("workflow.cancelled")) == ("compensation.completed", 1)

    async def test_a_cancel_with_nothing_to_undo_ends_cancelled(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        gate, ins = script.gate("reserve"), ("trip", uuid4())
        await orchestrator.start_workflow(*ins, dict(ORDER))
        assert await orchestrator.cancel_workflow(*ins) is True
        state = await orchestrator.get_workflow_state(*ins)
        assert state.current_state == "cancelled"
        assert "outcome" not in state.metadata
        gate.set()

    async def test_a_failure_with_something_to_undo_goes_to_compensating_and_never_to_failed(
        self, orchestrator: WorkflowOrchestrator, script: Script
    ) -> None:
        script.failures["ship"] = 1
        instance = uuid4()
        await orchestrator.start_workflow("trip", instance, dict(ORDER))
        state = await state_when(orchestrator, instance, *TERMINAL, workflow_type="trip")
        assert (state.current_state, state.metadata["outcome"]) == ("compensated", "failed")
        assert "ship does not work" in (state.error or "")
        types = [str(event.event_type) for event in await orchestrator.get_workflow_history("trip", instance)]
        assert "workflow.failed" not in types
        assert "compensation.started" in types

    @pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
    async def test_a_transition_that_there_is_not_is_refused(
        self, orchestrator: WorkflowOrchestrator, action: str
    ) -> None:
        instance = await self.ended(orchestrator)
        with pytest.raises(InvalidProtocolStateError) as raised:
            await getattr(orchestrator, f"{action}_workflow")("order-processing", instance)
        assert raised.value.context["current_state"] == "completed"
        assert raised.value.context["required_state"]
        assert (await orchestrator.get_workflow_state("order-processing", instance)).current_state == "completed"
