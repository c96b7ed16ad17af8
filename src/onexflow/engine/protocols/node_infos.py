"""Nodes as the specification's types, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import msgspec

from onexflow.core.errors import InvalidArgument, UnknownNode
from onexflow.ports.nodes import AssignmentView, Capability, NodeEntry
from onexflow.spi.literals import LiteralHealthStatus, LiteralWorkflowState
from onexflow.spi.types import WorkflowAssignment, WorkflowNodeCapability, WorkflowNodeInfo

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Fields that are kept as they are given, beside those that the registry reads.
_NODE_DETAILS: Final = (
    "metadata",
    "current_workload",
    "task_execution_history",
    "resource_utilization",
    "scheduling_preferences",
)
_CAPABILITY_DETAILS: Final = (
    "resource_requirements",
    "configuration_schema",
    "performance_characteristics",
    "availability_constraints",
)


def node_of(info: Any, capabilities: Iterable[Any], environment: str) -> NodeEntry:
    """What is registered. Anything with the members of a node's information will do. Raises InvalidArgument."""
    node_id = getattr(info, "node_id", None)
    if not node_id or not isinstance(node_id, str):
        raise InvalidArgument("node_info.node_id: a name is needed", field="node_id")
    own = getattr(info, "workflow_capabilities", None) or ()
    try:
        node = NodeEntry(
            node_id=node_id,
            node_type=str(getattr(info, "node_type", None) or "effect").strip().lower(),
            host=str(getattr(info, "host", None) or ""),
            port=int(getattr(info, "port", None) or 0),
            name=str(getattr(info, "node_name", None) or ""),
            environment=str(getattr(info, "environment", None) or environment),
            group=str(getattr(info, "group", None) or ""),
            version=str(getattr(info, "version", None) or ""),
            health=str(getattr(info, "health_status", None) or "unknown"),
            capabilities=_capabilities([*capabilities, *own]),
            max_concurrent_tasks=int(getattr(info, "max_concurrent_tasks", 1)),
            workflow_types=tuple(str(name) for name in getattr(info, "supported_workflow_types", None) or ()),
            details=_details(info, _NODE_DETAILS),
        )
        return msgspec.json.decode(msgspec.json.encode(node), type=NodeEntry)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"node_info of {node_id}: {error}", field="node_info") from error


def _capabilities(given: Iterable[Any]) -> tuple[Capability, ...]:
    found: dict[str, Capability] = {}
    for capability in given:
        name = capability if isinstance(capability, str) else getattr(capability, "capability_name", None)
        if not name or not isinstance(name, str):
            raise InvalidArgument("capabilities: each needs a capability_name", field="capability_name")
        found.setdefault(
            name,
            Capability(
                name=name,
                id=str(getattr(capability, "capability_id", None) or ""),
                version=str(getattr(capability, "capability_version", None) or "1"),
                max_concurrent_tasks=int(getattr(capability, "max_concurrent_tasks", 1)),
                task_types=tuple(str(kind) for kind in getattr(capability, "supported_task_types", None) or ()),
                node_types=tuple(str(kind) for kind in getattr(capability, "supported_node_types", None) or ()),
                details=_details(capability, _CAPABILITY_DETAILS),
            ),
        )
    return tuple(found.values())


def _details(given: Any, fields: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in fields if (value := getattr(given, name, None))}


def with_metadata(node: NodeEntry, metadata: dict[str, Any]) -> NodeEntry:
    """The node with more metadata."""
    known = {**node.details.get("metadata", {}), **metadata}
    return msgspec.structs.replace(node, details={**node.details, "metadata": known})


def info_of(node: NodeEntry) -> WorkflowNodeInfo:
    details = {name: node.details[name] for name in _NODE_DETAILS if name in node.details}
    metadata = {
        **details.pop("metadata", {}),
        "incarnation": node.incarnation,
        "kind": "guest" if node.guest else "worker",
    }
    return WorkflowNodeInfo(
        node_id=node.node_id,
        node_type=node.node_type,
        host=node.host,
        port=node.port,
        node_name=node.name,
        environment=node.environment,
        group=node.group,
        version=node.version,
        health_status=health_of(node.health),
        metadata=metadata,
        workflow_capabilities=[capability_of(capability) for capability in node.capabilities],
        max_concurrent_tasks=node.max_concurrent_tasks,
        current_task_count=node.current_tasks,
        supported_workflow_types=list(node.workflow_types),
        **details,
    )


def capability_of(capability: Capability) -> WorkflowNodeCapability:
    details = {name: capability.details[name] for name in _CAPABILITY_DETAILS if name in capability.details}
    return WorkflowNodeCapability(
        capability_name=capability.name,
        capability_id=capability.id,
        capability_version=capability.version,
        max_concurrent_tasks=capability.max_concurrent_tasks,
        supported_task_types=cast("Any", list(capability.task_types)),
        supported_node_types=list(capability.node_types),
        **details,
    )


def assignment_of(view: AssignmentView) -> WorkflowAssignment:
    return WorkflowAssignment(
        workflow_type=view.key.workflow_type,
        instance_id=view.key.instance_id,
        node_id=view.node_id,
        assigned_at=time_of(view.assigned_at),
        epoch=view.epoch,
        state=cast("LiteralWorkflowState", view.state),
    )


def health_of(text: str) -> LiteralHealthStatus:
    return cast("LiteralHealthStatus", text)


def time_of(nanoseconds: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000) if nanoseconds else None


def unknown(node_id: str) -> UnknownNode:
    return UnknownNode(f"there is no node {node_id}", {"node": node_id})
