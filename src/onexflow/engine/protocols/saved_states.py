"""States of external streams between the specification's type and `ports.persistence`: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final, cast

from onexflow.codec.payload import encode_value
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.core.machine import WORKFLOW_STATE_INDEX
from onexflow.engine.protocols import records
from onexflow.engine.protocols.checked import InvalidValue
from onexflow.ports.persistence import StateRecord
from onexflow.spi.literals import LiteralWorkflowState
from onexflow.spi.types import Context, TaskStatus, WorkflowState, to_uuid

_MOMENTS: Final = ("started_at", "updated_at", "completed_at")
_TASK_MOMENTS: Final = ("enqueued_at", "started_at", "finished_at")
_TASK_FIELDS: Final = tuple(field.name for field in fields(TaskStatus))


def record_of(key: RunKey, state: Any) -> StateRecord:
    """What is kept of a state of ours, or of anything that has its attributes. Raises InvalidArgument."""
    name = getattr(state, "state", None) or getattr(state, "current_state", None)
    if name not in WORKFLOW_STATE_INDEX:
        raise InvalidValue(f"state: {name!r} is not a workflow state: {', '.join(WORKFLOW_STATE_INDEX)}", field="state")
    sequence = getattr(state, "sequence_number", 0) or 0
    if not isinstance(sequence, int) or sequence < 0:
        raise InvalidValue(f"sequence_number must not be negative, not {sequence!r}", field="sequence_number")
    for field, wanted in (("workflow_type", key.workflow_type), ("instance_id", key.instance_id)):
        given = getattr(state, field, None)
        if given is not None and (to_uuid(given) if field == "instance_id" else given) != wanted:
            raise InvalidValue(f"{field}: the state is one of {given}, not of {wanted}", field=field)
    context = getattr(state, "context", None)
    if context is None:
        context = getattr(state, "data", None)
    body = {
        "context": _object(context, "context"),
        "tasks": {str(task): _task(status) for task, status in _object(getattr(state, "tasks", None), "tasks").items()},
        "error": getattr(state, "error", None),
        "metadata": _object(getattr(state, "metadata", None), "metadata"),
        **{field: _text(getattr(state, field, None), field) for field in _MOMENTS},
    }
    return StateRecord(key=key, state=name, sequence=sequence, data=encode_value(body))


def state_of(record: StateRecord) -> WorkflowState:
    """The state as it was saved. What another client has saved may be any JSON: what fits nowhere is left out."""
    body = records.mapping(record.data)
    tasks = _dict(body.get("tasks"))
    error = body.get("error")
    return WorkflowState(
        workflow_type=record.key.workflow_type,
        instance_id=record.key.instance_id,
        state=cast("LiteralWorkflowState", record.state),
        sequence_number=record.sequence,
        context=_dict(body.get("context")),
        tasks={name: _status(name, task) for name, task in tasks.items() if isinstance(task, dict)},
        error=error if isinstance(error, str) else None,
        metadata=_dict(body.get("metadata")),
        **{field: _moment(body.get(field)) for field in _MOMENTS},
    )


def _task(status: Any) -> dict[str, Any]:
    if isinstance(status, Mapping):
        return dict(status)
    found = {field: getattr(status, field) for field in _TASK_FIELDS if hasattr(status, field)}
    if "state" not in found:
        raise InvalidArgument(f"tasks: a TaskStatus is needed, not {type(status).__name__}", field="tasks")
    return {**found, **{field: _text(found.get(field), f"tasks.{field}") for field in _TASK_MOMENTS}}


def _status(name: str, task: dict[str, Any]) -> TaskStatus:
    known = {field: value for field, value in task.items() if field in _TASK_FIELDS}
    moments = {field: _moment(known.get(field)) for field in _TASK_MOMENTS}
    return TaskStatus(**{"task_id": name, "state": "pending", **known, **moments})


def _dict(value: Any) -> Context:
    return value if isinstance(value, dict) else {}


def _object(value: Any, field: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{field}: a dict is needed, not {type(value).__name__}", field=field)
    return dict(value)


def _text(moment: Any, field: str) -> str | None:
    """A time as it is kept; one without a zone is UTC."""
    if moment is None or isinstance(moment, str):
        return moment
    if not isinstance(moment, datetime):
        raise InvalidArgument(f"{field}: a datetime is needed, not {type(moment).__name__}", field=field)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).isoformat()


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
