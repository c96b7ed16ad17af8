"""Between the specification's events and those of `ports.events`: pure functions."""

from __future__ import annotations

import asyncio
import dataclasses
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast, get_args

import msgspec

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.errors import HandlerFailed, InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure
from onexflow.engine.protocols import checked, records
from onexflow.engine.protocols.checked import InvalidValue
from onexflow.ports.events import Delivery, EventRecord
from onexflow.spi.event_type import EventType
from onexflow.spi.exceptions import SPIError
from onexflow.spi.literals import LiteralWorkflowEventType
from onexflow.spi.types import Context, ContextValue, WorkflowEvent, to_uuid

#: The 18 types of workflow events. What else stands in a topic are the base bus's messages.
TYPES: Final[tuple[str, ...]] = get_args(LiteralWorkflowEventType)
#: The event type of a message of the base bus.
MESSAGE: Final = "message"

#: As a workflow type to subscribe to: all of them.
ALL: Final = "*"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TRACEBACK: Final = 16 * 1024
_TEXT: Final = 64 * 1024


def record_of(event: Any, namespace: str) -> EventRecord:
    """What is published of an event of ours, or of anything that has its attributes (`data` or `payload`, either spelling
    of the type). Raises InvalidArgument, which is a ValueError too where a value cannot be what it is."""
    key = key_of(namespace, _attribute(event, "workflow_type"), _attribute(event, "instance_id"))
    sequence = checked.whole(getattr(event, "sequence_number", None) or 0, "sequence_number")
    body = getattr(event, "payload", None)
    if body is None:
        body = getattr(event, "data", None)
    notes = getattr(event, "metadata", None) or {}
    identity = to_uuid(_attribute(event, "event_id"))
    correlation = getattr(event, "correlation_id", None)
    given = notes.get("correlation_id") if isinstance(notes, Mapping) else None
    if isinstance(given, str) and correlation is not None and to_uuid(given) == correlation:
        correlation = given  # the caller's own text
    causation = getattr(event, "causation_id", None)
    return EventRecord(
        key=key,
        type=event_type(_attribute(event, "event_type")),
        sequence=sequence,
        event_id=identity,
        correlation_id=checked.text(records.correlation_text(correlation), "correlation_id"),
        causation_id=str(causation) if causation else "",
        correlation_chain=tuple(str(link) for link in getattr(event, "correlation_chain", None) or ()),
        timestamp=_nanoseconds(getattr(event, "timestamp", None)),
        source=checked.text(str(getattr(event, "source", None) or ""), "source"),
        idempotency_key=checked.text(str(getattr(event, "idempotency_key", None) or identity), "idempotency_key"),
        payload=encode_value(checked.mapping(body, "payload")),
        metadata=encode_value(checked.mapping(notes, "metadata")),
    )


def event_of(record: EventRecord) -> WorkflowEvent:
    """The event as it was published or recorded: the same at every reading."""
    notes = records.mapping(record.metadata)
    known = record.type in TYPES
    if not known:  # of a newer release: something has changed, its own word is in the metadata
        notes = {**notes, "type": record.type}
    return WorkflowEvent(
        event_type=record.type if known else "state.transitioned",
        workflow_type=record.key.workflow_type,
        instance_id=record.key.instance_id,
        sequence_number=record.sequence,
        payload=records.mapping(record.payload),
        event_id=record.event_id,
        correlation_id=record.correlation_id or None,
        timestamp=records.moment(record.timestamp),
        source=record.source,
        idempotency_key=record.idempotency_key,
        metadata=notes,
        causation_id=record.causation_id or None,
        correlation_chain=[to_uuid(link) for link in record.correlation_chain],
    )


def content_of(record: EventRecord) -> Any:
    """What a handler of the base bus gets: a workflow event, or the message's JSON value."""
    return decode_value(record.payload) if record.type == MESSAGE else event_of(record)


