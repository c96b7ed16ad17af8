"""What people and programs see of runs: pure functions from state to the values of `ports.client_link`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from onexflow.codec.payload import told
from onexflow.codec.rows import decode_row
from onexflow.core.events import Event
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES, WORKFLOW_STATES
from onexflow.core.payload import Failure, Payload
from onexflow.core.state import ItemState, RunState, TaskState
from onexflow.core.turn import SECOND
from onexflow.engine.run import Attempt, Run
from onexflow.ports.client_link import EventView, RunOutcome, RunSummary, RunView, TaskView
from onexflow.ports.event_store import Row, RunRecord

#: Does a worker with this (role, handler) take work now?
Serves = Callable[[str, str], bool]


def moment(at: int) -> str:
    """A time in ns as RFC 3339, for sentences."""
    return datetime.fromtimestamp(at / SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def outcome_of(key: RunKey, state: RunState) -> RunOutcome:
    """How an ended run ended."""
    error = state.error
    if error is None and state.status != "completed":
        how = state.outcome or state.status
        error = Failure(how.capitalize(), state.reason or f"the run ended as {how}", retryable=False)
    if error is not None and state.status == "compensated":
        context = {**(error.context or {}), "outcome": state.outcome}
        error = msgspec.structs.replace(error, context=context)
    return RunOutcome(
        key=key,
        state=state.status,
        result=state.result if state.status == "completed" else None,
        error=None if state.status == "completed" else error,
    )


def summary_of(record: RunRecord) -> RunSummary:
    return RunSummary(
        key=RunKey.from_bytes(record.key),
        version=record.version,
        state=WORKFLOW_STATES[record.state],
        sequence=record.head,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def view_of(run: Run, serves: Serves, owner: str) -> RunView:
    """The run as it stands, with what each open task waits for."""
    state, graph = run.state, run.graph
    placed = {(attempt.task, attempt.item): attempt for attempt in run.attempts.values()}
    shown = [index for index in range(len(state.tasks)) if index < len(graph) or _undoes(run, index)]
    tasks = tuple(_task_view(run, index, placed, serves) for index in shown)
    why, wake = _run_blocked(state, tasks)
    return RunView(
        key=run.key,
        version=state.version,
        state=state.status,
        sequence=state.seq,
        correlation_id=state.correlation_id,
        created_at=state.created_at,
        started_at=state.started_at,
        updated_at=state.updated_at,
        completed_at=state.completed_at,
        input=state.input,
        result=state.result,
        error=state.error or (outcome_of(run.key, state).error if run.is_over else None),
        tasks=tasks,
        reason=state.reason,
        blocked_because=why,
        next_wake_at=wake,
        shard=run.shard.id,
        owner=owner,
        node_id=state.node,
        causation_id=state.causation_id,
        outcome=state.outcome,
    )


def past_view(run: Run, owner: str) -> RunView:
    """A run as it stood: nothing is said of what it waits for, since that is judged by what there is now."""
    view = view_of(run, lambda _role, _handler: True, owner)
    tasks = tuple(msgspec.structs.replace(task, blocked_because="", next_wake_at=0) for task in view.tasks)
    return msgspec.structs.replace(view, tasks=tasks, blocked_because="", next_wake_at=0)


def _undoes(run: Run, index: int) -> bool:
    """Has this task of a run that is undone something to undo?"""
    return run.state.tasks[run.graph.undone[index - len(run.graph)]].status == "completed"


def _run_blocked(state: RunState, tasks: tuple[TaskView, ...]) -> tuple[str, int]:
    if state.status in TERMINAL_WORKFLOW_STATES:
        return "", 0
    if state.status == "pending":
        return f"starts at {moment(state.start_at)}", state.start_at
    if state.status == "paused":
        return f"paused{': ' + state.reason if state.reason else ''}", state.timeout_at
    if state.status == "retrying":
        return f"the run is retried at {moment(state.retry_at)}", state.retry_at
    open_tasks = [task for task in tasks if task.state not in TERMINAL_TASK_STATES and task.state != "blocked"]
    wakes = [task.next_wake_at for task in open_tasks if task.next_wake_at]
    if state.timeout_at and state.status != "compensating":
        wakes.append(state.timeout_at)
    reasons = [f"{task.name}: {task.blocked_because}" for task in open_tasks if task.blocked_because]
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more, min(wakes, default=0)


def _task_view(run: Run, index: int, placed: dict[tuple[int, int], Attempt], serves: Serves) -> TaskView:
    spec, task = run.graph.specs[index], run.state.tasks[index]
    shown = _shown_item(task)
    status, worker = task.status, shown.worker if shown else ""
    attempt = placed.get((index, task.items.index(shown))) if shown else None
    if status == "scheduled" and attempt is not None and attempt.sent and attempt.session is not None:
        status, worker = "running", attempt.session.worker_id
    why, wake = _task_blocked(run, index, shown, attempt, serves)
    mapped = bool(spec.map)
    return TaskView(
        name=run.graph.names[index],
        role=spec.role,
        handler=spec.handler or spec.name,
        state=status,
        attempt=shown.attempt if shown else 0,
        worker=worker,
        items=task.of,
        items_done=task.done,
        scheduled_at=shown.first_scheduled_at if shown else 0,
        started_at=shown.started_at if shown else 0,
        finished_at=task.finished_at,
        result=None if mapped and task.status != "completed" else task.result,
        error=task.error or (shown.error if shown else None),
        blocked_because=why,
        next_wake_at=wake,
        progress=run.progress.get((index, task.items.index(shown))) if shown and run.progress else None,
    )


def _shown_item(task: TaskState) -> ItemState | None:
    """The item that says most about the task: the first that has not ended."""
    return next((item for item in task.items if item.status not in TERMINAL_TASK_STATES), None) or (
        task.items[0] if task.items else None
    )


def _task_blocked(
    run: Run, index: int, item: ItemState | None, attempt: Attempt | None, serves: Serves
) -> tuple[str, int]:
    state, graph, task = run.state, run.graph, run.state.tasks[index]
    if task.status in TERMINAL_TASK_STATES:
        return "", 0
    if task.status == "blocked" and graph.is_undo(index):
        first = state.undoable[-1]
        return f"waits for {'the end of what runs' if state.awaited else graph.names[graph.undo[first]]}", 0
    if task.status == "blocked":
        waits = [graph.names[p] for p in graph.parents(index) if state.tasks[p].status not in TERMINAL_TASK_STATES]
        return "waits for " + (", ".join(waits) or "the setup tasks"), 0
    if task.status == "pending" or item is None:
        return f"the run is {state.status}", state.retry_at
    if item.status == "waiting_for_input":
        return f"the outcome on {item.worker} is unknown: resolve it, or its own late result will", 0
    if item.status == "retrying":
        if not item.due_at:
            return "waits for the run's own retry", state.retry_at
        return f"attempt {item.attempt + 1} at {moment(item.due_at)}", item.due_at
    if item.stopping:
        return f"told to stop ({item.stopping}) on {item.worker}", 0
    if attempt is not None and attempt.session is not None:
        return f"running on {attempt.session.worker_id}", 0
    if item.status == "running":
        return f"worker {item.worker} is out of sight: waits for its return, its lease's end or proof of death", 0
    spec = graph.specs[index]
    handler = spec.handler or spec.name
    if not run.may_dispatch(index):
        return f"the run is {state.status}", state.retry_at
    if not serves(spec.role, handler):
        return f"no worker with {spec.role} handler {handler}", 0
    return "waits for a free slot", 0


# ---- events


def event_views(rows: Iterable[Row], shard: int, graph: Graph | None, from_seq: int = 1) -> list[EventView]:
    """The events of stored rows, from a sequence number on."""
    views = []
    for row in rows:
        at, events, meta = decode_row(row.data)
        for index, event in enumerate(events):
            if row.seq + index < from_seq:
                continue
            views.append(
                EventView(
                    sequence=row.seq + index,
                    type=event.type,
                    kind=str(getattr(event, "kind", "")),
                    timestamp=at,
                    shard=shard,
                    offset=row.offset + index,
                    epoch=row.epoch,
                    task=_task_name(event, graph),
                    data={**_event_data(event, graph), **meta},
                )
            )
    return views


def _task_name(event: Event, graph: Graph | None) -> str:
    task = getattr(event, "task", None)
    if not isinstance(task, int):
        tasks = getattr(event, "tasks", None) or []
        task = tasks[0] if len(tasks) == 1 else None
    return graph.names[task] if graph is not None and task is not None and task < len(graph.names) else ""


def _event_data(event: Event, graph: Graph | None) -> dict[str, Any]:
    data = {}
    for field in event.__struct_fields__:
        if field not in {"kind", "task"}:
            data[field] = _plain(getattr(event, field))
    if graph is not None and "tasks" in data:
        data["tasks"] = [graph.names[task] for task in data["tasks"] if task < len(graph.names)]
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, Payload):
        return told(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return msgspec.to_builtins(value)
