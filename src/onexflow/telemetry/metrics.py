"""Instruments over the OpenTelemetry API, by their entry in `onexflow.telemetry.names`.

Without an SDK they do nothing, and nothing is kept for one that might come. On the hot path count in plain integers
and let `observe` read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeter,
    Observation,
)

from onexflow.telemetry.names import Metric

Attributes = Mapping[str, str | int | float | bool]
Reading = Callable[[], Iterable[tuple[float, Attributes]]]

_NOBODY = NoOpMeter("onexflow")
_meter: Meter = _NOBODY


def use(provider: MeterProvider | None) -> None:
    """Instruments that are made from now on report to `provider`; None: to nobody."""
    global _meter  # noqa: PLW0603 - one meter a process, as in OpenTelemetry itself
    _meter = provider.get_meter("onexflow") if provider is not None else _NOBODY


def active() -> bool:
    """Whether instruments that are made now report to anybody."""
    return _meter is not _NOBODY


def counter(metric: Metric) -> Counter:
    """The counter that `metric` describes."""
    assert metric.kind == "counter"
    return _meter.create_counter(metric.name, metric.unit, metric.meaning)


def histogram(metric: Metric) -> Histogram:
    """The histogram that `metric` describes."""
    assert metric.kind == "histogram"
    return _meter.create_histogram(metric.name, metric.unit, metric.meaning)


def observe(metric: Metric, read: Reading) -> None:
    """Let `read` answer whenever somebody collects the gauge or sum `metric`: (value, attributes) for each series.

    It is called on a thread of the SDK's and must only look.
    """
    assert metric.kind in ("gauge", "sum")

    def answer(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for value, attributes in read()]

    create = _meter.create_observable_gauge if metric.kind == "gauge" else _meter.create_observable_counter
    create(metric.name, [answer], metric.unit, metric.meaning)
