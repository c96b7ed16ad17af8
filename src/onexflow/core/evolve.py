"""evolve(state, event) → state: what happened, folded. It evaluates no expression, reads no clock and decides nothing.

Rebuilding a run from its events gives the live state again, always: the live state was made by these very functions.
What follows from the definition and earlier events is derived here: a task whose last parent ends becomes `pending`,
or `skipped` when a hard parent has no result, and so do those behind it.
`state` is changed in place and returned: its owner holds no other copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from onexflow.core.errors import InternalError
from onexflow.core.events import (
    CompensationCompleted,
    CompensationStarted,
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskFailed,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowFailed,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
    WorkflowTimedOut,
)
from onexflow.core.graph import Graph
from onexflow.core.machine import TASK_EDGES, TERMINAL_TASK_STATES, WORKFLOW_EDGES, check_task_edge, check_workflow_edge
from onexflow.core.payload import Payload
from onexflow.core.state import COMPENSATION, ItemState, RunState, TaskState


def create(graph: Graph, event: WorkflowCreated, at: int) -> RunState:
    """The state after a run's first event."""
    # By position, as far as that is readable: a struct looks each name up among all of its fields.
    return RunState(
        event.namespace,
        event.workflow_type,
        event.version,
        event.definition,
        event.instance,
        event.input,
        "pending",
        1,
        event.correlation_id,
        event.causation_id,
        event.trace,
        event.principal,
        event.semantics,
        at,
        0,
        at,
        start_at=event.start_at,
        timeout_at=event.timeout_at,
        tasks=[TaskState("blocked", count) for count in graph.indegree],
        open_tasks=len(graph),
        open_setup=len(graph.setup),
    )


def evolve(graph: Graph, state: RunState, event: Event, epoch: int, offset: int, at: int) -> RunState:
    """Fold one event, stored at (epoch, offset) at store time `at`. Raises InvalidTransition on an illegal edge.

    An event of a type or kind from a newer release is counted and otherwise left alone.
    """
    state.seq += 1
    state.updated_at = at
    fold = FOLDS.get(type(event))
    if fold is not None:
        fold(graph, state, event, epoch, offset, at)
    return state


# ---- the run


def _move_run(state: RunState, target: str) -> None:
    if (state.status, target) not in WORKFLOW_EDGES:
        check_workflow_edge(state.status, target, str(state.key))
    state.status = target


def _on_started(graph: Graph, state: RunState, event: WorkflowStarted, epoch: int, offset: int, at: int) -> None:
    _move_run(state, "running")
    state.started_at = state.started_at or at
    for task in graph.roots if not graph.gated else ():
        _become_pending(state, task)
    for task in graph.gated:
        _resolve_parent(graph, state, task, at)


def _on_paused(graph: Graph, state: RunState, event: WorkflowPaused, epoch: int, offset: int, at: int) -> None:
    _move_run(state, "paused")
    state.reason, state.paused_by = event.reason, event.by


def _on_resumed(graph: Graph, state: RunState, event: WorkflowResumed, epoch: int, offset: int, at: int) -> None:
    _move_run(state, "running")
    state.reason = state.paused_by = ""
    state.retry_at = 0


def _end_run(state: RunState, target: str, at: int) -> None:
    _move_run(state, target)
    state.completed_at = at
    for task in state.tasks if state.open_tasks else ():
        task.results = ()
        if task.status not in TERMINAL_TASK_STATES:
            _cancel_task(task, at)
    state.open_tasks = state.open_setup = 0
    state.ready.clear()


def _cancel_task(task: TaskState, at: int) -> None:
    task.status = "cancelled"
    task.finished_at = at
    for item in task.items:
        if item.status not in TERMINAL_TASK_STATES:
            item.status = "cancelled"
            item.finished_at = at


def _on_completed(graph: Graph, state: RunState, event: WorkflowCompleted, epoch: int, offset: int, at: int) -> None:
    state.result = event.result
    _end_run(state, "completed", at)


def _on_failed(graph: Graph, state: RunState, event: WorkflowFailed, epoch: int, offset: int, at: int) -> None:
    state.error = event.error
    _end_run(state, "failed", at)


def _on_cancelled(graph: Graph, state: RunState, event: WorkflowCancelled, epoch: int, offset: int, at: int) -> None:
    state.reason = event.reason
    if not event.kind:
        _end_run(state, "cancelled", at)


