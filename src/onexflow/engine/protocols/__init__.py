"""The specification's service objects, written once over `ports.client_link.RunService`.

In process they are given the engine's Orchestrator, over gRPC `onexflow.client.remote.RemoteService`. They hold no state
of their own that would be missed: what they say is read from the log, what they do is written there.
"""

from __future__ import annotations

from onexflow.engine.protocols.base_bus import BaseEventBus
from onexflow.engine.protocols.base_nodes import NodeRegistry
from onexflow.engine.protocols.calling import ServiceCaller
from onexflow.engine.protocols.coordinator import WorkflowEventCoordinator
from onexflow.engine.protocols.event_bus import (
    ProjectionStatus,
    SubscriptionStatus,
    WorkflowEventBus,
    WorkflowEventMessage,
)
from onexflow.engine.protocols.node_registry import WorkflowNodeRegistry
from onexflow.engine.protocols.nodes import (
    ComputeNode,
    EffectNode,
    Node,
    OrchestratorNode,
    ReducerNode,
    find_node,
)
from onexflow.engine.protocols.orchestrator import WorkflowOrchestrator
from onexflow.engine.protocols.persistence import WorkflowPersistence
from onexflow.engine.protocols.work_queue import WorkQueue

__all__ = [
    "BaseEventBus",
    "ComputeNode",
    "EffectNode",
    "Node",
    "NodeRegistry",
    "OrchestratorNode",
    "ProjectionStatus",
    "ReducerNode",
    "ServiceCaller",
    "SubscriptionStatus",
    "WorkQueue",
    "WorkflowEventBus",
    "WorkflowEventCoordinator",
    "WorkflowEventMessage",
    "WorkflowNodeRegistry",
    "WorkflowOrchestrator",
    "WorkflowPersistence",
    "find_node",
]
