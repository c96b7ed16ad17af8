"""The specification's event bus in process and over gRPC: one suite on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from onexflow.app.system import SystemClock
from onexflow.client import Client
from onexflow.client.remote import RemoteService
from onexflow.engine.orchestrator import Orchestrator
from onexflow.engine.protocols import WorkflowEventBus, WorkflowEventCoordinator
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing.clock import virtual_time
from onexflow.testing.cluster import Cluster
from onexflow.testing.conformance.onex_base_bus import BaseBusConformance
from onexflow.testing.conformance.onex_event_bus import ORDER, QUICK, Connect, EventBusConformance, Seen, event
from onexflow.testing.conformance.onex_event_delivery import EventDeliveryConformance
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from onexflow.testing.conformance.onex_projections import ProjectionConformance, Totals
from support.grpc_cluster import grpc_cluster


class InProcess:
    """An engine of this process."""

    @pytest.fixture
    async def service(self) -> AsyncIterator[Orchestrator]:
        async with Cluster(seed=1) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(Script().worker())
            yield cluster.engine

    @pytest.fixture
    def connect(self, service: Orchestrator) -> Connect:
        return lambda **options: WorkflowEventBus(service.events, **options)


class InProcessOnSqlite(InProcess):
    """The same on a store with files and threads."""

    @pytest.fixture
    async def service(self, tmp_path: Path) -> AsyncIterator[Orchestrator]:
        clock = SystemClock()
        async with Cluster(store=SqliteStore(tmp_path / "onex.db", clock=clock), clock=clock) as cluster:
            for definition in definitions():
                await cluster.register(definition)
            await cluster.add_worker(Script().worker())
            yield cluster.engine


class TestInProcessOnSqlite(InProcessOnSqlite, EventBusConformance):
    pass


class TestDeliveryInProcessOnSqlite(InProcessOnSqlite, EventDeliveryConformance):
    pass


class TestBaseBusInProcessOnSqlite(InProcessOnSqlite, BaseBusConformance):
    pass


class TestProjectionsInProcessOnSqlite(InProcessOnSqlite, ProjectionConformance):
    pass


class OverGrpc:
    """An orchestrator at the other end of a client."""

    @pytest.fixture
    async def client(self) -> AsyncIterator[Client]:
        async with grpc_cluster(Script().worker()) as client:
            for definition in definitions():
                await client.register(definition)
            yield client

    @pytest.fixture
    async def service(self, client: Client) -> AsyncIterator[RemoteService]:
        remote = RemoteService.of(client)
        yield remote
        await remote.close()

    @pytest.fixture
    def connect(self, client: Client) -> Connect:
        return client.event_bus


class TestOverGrpc(OverGrpc, EventBusConformance):
    pass


class TestDeliveryOverGrpc(OverGrpc, EventDeliveryConformance):
    pass


class TestBaseBusOverGrpc(OverGrpc, BaseBusConformance):
    pass


class TestProjectionsOverGrpc(OverGrpc, ProjectionConformance):
    pass


class TestInProcess(InProcess, EventBusConformance):
    pass


class TestDeliveryInProcess(InProcess, EventDeliveryConformance):
    pass


class TestBaseBusInProcess(InProcess, BaseBusConformance):
    pass


class TestProjectionsInProcess(InProcess, ProjectionConformance):
    pass


# ---- what was said is so after a crash


@virtual_time
async def test_a_group_goes_on_after_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        after, instance = Seen(), uuid4()
        bus = WorkflowEventBus(cluster.engine.events, group="billing", retries=QUICK)
        subscription = await bus.subscribe_to_workflow_events(ORDER)
        for n in range(1, 5):
            await bus.publish_workflow_event(event(instance, data={"n": n}))
        acknowledged, _ = await bus.pull(subscription, max_messages=2)
        await acknowledged.ack()
        await cluster.crash_orchestrator()
        await bus.close()
        bus = WorkflowEventBus((await cluster.restart_orchestrator()).events, group="billing", retries=QUICK)
        await bus.subscribe_to_workflow_events(ORDER, handler=after)
        await after.got(3)
        assert after.numbers == [2, 3, 4]
        published = await bus.publish(event(instance, data={"n": 5}))
        assert published.sequence == 5
        await after.got(4)
        await bus.close()


@virtual_time
async def test_dead_letters_topics_and_statuses_are_there_after_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        hopeless, instance = Seen(failures=3), uuid4()
        bus = WorkflowEventBus(cluster.engine.events, group="billing", retries=QUICK)
        await bus.create_workflow_topic(ORDER, 8)
        await bus.subscribe_to_workflow_events(ORDER, handler=hopeless)
        given = event(instance, data={"n": 1})
        await bus.publish_workflow_event(given)
        async with asyncio.timeout(10):
            while not await bus.dead_letters(ORDER):
                await asyncio.sleep(0.01)
        await cluster.crash_orchestrator()
        await bus.close()
        engine = await cluster.restart_orchestrator()
        bus = WorkflowEventBus(engine.events, group="billing", retries=QUICK)
        [letter] = await bus.dead_letters(ORDER)
        assert (letter.error.message, letter.delivery.event.event_id) == ("it does not work", given.event_id)
        assert await bus.create_workflow_topic(ORDER, 4) is False
        status = await WorkflowEventCoordinator(engine.events, bus).get_event_status(str(given.event_id))
        assert status is not None
        assert (status["state"], status["dead_at"]) == ("dead_lettered", [f"billing/{ORDER}"])
        patient = Seen()
        await bus.subscribe_to_workflow_events(ORDER, handler=patient)
        assert await bus.requeue_dead_letters(ORDER) == 1
        await patient.got(1)
        await bus.close()


@virtual_time
async def test_a_projection_has_each_event_once_over_crashes() -> None:
    async with Cluster(seed=1) as cluster:
        instances, published = [uuid4() for _ in range(5)], 0
        totals = Totals()
        for _ in range(4):
            bus = WorkflowEventBus(cluster.engine.events)
            await bus.register_projection(totals)
            for instance in instances:
                for _ in range(5):
                    published += 1
                    await bus.publish_workflow_event(event(instance, data={"n": published}))
            await asyncio.sleep(0.01 * published)
            await cluster.crash_orchestrator()
            await bus.close()
            await cluster.restart_orchestrator()
        bus = WorkflowEventBus(cluster.engine.events)
        await bus.register_projection(totals)
        states = [await bus.get_projection_state("totals", ORDER, instance) for instance in instances]
        assert [state["count"] for state in states] == [20] * 5
        numbers = [n for state in states for n in cast("list[int]", state["numbers"])]
        assert sorted(numbers) == list(range(1, published + 1))
        await bus.close()