def _on_timed_out(graph: Graph, state: RunState, event: WorkflowTimedOut, epoch: int, offset: int, at: int) -> None:
    state.reason = event.reason
    _end_run(state, "timeout", at)


def _on_compensation_started(
    graph: Graph, state: RunState, event: CompensationStarted, epoch: int, offset: int, at: int
) -> None:
    """Only what may have happened and can be undone stays open; the tasks that undo enter the run."""
    _move_run(state, "compensating")
    state.outcome, state.reason, state.error = event.kind, event.reason, event.error
    state.failing = None
    state.retry_at = state.open_setup = 0
    state.ready.clear()
    for index, task in enumerate(state.tasks):
        task.results = ()
        if task.status in TERMINAL_TASK_STATES:
            continue
        if index in graph.undo and any(item.is_unknown for item in task.items):
            state.awaited += 1
            for item in task.items:
                if item.status == "running":
                    item.stopping = COMPENSATION
        else:
            _cancel_task(task, at)
    state.tasks.extend(TaskState() for _ in graph.undone)
    state.open_tasks = state.awaited + len(graph.undone)


def _on_compensation_completed(
    graph: Graph, state: RunState, event: CompensationCompleted, epoch: int, offset: int, at: int
) -> None:
    for task in graph.undo.values():
        if state.tasks[task].status == "blocked":  # there was nothing to undo
            state.tasks[task].status = "skipped"
            state.tasks[task].finished_at = at
    _end_run(state, "compensated", at)


# ---- tasks and items


#: States that an item may come from, of the two moves that every task makes.
_BEFORE_RUNNING: Final = frozenset(origin for origin, target in TASK_EDGES if target == "running")
_BEFORE_COMPLETED: Final = frozenset(origin for origin, target in TASK_EDGES if target == "completed")


def _refuse_item(graph: Graph, state: RunState, task: int, item: ItemState, target: str) -> None:
    check_task_edge(item.status, target, str(state.key), graph.names[task])


def _move_item(graph: Graph, state: RunState, task: int, item: ItemState, target: str) -> None:
    if (item.status, target) not in TASK_EDGES:
        _refuse_item(graph, state, task, item, target)
    item.status = target
    owner = state.tasks[task]
    if owner.of == 1:
        owner.status = target
    elif owner.status == "scheduled" and target == "running":
        owner.status = "running"


def _on_scheduled(graph: Graph, state: RunState, event: TaskScheduled, epoch: int, offset: int, at: int) -> None:
    index = event.task
    task = state.tasks[index]
    items, first = task.items, event.first
    if task.status in {"pending", "blocked"}:
        state.ready.pop(index, None)
        task.status = "scheduled"
        if index in graph.mapped:
            _begin_mapped(graph, state, event, at)
        else:
            task.window = 1
    if first == len(items):
        source = event.source
        for given in event.inputs or (None,) * event.count:
            items.append(ItemState("scheduled", 1, 1, epoch, offset, source, given, at, at))
        return
    for number in range(first, first + event.count):
        item = items[number]
        if item.status == "waiting_for_input" and event.kind == "again":
            item.counted += 1  # the failure that was waited for came late; there is no task.retry to count it
        _move_item(graph, state, index, item, "scheduled")
        item.attempt = event.attempt
        item.epoch, item.offset = epoch, offset
        item.scheduled_at = at
        item.started_at = item.finished_at = item.due_at = 0
        item.worker = item.incarnation = item.stopping = ""


def _begin_mapped(graph: Graph, state: RunState, event: TaskScheduled, at: int) -> None:
    """The first items of a mapped task are scheduled: as many as may be in flight can go, and the reducers that it feeds
    begin with it."""
    task = state.tasks[event.task]
    task.of = of = event.of
    limit = graph.specs[event.task].max_parallel
    task.window = min(of, limit) if limit else of
    for child in graph.feeds[event.task]:
        _resolve_parent(graph, state, child, at)


def _on_task_started(graph: Graph, state: RunState, event: TaskStarted, epoch: int, offset: int, at: int) -> None:
    index = event.task
    task = state.tasks[index]
    items = task.items
    authorises = index in graph.effects
    for number in event.items:
        item = items[number]
        if item.status not in _BEFORE_RUNNING:
            _refuse_item(graph, state, index, item, "running")
        item.status = "running"
        item.worker = event.worker
        item.incarnation = event.incarnation
        item.started_at = event.started_at or at
        item.idempotent = event.idempotent
        if authorises:
            item.epoch, item.offset = epoch, offset
    if task.status == "scheduled":  # it runs when the first of its items does, or with none at all
        task.status = "running"


