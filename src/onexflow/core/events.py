"""Every fact that can be stored: the 18 event types of the specification, each with a closed list of kinds.

An event says what was *decided*; what follows from the definition and earlier events (pending, blocked, skipped by
propagation) is derived by `evolve` and never written. Events are arrays when stored: fields are only ever added at
the end, with a default, and a tag is never used again. Positions (shard, offset, sequence, epoch, time) belong to
the row that carries the event (`codec.rows`), not to the event.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from onexflow.core.payload import NULL, Failure, Payload

#: Input of a scheduled task: given in the event itself / the run's input / the result of the task with that index.
INLINE: Final = -2
RUN_INPUT: Final = -1


class Event(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all events. `type` is the specification's name; `kind` says which of its meanings."""

    type: ClassVar[str]


class WorkflowCreated(Event, tag=1, frozen=True):
    """The run exists, in state `pending`."""

    type: ClassVar[str] = "workflow.created"
    namespace: str
    workflow_type: str
    version: int
    definition: str  #: SHA-256 of the definition's canonical JSON
    instance: bytes  #: the instance id's 16 bytes
    input: Payload
    correlation_id: str
    causation_id: str = ""
    #: Store time in ns at which the run may leave `pending`; 0 = at once.
    start_at: int = 0
    #: Store time in ns at which the run times out; 0 = never.
    timeout_at: int = 0
    trace: str = ""  #: W3C traceparent of the start
    principal: str = ""
    request_id: str = ""
    #: Version of evolve's meaning; old histories keep theirs.
    semantics: int = 1
    kind: str = ""


class WorkflowStarted(Event, tag=2, frozen=True):
    """The run is `running`: its main tasks may be scheduled."""

    type: ClassVar[str] = "workflow.started"
    kind: str = ""


class WorkflowPaused(Event, tag=3, frozen=True):
    type: ClassVar[str] = "workflow.paused"
    reason: str = ""
    kind: str = ""
    #: The principal that asked for it.
    by: str = ""


class WorkflowResumed(Event, tag=4, frozen=True):
    type: ClassVar[str] = "workflow.resumed"
    reason: str = ""
    kind: str = ""


class WorkflowCompleted(Event, tag=5, frozen=True):
    type: ClassVar[str] = "workflow.completed"
    result: Payload = NULL
    kind: str = ""


class WorkflowFailed(Event, tag=6, frozen=True):
    type: ClassVar[str] = "workflow.failed"
    error: Failure
    kind: str = ""


class WorkflowCancelled(Event, tag=7, frozen=True):
    type: ClassVar[str] = "workflow.cancelled"
    reason: str = ""
    kind: str = ""  #: "" (the run has ended) | "compensating" (what its effects did is undone first)


class WorkflowTimedOut(Event, tag=8, frozen=True):
    type: ClassVar[str] = "workflow.timeout"
    reason: str = ""
    kind: str = ""


class TaskScheduled(Event, tag=9, frozen=True):
    """Items `first` … `first + count - 1` of a task may be dispatched, each as attempt number `attempt`."""

    type: ClassVar[str] = "task.scheduled"
    task: int
    attempt: int = 1
    first: int = 0
    count: int = 1
    #: Number of items of the whole task: 1 for a plain task, the length of the list for a mapped one.
    of: int = 1
    #: INLINE: `inputs` holds one payload an item; else where the one input comes from.
    source: int = RUN_INPUT
    inputs: tuple[Payload, ...] = ()
    #: "" | "again" (same input as the attempt before) | "resolved" (someone asked for it)
    #: | "returned" (what was waited for had never begun) | "enqueued" (a task of a work queue; core.queue_state)
    kind: str = ""


class TaskStarted(Event, tag=10, frozen=True):
    """The items' attempts are authorised to run on `worker`. An effect's is durable before it is sent."""

    type: ClassVar[str] = "task.started"
    task: int
    items: list[int]
    worker: str
    incarnation: str
    started_at: int = 0
    #: What the worker declared for the handler: may the effect run again when its outcome is unknown?
    idempotent: bool = True
    #: "" | in a work queue, where `items` has the lease's number: "leased" | "assigned" (by name) | "bridged" (a run
    #: does it on the workers' streams; the lease lasts as long as the run)
    kind: str = ""


class TaskCompleted(Event, tag=11, frozen=True):
    """The items have their results, once and for all."""

    type: ClassVar[str] = "task.completed"
    task: int
    items: list[int]
    results: list[Payload]
    kind: str = ""  #: "" | "resolved" (given by a person) | "empty" (a map over no items)


