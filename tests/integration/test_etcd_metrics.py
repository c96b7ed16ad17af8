"""What the etcd client counts: renewals, the time a lease has left, lost watches, and answers that never came."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from etcd_support import etcd, etcd_harness  # noqa: F401 - a fixture
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.telemetry import metrics, names
from onexflow.testing.conformance.registry import node
from onexflow.testing.faults.relay import Relay

pytestmark = pytest.mark.chaos


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    provider = MeterProvider([made])
    metrics.use(provider)
    yield made
    metrics.use(None)
    provider.shutdown()


def points(reader: InMemoryMetricReader, metric: names.Metric) -> list[Any]:
    data = reader.get_metrics_data()
    found = data.resource_metrics[0].scope_metrics[0].metrics if data is not None else []
    return [point for one in found if one.name == metric.name for point in one.data.data_points]


async def test_renewals_and_losses_are_counted(etcd: EmbeddedEtcd, reader: InMemoryMetricReader) -> None:  # noqa: F811 - the fixture by its name
    async with Relay(etcd.endpoint) as relay, etcd_harness(etcd.endpoint) as harness:
        other = await harness.started()
        registry = await harness.started(endpoints=(relay.address,))
        await registry.register(node())
        await harness.until(lambda: any(point.count >= 2 for point in points(reader, names.REGISTRY_RENEWAL)))
        [*_, left] = points(reader, names.REGISTRY_LEASE)
        assert 0.0 < left.value <= harness.settings.ttl
        assert not points(reader, names.REGISTRY_RECONNECTS)

        await relay.refuse()
        await harness.until(lambda: not registry._watcher.live)
        for slots in range(5):
            await other.register(node("w2", slots=slots))
        await relay.listen()
        await harness.until(lambda: registry._watcher.live)
        [lost] = points(reader, names.REGISTRY_RECONNECTS)
        assert lost.value == 1
        assert lost.attributes == {names.REASON: "unavailable"}
        [gap] = points(reader, names.REGISTRY_GAP)
        assert gap.sum >= 5

        before = sum(point.value for point in points(reader, names.REGISTRY_AMBIGUOUS))
        relay.drop("to_client")
        registering = asyncio.get_running_loop().create_task(registry.register(node(slots=9)))
        await harness.until(lambda: sum(point.value for point in points(reader, names.REGISTRY_AMBIGUOUS)) > before)
        relay.resume()
        await registering
