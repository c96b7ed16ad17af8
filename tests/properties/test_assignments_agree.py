"""Whatever happens to orchestrators, workers and runs: the runs' histories, the registers that find the runs of a node, and
what the registry shows say the same of who is assigned to whom, and nobody is assigned to a node that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import pytest

from onexflow.core.errors import InvalidTransition, UnknownNode
from onexflow.core.ids import RunKey
from onexflow.engine.pins import PREFIX
from onexflow.testing import Cluster
from onexflow.testing.clock import run_virtual
from support.engine_kit import Script, ready, single

WORKERS = ("w1", "w2", "w3")
RUNS = 8
STEPS = 60


class Story:
    """Random steps on one cluster."""

    def __init__(self, cluster: Cluster, script: Script, seed: int) -> None:
        self.cluster = cluster
        self.script = script
        self.random = random.Random(seed)
        self.keys: list[RunKey] = []

    async def assign(self) -> None:
        node = self.random.choice((*WORKERS, ""))
        with contextlib.suppress(InvalidTransition, UnknownNode):
            await self.cluster.control(self.random.choice(self.keys), "assign", node_id=node)

    async def cancel(self) -> None:
        key = self.random.choice(self.keys)
        try:
            await self.cluster.control(key, "cancel")
        except InvalidTransition:
            return
        self.keys.append((await self.cluster.start("single", delay=3600)).key)

    async def kill(self) -> None:
        name = self.random.choice(WORKERS)
        if name in self.cluster.workers:
            self.cluster.kill_worker(name)

    async def revive(self) -> None:
        for name in WORKERS:
            if name not in self.cluster.workers:
                await self.cluster.add_worker(self.script.worker(name), name)

    async def restart(self) -> None:
        await self.cluster.crash_orchestrator()
        if self.random.random() < 0.5:
            await self.cluster.clock.sleep(self.random.uniform(0, 10))
        await self.cluster.restart_orchestrator()

    async def wait(self) -> None:
        await asyncio.sleep(self.random.choice((0, 0.1, 1, 15)))

    async def run(self) -> None:
        self.keys = [(await self.cluster.start("single", delay=3600)).key for _ in range(RUNS)]
        steps: list[Callable[[], Awaitable[None]]] = [
            *[self.assign] * 5, self.cancel, self.kill, self.revive, self.restart, *[self.wait] * 2,
        ]  # fmt: skip
        for _ in range(STEPS):
            await self.random.choice(steps)()

    async def check(self) -> None:
        cluster = self.cluster
        by_history = {}
        for key in self.keys:
            view = await cluster.state(key)
            if view.state not in {"cancelled", "completed"} and view.node_id:
                by_history[key.instance_id] = view.node_id
        assert set(by_history.values()) <= set(cluster.workers)
        names = set()
        for shard in cluster.engine._kernel.shards:
            names |= {register.name for register in await cluster.store.list_registers(shard, PREFIX)}
        assert names == {f"{PREFIX}{node}/default/single/{instance}" for instance, node in by_history.items()}
        assert cluster._registry is not None
        shown = {item.key.instance_id: item.node_id for item in await cluster._registry.assignments()}
        assert shown == by_history


async def _story(seed: int) -> None:
    script = Script()
    async with Cluster(seed=seed) as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=len(WORKERS))
        story = Story(cluster, script, seed)
        await story.run()
        await asyncio.sleep(40)  # leases end, nodes that do not come back are given up
        await story.check()


@pytest.mark.parametrize("seed", range(12))
def test_all_say_the_same(seed: int) -> None:
    run_virtual(_story(seed))
