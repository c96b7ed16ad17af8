"""The stored form of events: a row is what one turn appended to one run, packed as MessagePack.

A row is `[format, time, events, meta]`; an event is `[tag, fields…]`. Fields are only ever added at the end, with a
default, so that rows of every release are read for ever and an older reader skips what it does not know. An event
with an unknown tag is kept as `UnknownEvent`: shown in histories, ignored by `evolve`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec

from onexflow.codec.payload import UNREADABLE
from onexflow.core.errors import StoreUnusable
from onexflow.core.events import EVENTS, AnyEvent, Event
from onexflow.core.payload import Failure
from onexflow.core.state import RunState

ROW_FORMAT: Final = 1
SNAPSHOT_FORMAT: Final = 1


class UnknownEvent(Event, tag=0, frozen=True):
    """An event of a newer release, as it was stored."""

    type: ClassVar[str] = "unknown"
    fields: list[Any]
    kind: str = ""


class _Row(msgspec.Struct, array_like=True):
    format: int
    at: int
    events: list[AnyEvent]
    meta: dict[str, str] | None = None


class _RawRow(msgspec.Struct, array_like=True):
    format: int
    at: int
    events: list[msgspec.Raw]
    meta: dict[str, str] | None = None


class _Snapshot(msgspec.Struct, array_like=True):
    format: int
    state: RunState


_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(_Row)
_raw_decoder = msgspec.msgpack.Decoder(_RawRow)
_event_decoder = msgspec.msgpack.Decoder(AnyEvent)
_failure_decoder = msgspec.msgpack.Decoder(Failure)
_snapshot_decoder = msgspec.msgpack.Decoder(_Snapshot)


def encode_row(at: int, events: list[Event], meta: dict[str, str] | None = None) -> bytes:
    """Pack the events that happened at store time `at` (ns)."""
    if meta is None:
        return _encoder.encode((ROW_FORMAT, at, events))
    return _encoder.encode((ROW_FORMAT, at, events, meta))


def decode_row(data: bytes) -> tuple[int, list[Event], dict[str, str]]:
    """(store time, events, meta) of a packed row. Raises StoreUnusable when the bytes are not a row."""
    try:
        row = _row_decoder.decode(data)
    except msgspec.ValidationError:
        return _decode_with_unknown(data)
    except UNREADABLE as error:
        raise StoreUnusable(f"a stored row cannot be read: {error}") from error
    return row.at, list(row.events), row.meta or {}


def _decode_with_unknown(data: bytes) -> tuple[int, list[Event], dict[str, str]]:
    known = range(1, len(EVENTS) + 1)
    try:
        row = _raw_decoder.decode(data)
        events: list[Event] = []
        for raw in row.events:
            fields = msgspec.msgpack.decode(raw)
            if type(fields) is not list or not fields or type(fields[0]) is not int or fields[0] < 1:
                raise StoreUnusable("a stored row cannot be read: what stands in an event's place is none")
            events.append(_event_decoder.decode(raw) if fields[0] in known else UnknownEvent(fields))
    except UNREADABLE as error:
        raise StoreUnusable(f"a stored row cannot be read: {error}") from error
    return row.at, events, row.meta or {}


def split_row(data: bytes, count: int) -> tuple[bytes, bytes]:
    """The packed row as two: its first `count` events, and the others. Events of a newer release stay as they are."""
    try:
        row = _raw_decoder.decode(data)
    except UNREADABLE as error:
        raise StoreUnusable(f"a stored row cannot be read: {error}") from error
    head = _RawRow(row.format, row.at, row.events[:count], row.meta)
    return _encoder.encode(head), _encoder.encode(_RawRow(row.format, row.at, row.events[count:], row.meta))


def storable(failure: Failure) -> Failure:
    """The failure itself, or without its context when that is foreign data which has no stored form: an integer beyond
    64 bits, a lone surrogate, too deep a nesting. To be asked before it becomes part of an event."""
    if failure.context is None:
        return failure
    try:
        _failure_decoder.decode(_encoder.encode(failure))
    except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, ValueError):
        return msgspec.structs.replace(failure, context={"omitted": "the context has no stored form"})
    return failure


def encode_snapshot(state: RunState) -> bytes:
    """The whole state of a run."""
    return _encoder.encode((SNAPSHOT_FORMAT, state))


def decode_snapshot(data: bytes) -> RunState | None:
    """The state in a snapshot; None when its form is not this release's, or it cannot be read: fold the events instead.
    (They may have been cut: a release with a new form reads the old ones too.)"""
    try:
        snapshot = _snapshot_decoder.decode(data)
    except UNREADABLE:
        return None
    return snapshot.state if snapshot.format == SNAPSHOT_FORMAT else None
