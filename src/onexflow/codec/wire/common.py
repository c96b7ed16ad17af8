"""Payloads, failures, tokens and names on the wire, the checks that every message shares, and where batches are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from onexflow.codec.payload import UNREADABLE
from onexflow.core.blocked import Blocked, sentence
from onexflow.core.errors import BY_CODE, Coded, InternalError, InvalidArgument, Overloaded
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey, Token, read_uuid, uuid_text
from onexflow.core.payload import JSON, NULL, Failure, Payload
from onexflow.spi.exceptions import (
    HandlerInitializationError,
    InvalidProtocolStateError,
    ProtocolHandlerError,
    RegistryError,
    SPIError,
)
from onexflow.v1 import common_pb2 as pb

MAX_MESSAGE: Final = 8 << 20  #: bytes of one message, set on every channel
MAX_BATCH_BYTES: Final = 1 << 20  #: a batch is cut before it grows beyond
MAX_BATCH: Final = 64  #: entries of a batch
ENTRY: Final = 256  #: bytes of an entry beside its payloads, roughly
MAX_PAYLOAD: Final = 2 << 20
MAX_NAME: Final = 255
MAX_SECONDS: Final = 10 * 366 * 86_400.0
MAX_CONTEXT: Final = 4 << 10  #: bytes of an error's context as JSON
MAX_MESSAGE_TEXT: Final = 2 << 10
DEFAULT_RETRY_AFTER: Final = 0.1

T = TypeVar("T")

_raw = msgspec.json.Decoder(msgspec.Raw)
_object = msgspec.json.Decoder(dict[str, Any])


# ---- checks


def name(text: str, field: str, *, default: str = "") -> str:
    """A name of 1 to 255 printable characters; `default` when it is empty."""
    if not text:
        if default:
            return default
        raise InvalidArgument(f"{field} is empty.", field=field)
    return optional_name(text, field)


def optional_name(text: str, field: str) -> str:
    if not text:
        return text
    if len(text) > MAX_NAME:
        raise InvalidArgument(f"{field} has {len(text)} characters; {MAX_NAME} is the most.", field=field)
    if not text.isprintable():
        raise InvalidArgument(f"{field} has characters that cannot be printed.", field=field)
    return text


@lru_cache(maxsize=1024)
def kept(text: str) -> str:
    """The text itself, as the object that it was when it came first: of names that are the same in thousands of keys one copy
    is enough, and what is the same object is found sooner. (Some Pythons never forget what was interned.)"""
    return text


def run_id(text: str, field: str) -> UUID:
    try:
        if len(text) != 36:
            raise ValueError
        return read_uuid(text)
    except ValueError:
        raise InvalidArgument(f"{field} is not a UUID: {text[:64]!r}.", field=field) from None


def seconds(value: float, field: str) -> float:
    if not 0 <= value <= MAX_SECONDS:  # nor is NaN
        raise InvalidArgument(f"{field} is {value}; it must be between 0 and ten years, in seconds.", field=field)
    return value


def not_negative(value: int, field: str) -> int:
    if value < 0:
        raise InvalidArgument(f"{field} is negative: {value}.", field=field)
    return value


def payload(message: pb.Payload, field: str) -> Payload:
    """A payload of bounded size, whose JSON (if that is what it says) is JSON."""
    data = message.data
    if len(data) > MAX_PAYLOAD:
        raise InvalidArgument(f"{field} has {len(data)} bytes; {MAX_PAYLOAD} is the most.", field=field)
    encoding = message.encoding
    if encoding and encoding != JSON:
        return Payload(data, name(encoding, f"{field}.encoding"))
    try:
        _raw.decode(data)
        if not data.isascii():
            data.decode()
    except UNREADABLE as error:
        raise InvalidArgument(f"{field} is not JSON: {error}", field=field) from error
    return Payload(data)


def is_plain_json(data: bytes) -> bool:
    """Is it JSON, all of it ASCII?"""
    try:
        _raw.decode(data)
    except UNREADABLE:
        return False
    return data.isascii()


def payload_or_null(parent: Any, attribute: str, field: str) -> Payload:
    return payload(getattr(parent, attribute), field) if parent.HasField(attribute) else NULL


# ---- batches


def cut(entries: Sequence[T], sizes: Sequence[int]) -> Iterator[Sequence[T]]:
    """The entries, each of about so many bytes, in batches of at most 64 and, unless one alone is larger, 1 MiB."""
    start = room = 0
    if sum(sizes) <= MAX_BATCH_BYTES:
        for start in range(0, len(entries), MAX_BATCH):
            yield entries[start : start + MAX_BATCH]
        return
    for position, needed in enumerate(sizes):
        if position > start and (position - start == MAX_BATCH or room + needed > MAX_BATCH_BYTES):
            yield entries[start:position]
            start, room = position, 0
        room += needed
    if entries:
        yield entries[start:]


# ---- values


def payload_to_pb(value: Payload) -> pb.Payload:
    return pb.Payload(data=value.data, encoding="" if value.encoding == JSON else value.encoding)


def optional_payload_to_pb(value: Payload | None) -> pb.Payload | None:
    return None if value is None else payload_to_pb(value)


def trusted_payload(message: pb.Payload) -> Payload:
    """A payload from the orchestrator, which has checked it."""
    return Payload(message.data, message.encoding or JSON)


def token(message: pb.Token) -> Token:
    return Token(message.shard, message.epoch, message.offset, message.item)


def token_to_pb(value: Token) -> pb.Token:
    return pb.Token(shard=value.shard, epoch=value.epoch, offset=value.offset, item=value.item)


def fill_payload(message: pb.Payload, value: Payload) -> None:
    message.data = value.data
    if value.encoding != JSON:
        message.encoding = value.encoding


def fill_key(message: pb.RunKey, value: RunKey) -> None:
    message.namespace = value.namespace
    message.workflow_type = value.workflow_type
    message.instance_id = uuid_text(value.instance_id)


def key(message: pb.RunKey, field: str = "key") -> RunKey:
    return RunKey(
        name(message.namespace, f"{field}.namespace", default=DEFAULT_NAMESPACE),
        name(message.workflow_type, f"{field}.workflow_type"),
        run_id(message.instance_id, f"{field}.instance_id"),
    )


def key_to_pb(value: RunKey) -> pb.RunKey:
    return pb.RunKey(
        namespace=value.namespace, workflow_type=value.workflow_type, instance_id=uuid_text(value.instance_id)
    )


def failure(message: pb.Failure) -> Failure:
    return Failure(
        type=message.type[:MAX_NAME] or "Error",
        message=message.message,
        traceback=message.traceback[: 16 << 10],
        code=message.code[:MAX_NAME],
        retryable=not message.non_retryable,
        context=context_from_json(message.context_json) or None,
    )


def optional_failure(parent: Any, attribute: str) -> Failure | None:
    return failure(getattr(parent, attribute)) if parent.HasField(attribute) else None


def failure_to_pb(value: Failure) -> pb.Failure:
    return pb.Failure(
        type=value.type,
        message=value.message,
        traceback=value.traceback,
        code=value.code,
        non_retryable=not value.retryable,
        context_json=context_to_json(value.context or {}),
    )


def optional_failure_to_pb(value: Failure | None) -> pb.Failure | None:
    return None if value is None else failure_to_pb(value)


# ---- errors


def context_to_json(context: dict[str, Any]) -> str:
    """The facts as a JSON object of at most 4 KiB; what is too long is cut and `truncated` says so."""
    if not context:
        return ""
    raw = msgspec.json.encode(context, enc_hook=str)
    for longest in (1024, 256, 64, 16):
        if len(raw) <= MAX_CONTEXT:
            return raw.decode()
        cut = _cut(msgspec.json.decode(raw), longest)
        raw = msgspec.json.encode({**cut, "truncated": True})
    return raw.decode() if len(raw) <= MAX_CONTEXT else '{"truncated":true}'


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else value[:longest] + "…"
    if isinstance(value, list):
        return [_cut(one, longest) for one in value[: max(longest // 16, 1)]]
    if isinstance(value, dict):
        return {name[:longest]: _cut(one, longest) for name, one in list(value.items())[:longest]}
    return value


def context_from_json(text: str) -> dict[str, Any]:
    """The facts; what cannot be read is kept as text."""
    if not text:
        return {}
    try:
        return _object.decode(text)
    except UNREADABLE:
        return {"raw": text[:MAX_CONTEXT]}


def retry_after(error: SPIError) -> float:
    """Seconds to wait before trying again; 0 when it is of no use."""
    if not isinstance(error, Coded) or not error.retryable:
        return 0.0
    after = error.context.get("retry_after")
    return float(after) if isinstance(after, int | float) and 0 < after < MAX_SECONDS else DEFAULT_RETRY_AFTER


#: The specification's own classes have no code: on the wire their name stands in its place.
_PLAIN: Final[dict[str, type[SPIError]]] = {
    one.__name__: one
    for one in (
        SPIError,
        ProtocolHandlerError,
        HandlerInitializationError,
        RegistryError,
        InvalidProtocolStateError,
    )
}


def reason(error: SPIError) -> str:
    """What names the error's class on the wire: its code, or the name of the specification's class."""
    if isinstance(error, Coded):
        return error.code
    return next((one.__name__ for one in type(error).__mro__ if one.__name__ in _PLAIN), "SPIError")


def make_error(reason: str, message: str, context: dict[str, Any]) -> SPIError:
    """The error that `reason` names; of an unknown reason (a newer peer's) an InternalError that carries it."""
    if (cls := BY_CODE.get(reason) or _PLAIN.get(reason)) is not None:
        return cls(message, context)
    return InternalError(message, {**context, "reason": reason})


def error_to_pb(error: SPIError) -> pb.Error:
    """The error on the wire. Not to be changed: one that is given out often is made once."""
    return _often_to_pb(error) if type(error) is Overloaded else _error_to_pb(error)


@lru_cache(maxsize=64)
def _often_to_pb(error: SPIError) -> pb.Error:
    return _error_to_pb(error)


def _error_to_pb(error: SPIError) -> pb.Error:
    return pb.Error(
        code=reason(error),
        message=str(error)[:MAX_MESSAGE_TEXT],
        context_json=context_to_json(error.context),
        retry_after=retry_after(error),
    )


def error(message: pb.Error) -> SPIError:
    return make_error(message.code, message.message, context_from_json(message.context_json))


def blocked_to_pb(value: Blocked | None) -> pb.Blocked | None:
    if value is None:
        return None
    message = pb.Blocked(
        kind=value.kind,
        task=value.task,
        worker=value.worker,
        attempt=value.attempt,
        since=value.since,
        until=value.until,
        role=value.role,
        handler=value.handler,
        node=value.node,
        names=value.names,
        by=value.by,
        reason=value.reason,
        owner=value.owner,
        next_wake_at=value.next_wake_at,
        ended_by=value.ended_by,
        text=sentence(value),
    )
    if value.shard >= 0:
        message.shard = value.shard
    return message


def blocked(message: Any) -> Blocked | None:
    """The field `blocked` of a message."""
    if not message.HasField("blocked"):
        return None
    it = message.blocked
    return Blocked(
        kind=it.kind,
        task=it.task,
        worker=it.worker,
        attempt=it.attempt,
        since=it.since,
        until=it.until,
        role=it.role,
        handler=it.handler,
        node=it.node,
        names=tuple(it.names),
        by=it.by,
        reason=it.reason,
        owner=it.owner,
        shard=it.shard if it.HasField("shard") else -1,
        next_wake_at=it.next_wake_at,
    )
