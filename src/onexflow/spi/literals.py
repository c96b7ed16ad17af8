"""The specification's closed sets of words, value for value and in its order."""

from __future__ import annotations

from typing import Literal, TypeAlias

LiteralWorkflowState: TypeAlias = Literal[
    "pending",
    "initializing",
    "running",
    "paused",
    "completed",
    "failed",
    "cancelled",
    "timeout",
    "retrying",
    "waiting_for_dependency",
    "compensating",
    "compensated",
]
"""States of a workflow instance (a run)."""

LiteralWorkflowEventType: TypeAlias = Literal[
    "workflow.created",
    "workflow.started",
    "workflow.paused",
    "workflow.resumed",
    "workflow.completed",
    "workflow.failed",
    "workflow.cancelled",
    "workflow.timeout",
    "task.scheduled",
    "task.started",
    "task.completed",
    "task.failed",
    "task.retry",
    "dependency.resolved",
    "dependency.failed",
    "state.transitioned",
    "compensation.started",
    "compensation.completed",
]
"""Types of events. There is no nineteenth: finer meanings are kinds of these."""

LiteralTaskState: TypeAlias = Literal[
    "pending",
    "scheduled",
    "running",
    "completed",
    "failed",
    "cancelled",
    "timeout",
    "retrying",
    "skipped",
    "waiting_for_input",
    "blocked",
]
"""States of a task."""

LiteralTaskType: TypeAlias = Literal["compute", "effect", "orchestrator", "reducer"]
"""The four node types, in lower case."""

LiteralTaskPriority: TypeAlias = Literal["low", "normal", "high", "critical", "urgent"]
"""Priorities of a workflow's tasks."""

LiteralWorkQueuePriority: TypeAlias = Literal["urgent", "high", "normal", "low", "deferred"]
"""Priorities of the work queue."""

LiteralAssignmentStrategy: TypeAlias = Literal[
    "round_robin", "least_loaded", "capability_based", "priority_weighted", "dependency_optimized"
]
"""How the work queue chooses among workers."""

LiteralHealthStatus: TypeAlias = Literal[
    "healthy",
    "degraded",
    "unhealthy",
    "critical",
    "unknown",
    "warning",
    "unreachable",
    "available",
    "unavailable",
    "initializing",
    "disposing",
    "error",
]
"""Health of a node, as the registry's update_node_health takes it."""
