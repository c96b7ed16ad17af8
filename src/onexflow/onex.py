"""The specification's names in one place: after `from onexflow.onex import …` its examples run as they stand.

- its protocols (for annotations and `isinstance`), types, literals and exceptions, as in `onexflow.spi`; the types can be
  constructed under their Protocol names, too
- its service objects, as far as they are built, and the functions that give one: connected to the orchestrators at
  ONEXFLOW_ADDRESS (default 127.0.0.1:7411) when it is first used, one connection an event loop
- `create_workflow_event`, and `close`, which ends the connection of the running loop

In one process with an engine, give the service objects that engine instead: `WorkflowOrchestrator(engine)`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import cache
from uuid import UUID
from weakref import WeakKeyDictionary

from onexflow.client import Client, connect
from onexflow.client.remote import RemoteService
from onexflow.engine.protocols import (
    BaseEventBus,
    ComputeNode,
    EffectNode,
    NodeRegistry,
    OrchestratorNode,
    ReducerNode,
    WorkflowEventBus,
    WorkflowEventCoordinator,
    WorkflowEventMessage,
    WorkflowNodeRegistry,
    WorkflowOrchestrator,
    WorkflowPersistence,
    WorkQueue,
    find_node,
)
from onexflow.spi import (
    Context,
    ContextValue,
    EventType,
    HandlerInitializationError,
    InvalidProtocolStateError,
    LiteralAssignmentStrategy,
    LiteralHealthStatus,
    LiteralTaskPriority,
    LiteralTaskState,
    LiteralTaskType,
    LiteralWorkflowEventType,
    LiteralWorkflowState,
    LiteralWorkQueuePriority,
    NodeMetrics,
    OnexResult,
    Percentiles,
    ProtocolComputeNode,
    ProtocolEffectNode,
    ProtocolEventBusBase,
    ProtocolHandlerError,
    ProtocolLiteralWorkflowStateProjection,
    ProtocolNodeMetrics,
    ProtocolNodeRegistry,
    ProtocolOnexResult,
    ProtocolOrchestratorNode,
    ProtocolQueueMetrics,
    ProtocolQueueStatus,
    ProtocolReducerNode,
    ProtocolTaskStatus,
    ProtocolWorkflowAssignment,
    ProtocolWorkflowEvent,
    ProtocolWorkflowEventBus,
    ProtocolWorkflowEventCoordinator,
    ProtocolWorkflowEventHandler,
    ProtocolWorkflowEventMessage,
    ProtocolWorkflowInstance,
    ProtocolWorkflowMetrics,
    ProtocolWorkflowNodeCapability,
    ProtocolWorkflowNodeInfo,
    ProtocolWorkflowNodeRegistry,
    ProtocolWorkflowOrchestrator,
    ProtocolWorkflowPersistence,
    ProtocolWorkflowSnapshot,
    ProtocolWorkflowState,
    ProtocolWorkQueue,
    ProtocolWorkTask,
    ProtocolWorkTicket,
    QueueMetrics,
    QueueStatus,
    RegistryError,
    SPIError,
    TaskStatus,
    WorkflowAssignment,
    WorkflowEvent,
    WorkflowInstance,
    WorkflowMetrics,
    WorkflowNodeCapability,
    WorkflowNodeInfo,
    WorkflowSnapshot,
    WorkflowState,
    WorkTask,
    WorkTicket,
)
from onexflow.worker.nodes import BaseComputeNode, BaseEffectNode, BaseOrchestratorNode, BaseReducerNode, Node

__all__ = [
    "BaseComputeNode",
    "BaseEffectNode",
    "BaseEventBus",
    "BaseOrchestratorNode",
    "BaseReducerNode",
    "ComputeNode",
    "Context",
    "ContextValue",
    "EffectNode",
    "EventType",
    "HandlerInitializationError",
    "InvalidProtocolStateError",
    "LiteralAssignmentStrategy",
    "LiteralHealthStatus",
    "LiteralTaskPriority",
    "LiteralTaskState",
    "LiteralTaskType",
    "LiteralWorkQueuePriority",
    "LiteralWorkflowEventType",
    "LiteralWorkflowState",
    "Node",
    "NodeMetrics",
    "NodeRegistry",
    "OnexResult",
    "OrchestratorNode",
    "Percentiles",
    "ProtocolComputeNode",
    "ProtocolEffectNode",
    "ProtocolEventBusBase",
    "ProtocolHandlerError",
    "ProtocolLiteralWorkflowStateProjection",
    "ProtocolNodeMetrics",
    "ProtocolNodeRegistry",
    "ProtocolOnexResult",
    "ProtocolOrchestratorNode",
    "ProtocolQueueMetrics",
    "ProtocolQueueStatus",
    "ProtocolReducerNode",
    "ProtocolTaskStatus",
    "ProtocolWorkQueue",
    "ProtocolWorkTask",
    "ProtocolWorkTicket",
    "ProtocolWorkflowAssignment",
    "ProtocolWorkflowEvent",
    "ProtocolWorkflowEventBus",
    "ProtocolWorkflowEventCoordinator",
    "ProtocolWorkflowEventHandler",
    "ProtocolWorkflowEventMessage",
    "ProtocolWorkflowInstance",
    "ProtocolWorkflowMetrics",
    "ProtocolWorkflowNodeCapability",
    "ProtocolWorkflowNodeInfo",
    "ProtocolWorkflowNodeRegistry",
    "ProtocolWorkflowOrchestrator",
    "ProtocolWorkflowPersistence",
    "ProtocolWorkflowSnapshot",
    "ProtocolWorkflowState",
    "QueueMetrics",
    "QueueStatus",
    "ReducerNode",
    "RegistryError",
    "SPIError",
    "TaskStatus",
    "WorkQueue",
    "WorkTask",
    "WorkTicket",
    "WorkflowAssignment",
    "WorkflowEvent",
    "WorkflowEventBus",
    "WorkflowEventCoordinator",
    "WorkflowEventMessage",
    "WorkflowInstance",
    "WorkflowMetrics",
    "WorkflowNodeCapability",
    "WorkflowNodeInfo",
    "WorkflowNodeRegistry",
    "WorkflowOrchestrator",
    "WorkflowPersistence",
    "WorkflowSnapshot",
    "WorkflowState",
    "close",
    "create_workflow_event",
    "get_node",
    "get_work_queue",
    "get_workflow_event_bus",
    "get_workflow_event_coordinator",
    "get_workflow_node_registry",
    "get_workflow_orchestrator",
    "get_workflow_persistence",
]

_connecting: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Client]] = WeakKeyDictionary()


async def _client() -> Client:
    """The running loop's client, connected at the first call and again after one that failed."""
    loop = asyncio.get_running_loop()
    task = _connecting.get(loop)
    if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
        task = _connecting[loop] = loop.create_task(connect())
    return await asyncio.shield(task)


