"""Instruments over the OpenTelemetry API, by their entry in `onexflow.telemetry.names`.

Without an SDK they do nothing. On the hot path count in plain integers and let a gauge or one `add` a turn read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation

from onexflow.telemetry.names import Metric

Attributes = Mapping[str, str | int | float | bool]
Reading = Callable[[], Iterable[tuple[float, Attributes]]]


def meter(provider: MeterProvider | None = None) -> Meter:
    """The process's meter, or that of `provider`."""
    return metrics.get_meter("onexflow", meter_provider=provider)


def counter(metric: Metric, provider: MeterProvider | None = None) -> Counter:
    """The counter that `metric` describes."""
    assert metric.kind == "counter"
    return meter(provider).create_counter(metric.name, metric.unit, metric.meaning)


def histogram(metric: Metric, provider: MeterProvider | None = None) -> Histogram:
    """The histogram that `metric` describes."""
    assert metric.kind == "histogram"
    return meter(provider).create_histogram(metric.name, metric.unit, metric.meaning)


def gauge(metric: Metric, read: Reading, provider: MeterProvider | None = None) -> None:
    """Let `read` answer whenever somebody collects `metric`: (value, attributes) for each series.

    It is called on a thread of the SDK's and must only look.
    """
    assert metric.kind == "gauge"

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for value, attributes in read()]

    meter(provider).create_observable_gauge(metric.name, [observe], metric.unit, metric.meaning)
