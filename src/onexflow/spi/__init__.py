"""The ONEX workflow orchestration protocols, types, literals and exceptions, under the specification's names.

Imports nothing else of onexflow and no vendor. The protocols are structural: a class that has the members satisfies
`isinstance`, here and against the published package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onexflow.spi.event_type import (
        EventType,
    )
    from onexflow.spi.exceptions import (
        HandlerInitializationError,
        InvalidProtocolStateError,
        ProtocolHandlerError,
        RegistryError,
        SPIError,
    )
    from onexflow.spi.literals import (
        LiteralAssignmentStrategy,
        LiteralHealthStatus,
        LiteralTaskPriority,
        LiteralTaskState,
        LiteralTaskType,
        LiteralWorkflowEventType,
        LiteralWorkflowState,
        LiteralWorkQueuePriority,
    )
    from onexflow.spi.nodes import (
        ProtocolComputeNode,
        ProtocolEffectNode,
        ProtocolOrchestratorNode,
        ProtocolReducerNode,
    )
    from onexflow.spi.protocols import (
        ProtocolEventBusBase,
        ProtocolLiteralWorkflowStateProjection,
        ProtocolNodeRegistry,
        ProtocolWorkflowEventBus,
        ProtocolWorkflowEventCoordinator,
        ProtocolWorkflowEventHandler,
        ProtocolWorkflowEventMessage,
        ProtocolWorkflowNodeRegistry,
        ProtocolWorkflowOrchestrator,
        ProtocolWorkflowPersistence,
        ProtocolWorkQueue,
    )
    from onexflow.spi.types import (
        Context,
        ContextValue,
        NodeMetrics,
        OnexResult,
        Percentiles,
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
        ProtocolWorkTicket,
        QueueMetrics,
        QueueStatus,
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

__all__ = [
    "Context",
    "ContextValue",
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
    "NodeMetrics",
    "OnexResult",
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
    "RegistryError",
    "SPIError",
    "TaskStatus",
    "WorkTask",
    "WorkTicket",
    "WorkflowAssignment",
    "WorkflowEvent",
    "WorkflowInstance",
    "WorkflowMetrics",
    "WorkflowNodeCapability",
    "WorkflowNodeInfo",
    "WorkflowSnapshot",
    "WorkflowState",
]

#: Where the names are, the quick ones first. Most processes need the exceptions alone.
_PARTS = ("exceptions", "literals", "event_type", "nodes", "types", "protocols")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for part in _PARTS:
            found = getattr(import_module(f"onexflow.spi.{part}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
