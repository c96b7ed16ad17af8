"""The OpenTelemetry SDK, wired by its own standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SDK_DISABLED …).

Without an endpoint, or with the exporter not installed, there is no SDK in the process and nothing to pay. Exporters
work on threads of their own and drop what they cannot send: telemetry never blocks or fails the cluster.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog
from opentelemetry import metrics, trace

from onexflow.telemetry import metrics as instruments
from onexflow.telemetry import tracing

#: Seconds that the end of a process gives to what was not sent yet.
FLUSH_WITHIN: Final = 2.0

_log = structlog.get_logger("onexflow.telemetry")
_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


def wire(service: str, instance: str, environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Send traces and metrics if the environment says where to. Returns the way to flush and end that."""
    wanted = any(environment.get(name) for name in _ENDPOINTS)
    if not wanted or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        tracing.use()
        return _nothing
    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        _log.warning("telemetry.disabled", hint="install onexflow[otlp]")
        tracing.use()
        return _nothing
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    names = {"service.instance.id": instance}
    if not environment.get("OTEL_SERVICE_NAME"):
        names["service.name"] = service
    resource = Resource.create(names)
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none":
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(tracers)
    meters = None
    if environment.get("OTEL_METRICS_EXPORTER", "otlp") != "none":
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
        instruments.use(meters)
    tracing.use()

    providers = [provider for provider in (tracers, meters) if provider is not None]
    return lambda: _flush([provider.shutdown for provider in providers])


def _flush(endings: Sequence[Callable[[], None]]) -> None:
    """Send what is left, for so long and no longer: a collector that is away would hold a stop up for half a minute."""
    threads = [threading.Thread(target=end, name="onexflow-telemetry", daemon=True) for end in endings]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + FLUSH_WITHIN
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        _log.warning("telemetry.dropped", why="the collector does not answer", seconds=FLUSH_WITHIN)


def _nothing() -> None:
    """There is nothing to flush."""
