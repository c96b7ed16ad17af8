"""Log lines: one JSON object a line with level, logger, time and trace; pretty on request."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider

from onexflow.telemetry import logging as telemetry_logging
from onexflow.telemetry import tracing


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    tracing.use(NoOpTracerProvider())


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_with_their_fields_when_it_is_no_terminal() -> None:
    stream = io.StringIO()
    telemetry_logging.configure("info", stream=stream, node="orchestrator-1")
    structlog.get_logger("onexflow.engine").info("run ended", run="a", state="completed")
    structlog.get_logger("onexflow.engine").debug("attempt ended")
    logging.getLogger("other").warning("of a %s", "library")
    first, second = lines(stream)
    assert first["event"] == "run ended"
    assert first["run"] == "a"
    assert first["node"] == "orchestrator-1"
    assert (first["level"], first["logger"]) == ("info", "onexflow.engine")
    assert str(first["timestamp"]).endswith("Z")
    assert second["event"] == "of a library"


def test_an_exception_is_in_its_line() -> None:
    stream = io.StringIO()
    telemetry_logging.configure("info", "json", stream)
    try:
        raise ValueError("declined")
    except ValueError:
        structlog.get_logger("x").exception("handler failed")
    (line,) = lines(stream)
    assert "ValueError: declined" in str(line["exception"])


def test_a_line_within_a_span_has_its_ids() -> None:
    stream = io.StringIO()
    telemetry_logging.configure("info", "json", stream)
    tracing.use(TracerProvider())
    with tracing.span("execute x"):
        structlog.get_logger("x").info("inside")
        expected = tracing.traceparent()
    structlog.get_logger("x").info("outside")
    inside, outside = lines(stream)
    assert expected.split("-")[1:3] == [inside["trace_id"], inside["span_id"]]
    assert "trace_id" not in outside


def test_pretty_lines_have_no_colour_where_nobody_sees_it() -> None:
    stream = io.StringIO()
    telemetry_logging.configure("debug", "pretty", stream)
    structlog.get_logger("x").debug("attempt ended", task="charge")
    assert "attempt ended" in stream.getvalue()
    assert "task=charge" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_libraries_are_quiet_below_warning() -> None:
    stream = io.StringIO()
    telemetry_logging.configure("info", "json", stream)
    logging.getLogger("grpc.aio").info("chatter")
    logging.getLogger("grpc.aio").warning("trouble")
    assert [line["event"] for line in lines(stream)] == ["trouble"]