def context_of(delivery: Delivery, attempt: int, subscription_id: str) -> Context:
    """What a handler is told beside the event."""
    return {
        "topic": delivery.topic,
        "partition": delivery.partition,
        "partition_key": delivery.partition_key,
        "offset": str(delivery.position),
        "delivery_attempt": attempt,
        "subscription_id": subscription_id,
    }


def value_of(record: EventRecord) -> bytes:
    """A message's `value`: the event as JSON."""
    return msgspec.json.encode(
        {
            "event_id": record.event_id,
            "event_type": record.type,
            "workflow_type": record.key.workflow_type,
            "instance_id": record.key.instance_id,
            "sequence_number": record.sequence,
            "correlation_id": record.correlation_id,
            "causation_id": record.causation_id or None,
            "timestamp": records.moment(record.timestamp),
            "source": record.source,
            "idempotency_key": record.idempotency_key,
            "payload": records.plain(record.payload),
            "metadata": records.plain(record.metadata),
        }
    )


def name(text: Any, field: str) -> str:
    """A name: of a topic, a workflow type, a group. Raises InvalidValue (a ValueError)."""
    if text == ALL:
        raise InvalidValue(f"{field}: a name is needed, and {ALL} stands for all", field=field)
    return checked.name(text, field)


def key_of(namespace: str, workflow_type: Any, instance_id: Any) -> RunKey:
    """The name of a run or a stream. Raises InvalidArgument."""
    return checked.run_key(namespace, name(workflow_type, "workflow_type"), instance_id)


def event_type(spelling: object) -> str:
    """The dotted form of either spelling. Raises InvalidValue (a ValueError)."""
    try:
        return str.__str__(EventType(str(spelling)))
    except ValueError as error:
        raise InvalidValue(str(error), field="event_type") from None


def event_types(spellings: Iterable[str] | None) -> tuple[str, ...]:
    """A filter's types; None: the 18, and no message of the base bus."""
    if spellings is None:
        return TYPES
    return tuple(sorted({event_type(one) for one in checked.each(spellings, "event_types")})) or TYPES


def builtins_of(message: Any) -> ContextValue:
    """The JSON form of a message of any kind: by its to_dict or model_dump, if it has one. Raises InvalidArgument."""
    for name, options in (("to_dict", {}), ("model_dump", {"mode": "json"})):
        convert = getattr(message, name, None)
        if callable(convert) and not isinstance(message, type):
            message = convert(**options)
            break
    else:
        if dataclasses.is_dataclass(message) and not isinstance(message, type):
            message = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    return cast("ContextValue", decode_value(encode_value(message)))


def failure_of(error: BaseException) -> Failure:
    """A handler's error as data, which is kept with a dead letter."""
    text = "".join(traceback.format_exception(error))[-_TRACEBACK:]
    return Failure(
        type=type(error).__name__,
        message=_said(error).encode("utf-8", "replace")[:_TEXT].decode("utf-8", "ignore"),
        traceback=text.encode("utf-8", "replace").decode(),
        code=str(getattr(error, "code", "")) if isinstance(error, SPIError) else "",
    )


def handler_failed(what: str, error: BaseException, facts: Context) -> HandlerFailed:
    """The error for callers; raise it from `error`."""
    return HandlerFailed(
        f"{what} failed: {type(error).__name__}: {_said(error)}", {**facts, "error": type(error).__name__}
    )


def is_cancelled(error: BaseException) -> bool:
    """Is this task told to end? A handler may also raise CancelledError by itself, for what it waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


def _said(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - a broken __str__ of the user's must not hide that the handler failed
        return f"{type(error).__name__} (its __str__ raises)"


def _attribute(event: Any, name: str) -> Any:
    try:
        return getattr(event, name)
    except AttributeError:
        raise InvalidArgument(
            f"{name}: {type(event).__name__} has none: a workflow event is needed", field=name
        ) from None


def _nanoseconds(moment: Any) -> int:
    if not isinstance(moment, datetime):
        return 0
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1) * 1000
