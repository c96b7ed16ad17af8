"""The calls of operators: values of `ports.client_link` ↔ the messages of `onexflow.v1` AdminService."""

from __future__ import annotations

from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.ports import client_link as link
from onexflow.v1 import admin_pb2 as pb


def node_view_to_pb(value: link.NodeView) -> pb.NodeView:
    return pb.NodeView(
        node_id=value.node_id,
        kind=value.kind,
        incarnation=value.incarnation,
        address=value.address,
        status=value.status,
        handlers=value.handlers,
        slots=value.slots,
        running=value.running,
        connected=value.connected,
        registered=value.registered,
        version=value.version,
        started_at=value.started_at,
        health=value.health,
    )


def node_view(message: pb.NodeView) -> link.NodeView:
    return link.NodeView(
        node_id=message.node_id,
        kind=message.kind,
        incarnation=message.incarnation,
        address=message.address,
        status=message.status,
        handlers=tuple(message.handlers),
        slots=message.slots,
        running=message.running,
        connected=message.connected,
        registered=message.registered,
        version=message.version,
        started_at=message.started_at,
        health=message.health,
    )


def health_to_pb(value: link.Health) -> pb.GetHealthResponse:
    return pb.GetHealthResponse(serving=value.serving, details=value.details, can_append=value.can_append)


def health(message: pb.GetHealthResponse) -> link.Health:
    return link.Health(serving=message.serving, details=dict(message.details), can_append=message.can_append)


def keys(message: pb.ListBlockedRequest, most: int) -> list[RunKey]:
    """The runs that are asked for by name. Raises InvalidArgument."""
    if len(message.keys) > most:
        raise InvalidArgument(f"{len(message.keys)} keys; {most:,} is the most", field="keys")
    return [common.key(key) for key in message.keys]


def blocked_run_to_pb(value: link.BlockedRun) -> pb.BlockedRun:
    return pb.BlockedRun(
        key=common.key_to_pb(value.key), state=value.state, blocked=common.blocked_to_pb(value.blocked)
    )


def blocked_run(message: pb.BlockedRun) -> link.BlockedRun:
    found = common.blocked(message)
    assert found is not None, "every blocked run says what it waits for"
    return link.BlockedRun(key=common.key(message.key), state=message.state, blocked=found)