class TaskFailed(Event, tag=12, frozen=True):
    """An item has failed for good, and so has its task."""

    type: ClassVar[str] = "task.failed"
    task: int
    item: int
    error: Failure
    kind: str = ""  #: "" | "timeout" (its state is `timeout`) | "lost" | "resolved" | "mapping"


class TaskRetry(Event, tag=13, frozen=True):
    """The item will be scheduled again at `due_at` (0: when the run leaves `retrying`)."""

    type: ClassVar[str] = "task.retry"
    task: int
    item: int
    attempt: int  #: number of the attempt that comes
    due_at: int
    error: Failure | None = None
    kind: str = ""  #: "" | "timeout" | "lost" | "returned" (not counted) | "run" (with the run's own retry)
    worker: str = ""  #: on which worker the attempt before was


class DependencyResolved(Event, tag=14, frozen=True):
    type: ClassVar[str] = "dependency.resolved"
    kind: str = ""
    data: Payload | None = None


class DependencyFailed(Event, tag=15, frozen=True):
    type: ClassVar[str] = "dependency.failed"
    kind: str = ""
    data: Payload | None = None


class StateTransitioned(Event, tag=16, frozen=True):
    """One decision that no other type names. Lists all tasks that it touches."""

    type: ClassVar[str] = "state.transitioned"
    kind: str
    origin: str
    target: str
    tasks: list[int] = []
    item: int = 0
    reason: str = ""
    due_at: int = 0
    error: Failure | None = None
    #: The node that a run is assigned to (run.assigned); "" = to none.
    node: str = ""
    #: The whole event that was published to an external stream (stream.published; `origin` is its type).
    data: Payload | None = None


class CompensationStarted(Event, tag=17, frozen=True):
    """The run is `compensating`: it has that outcome, and what its effects did will be undone."""

    type: ClassVar[str] = "compensation.started"
    kind: str = ""  #: the outcome: "cancelled" | "failed" | "timeout"
    data: Payload | None = None
    reason: str = ""
    error: Failure | None = None


class CompensationCompleted(Event, tag=18, frozen=True):
    """All is undone: the run is `compensated`."""

    type: ClassVar[str] = "compensation.completed"
    kind: str = ""  #: the outcome, as in `compensation.started`
    data: Payload | None = None


#: Every event class, in the order of the specification's list.
EVENTS: Final[tuple[type[Event], ...]] = (
    WorkflowCreated, WorkflowStarted, WorkflowPaused, WorkflowResumed, WorkflowCompleted, WorkflowFailed,
    WorkflowCancelled, WorkflowTimedOut, TaskScheduled, TaskStarted, TaskCompleted, TaskFailed, TaskRetry,
    DependencyResolved, DependencyFailed, StateTransitioned, CompensationStarted, CompensationCompleted,
)  # fmt: skip

AnyEvent = (
    WorkflowCreated | WorkflowStarted | WorkflowPaused | WorkflowResumed | WorkflowCompleted | WorkflowFailed
    | WorkflowCancelled | WorkflowTimedOut | TaskScheduled | TaskStarted | TaskCompleted | TaskFailed | TaskRetry
    | DependencyResolved | DependencyFailed | StateTransitioned | CompensationStarted | CompensationCompleted
)  # fmt: skip

#: The closed list of kinds of each type. A kind that is not here comes from a newer release: kept, shown, not folded.
KINDS: Final[dict[str, tuple[str, ...]]] = {
    **{event.type: ("",) for event in EVENTS},
    "workflow.cancelled": ("", "compensating"),
    "compensation.started": ("cancelled", "failed", "timeout"),
    "compensation.completed": ("cancelled", "failed", "timeout"),
    "task.scheduled": ("", "again", "resolved", "returned", "enqueued"),
    "task.started": ("", "leased", "assigned", "bridged"),
    "task.completed": ("", "resolved", "empty"),
    "task.failed": ("", "timeout", "lost", "resolved", "mapping"),
    "task.retry": ("", "timeout", "lost", "returned", "run"),
    "state.transitioned": (
        "run.initializing", "run.retrying", "run.running", "run.assigned",
        "task.skipped", "task.waiting_for_input", "task.cancelled", "attempt.stopping",
        "queue.paused", "queue.resumed", "queue.strategy", "task.raised", "task.progress",
        "stream.published",
    ),
}  # fmt: skip