@cache
def _service() -> RemoteService:
    return RemoteService(_client)


async def close() -> None:
    """End the running loop's connection: calls that wait get Unavailable, what was started goes on. Idempotent; the next
    call connects again."""
    if get_workflow_event_bus.cache_info().currsize:
        await get_workflow_event_bus().close()
    if get_workflow_node_registry.cache_info().currsize:
        await get_workflow_node_registry().close()
    await _service().close()
    task = _connecting.pop(asyncio.get_running_loop(), None)
    if task is None:
        return
    if not task.done():
        task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await task.result().close()


@cache
def get_workflow_orchestrator() -> WorkflowOrchestrator:
    """The orchestrator of the cluster at ONEXFLOW_ADDRESS. Connects when it is first used."""
    return WorkflowOrchestrator(_service())


@cache
def get_work_queue() -> WorkQueue:
    """The work queue `default` of the cluster at ONEXFLOW_ADDRESS. Connects when it is first used."""
    return WorkQueue(_service())


@cache
def get_workflow_event_bus() -> WorkflowEventBus:
    """The event bus of the cluster at ONEXFLOW_ADDRESS. Connects when it is first used."""
    return WorkflowEventBus(_service().events)


def get_workflow_event_coordinator() -> WorkflowEventCoordinator:
    """An event coordinator of the cluster at ONEXFLOW_ADDRESS, over `get_workflow_event_bus()` and
    `get_workflow_node_registry()` until it is given others: a new one at each call, since it can be given them."""
    return WorkflowEventCoordinator(_service().events, get_workflow_event_bus(), get_workflow_node_registry())


@cache
def get_workflow_persistence() -> WorkflowPersistence:
    """The persistence of the cluster at ONEXFLOW_ADDRESS. Connects when it is first used."""
    return WorkflowPersistence(_service())


@cache
def get_workflow_node_registry() -> WorkflowNodeRegistry:
    """The node registry of the cluster at ONEXFLOW_ADDRESS. Connects when it is first used; what is registered with it is
    kept registered until `close`."""
    return WorkflowNodeRegistry(_service().node_registry)


async def get_node(
    node_id: str, node_type: str = "", *, timeout: float = 0.0
) -> EffectNode | ComputeNode | ReducerNode | OrchestratorNode:
    """The node of that id that the cluster's workers serve, to be called as if it were here. As `Client.node`."""
    return await find_node(_service(), node_id, node_type, timeout=timeout)


def create_workflow_event(
    event_type: str,
    workflow_type: str,
    instance_id: UUID | str,
    *,
    data: Context | None = None,
    payload: Context | None = None,
    sequence_number: int | None = None,
    event_id: UUID | str | None = None,
    correlation_id: UUID | str | None = None,
    causation_id: UUID | str | None = None,
    correlation_chain: list[UUID] | None = None,
    timestamp: datetime | None = None,
    source: str = "",
    idempotency_key: str = "",
    metadata: Context | None = None,
) -> WorkflowEvent:
    """An event with a new id, now, to be numbered by the bus, where nothing else is said. `data` and `payload` are two
    names of one field. Raises ValueError for an event type that there is not."""
    return WorkflowEvent(
        event_type=event_type,
        workflow_type=workflow_type,
        instance_id=instance_id,
        data=data,
        payload=payload,
        sequence_number=sequence_number,
        event_id=event_id,
        correlation_id=correlation_id,
        causation_id=causation_id,
        correlation_chain=correlation_chain,
        timestamp=timestamp,
        source=source,
        idempotency_key=idempotency_key,
        metadata=metadata,
    )