def _on_task_completed(graph: Graph, state: RunState, event: TaskCompleted, epoch: int, offset: int, at: int) -> None:
    index = event.task
    task = state.tasks[index]
    items, numbers = task.items, event.items
    for number in numbers:
        item = items[number]
        if item.status not in _BEFORE_COMPLETED:
            _refuse_item(graph, state, index, item, "completed")
        item.status = "completed"
        if item.error is not None:
            item.error = None
        if item.stopping:
            item.stopping = ""
        item.finished_at = at
    task.done += len(numbers)
    if index in graph.mapped:
        for number, result in zip(numbers, event.results, strict=True):
            items[number].result = result
        if task.window < task.of:
            task.window = min(task.of, task.window + len(numbers))
        if task.done < task.of:
            return
        _collect(graph, state, index)
    else:
        task.result = event.results[0]
    task.status = "completed"
    if index in graph.undo:
        state.undoable.append(index)
    _end_task(graph, state, index, task, at)


def _collect(graph: Graph, state: RunState, index: int) -> None:
    """All items of a mapped task have their results: as one list, for reducers that are fed, or for nobody."""
    task = state.tasks[index]
    fed = graph.feeds[index]
    if fed and any(state.tasks[child].status not in TERMINAL_TASK_STATES for child in fed):
        task.results = tuple(item.result for item in task.items if item.result is not None)
    if index not in graph.unlisted:
        task.result = Payload(b"[" + b",".join(item.result.data for item in task.items if item.result) + b"]")
    task.items = []


def _on_task_failed(graph: Graph, state: RunState, event: TaskFailed, epoch: int, offset: int, at: int) -> None:
    task = state.tasks[event.task]
    target = "timeout" if event.kind == "timeout" else "failed"
    if task.items:
        item = task.items[event.item]
        _move_item(graph, state, event.task, item, target)
        item.error = event.error
        item.finished_at = at
        item.stopping = ""
    for other in task.items:
        if other.status not in TERMINAL_TASK_STATES:
            other.status = "cancelled"
            other.finished_at = at
    task.status = target
    task.error = event.error
    matters = not graph.specs[event.task].allow_failure
    if state.status == "compensating":
        matters = graph.is_undo(event.task)
    if matters and state.failing is None:
        state.failing = event.error
    _end_task(graph, state, event.task, task, at)


def _on_task_retry(graph: Graph, state: RunState, event: TaskRetry, epoch: int, offset: int, at: int) -> None:
    item = state.tasks[event.task].items[event.item]
    _move_item(graph, state, event.task, item, "retrying")
    item.due_at = event.due_at
    item.error = event.error
    item.stopping = ""
    item.finished_at = at
    if event.kind == "lost":
        item.lost = (*item.lost, event.worker)
    elif event.kind == "run":
        item.counted = 1
    elif event.kind != "returned":
        item.counted += 1


def _on_transition(graph: Graph, state: RunState, event: StateTransitioned, epoch: int, offset: int, at: int) -> None:
    kind = event.kind
    if kind == "task.skipped":
        for index in event.tasks:
            state.ready.pop(index, None)
            task = state.tasks[index]
            task.status = "skipped"
            _end_task(graph, state, index, task, at)
    elif kind == "task.waiting_for_input":
        item = state.tasks[event.tasks[0]].items[event.item]
        _move_item(graph, state, event.tasks[0], item, "waiting_for_input")
        item.lost = (*item.lost, item.worker)
        item.stopping = ""
    elif kind == "task.cancelled":
        task = state.tasks[event.tasks[0]]
        item = task.items[event.item]
        _move_item(graph, state, event.tasks[0], item, "cancelled")
        item.finished_at = at
        item.stopping = ""
        _end_task(graph, state, event.tasks[0], task, at)
    elif kind == "attempt.stopping":
        state.tasks[event.tasks[0]].items[event.item].stopping = event.reason
    elif kind == "run.assigned":
        state.node = event.node
    elif kind == "run.initializing":
        _move_run(state, "initializing")
        for index in graph.setup_roots:
            _become_pending(state, index)
    elif kind == "run.retrying":
        _move_run(state, "retrying")
        state.retries += 1
        state.retry_at = event.due_at
        state.error = event.error
    elif kind == "run.running":
        _move_run(state, "running")
        state.retry_at = 0
        state.error = None


