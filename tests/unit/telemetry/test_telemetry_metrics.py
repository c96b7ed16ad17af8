"""Instruments come from the table, and the table keeps its own rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from onexflow.telemetry import metrics, names


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    provider = MeterProvider([made])
    metrics.use(provider)
    yield made
    metrics.use(None)
    provider.shutdown()


def collected(reader: InMemoryMetricReader):
    found = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        value = point.value if hasattr(point, "value") else point.sum
        found[metric.name] = (metric.unit, value, dict(point.attributes))
    return found


def test_each_kind_of_instrument_reports_under_its_name_and_unit(reader: InMemoryMetricReader) -> None:
    metrics.counter(names.RUNS_STARTED).add(3, {names.WORKFLOW: "order"})
    metrics.histogram(names.RUN_DURATION).record(0.5)
    metrics.observe(names.WORKER_SLOTS, lambda: [(7, {names.ROLE: "effect"})])
    metrics.observe(names.EVENTS, lambda: [(9, {})])
    assert collected(reader) == {
        "onexflow.runs.started": ("{run}", 3, {"onexflow.workflow": "order"}),
        "onexflow.run.duration": ("s", 0.5, {}),
        "onexflow.worker.slots": ("{slot}", 7, {"onexflow.role": "effect"}),
        "onexflow.store.events": ("{event}", 9, {}),
    }


def test_without_an_sdk_instruments_do_nothing() -> None:
    metrics.counter(names.RUNS_STARTED).add(1)
    metrics.histogram(names.RUN_DURATION).record(1.0)
    metrics.observe(names.EVENTS, lambda: pytest.fail("nobody collects"))


def test_names_are_unique_and_no_metric_has_a_series_a_run() -> None:
    all_names = [metric.name for metric in names.METRICS]
    assert len(set(all_names)) == len(all_names)
    for metric in names.METRICS:
        assert metric.name.startswith("onexflow.")
        assert names.RUN_ID not in metric.attributes
