"""The node registry: values of `ports.nodes` ↔ the messages of `onexflow.v1` NodeRegistryService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from onexflow.codec.payload import UNREADABLE
from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument
from onexflow.ports import nodes as port
from onexflow.v1 import nodes_pb2 as pb

_MAX_CAPABILITIES: Final = 1000
_object = msgspec.json.Decoder(dict[str, Any])


def _details(data: bytes, field: str) -> dict[str, Any]:
    if not data:
        return {}
    if len(data) > port.MAX_DETAILS:
        raise InvalidArgument(f"{field} has {len(data):,} bytes; {port.MAX_DETAILS:,} is the most.", field=field)
    try:
        return _object.decode(data)
    except UNREADABLE as error:
        raise InvalidArgument(f"{field} is no JSON object: {error}", field=field) from error


def _details_to_pb(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) if value else b""


def _names(values: Sequence[str], field: str) -> tuple[str, ...]:
    if len(values) > _MAX_CAPABILITIES:
        raise InvalidArgument(f"{_MAX_CAPABILITIES:,} {field} are the most", field=field)
    return tuple(common.name(value, field) for value in values)


def _capability(message: pb.NodeCapability) -> port.Capability:
    return port.Capability(
        name=common.name(message.name, "capability_name"),
        id=common.optional_name(message.id, "capability_id"),
        version=common.name(message.version, "capability_version", default="1"),
        max_concurrent_tasks=message.max_concurrent_tasks,
        task_types=_names(message.task_types, "task_types"),
        node_types=_names(message.node_types, "node_types"),
        details=_details(message.details, "capability"),
    )


def _capability_to_pb(value: port.Capability) -> pb.NodeCapability:
    return pb.NodeCapability(
        name=value.name,
        id=value.id,
        version=value.version,
        max_concurrent_tasks=value.max_concurrent_tasks,
        task_types=value.task_types,
        node_types=value.node_types,
        details=_details_to_pb(value.details),
    )


def node(message: pb.NodeEntry) -> port.NodeEntry:
    """Raises InvalidArgument."""
    if len(message.capabilities) > _MAX_CAPABILITIES:
        raise InvalidArgument(f"{_MAX_CAPABILITIES:,} capabilities are the most", field="capabilities")
    return port.NodeEntry(
        node_id=common.name(message.node_id, "node_id"),
        node_type=common.name(message.node_type, "node_type"),
        host=common.optional_name(message.host, "host"),
        port=message.port,
        name=common.optional_name(message.name, "node_name"),
        environment=common.optional_name(message.environment, "environment"),
        group=common.optional_name(message.group, "group"),
        version=common.optional_name(message.version, "version"),
        health=common.name(message.health, "health_status", default="unknown"),
        capabilities=tuple(_capability(one) for one in message.capabilities),
        max_concurrent_tasks=message.max_concurrent_tasks,
        workflow_types=_names(message.workflow_types, "supported_workflow_types"),
        details=_details(message.details, "node_info"),
        incarnation=message.incarnation,
        started_at=message.started_at,
        guest=message.guest,
        current_tasks=message.current_tasks,
    )


def node_to_pb(value: port.NodeEntry) -> pb.NodeEntry:
    try:
        return pb.NodeEntry(
            node_id=value.node_id,
            node_type=value.node_type,
            host=value.host,
            port=value.port,
            name=value.name,
            environment=value.environment,
            group=value.group,
            version=value.version,
            health=value.health,
            capabilities=[_capability_to_pb(one) for one in value.capabilities],
            max_concurrent_tasks=value.max_concurrent_tasks,
            workflow_types=value.workflow_types,
            details=_details_to_pb(value.details),
            incarnation=value.incarnation,
            started_at=value.started_at,
            guest=value.guest,
            current_tasks=value.current_tasks,
        )
    except (TypeError, ValueError) as error:  # a number that is out of range, a lone surrogate
        raise InvalidArgument(f"the node cannot be sent: {error}", field="node_info") from error


def registration(message: pb.RegisterNodeRequest) -> port.Registration:
    return port.Registration(
        node=node(message.node),
        incarnation=common.optional_name(message.incarnation, "incarnation"),
        ttl=common.seconds(message.ttl, "ttl") or port.DEFAULT_TTL,
        started_at=common.not_negative(message.started_at, "started_at"),
    )


def registration_to_pb(value: port.Registration) -> pb.RegisterNodeRequest:
    return pb.RegisterNodeRequest(
        node=node_to_pb(value.node), incarnation=value.incarnation, ttl=value.ttl, started_at=value.started_at
    )


def figures(message: pb.GetNodeMetricsResponse, node_id: str) -> port.NodeFigures:
    return port.NodeFigures(
        node_id=node_id,
        health=message.health,
        current_tasks=message.current_tasks,
        max_concurrent_tasks=message.max_concurrent_tasks,
        completed=message.completed,
        failed=message.failed,
        mean=message.mean,
        p50=message.p50,
        p95=message.p95,
        p99=message.p99,
        last_heartbeat=message.last_heartbeat,
    )


def figures_to_pb(value: port.NodeFigures) -> pb.GetNodeMetricsResponse:
    return pb.GetNodeMetricsResponse(
        health=value.health,
        current_tasks=value.current_tasks,
        max_concurrent_tasks=value.max_concurrent_tasks,
        completed=value.completed,
        failed=value.failed,
        mean=value.mean,
        p50=value.p50,
        p95=value.p95,
        p99=value.p99,
        last_heartbeat=value.last_heartbeat,
    )


def assignment(message: pb.NodeAssignment) -> port.AssignmentView:
    return port.AssignmentView(
        key=common.key(message.key),
        node_id=message.node_id,
        assigned_at=message.assigned_at,
        epoch=message.epoch,
        state=message.state,
    )


def assignment_to_pb(value: port.AssignmentView) -> pb.NodeAssignment:
    return pb.NodeAssignment(
        key=common.key_to_pb(value.key),
        node_id=value.node_id,
        assigned_at=value.assigned_at,
        epoch=value.epoch,
        state=value.state,
    )


def parts(values: Iterable[port.NodeEntry]) -> Iterator[list[pb.NodeEntry]]:
    """Nodes in messages of bounded size; at least one, perhaps empty."""
    part: list[pb.NodeEntry] = []
    size = 0
    for value in values:
        message = node_to_pb(value)
        size += message.ByteSize()
        if part and size > common.MAX_BATCH_BYTES:
            yield part
            part, size = [], message.ByteSize()
        part.append(message)
    yield part
