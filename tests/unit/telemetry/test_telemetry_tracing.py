"""Spans and their travel as traceparent strings; nothing at all without an SDK."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, StatusCode

from onexflow.telemetry import tracing

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracing.use(provider)
    yield memory
    tracing.use(NoOpTracerProvider())


def test_without_an_sdk_nothing_is_recorded_and_blocks_run() -> None:
    assert not tracing.use(NoOpTracerProvider())
    assert not tracing.active()
    with tracing.span("run x", parent=REMOTE) as span:
        assert not span.is_recording()
        assert tracing.traceparent() == ""
    assert tracing.record("result x", start_time=1, end_time=2) == ""
    tracing.start("x").end()


def test_a_provider_that_was_given_stays(exporter: InMemorySpanExporter) -> None:
    assert tracing.use()
    with tracing.span("x"):
        pass
    assert len(exporter.get_finished_spans()) == 1


def test_a_span_continues_its_remote_parent(exporter: InMemorySpanExporter) -> None:
    with tracing.span("execute charge", parent=REMOTE, attributes={"onexflow.attempt": 1}):
        inside = tracing.traceparent()
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert tracing.format_traceparent(span.parent) == REMOTE
    assert inside.split("-")[1] == REMOTE.split("-")[1]
    assert inside == tracing.format_traceparent(span.get_span_context())


def test_a_span_without_parent_continues_the_current_one(exporter: InMemorySpanExporter) -> None:
    with tracing.span("outer"), tracing.span("inner"):
        pass
    inner, outer = exporter.get_finished_spans()
    assert inner.parent == outer.get_span_context()


def test_an_exception_is_recorded_and_goes_on(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="declined"), tracing.span("execute charge"):
        raise ValueError("declined")
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].name == "exception"


def test_a_span_of_the_past_has_its_own_times(exporter: InMemorySpanExporter) -> None:
    made = tracing.record("run order", parent=REMOTE, start_time=1_000, end_time=5_000, error="RunFailed")
    (span,) = exporter.get_finished_spans()
    assert (span.start_time, span.end_time) == (1_000, 5_000)
    assert span.status.description == "RunFailed"
    assert made == tracing.format_traceparent(span.get_span_context())


def test_what_is_no_traceparent_starts_a_trace_of_its_own(exporter: InMemorySpanExporter) -> None:
    with tracing.span("execute x", parent="00-rubbish"):
        pass
    assert exporter.get_finished_spans()[0].parent is None


@given(st.text(alphabet="0123456789abcdefg-", max_size=60) | st.text(max_size=80))
def test_any_text_is_read_without_raising(text: str) -> None:
    context = tracing.parse_traceparent(text)
    assert context is None or context.is_valid


def test_a_traceparent_is_read_as_it_was_written() -> None:
    context = tracing.parse_traceparent(REMOTE)
    assert context is not None
    assert context.is_remote
    assert tracing.format_traceparent(context) == REMOTE
    assert tracing.parse_traceparent(REMOTE.replace("00-", "ff-", 1)) is None
    assert tracing.parse_traceparent("00-" + "0" * 32 + "-" + "1" * 16 + "-01") is None
