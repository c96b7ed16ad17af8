"""One span an attempt, in the run's trace, current while the handler runs; on the loop, in a thread, for a child."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from onexflow.telemetry import tracing
from onexflow.worker import Worker
from support import worker_handlers_module as handlers
from support.worker_kit import Assigner, connect, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use()
    provider.shutdown()


@pytest.mark.slow
async def test_every_executor_has_its_span(spans: InMemorySpanExporter) -> None:
    worker, assign, inside = Worker("w"), Assigner(), {}

    @worker.effect("on_loop")
    async def on_loop(contract: Any) -> None:
        inside["on_loop"] = trace.get_current_span().get_span_context().span_id

    @worker.effect("in_thread")
    def in_thread(contract: Any) -> None:
        inside["in_thread"] = trace.get_current_span().get_span_context().span_id
        raise ValueError("seen by the span")

    worker.compute(handlers.double)
    async with serving(worker) as running:
        link = connect(running)
        parent = f"00-{TRACE}-b7ad6b7169203331-01"
        for role, name, value in (
            ("effect", "on_loop", 1),
            ("effect", "in_thread", 1),
            ("compute", "double", {"n": 1}),
        ):
            attempt = assign(role, name, value, trace=parent)
            link.assign(attempt)
            await link.result(attempt)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"execute on_loop", "execute in_thread", "execute double"}
    for span in found.values():
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    for name, span_id in inside.items():
        assert found[f"execute {name}"].context.span_id == span_id
    assert not found["execute in_thread"].status.is_ok
