"""One trace: the caller's span → the start at the orchestrator → the handlers on workers → the run with its outcome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, StatusCode

import onexflow
from onexflow.telemetry import metrics, tracing
from support.grpc_cluster import grpc_cluster


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracing.use(provider)
    yield memory
    tracing.use(NoOpTracerProvider())


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    memory = InMemoryMetricReader()
    provider = MeterProvider([memory])
    metrics.use(provider)
    yield memory
    metrics.use(None)
    provider.shutdown()


def shop() -> tuple[onexflow.Worker, onexflow.WorkflowDefinition]:
    worker = onexflow.Worker("shop")

    @worker.compute("price")
    async def price(contract):
        return contract.amount * 2

    @worker.effect("charge", idempotent=True)
    def charge(contract):  # runs in a thread
        if contract < 0:
            raise ValueError("declined")
        return contract

    flow = onexflow.workflow("order")
    charged = flow.effect("charge", depends_on=[flow.compute("price")], retry=onexflow.RetryPolicy(max_attempts=1))
    assert charged is not None
    return worker, flow.build()


def tree(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.slow
async def test_client_orchestrator_handlers_and_result_are_one_trace(exporter: InMemorySpanExporter) -> None:
    worker, definition = shop()
    async with grpc_cluster(worker) as client:
        await client.register(definition)
        with tracing.span("checkout"):
            assert await client.run("order", input={"amount": 21}) == 42
    spans = tree(exporter)
    assert set(spans) == {"checkout", "start order", "execute price", "execute charge", "run order"}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert spans["start order"].parent.span_id == spans["checkout"].context.span_id
    for name in ("execute price", "execute charge", "run order"):
        assert spans[name].parent.span_id == spans["start order"].context.span_id
    run, charge = spans["run order"], spans["execute charge"]
    assert run.attributes["onexflow.state"] == "completed"
    assert charge.attributes["onexflow.role"] == "effect"
    assert charge.attributes["onexflow.run.id"] == run.attributes["onexflow.run.id"]
    assert run.start_time <= spans["execute price"].start_time
    assert spans["execute price"].end_time <= charge.start_time


@pytest.mark.slow
async def test_a_failure_is_seen_on_the_attempt_and_on_the_run(exporter: InMemorySpanExporter) -> None:
    worker, definition = shop()
    async with grpc_cluster(worker) as client:
        await client.register(definition)
        with pytest.raises(onexflow.RunFailed):
            await client.run("order", input={"amount": -1})
    spans = tree(exporter)
    assert spans["start order"].parent is None
    assert spans["execute charge"].status.status_code is StatusCode.ERROR
    assert spans["run order"].status.status_code is StatusCode.ERROR
    assert "declined" in spans["run order"].status.description


@pytest.mark.slow
async def test_the_runs_are_counted(reader: InMemoryMetricReader) -> None:
    worker, definition = shop()
    async with grpc_cluster(worker) as client:
        await client.register(definition)
        for amount in (1, 2, 3):
            await client.run("order", input={"amount": amount})
        data = reader.get_metrics_data()
    found = {m.name: m.data.data_points[0] for m in data.resource_metrics[0].scope_metrics[0].metrics}
    assert found["onexflow.runs.started"].value == 3
    assert found["onexflow.runs.ended"].value == 3
    assert dict(found["onexflow.runs.ended"].attributes) == {
        "onexflow.workflow": "order",
        "onexflow.state": "completed",
    }
    assert found["onexflow.run.duration"].count == 3
    assert found["onexflow.workers.connected"].value == 1
    assert found["onexflow.runs.active"].value == 0
    assert found["onexflow.store.events"].value >= 15
    assert found["onexflow.store.commits"].value >= 3
