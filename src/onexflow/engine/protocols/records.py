"""From the port's views to the specification's data types: pure functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast, get_args
from uuid import UUID

from onexflow.codec.payload import told
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure, Payload
from onexflow.engine.event_records import SOURCE, body_of, event_id_of, idempotency_key_of, notes_of
from onexflow.engine.protocols import checked
from onexflow.ports.client_link import EventView, RunMetrics, RunView, TaskView
from onexflow.spi.literals import LiteralTaskState, LiteralWorkflowEventType, LiteralWorkflowState
from onexflow.spi.types import (
    Context,
    ContextValue,
    Percentiles,
    TaskStatus,
    WorkflowEvent,
    WorkflowInstance,
    WorkflowMetrics,
    WorkflowState,
    to_uuid,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TYPES: Final = frozenset(get_args(LiteralWorkflowEventType))


def correlation_text(correlation_id: UUID | str | None) -> str:
    """A correlation id as it is stored: a UUID in its usual form, other text as given, "" for None."""
    if not correlation_id:
        return ""
    try:
        return str(UUID(str(correlation_id)))
    except ValueError:
        return checked.text(str(correlation_id), "correlation_id")


def correlation_uuid(text: str, key: RunKey) -> UUID:
    """The correlation id of a run as a UUID; a run without one correlates with itself."""
    return to_uuid(text) if text else key.instance_id


def moment(at: int) -> datetime | None:
    """UTC ns as a datetime; None for 0, which means not yet."""
    return _EPOCH + timedelta(microseconds=at // 1000) if at else None


def plain(payload: Payload | None) -> ContextValue:
    """The JSON value of a payload; of another encoding, what can be said about it."""
    return None if payload is None else cast("ContextValue", told(payload))


def mapping(payload: Payload) -> Context:
    """As `plain`, under the name `input` when it is no object."""
    value = plain(payload)
    return value if isinstance(value, dict) else {} if value is None else {"input": value}


def error_text(error: Failure | None) -> str | None:
    return None if error is None else f"{error.type}: {error.message}"


def instance_of(view: RunView, *, created: bool) -> WorkflowInstance:
    return WorkflowInstance(
        workflow_type=view.key.workflow_type,
        instance_id=view.key.instance_id,
        correlation_id=correlation_uuid(view.correlation_id, view.key),
        state=cast("LiteralWorkflowState", view.state),
        sequence_number=view.sequence,
        created_at=moment(view.created_at),
        started_at=moment(view.started_at),
        initial_data=mapping(view.input),
        metadata={**_metadata(view), "created": created},
    )


def state_of(view: RunView, definition: WorkflowDefinition) -> WorkflowState:
    """The run as it stands. `context` is what an expression of its definition may read, and its result."""
    priorities = {spec.name: spec.priority for spec in definition.tasks}
    tasks = {
        task.name: _task_status(task, priorities.get(task.name.removesuffix(".undo"), "normal")) for task in view.tasks
    }
    results = {task.name: plain(task.result) for task in view.tasks if task.state == "completed"}
    return WorkflowState(
        workflow_type=view.key.workflow_type,
        instance_id=view.key.instance_id,
        state=cast("LiteralWorkflowState", view.state),
        sequence_number=view.sequence,
        context={"input": plain(view.input), "tasks": results, "result": plain(view.result)},
        tasks=tasks,
        started_at=moment(view.started_at),
        updated_at=moment(view.updated_at),
        completed_at=moment(view.completed_at),
        error=error_text(view.error),
        metadata=_metadata(view),
    )


def _metadata(view: RunView) -> Context:
    notes: Context = {"namespace": view.key.namespace, "version": view.version, "correlation_id": view.correlation_id}
    for name in ("reason", "outcome", "blocked_because", "owner", "node_id"):
        if value := getattr(view, name):
            notes[name] = value
    return notes


def _task_status(task: TaskView, priority: Any) -> TaskStatus:
    progress = plain(task.progress)
    return TaskStatus(
        task_id=task.name,
        state=cast("LiteralTaskState", task.state),
        priority=priority,
        worker_id=task.worker or None,
        retry_count=max(0, task.attempt - 1),
        progress=float(progress) if isinstance(progress, int | float) else None,
        result=plain(task.result),
        error=error_text(task.error),
        enqueued_at=moment(task.scheduled_at),
        started_at=moment(task.started_at),
        finished_at=moment(task.finished_at),
    )


def event_of(view: EventView, key: RunKey, correlation_id: str, causation_id: str) -> WorkflowEvent:
    """An event of a run. Its body is the event's own fields, with the task's name under `task`; its id and idempotency
    key are the same at every reading."""
    known = view.type in _TYPES
    return WorkflowEvent(
        event_id=event_id_of(key, view.sequence),
        # A type of a newer release: something has changed, its own word is in the metadata.
        event_type=view.type if known else "state.transitioned",
        workflow_type=key.workflow_type,
        instance_id=key.instance_id,
        correlation_id=correlation_id or None,
        causation_id=causation_id or None,
        sequence_number=view.sequence,
        timestamp=moment(view.timestamp),
        source=SOURCE,
        idempotency_key=idempotency_key_of(key, view.sequence),
        payload=body_of(view),
        metadata={**notes_of(view), **({} if known else {"type": view.type})},
    )


def metrics_of(metrics: RunMetrics) -> WorkflowMetrics:
    by_state = {cast("LiteralWorkflowState", state): count for state, count in metrics.by_state.items()}
    return WorkflowMetrics(
        workflow_type=metrics.workflow_type or None,
        by_state=by_state,
        started=sum(by_state.values()),
        completed=by_state.get("completed", 0),
        failed=by_state.get("failed", 0),
        events=metrics.events,
        tasks=metrics.tasks,
        durations=Percentiles(mean=metrics.mean, p50=metrics.p50, p95=metrics.p95, p99=metrics.p99),
        throughput=metrics.throughput,
        window_seconds=metrics.window,
    )
