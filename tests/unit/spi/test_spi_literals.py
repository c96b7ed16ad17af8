"""The specification's closed sets, value for value and in its order."""

from __future__ import annotations

from typing import get_args

import pytest

from onexflow.core.events import EVENTS
from onexflow.spi import literals

# Transcribed from the specification's text (LiteralHealthStatus: from the published package).
VALUES: dict[str, list[str]] = {
    "LiteralWorkflowState": [
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
    ],
    "LiteralWorkflowEventType": [
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
    ],
    "LiteralTaskState": [
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
    ],
    "LiteralTaskType": ["compute", "effect", "orchestrator", "reducer"],
    "LiteralTaskPriority": ["low", "normal", "high", "critical", "urgent"],
    "LiteralWorkQueuePriority": ["urgent", "high", "normal", "low", "deferred"],
    "LiteralAssignmentStrategy": [
        "round_robin",
        "least_loaded",
        "capability_based",
        "priority_weighted",
        "dependency_optimized",
    ],
    "LiteralHealthStatus": [
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
    ],
}


@pytest.mark.parametrize("name", VALUES)
def test_a_literal_has_the_specifications_values_in_order(name: str) -> None:
    assert list(get_args(getattr(literals, name))) == VALUES[name]


def test_every_event_type_has_one_event_class_in_the_same_order() -> None:
    assert [event.type for event in EVENTS] == VALUES["LiteralWorkflowEventType"]
