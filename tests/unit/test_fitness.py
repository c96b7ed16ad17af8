"""An orchestrator that cannot reach the store gives up its shards when another one can, and only then."""

from __future__ import annotations

import asyncio

from onexflow.core.builder import WorkflowBuilder
from onexflow.engine.fitness import STORE_SECONDS
from onexflow.testing.clock import virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from support.engine_kit import Script, single, until


async def two(cluster: MultiCluster, script: Script, *flows: WorkflowBuilder) -> None:
    for name in ("a", "b"):
        await cluster.add_orchestrator(name)
    for flow in flows:
        await cluster.register(flow.build())
    await cluster.add_worker(script.worker("w1"), "w1")
    await cluster.clock.sleep(20)  # each has what is its own
    owned = await cluster.owned()
    assert owned.keys() == {"a", "b"}


async def owned_by(cluster: MultiCluster, name: str, seconds: float) -> None:
    """Return when that one owns all shards."""
    async with asyncio.timeout(seconds):
        while len((await cluster.owned()).get(name, ())) < cluster.store.shards:
            await cluster.clock.sleep(0.05)


def has_withdrawn(cluster: MultiCluster, name: str) -> bool:
    return cluster.members[name].engine._fitness.has_withdrawn


@virtual_time
async def test_an_owner_cut_off_from_the_store_alone_gives_up_and_comes_back() -> None:
    script = Script()
    async with MultiCluster(seed=3) as cluster:
        await two(cluster, script, single("effect", "send"))
        gate = script.gate("send")
        keys = [await cluster.start("single", number) for number in range(12)]
        await script.called("send", 4)
        a = cluster.members["a"]
        a.store.freeze()
        gate.set()
        began = cluster.clock.monotonic()
        await owned_by(cluster, "b", STORE_SECONDS + 3)
        assert cluster.clock.monotonic() - began > STORE_SECONDS - 1
        assert a.engine.health().details.keys() >= {"member"}
        assert not a.engine.health().can_append
        for key, value in zip(keys, range(12), strict=True):
            assert await cluster.result(key) == value
        a.store.thaw()
        await until(lambda: not has_withdrawn(cluster, "a"), 10)
        await cluster.clock.sleep(25)
        assert (await cluster.owned()).keys() == {"a", "b"}
        assert "member" not in a.engine.health().details


@virtual_time
async def test_nobody_gives_up_when_nobody_can_reach_the_store() -> None:
    script = Script()
    async with MultiCluster(seed=3) as cluster:
        await two(cluster, script, single("effect", "send"))
        before = await cluster.owned()
        for member in cluster.members.values():
            member.store.freeze()
        await cluster.clock.sleep(30)
        assert not has_withdrawn(cluster, "a")
        assert not has_withdrawn(cluster, "b")
        for member in cluster.members.values():
            member.store.thaw()
        await cluster.clock.sleep(5)
        assert await cluster.owned() == before
        assert await cluster.result(await cluster.start("single", 7)) == 7


@virtual_time
async def test_one_that_is_idle_and_cut_off_gives_up_too() -> None:
    async with MultiCluster(seed=3) as cluster:
        await two(cluster, Script())
        cluster.members["b"].store.freeze()
        await owned_by(cluster, "a", STORE_SECONDS + 3)
        assert has_withdrawn(cluster, "b")
        cluster.members["b"].store.thaw()
        await until(lambda: not has_withdrawn(cluster, "b"), 10)


@virtual_time
async def test_calls_to_one_that_gave_up_go_to_the_new_owner() -> None:
    script = Script()
    async with MultiCluster(seed=3) as cluster:
        await two(cluster, script, single("effect", "nobody"))
        keys = [await cluster.start("single", number) for number in range(12)]
        a = cluster.members["a"]
        a.store.freeze()
        await owned_by(cluster, "b", STORE_SECONDS + 3)
        await until(lambda: not a.engine.shards, 5)  # it has heard of the new owner from the registry
        found = await a.engine.gateway.explain_runs(keys)
        assert {run.blocked.kind for run in found} == {"no_worker"}
        assert len(found) == 12
        a.store.thaw()
