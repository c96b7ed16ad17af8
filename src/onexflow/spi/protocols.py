"""The specification's nine service protocols, and the two base protocols that it names.

Names, parameters, order, defaults and async-ness are the specification's. The four node protocols are in
`onexflow.spi.nodes`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from onexflow.spi.literals import LiteralHealthStatus, LiteralWorkflowEventType, LiteralWorkQueuePriority
from onexflow.spi.types import (
    ContextValue,
    ProtocolNodeMetrics,
    ProtocolOnexResult,
    ProtocolQueueMetrics,
    ProtocolQueueStatus,
    ProtocolTaskStatus,
    ProtocolWorkflowAssignment,
    ProtocolWorkflowEvent,
    ProtocolWorkflowInstance,
    ProtocolWorkflowMetrics,
    ProtocolWorkflowNodeCapability,
    ProtocolWorkflowNodeInfo,
    ProtocolWorkflowSnapshot,
    ProtocolWorkflowState,
    ProtocolWorkTask,
)


@runtime_checkable
class ProtocolEventBusBase(Protocol):
    """A bus for messages of any kind, which a workflow event bus stands on."""

    async def publish(self, event: Any) -> None: ...

    async def publish_envelope(self, envelope: Any, topic: str) -> None: ...

    async def subscribe(self, topic: str, handler: Callable[[Any], Awaitable[None]]) -> Any: ...

    async def start_consuming(self, timeout_seconds: float | None = None) -> None: ...

    async def stop_consuming(self, timeout_seconds: float = 30.0) -> None: ...

    async def health_check(self) -> Any: ...


@runtime_checkable
class ProtocolNodeRegistry(Protocol):
    """A registry of nodes of any kind, which a workflow node registry stands on."""

    @property
    def environment(self) -> str: ...

    @property
    def config(self) -> Any: ...

    async def register_node(self, node_info: Any, ttl_seconds: int) -> bool: ...

    async def unregister_node(self, node_id: str) -> bool: ...

    async def update_node_health(
        self, node_id: str, health_status: LiteralHealthStatus, metadata: dict[str, ContextValue]
    ) -> bool: ...

    async def heartbeat(self, node_id: str) -> bool: ...

    async def discover_nodes(
        self,
        node_type: str | None = None,
        environment: str | None = None,
        group: str | None = None,
        health_filter: LiteralHealthStatus | None = None,
    ) -> list[Any]: ...

    async def get_node(self, node_id: str) -> Any | None: ...

    async def get_nodes_by_group(self, group: str) -> list[Any]: ...

    async def get_gateway_for_group(self, group: str) -> Any | None: ...

    async def watch_node_changes(
        self, callback: Callable[..., Any], node_type: str | None = None, group: str | None = None
    ) -> Any: ...

    async def stop_watch(self, watch_handle: Any) -> None: ...


@runtime_checkable
class ProtocolWorkflowEventHandler(Protocol):
    """What a subscription calls."""

    async def __call__(self, event: ProtocolWorkflowEvent, context: dict[str, ContextValue]) -> None: ...


@runtime_checkable
class ProtocolWorkflowEventMessage(Protocol):
    """An event as a topic delivers it. Not acknowledged, it comes again."""

    topic: str
    key: bytes | None
    value: bytes
    headers: dict[str, ContextValue]
    offset: str | None
    partition: int | None
    workflow_type: str
    instance_id: UUID
    correlation_id: UUID
    sequence_number: int
    event_type: LiteralWorkflowEventType
    idempotency_key: str

    async def ack(self) -> None: ...

    async def get_workflow_event(self) -> ProtocolWorkflowEvent: ...


@runtime_checkable
class ProtocolLiteralWorkflowStateProjection(Protocol):
    """State derived from events, one a run."""

    projection_name: str

    async def apply_event(
        self, event: ProtocolWorkflowEvent, current_state: dict[str, ContextValue]
    ) -> dict[str, ContextValue]: ...

    async def get_state(self, workflow_type: str, instance_id: UUID) -> dict[str, ContextValue]: ...


@runtime_checkable
class ProtocolWorkflowEventBus(Protocol):
    """Publish, subscribe to, replay and project the events of runs."""

    @property
    def base_event_bus(self) -> ProtocolEventBusBase: ...

    async def publish_workflow_event(
        self, event: ProtocolWorkflowEvent, target_topic: str | None = None, partition_key: str | None = None
    ) -> None: ...

    async def subscribe_to_workflow_events(
        self,
        workflow_type: str,
        event_types: list[LiteralWorkflowEventType] | None = None,
        handler: ProtocolWorkflowEventHandler | None = None,
    ) -> str: ...

    async def unsubscribe_from_workflow_events(self, subscription_id: str) -> None: ...

    async def replay_workflow_events(
        self,
        workflow_type: str,
        instance_id: UUID,
        from_sequence: int,
        to_sequence: int | None = None,
        handler: ProtocolWorkflowEventHandler | None = None,
    ) -> list[ProtocolWorkflowEvent]: ...

    async def register_projection(self, projection: ProtocolLiteralWorkflowStateProjection) -> None: ...

    async def unregister_projection(self, projection_name: str) -> None: ...

    async def get_projection_state(
        self, projection_name: str, workflow_type: str, instance_id: UUID
    ) -> dict[str, ContextValue]: ...

    async def create_workflow_topic(self, workflow_type: str, partition_count: int) -> bool: ...

    async def delete_workflow_topic(self, workflow_type: str) -> bool: ...


@runtime_checkable
class ProtocolWorkflowOrchestrator(Protocol):
    """Start, steer and ask about runs."""

    async def start_workflow(
        self,
        workflow_type: str,
        instance_id: UUID,
        initial_data: dict[str, ContextValue],
        correlation_id: UUID | None = None,
    ) -> ProtocolWorkflowInstance: ...

    async def pause_workflow(self, workflow_type: str, instance_id: UUID) -> bool: ...

    async def resume_workflow(self, workflow_type: str, instance_id: UUID) -> bool: ...

    async def cancel_workflow(self, workflow_type: str, instance_id: UUID, reason: str | None = None) -> bool: ...

    async def get_workflow_state(self, workflow_type: str, instance_id: UUID) -> ProtocolWorkflowState: ...

    async def get_workflow_history(self, workflow_type: str, instance_id: UUID) -> list[ProtocolWorkflowEvent]: ...

    async def replay_workflow(
        self, workflow_type: str, instance_id: UUID, from_sequence: int, to_sequence: int | None = None
    ) -> list[ProtocolWorkflowEvent]: ...

    async def get_workflow_metrics(self, workflow_type: str | None = None) -> ProtocolWorkflowMetrics: ...


@runtime_checkable
class ProtocolWorkflowPersistence(Protocol):
    """Keep and give back states, events and snapshots of runs."""

    async def save_workflow_state(
        self, workflow_type: str, instance_id: UUID, state: ProtocolWorkflowState
    ) -> bool: ...

    async def load_workflow_state(self, workflow_type: str, instance_id: UUID) -> ProtocolWorkflowState | None: ...

    async def save_workflow_event(self, event: ProtocolWorkflowEvent) -> bool: ...

    async def load_workflow_events(
        self, workflow_type: str, instance_id: UUID, from_sequence: int = 0, to_sequence: int | None = None
    ) -> list[ProtocolWorkflowEvent]: ...

    async def create_snapshot(self, workflow_type: str, instance_id: UUID, sequence_number: int) -> bool: ...

    async def load_snapshot(self, workflow_type: str, instance_id: UUID) -> ProtocolWorkflowSnapshot | None: ...

    async def cleanup_old_events(self, workflow_type: str, instance_id: UUID, before_sequence: int) -> int: ...


@runtime_checkable
class ProtocolWorkQueue(Protocol):
    """Hand out tasks to workers by priority."""

    async def enqueue_task(
        self, task: ProtocolWorkTask, priority: LiteralWorkQueuePriority = "normal", delay_seconds: int = 0
    ) -> str: ...

    async def dequeue_task(self, worker_id: str, max_tasks: int = 1) -> list[ProtocolWorkTask]: ...

    async def complete_task(self, task_id: str, result: dict[str, ContextValue] | None = None) -> bool: ...

    async def fail_task(self, task_id: str, error: str, retry_count: int | None = None) -> bool: ...

    async def get_task_status(self, task_id: str) -> ProtocolTaskStatus: ...

    async def get_queue_metrics(self) -> ProtocolQueueMetrics: ...

    async def pause_queue(self, queue_name: str) -> bool: ...

    async def resume_queue(self, queue_name: str) -> bool: ...

    async def get_queue_status(self, queue_name: str) -> ProtocolQueueStatus: ...


@runtime_checkable
class ProtocolWorkflowNodeRegistry(Protocol):
    """Who can do what, how they are, and which run is pinned to whom."""

    async def register_node(
        self, node_info: ProtocolWorkflowNodeInfo, capabilities: list[ProtocolWorkflowNodeCapability]
    ) -> str: ...

    async def unregister_node(self, node_id: str) -> bool: ...

    async def discover_nodes(
        self, capability: str | None = None, healthy_only: bool = True
    ) -> list[ProtocolWorkflowNodeInfo]: ...

    async def get_node_capabilities(self, node_id: str) -> list[ProtocolWorkflowNodeCapability]: ...

    async def update_node_health(self, node_id: str, health_status: LiteralHealthStatus) -> bool: ...

    async def get_node_metrics(self, node_id: str) -> ProtocolNodeMetrics: ...

    async def assign_workflow_to_node(self, workflow_type: str, instance_id: UUID, node_id: str) -> bool: ...

    async def get_workflow_assignments(self, node_id: str) -> list[ProtocolWorkflowAssignment]: ...


@runtime_checkable
class ProtocolWorkflowEventCoordinator(Protocol):
    """Coordinate events of many runs; failures are in the result, not raised."""

    def set_registry(self, registry: ProtocolNodeRegistry) -> None: ...

    def set_event_bus(self, event_bus: ProtocolEventBusBase) -> None: ...

    async def run(self, input_state: dict[str, ContextValue]) -> ProtocolOnexResult: ...

    async def coordinate_events(
        self, workflow_events: list[ProtocolWorkflowEvent], scenario_id: str, correlation_id: str
    ) -> ProtocolOnexResult: ...

    async def publish_workflow_event(self, event: ProtocolWorkflowEvent, correlation_id: str) -> ProtocolOnexResult: ...

    async def subscribe_to_events(
        self, event_types: list[str], callback: Callable[..., None], correlation_id: str
    ) -> ProtocolOnexResult: ...

    async def get_event_status(self, event_id: str) -> dict[str, ContextValue] | None: ...

    async def health_check(self) -> dict[str, ContextValue]: ...
