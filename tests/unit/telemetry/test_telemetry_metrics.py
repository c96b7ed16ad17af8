"""Instruments come from the table, and the table keeps its own rules."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from onexflow.telemetry import metrics, names


def collected(reader: InMemoryMetricReader) -> dict[str, tuple[str, float, dict[str, object]]]:
    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        value = getattr(point, "value", None)
        found[metric.name] = (metric.unit, point.sum if value is None else value, dict(point.attributes or {}))
    return found


def test_each_kind_of_instrument_reports_under_its_name_and_unit() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.counter(names.RUNS_STARTED, provider).add(3, {names.WORKFLOW: "order"})
    metrics.histogram(names.RUN_DURATION, provider).record(0.5)
    metrics.gauge(names.QUEUE_DEPTH, lambda: [(7, {names.ROLE: "effect"})], provider)
    assert collected(reader) == {
        "onexflow.runs.started": ("{run}", 3, {"onexflow.workflow": "order"}),
        "onexflow.run.duration": ("s", 0.5, {}),
        "onexflow.queue.depth": ("{task}", 7, {"onexflow.role": "effect"}),
    }


def test_without_an_sdk_instruments_do_nothing() -> None:
    metrics.counter(names.RUNS_STARTED).add(1)
    metrics.histogram(names.RUN_DURATION).record(1.0)


def test_names_are_unique_and_no_metric_has_a_series_a_run() -> None:
    all_names = [metric.name for metric in names.METRICS]
    assert len(set(all_names)) == len(all_names)
    for metric in names.METRICS:
        assert metric.name.startswith("onexflow.")
        assert names.RUN_ID not in metric.attributes
