"""Persistence on the wire: values of `ports.persistence` ↔ the messages of `onexflow.v1` PersistenceService."""

from __future__ import annotations

from onexflow.codec.wire import common
from onexflow.codec.wire import workflow as wire_workflow
from onexflow.core.errors import InvalidArgument
from onexflow.ports import persistence as port
from onexflow.ports.client_link import RunView
from onexflow.v1 import persistence_pb2 as pb


def save_state(message: pb.SaveStateRequest) -> port.StateRecord:
    """What is to be saved, checked."""
    if not message.HasField("state"):
        raise InvalidArgument("There is no state.", field="state")
    given = message.state
    return port.StateRecord(
        key=common.key(given.key, "state.key"),
        state=common.name(given.state, "state.state"),
        sequence=given.sequence,
        data=common.payload_or_null(given, "data", "state.data"),
    )


def state(message: pb.SavedState) -> port.StateRecord:
    """A state from the orchestrator, which has checked it."""
    return port.StateRecord(
        key=common.key(message.key),
        state=message.state,
        sequence=message.sequence,
        data=common.trusted_payload(message.data),
        saved_at=message.saved_at,
    )


def state_to_pb(value: port.StateRecord) -> pb.SavedState:
    return pb.SavedState(
        key=common.key_to_pb(value.key),
        state=value.state,
        sequence=value.sequence,
        data=common.payload_to_pb(value.data),
        saved_at=value.saved_at,
    )


def loaded_to_pb(value: RunView | port.StateRecord | None) -> pb.LoadStateResponse:
    if isinstance(value, RunView):
        return pb.LoadStateResponse(run=wire_workflow.fit_run_view(wire_workflow.run_view_to_pb(value)))
    return pb.LoadStateResponse(state=None if value is None else state_to_pb(value))


def loaded(message: pb.LoadStateResponse) -> RunView | port.StateRecord | None:
    match message.WhichOneof("found"):
        case "run":
            return wire_workflow.run_view(message.run)
        case "state":
            return state(message.state)
    return None


def snapshot_to_pb(value: port.SnapshotView | None) -> pb.LoadSnapshotResponse:
    if value is None:
        return pb.LoadSnapshotResponse()
    message = pb.LoadSnapshotResponse(created_at=value.created_at)
    if value.view is not None:
        message.run.CopyFrom(wire_workflow.fit_run_view(wire_workflow.run_view_to_pb(value.view)))
    elif value.record is not None:
        message.state.CopyFrom(state_to_pb(value.record))
    return message


def snapshot(message: pb.LoadSnapshotResponse) -> port.SnapshotView | None:
    match message.WhichOneof("snapshot"):
        case "run":
            return port.SnapshotView(view=wire_workflow.run_view(message.run), created_at=message.created_at)
        case "state":
            return port.SnapshotView(record=state(message.state), created_at=message.created_at)
    return None


def cut_to_pb(value: port.CutView) -> pb.CutHistoryResponse:
    return pb.CutHistoryResponse(deleted=value.deleted, earliest=value.earliest)


def cut(message: pb.CutHistoryResponse) -> port.CutView:
    return port.CutView(deleted=message.deleted, earliest=message.earliest)
