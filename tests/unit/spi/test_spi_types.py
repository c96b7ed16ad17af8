"""The data types: what the specification's examples construct and read, and its two names for one thing."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from uuid import UUID

import pytest

from onexflow.core.ids import derived_uuid
from onexflow.spi import (
    EventType,
    HandlerInitializationError,
    InvalidProtocolStateError,
    ProtocolHandlerError,
    ProtocolOnexResult,
    ProtocolWorkflowEvent,
    ProtocolWorkflowNodeCapability,
    ProtocolWorkflowNodeInfo,
    ProtocolWorkflowState,
    ProtocolWorkTicket,
    RegistryError,
    SPIError,
    WorkTask,
)

INSTANCE = UUID("123e4567-e89b-12d3-a456-426614174000")


def event(**changes: object) -> ProtocolWorkflowEvent:
    values: dict[str, object] = {
        "workflow_type": "order-processing",
        "instance_id": INSTANCE,
        "event_type": "task_completed",
        "sequence_number": 5,
        "data": {"task": "payment_processing", "result": "success"},
        **changes,
    }
    return ProtocolWorkflowEvent(**values)


def test_an_event_type_equals_both_spellings() -> None:
    kind = event().event_type
    assert kind == "task_completed"
    assert kind == "task.completed"
    assert kind != "task_failed"
    assert kind in ["task_failed", "task_completed"]
    assert "task_completed" == kind  # noqa: SIM300 - the mirrored comparison is the point
    assert str(kind) == "task.completed"
    assert kind.underscored == "task_completed"
    assert {"task.completed": 1}[kind] == 1
    match kind:
        case "task_completed":
            pass
        case _:
            pytest.fail("match does not see the underscored form")


def test_an_unknown_event_type_names_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"'task_complete' is no workflow event type, did you mean 'task"):
        EventType("task_complete")


def test_data_and_payload_are_one_field() -> None:
    assert event().data == event().payload == {"task": "payment_processing", "result": "success"}
    assert event(data=None, payload={"a": 1}).data == {"a": 1}
    assert event(payload={"a": 1}, data={"a": 1}).payload == {"a": 1}
    with pytest.raises(TypeError, match="two names"):
        event(payload={"a": 1}, data={"a": 2})


def test_every_event_built_has_an_id_of_its_own() -> None:
    one, other = event(), event()
    assert one.event_id != other.event_id
    assert one.idempotency_key == str(one.event_id)


def test_an_id_that_is_no_uuid_is_derived_and_its_text_kept() -> None:
    made = event(correlation_id="req-abc123")
    assert made.correlation_id == derived_uuid("req-abc123")
    assert made.metadata == {"correlation_id": "req-abc123"}
    assert event(correlation_id=str(INSTANCE)).metadata == {}


def test_an_event_can_be_replaced_and_compared() -> None:
    made = event(sequence_number=None)
    assert made.sequence_number == 0
    assert dataclasses.replace(made, sequence_number=0) == made
    assert dataclasses.replace(made, sequence_number=7) != made


async def test_an_event_judges_itself() -> None:
    assert await event().validate_event()
    assert not await event(sequence_number=-1).validate_event()
    assert not await event(workflow_type="").validate_event()


def test_the_examples_registration_can_be_built() -> None:
    node = ProtocolWorkflowNodeInfo(node_id="worker-node-1", node_type="compute", host="192.168.1.100", port=8080)
    assert node.endpoint == "192.168.1.100:8080"
    assert ProtocolWorkflowNodeCapability(capability_name="payment", max_concurrent_tasks=10).max_concurrent_tasks == 10


def test_second_names_read_the_same_field() -> None:
    state = ProtocolWorkflowState(workflow_type="t", instance_id=INSTANCE, state="running", context={"a": 1})
    assert (state.current_state, state.data) == ("running", {"a": 1})
    assert WorkTask(task_id="t", payload=[1]).contract == [1]
    assert ProtocolWorkTicket(ticket_id="ticket-1").id == "ticket-1"
    assert ProtocolOnexResult(success=True, message="fine").error is None
    assert ProtocolOnexResult(success=False, message="broken").error == "broken"


def test_a_ticket_is_overdue_after_its_time_and_before_its_end() -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    assert ProtocolWorkTicket(ticket_id="a", due_at=past).is_overdue()
    assert not ProtocolWorkTicket(ticket_id="a", due_at=past, completed_at=past).is_overdue()
    assert not ProtocolWorkTicket(ticket_id="a").is_overdue()


def test_the_exceptions_form_the_specifications_tree_and_copy_their_context() -> None:
    assert HandlerInitializationError.__bases__ == (ProtocolHandlerError,)
    for error in (ProtocolHandlerError, RegistryError, InvalidProtocolStateError):
        assert error.__bases__ == (SPIError,)
    given = {"a": [1]}
    raised = SPIError("message", given)
    given["a"].append(2)
    assert raised.context == {"a": [1]}
    assert SPIError().context == {}
