"""What is legal, written down for the auditor alone: the specification's states and what each event may do to them."""

from __future__ import annotations

from typing import Final

#: Every rule that an audit checks, and what breaks when it does not hold.
RULES: Final[dict[str, str]] = {
    "unreadable": "a stored row, snapshot or definition cannot be read",
    "offsets": "an event of a shard is missing, or stands twice, and no tombstone accounts for it",
    "epochs": "an epoch is lower than one before it, or higher than the shard's: an owner wrote that was deposed",
    "time": "store time runs backwards within a shard",
    "sequence": "an event of a run is missing, or stands twice, and no tombstone accounts for it",
    "created": "a run does not begin with workflow.created, or with one of another run",
    "listing": "the listing entry of a run contradicts its events",
    "run-transition": "a run was in a state that this event cannot follow",
    "after-the-end": "an event follows the run's terminal one",
    "task-transition": "a task's item was in a state that this event cannot follow",
    "dependency": "a task was scheduled before what it depends on had ended, or a fed reducer ended before its items",
    "attempt": "an attempt's number is not one more than that of the attempt before",
    "open-task": "a run completed with a task that had not ended",
    "compensation": "something was undone that had not been done, or in the wrong order; or a run ended without undoing it",
    "snapshot": "a snapshot is not what the events up to it make",
    "tombstone": "tombstones and rows of a run do not fit together",
    "stalled": "an open run that nobody would look at again after a failover",
    "timer": "a parked run that would be woken too late",
}

TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "timeout", "compensated"})
_LIVE: Final = frozenset({"pending", "initializing", "running", "paused", "retrying", "waiting_for_dependency"})

#: Event (or kind of state.transitioned) → the states of a run that it may follow, and the one that it leads to.
RUN_MOVES: Final[dict[str, tuple[frozenset[str], str]]] = {
    "run.initializing": (frozenset({"pending"}), "initializing"),
    "workflow.started": (frozenset({"pending", "initializing"}), "running"),
    "workflow.paused": (frozenset({"running", "waiting_for_dependency", "retrying"}), "paused"),
    "workflow.resumed": (frozenset({"paused"}), "running"),
    "workflow.completed": (frozenset({"running"}), "completed"),
    "workflow.failed": (_LIVE - {"paused"} | {"compensating"}, "failed"),
    "workflow.cancelled": (_LIVE, "cancelled"),
    "workflow.timeout": (_LIVE, "timeout"),
    "run.retrying": (frozenset({"running", "waiting_for_dependency"}), "retrying"),
    "run.running": (frozenset({"retrying"}), "running"),
    "compensation.started": (_LIVE - {"pending", "initializing"}, "compensating"),
    "compensation.completed": (frozenset({"compensating"}), "compensated"),
}

ITEM_TERMINAL: Final = frozenset({"completed", "failed", "timeout", "cancelled", "skipped"})
#: What happens to an item → the states that it may follow.
ITEM_MOVES: Final[dict[str, frozenset[str]]] = {
    "scheduled": frozenset({"retrying", "waiting_for_input"}),
    "running": frozenset({"scheduled"}),
    "completed": frozenset({"running", "waiting_for_input"}),
    "failed": frozenset({"scheduled", "running", "retrying", "waiting_for_input"}),
    "timeout": frozenset({"scheduled", "running", "retrying", "waiting_for_input"}),
    "retrying": frozenset({"scheduled", "running"}),
    "waiting_for_input": frozenset({"running"}),
    "cancelled": frozenset({"running", "waiting_for_input"}),
}
