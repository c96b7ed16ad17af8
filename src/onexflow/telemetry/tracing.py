"""Spans over the OpenTelemetry API. Without an SDK in the process nothing here costs more than a look at a flag.

The trace context travels as a W3C `traceparent` string: in events, in stream messages and in call metadata. An empty
string means no trace. Telemetry never fails its caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
)

Attributes = Mapping[str, str | int | float | bool]

_SCOPE: Final = "onexflow"
_VERSION_LENGTH: Final = 55  # 00-<32>-<16>-<2>
_NOTHING: Final = contextlib.nullcontext(INVALID_SPAN)
_tracer: Tracer | None = None
_given: TracerProvider | None = None


def use(provider: TracerProvider | None = None) -> bool:
    """Trace with `provider` from now on; None: with the one that was given before, or the process's global one.

    Returns whether anybody records. A no-op provider takes back what was given.

    A client, a worker and an orchestrator each call this once when they start, so that the hot path need not ask
    again. A global provider that is set later is not seen before the next call.
    """
    global _tracer, _given  # noqa: PLW0603 - one tracer a process, as in OpenTelemetry itself
    if provider is not None:
        _given = None if isinstance(provider, NoOpTracerProvider) else provider
    chosen = provider or _given or trace.get_tracer_provider()
    _tracer = None if isinstance(chosen, ProxyTracerProvider | NoOpTracerProvider) else chosen.get_tracer(_SCOPE)
    return _tracer is not None


def active() -> bool:
    """Whether anybody records spans."""
    return _tracer is not None


def traceparent() -> str:
    """The current span as a traceparent, "" when there is none."""
    if _tracer is None:
        return ""
    return format_traceparent(trace.get_current_span().get_span_context())


def span(
    name: str, *, parent: str = "", kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None
) -> AbstractContextManager[Span]:
    """A span around a block, current within it; an exception is recorded and goes on.

    `parent` is a traceparent; "" continues the current span. When nobody records, the block runs as it is.
    """
    if _tracer is None:
        return _NOTHING
    return _tracer.start_as_current_span(name, _context(parent), kind, attributes)


def start(
    name: str,
    *,
    parent: str = "",
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    start_time: int | None = None,
) -> Span:
    """A span that is not made current; the caller ends it (`end_time` in ns if it is not now)."""
    if _tracer is None:
        return INVALID_SPAN
    return _tracer.start_span(name, _context(parent), kind, attributes, start_time=start_time)


def record(
    name: str,
    *,
    parent: str = "",
    start_time: int,
    end_time: int,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    error: str = "",
) -> str:
    """A span that is already over (UTC ns). Returns its traceparent, "" when nobody records."""
    if _tracer is None:
        return ""
    current = start(name, parent=parent, kind=kind, attributes=attributes, start_time=start_time)
    if error:
        current.set_status(Status(StatusCode.ERROR, error))
    current.end(end_time)
    return format_traceparent(current.get_span_context())


def format_traceparent(context: SpanContext) -> str:
    """W3C form of a span context, "" when it is not valid."""
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def parse_traceparent(text: str) -> SpanContext | None:
    """The span context that `text` names, None when it is no traceparent (what a peer sends may be anything)."""
    parts = text.split("-")
    if len(text) < _VERSION_LENGTH or len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    try:
        version, trace_id, span_id, flags = (int(part, 16) for part in parts[:4])
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & TraceFlags.SAMPLED))
    return context if version != 0xFF and context.is_valid else None


def _context(parent: str) -> Context | None:
    """None lets the current span be the parent."""
    remote = parse_traceparent(parent) if parent else None
    return trace.set_span_in_context(NonRecordingSpan(remote)) if remote is not None else None
