"""The two state machines, as data: the specification's 12 workflow states and 11 task states, and every legal edge.

Nothing else in onexflow knows which transition is legal. `docs/states.md` is generated from these tables.
"""

from __future__ import annotations

from typing import Final

from onexflow.core.errors import InvalidTransition

#: In the order of the specification's LiteralWorkflowState; the index is stored in listings.
WORKFLOW_STATES: Final = (
    "pending", "initializing", "running", "paused", "completed", "failed",
    "cancelled", "timeout", "retrying", "waiting_for_dependency", "compensating", "compensated",
)  # fmt: skip
WORKFLOW_STATE_INDEX: Final = {state: index for index, state in enumerate(WORKFLOW_STATES)}

#: In the order of the specification's LiteralTaskState.
TASK_STATES: Final = (
    "pending", "scheduled", "running", "completed", "failed",
    "cancelled", "timeout", "retrying", "skipped", "waiting_for_input", "blocked",
)  # fmt: skip

WORKFLOW_TRANSITIONS: Final[dict[str, tuple[str, ...]]] = {
    "pending": ("initializing", "running", "cancelled", "failed", "timeout"),
    "initializing": ("running", "failed", "cancelled", "timeout"),
    "running": (
        "paused", "completed", "failed", "cancelled", "timeout", "retrying", "waiting_for_dependency", "compensating",
    ),
    "paused": ("running", "cancelled", "timeout", "compensating"),
    "waiting_for_dependency": ("running", "paused", "retrying", "failed", "cancelled", "timeout", "compensating"),
    "retrying": ("running", "paused", "failed", "cancelled", "timeout", "compensating"),
    "compensating": ("compensated", "failed"),
    "completed": (),
    "failed": (),
    "cancelled": (),
    "timeout": (),
    "compensated": (),
}  # fmt: skip

TASK_TRANSITIONS: Final[dict[str, tuple[str, ...]]] = {
    "blocked": ("pending", "scheduled", "skipped", "cancelled"),
    "pending": ("blocked", "scheduled", "skipped", "cancelled"),
    "scheduled": ("running", "retrying", "timeout", "cancelled", "failed"),
    "running": ("completed", "failed", "timeout", "cancelled", "retrying", "waiting_for_input"),
    "retrying": ("scheduled", "cancelled", "timeout", "failed"),
    "waiting_for_input": ("scheduled", "completed", "failed", "skipped", "cancelled", "timeout"),
    "completed": (),
    "failed": (),
    "timeout": (),
    "cancelled": (),
    "skipped": (),
}

TERMINAL_WORKFLOW_STATES: Final = frozenset(state for state, after in WORKFLOW_TRANSITIONS.items() if not after)
TERMINAL_TASK_STATES: Final = frozenset(state for state, after in TASK_TRANSITIONS.items() if not after)

WORKFLOW_EDGES: Final = frozenset((a, b) for a, after in WORKFLOW_TRANSITIONS.items() for b in after)
TASK_EDGES: Final = frozenset((a, b) for a, after in TASK_TRANSITIONS.items() for b in after)


def check_workflow_edge(origin: str, target: str, run: str) -> None:
    """Raise InvalidTransition unless a run may go from `origin` to `target`."""
    if (origin, target) not in WORKFLOW_EDGES:
        raise InvalidTransition(
            f"a run that is {origin} cannot become {target}",
            {"run": run, "current_state": origin, "required_state": _origins(WORKFLOW_TRANSITIONS, target)},
        )


def check_task_edge(origin: str, target: str, run: str, task: str) -> None:
    """Raise InvalidTransition unless a task may go from `origin` to `target`."""
    if (origin, target) not in TASK_EDGES:
        raise InvalidTransition(
            f"a task that is {origin} cannot become {target}",
            {"run": run, "task": task, "current_state": origin, "required_state": _origins(TASK_TRANSITIONS, target)},
        )


def _origins(table: dict[str, tuple[str, ...]], target: str) -> str:
    return "|".join(state for state, after in table.items() if target in after)
