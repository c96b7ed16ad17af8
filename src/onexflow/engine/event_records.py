"""What is the same of a run's event wherever it is shown: its id, its idempotency key, its body and its notes. Pure."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from onexflow.codec.payload import encode_value
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.ports.client_link import EventView
from onexflow.ports.events import EventRecord

#: Who says that an event of a run has happened.
SOURCE = "onexflow"


def event_id_of(key: RunKey, sequence: int) -> UUID:
    """The id of a run's event: the same at every reading."""
    return derived_uuid(f"event:{key}:{sequence}")


def idempotency_key_of(key: RunKey, sequence: int) -> str:
    return f"{key}:{sequence}"


def body_of(view: EventView) -> dict[str, Any]:
    """The event's own fields, with the task's name under `task`."""
    body: dict[str, Any] = dict(view.data)
    if view.task:
        body["task"] = view.task
    if view.type == "state.transitioned":
        entity = "task" if view.task or body.get("tasks") else "workflow"
        body.update({"entity": entity, "from": body.get("origin"), "to": body.get("target")})
    return body


def notes_of(view: EventView) -> dict[str, Any]:
    """Where it stands."""
    return {"kind": view.kind, "shard": view.shard, "offset": view.offset, "epoch": view.epoch}


def record_of(view: EventView, key: RunKey, correlation_id: str, causation_id: str) -> EventRecord:
    """An event of a run as the bus has it."""
    return EventRecord(
        key=key,
        type=view.type,
        sequence=view.sequence,
        event_id=event_id_of(key, view.sequence),
        correlation_id=correlation_id,
        causation_id=causation_id,
        timestamp=view.timestamp,
        source=SOURCE,
        idempotency_key=idempotency_key_of(key, view.sequence),
        payload=encode_value(body_of(view)),
        metadata=encode_value(notes_of(view)),
    )
