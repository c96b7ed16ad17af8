"""The SDK is wired only when the standard variables ask for it."""

from __future__ import annotations

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
