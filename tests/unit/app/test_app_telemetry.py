"""The SDK is wired only when the standard variables ask for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from onexflow.app import telemetry
from onexflow.telemetry import tracing
end = telemetry.wire("onex-orchestrator", "o1", {environment!r})
print(tracing.active(), "opentelemetry.sdk.trace" in sys.modules)
end()
"""


def wired(environment: dict[str, str]) -> str:
    """What a fresh process says: the SDK can be set but once in a process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(environment=environment)],
        capture_output=True,
        text=True,
        check=True,
        timeout=25,
    )
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "False False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "True True"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, "False False"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, "False True"),
    ],
)
def test_the_environment_decides(environment: dict[str, str], expected: str) -> None:
    assert wired(environment) == expected


AWAY = """
import time
from onexflow.app import telemetry
from onexflow.telemetry import tracing
end = telemetry.wire("onex-orchestrator", "o1")
began = time.monotonic()
for _ in range(5000):  # more than the queue of the exporter holds
    with tracing.span("work"):
        pass
worked, began = time.monotonic() - began, time.monotonic()
end()
print(worked < 5, time.monotonic() - began < 5)
"""


@pytest.mark.slow
def test_a_collector_that_is_away_holds_nothing_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AWAY],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
        timeout=25,
    )
    assert done.stdout.splitlines()[-1] == "True True", done.stderr
    assert "127.0.0.1:9" in done.stderr  # said once, by the exporter
