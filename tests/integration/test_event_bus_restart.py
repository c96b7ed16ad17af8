"""The event bus over real gRPC and SQLite, while the orchestrator is ended without a word and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

import onexflow
from onexflow.app.system import SystemClock, SystemIds
from onexflow.client import Client
from onexflow.codec.payload import JsonCodec
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.server import GrpcServer
from onexflow.spi import Context, WorkflowEvent
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing.conformance.onex_event_bus import ORDER, QUICK, event, until
from onexflow.testing.conformance.onex_projections import Totals
from support.audited_rows import assert_consistent


class Place:
    """An orchestrator at one address, which can be ended and started again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clock = SystemClock()
        self._hub = MemoryRegistryHub(self._clock)
        self._lives = 0
        self.address = "127.0.0.1:0"
        self._end: Callable[[], Any] | None = None

    async def start(self) -> None:
        self._lives += 1
        registry = MemoryRegistry(self._hub)
        await registry.start()
        engine = Orchestrator(
            SqliteStore(self._path / "onex.db", clock=self._clock),
            registry,
            clock=self._clock,
            ids=SystemIds(),
            codec=JsonCodec(),
            orchestrator_id="o1",
            incarnation=f"i{self._lives}",
        )
        await engine.start()
        server = GrpcServer(engine, self.address)
        self.address = await server.start()

        async def end() -> None:
            await server.stop(0.0)
            await engine.abandon()
            await registry.close()

        self._end = end

    async def crash(self) -> None:
        assert self._end is not None, "it is running"
        await self._end()
        self._end = None

    async def close(self) -> None:
        if self._end is not None:
            await self.crash()
        store = SqliteStore(self._path / "onex.db", clock=self._clock)
        await store.open()
        await assert_consistent(store)
        await store.close()


@asynccontextmanager
async def connected(place: Place) -> AsyncIterator[Client]:
    async with await onexflow.connect(place.address) as client:
        yield client


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await place.start()
    yield place
    await place.close()


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, "billing"])
async def test_subscriptions_go_on_over_restarts(place: Place, group: str | None) -> None:
    """Everything that was published is handled, an instance's events in order, and hardly anything twice."""
    async with connected(place) as publishing, connected(place) as reading:
        bus, publisher = reading.event_bus(group=group, retries=QUICK), publishing.event_bus()
        instances = [uuid4() for _ in range(5)]
        handled: dict[UUID, list[Any]] = {instance: [] for instance in instances}
        pulled: list[int] = []

        async def handle(event: WorkflowEvent, context: Context) -> None:
            await asyncio.sleep(0.001)
            handled[event.instance_id].append(event.data["n"])

        await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", handle))
        buffered = await bus.subscribe_to_workflow_events("another") if group is None else None

        async def publish(first: int, last: int) -> None:
            for n in range(first, last):
                await asyncio.gather(
                    *(publisher.publish_workflow_event(event(one, data={"n": n})) for one in instances)
                )
                if buffered is not None:
                    await publisher.publish_workflow_event(event(instances[0], workflow_type="another", data={"n": n}))

        for life in range(3):
            publishing_task = asyncio.ensure_future(publish(life * 20, life * 20 + 20))
            await until(lambda: len(handled[instances[0]]) > life * 20 + 5)  # noqa: B023 - it is awaited here
            if life < 2:
                await place.crash()
                await place.start()
            async with asyncio.timeout(20):
                await publishing_task
        await until(lambda: all(len(set(got)) == 60 for got in handled.values()), 20)
        for got in handled.values():
            first_times = list(dict.fromkeys(got))
            assert first_times == list(range(60))
            assert len(got) < 60 + 40
        if buffered is not None:
            while len(pulled) < 60:
                for message in await bus.pull(buffered, timeout=5):
                    pulled.append(message.sequence_number)
                    await message.ack()
            assert sorted(set(pulled)) == list(range(1, 61))


@pytest.mark.slow
async def test_a_projection_goes_on_over_restarts(place: Place) -> None:
    async with connected(place) as client:
        bus, totals = client.event_bus(), Totals()
        instances = [uuid4() for _ in range(10)]
        await bus.register_projection(totals)
        for life in range(3):
            for n in range(10):
                await asyncio.gather(
                    *(bus.publish_workflow_event(event(one, data={"n": life * 10 + n})) for one in instances)
                )
            await place.crash()
            await place.start()
        for instance in instances:
            state = await bus.get_projection_state("totals", ORDER, instance)
            assert state == {"numbers": list(range(30)), "count": 30}
        assert (await bus.projection_status("totals")).error is None