# ---- what follows


def _become_pending(state: RunState, task: int) -> None:
    state.tasks[task].status = "pending"
    state.ready[task] = True


def _end_task(graph: Graph, state: RunState, index: int, task: TaskState, at: int) -> None:
    """Count the end of a task and tell the tasks behind it. Skips run on by themselves, so without recursion."""
    if state.status == "compensating":
        _end_while_compensating(graph, state, index, task, at)
        return
    ended: list[int] = []
    while True:
        task.finished_at = at
        state.open_tasks -= 1
        if state.open_setup and graph.specs[index].setup:
            state.open_setup -= 1
        if graph.feeding:
            _end_feeding(graph, state, index)
        if task.status == "completed":
            for child in graph.released[index]:
                _resolve_parent(graph, state, child, at, ended)
        else:
            _end_without_result(graph, state, index, at, ended)
        if not ended:
            return
        index = ended.pop()
        task = state.tasks[index]


def _end_without_result(graph: Graph, state: RunState, index: int, at: int, ended: list[int]) -> None:
    """Tell the tasks behind one that has not completed. The reducers that it feeds began with it, unless it was skipped."""
    fed = graph.feeds[index] if state.tasks[index].status != "skipped" else ()
    for child in graph.hard_children[index]:
        if child not in fed:
            state.tasks[child].doomed = True
            _resolve_parent(graph, state, child, at, ended)
        elif state.tasks[child].status not in TERMINAL_TASK_STATES:
            _stop_fed(state, child, at, ended)
    for child in graph.soft_children[index]:
        _resolve_parent(graph, state, child, at, ended)


def _end_feeding(graph: Graph, state: RunState, task: int) -> None:
    """Let go of the results that only a task that has ended was fed."""
    feeder = graph.fed_by[task]
    if feeder is not None and all(state.tasks[one].status in TERMINAL_TASK_STATES for one in graph.feeds[feeder]):
        state.tasks[feeder].results = ()  # nobody is fed them again


def _stop_fed(state: RunState, task: int, at: int, ended: list[int]) -> None:
    """The mapped task of a fed reducer has failed: it is skipped, or cancelled if it has begun."""
    child = state.tasks[task]
    if child.status == "blocked":
        child.doomed = True
        return
    if child.status == "pending":
        state.ready.pop(task, None)
        child.status = "skipped"
    else:
        _cancel_task(child, at)
    ended.append(task)


def _end_while_compensating(graph: Graph, state: RunState, index: int, task: TaskState, at: int) -> None:
    task.finished_at = at
    state.open_tasks -= 1
    if not graph.is_undo(index):
        state.awaited -= 1
    elif task.status == "completed":
        state.undoable.pop()


def _resolve_parent(graph: Graph, state: RunState, task: int, at: int, ended: list[int] | None = None) -> None:
    child = state.tasks[task]
    child.unresolved = left = child.unresolved - 1
    if left:
        return
    if not child.doomed:
        child.status = "pending"
        state.ready[task] = True
        return
    child.status = "skipped"
    if ended is None:
        _end_task(graph, state, task, child, at)
    else:
        ended.append(task)


def _on_created(graph: Graph, state: RunState, event: WorkflowCreated, epoch: int, offset: int, at: int) -> None:
    raise InternalError("workflow.created can only be a run's first event", {"run": str(state.key), "seq": state.seq})


#: What folds an event of each type, once it is counted.
FOLDS: Final[dict[type[Event], Callable[[Graph, RunState, Any, int, int, int], None]]] = {
    WorkflowCreated: _on_created,
    WorkflowStarted: _on_started,
    WorkflowPaused: _on_paused,
    WorkflowResumed: _on_resumed,
    WorkflowCompleted: _on_completed,
    WorkflowFailed: _on_failed,
    WorkflowCancelled: _on_cancelled,
    WorkflowTimedOut: _on_timed_out,
    TaskScheduled: _on_scheduled,
    TaskStarted: _on_task_started,
    TaskCompleted: _on_task_completed,
    TaskFailed: _on_task_failed,
    TaskRetry: _on_task_retry,
    StateTransitioned: _on_transition,
    CompensationStarted: _on_compensation_started,
    CompensationCompleted: _on_compensation_completed,
}
