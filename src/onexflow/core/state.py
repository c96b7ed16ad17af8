"""The state of a run: what `evolve` folds events into. It is owned by one shard loop and changed by `evolve` alone.

Counters make every step O(1) in the size of the graph: `unresolved` counts a task's parents that have not ended,
`open_tasks` the tasks that have not, `ready` holds the tasks that wait for nothing but being scheduled.
The struct is also the snapshot: encoded, decoded and folded on, it gives the same as a full replay.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from onexflow.core.ids import RunKey
from onexflow.core.payload import NULL, Failure, Payload

#: Why the attempts of an effect that can be undone are told to stop when its run is compensated (`ItemState.stopping`).
COMPENSATION: Final = "compensation"


class ItemState(msgspec.Struct, array_like=True):
    """One item of a task; a plain task has exactly one. Positions and times are those of the events named."""

    status: str = "scheduled"
    #: Number of the current attempt, from 1. Attempts lost or returned are repeated under a new number too.
    attempt: int = 1
    #: Attempts that count against the retry policy (all but lost and returned ones).
    counted: int = 1
    #: Token of the current attempt: its `task.scheduled`, or for an effect its `task.started` once there is one.
    epoch: int = 0
    offset: int = 0
    #: Where the input comes from (events.INLINE, events.RUN_INPUT or a task index), and the input itself if INLINE.
    source: int = 0
    input: Payload | None = None
    first_scheduled_at: int = 0
    scheduled_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    #: Worker of the current attempt, known once it is recorded as started.
    worker: str = ""
    incarnation: str = ""
    #: The worker's word: may this effect run again when its outcome is unknown?
    idempotent: bool = True
    #: When the next attempt is due (retrying); 0: with the run's retry.
    due_at: int = 0
    #: Why the running attempt was told to stop; the next begins only when it has stopped.
    stopping: str = ""
    result: Payload | None = None
    error: Failure | None = None
    #: Workers that were lost under this item.
    lost: tuple[str, ...] = ()

    @property
    def is_unknown(self) -> bool:
        """May this effect have happened, or happen yet? Then its end is waited for before anything is undone."""
        return self.status in {"running", "waiting_for_input"} or (
            bool(self.lost) and self.idempotent and self.status in {"scheduled", "retrying"}
        )


class TaskState(msgspec.Struct, array_like=True):
    """One task of the graph, by index."""

    status: str = "blocked"
    #: Parents that have not ended (and the setup gate).
    unresolved: int = 0
    #: A hard parent ended without a result: this task will be skipped.
    doomed: bool = False
    items: list[ItemState] = []
    #: Number of items; 1 for a plain task, the list's length for a mapped one, known from its first `task.scheduled`.
    of: int = 1
    done: int = 0
    #: Items below this one may be dispatched (max_parallel).
    window: int = 0
    result: Payload | None = None
    error: Failure | None = None
    finished_at: int = 0
    #: Of a mapped task that has completed, as long as a reducer is fed them.
    results: tuple[Payload, ...] = ()


class RunState(msgspec.Struct, array_like=True):
    """One run. Fields are added at the end: snapshots have them by position, and so has `evolve.create` the first of them."""

    namespace: str
    workflow_type: str
    version: int
    definition: str
    instance: bytes
    input: Payload = NULL
    status: str = "pending"
    #: Sequence number of the last event folded.
    seq: int = 0
    correlation_id: str = ""
    causation_id: str = ""
    trace: str = ""
    principal: str = ""
    semantics: int = 1
    created_at: int = 0
    started_at: int = 0
    updated_at: int = 0
    completed_at: int = 0
    start_at: int = 0
    timeout_at: int = 0
    #: The run's own retries used, and when the next is due.
    retries: int = 0
    retry_at: int = 0
    result: Payload | None = None
    error: Failure | None = None
    reason: str = ""
    tasks: list[TaskState] = []
    #: Tasks in state `pending`, in the order they became so (an ordered set).
    ready: dict[int, bool] = {}
    open_tasks: int = 0
    open_setup: int = 0
    #: Why the run will fail as soon as it may: a task that matters has failed for good.
    failing: Failure | None = None
    #: The node that the run is assigned to: its tasks go there while the node is connected.
    node: str = ""
    #: How a run ended whose effects are undone: "cancelled", "failed" or "timeout", with `reason` and `error`.
    outcome: str = ""
    #: Tasks with a compensation that have completed and are not undone, in the order of completion.
    undoable: list[int] = []
    #: While compensating: tasks whose end must be known before anything is undone.
    awaited: int = 0
    #: Who paused it, while it is paused.
    paused_by: str = ""

    @property
    def key(self) -> RunKey:
        return RunKey(self.namespace, self.workflow_type, UUID(bytes=self.instance))
