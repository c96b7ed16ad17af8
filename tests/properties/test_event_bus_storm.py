"""Buses that come and go, handlers that fail, orchestrators that crash: what the event bus promises holds all the same.

In virtual time; the seed decides everything.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow.engine.protocols import WorkflowEventBus
from onexflow.spi import WorkflowEvent
from onexflow.testing.clock import run_virtual
from onexflow.testing.cluster import Cluster
from onexflow.testing.conformance.onex_event_bus import ORDER, QUICK, event
from onexflow.testing.conformance.onex_projections import Totals

INSTANCES = [UUID(int=n + 1) for n in range(6)]
STEPS = 40


class Storm:
    """Publishes, and lets members of a group and of a projection come and go."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.published: dict[UUID, list[int]] = {instance: [] for instance in INSTANCES}
        self.handled: dict[UUID, list[int]] = {instance: [] for instance in INSTANCES}
        self.members: list[WorkflowEventBus] = []
        self.next = 0

    async def handle(self, event: WorkflowEvent) -> None:
        await asyncio.sleep(self.chance.random() / 50)
        if self.chance.random() < 0.2:
            raise ValueError("by chance")
        self.handled[event.instance_id].append(cast("int", event.data["n"]))

    async def publish(self, bus: WorkflowEventBus) -> None:
        instance, self.next = self.chance.choice(INSTANCES), self.next + 1
        await bus.publish_workflow_event(event(instance, data={"n": self.next}))
        self.published[instance].append(self.next)

    async def join(self, cluster: Cluster) -> None:
        bus = WorkflowEventBus(
            cluster.engine.events, group="storm", start="earliest", retries=QUICK, window=self.chance.choice([1, 3, 50])
        )
        self.members.append(bus)
        await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", self.handle))
        await bus.register_projection(Totals())

    async def leave(self) -> None:
        if self.members:
            await self.members.pop(self.chance.randrange(len(self.members))).close()

    async def crash(self, cluster: Cluster) -> None:
        await cluster.crash_orchestrator()
        while self.members:
            await self.leave()
        await cluster.restart_orchestrator()

    async def run(self, cluster: Cluster) -> None:
        publisher = WorkflowEventBus(cluster.engine.events)
        for _ in range(STEPS):
            what = self.chance.random()
            if what < 0.1:
                await self.join(cluster)
            elif what < 0.16:
                await self.leave()
            elif what < 0.2:
                await self.crash(cluster)
                publisher = WorkflowEventBus(cluster.engine.events)
            else:
                for _ in range(self.chance.randrange(1, 8)):
                    await self.publish(publisher)
            await asyncio.sleep(self.chance.random() / 20)

    async def come_to_rest(self, cluster: Cluster) -> WorkflowEventBus:
        await self.join(cluster)
        bus = self.members[-1]
        await _when(lambda: _is_still(bus))
        return bus


async def _is_still(bus: WorkflowEventBus) -> bool:
    view = next(group for group in await bus.list_groups() if group.name == f"storm/{ORDER}")
    return view.unanswered == 0 and view.lag == 0


async def _when(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(600):
        while not await reached():
            await asyncio.sleep(0.05)


async def _storm(seed: int) -> None:
    storm = Storm(seed)
    async with Cluster(seed=seed) as cluster:
        await storm.run(cluster)
        bus = await storm.come_to_rest(cluster)
        buried = {
            (letter.delivery.event.key.instance_id, _number(letter)) for letter in await bus.dead_letters(ORDER, 10_000)
        }
        for instance in INSTANCES:
            numbers = storm.published[instance]
            got = storm.handled[instance]
            assert set(got) | {n for one, n in buried if one == instance} == set(numbers)
            if numbers:
                replayed = await bus.replay_workflow_events(ORDER, instance, 0)
                assert [one.data["n"] for one in replayed] == numbers
                state = await bus.get_projection_state("totals", ORDER, instance)
                assert state == {"numbers": numbers, "count": len(numbers)}
        while storm.members:
            await storm.leave()


def _number(letter: Any) -> int:
    return int(json.loads(letter.delivery.event.payload.data)["n"])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_nothing_is_lost_and_projections_have_each_event_once(seed: int) -> None:
    run_virtual(_storm(seed))
