"""What people and programs see of runs: pure functions from state to the values of `ports.client_link`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from onexflow.codec.payload import told
from onexflow.codec.rows import decode_row
from onexflow.core.blocked import Blocked, sentence
from onexflow.core.events import Event
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey
from onexflow.core.machine import TERMINAL_TASK_STATES, WORKFLOW_STATES
from onexflow.core.payload import Failure, Payload
from onexflow.core.state import ItemState, RunState, TaskState
from onexflow.engine.blocking import Look
from onexflow.engine.run import Attempt, Run
from onexflow.ports.client_link import EventView, RunOutcome, RunSummary, RunView, TaskView
from onexflow.ports.event_store import Row, RunRecord


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


def view_of(run: Run, look: Look | None, owner: str) -> RunView:
    """The run as it stands, with what it and each open task waits for; without a look, nothing is said of that."""
    state, graph = run.state, run.graph
    placed = {(attempt.task, attempt.item): attempt for attempt in run.attempts.values()}
    shown = [index for index in range(len(state.tasks)) if index < len(graph) or _undoes(run, index)]
    tasks = tuple(_task_view(run, index, placed, look) for index in shown)
    blocked = look.run(run) if look is not None else None
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
        blocked_because=_in_words(blocked, tasks),
        next_wake_at=blocked.next_wake_at if blocked is not None else 0,
        shard=run.shard.id,
        owner=owner,
        node_id=state.node,
        causation_id=state.causation_id,
        outcome=state.outcome,
        blocked=blocked,
    )


def with_called(view: RunView, called: Mapping[str, tuple[str, ...]]) -> RunView:
    """The view, where these tasks, which run, wait for the runs that they have called."""

    def waits(blocked: Blocked, task: str) -> Blocked:
        return msgspec.structs.replace(blocked, kind="called_run", names=called[task])

    def told(task: TaskView) -> TaskView:
        if not called.get(task.name) or task.blocked is None:
            return task
        blocked = waits(task.blocked, task.name)
        return msgspec.structs.replace(task, blocked=blocked, blocked_because=sentence(blocked))

    tasks = tuple(map(told, view.tasks))
    whole = view.blocked
    if whole is not None and called.get(whole.task):
        whole = waits(whole, whole.task)
    return msgspec.structs.replace(view, tasks=tasks, blocked=whole, blocked_because=_in_words(whole, tasks))


def past_view(run: Run, owner: str) -> RunView:
    """A run as it stood: nothing is said of what it waits for, since that is judged by what there is now."""
    return view_of(run, None, owner)


def _undoes(run: Run, index: int) -> bool:
    """Has this task of a run that is undone something to undo?"""
    return run.state.tasks[run.graph.undone[index - len(run.graph)]].status == "completed"


def _in_words(blocked: Blocked | None, tasks: tuple[TaskView, ...]) -> str:
    """What the run waits for: of one whose tasks are open, what these wait for."""
    if blocked is None:
        return ""
    if not blocked.task:
        return sentence(blocked)
    reasons = [
        f"{task.name}: {task.blocked_because}" for task in tasks if task.blocked_because and task.state != "blocked"
    ]
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more


def _task_view(run: Run, index: int, placed: dict[tuple[int, int], Attempt], look: Look | None) -> TaskView:
    spec, task = run.graph.specs[index], run.state.tasks[index]
    shown = _shown_item(task)
    status, worker = task.status, shown.worker if shown else ""
    attempt = placed.get((index, task.items.index(shown))) if shown else None
    if status == "scheduled" and attempt is not None and attempt.sent and attempt.session is not None:
        status, worker = "running", attempt.session.worker_id
    blocked = look.task(run, index) if look is not None else None
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
        blocked_because=sentence(blocked) if blocked is not None else "",
        next_wake_at=blocked.next_wake_at if blocked is not None else 0,
        blocked=blocked,
        progress=run.progress.get((index, task.items.index(shown))) if shown and run.progress else None,
    )


def _shown_item(task: TaskState) -> ItemState | None:
    """The item that says most about the task: the first that has not ended."""
    return next((item for item in task.items if item.status not in TERMINAL_TASK_STATES), None) or (
        task.items[0] if task.items else None
    )


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
