"""Troubles that other engines had, and scenarios they are measured by, where no other test has them (docs/peer-bugs.md)."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from memory_registry_support import MemoryHarness
from onexflow.core.errors import StoreUnavailable
from onexflow.core.turn import SECOND
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster
from onexflow.testing.clock import VirtualClock, run_virtual, virtual_time
from onexflow.testing.conformance.registry import node
from support.engine_kit import Script, ready, single, until
from support.mutant_world import World, steps


@pytest.mark.parametrize("seed", range(5))
def test_an_owner_that_lost_only_the_registry_writes_and_authorises_nothing_once_it_is_taken_over(seed: int) -> None:
    """It reaches store and workers all the time, and they it; the others see its lease end."""

    async def scenario() -> World:
        world = World(seed, shards=16)
        cluster, clock = world.cluster, world.cluster.clock
        async with cluster:
            await world.begin(steps())
            victim = cluster.members["o1"]
            load = [asyncio.ensure_future(world.start()) for _ in range(10)]
            held = list(victim.engine.shards.values())
            cluster.hub.cut(victim.registry)
            for _ in range(30):
                await clock.sleep(0.4)
                load += [asyncio.ensure_future(world.start()) for _ in range(2)]
                for shard, epoch, owner in await cluster.store.owners():
                    if owner != victim.id and any(one.id == shard for one in held):
                        world.lost_at.setdefault(shard, epoch)
                        world.lost_since.setdefault(shard, clock.monotonic())
            assert set(world.lost_at) == {shard.id for shard in held}, "all that it had was taken over"
            cluster.hub.heal(victim.registry)
            await asyncio.gather(*load)
            await world.ended(20.0)
            await world.judge()
        return world

    assert run_virtual(scenario()).stories == []


@pytest.mark.parametrize("seed", range(5))
def test_streams_that_are_cut_ten_times_a_second_run_no_body_of_an_effect_twice(seed: int) -> None:
    async def scenario() -> World:
        world = World(seed)
        cluster = world.cluster
        async with cluster:
            await world.begin(steps())
            load = [asyncio.ensure_future(world.start()) for _ in range(10)]
            for turn in range(100):
                await cluster.clock.sleep(0.1)
                for worker in cluster.workers.values():
                    for name, stream in list(worker.streams.items()):
                        stream.cut()
                        cluster.connect(worker, cluster.members[name])
                if turn % 10 == 0:
                    load += [asyncio.ensure_future(world.start()) for _ in range(3)]
            await asyncio.gather(*load)
            await world.ended(20.0)
            await world.judge()
        return world

    world = run_virtual(scenario())
    assert world.stories == []
    assert len(world.bodies) >= 2 * len(world.started)


@virtual_time
async def test_a_backlog_shrinks_the_oldest_first_when_its_workers_are_back_after_ten_minutes() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.register(single("effect", "charge").build())
        keys = [(await cluster.start("single", number)).key for number in range(60)]
        await cluster.clock.sleep(600.0)
        assert not script.calls
        waiting = 60
        starting = asyncio.ensure_future(_keep_starting(cluster, 60, 40))
        back_at = cluster.clock.monotonic()
        script.answers["charge"] = lambda contract: contract
        await cluster.add_worker(script.worker("w"), "w", slots={"effect": 4})
        for _ in range(3):
            await cluster.clock.sleep(1.0)
            ended = len(script.calls)
            assert 100 - ended < waiting or ended == 100, "it shrinks all the time, though new ones come"
            waiting = 100 - ended
        keys += await starting
        assert [await cluster.result(key) for key in keys] == list(range(100))
        began = [call.contract for call in script.calls]
        assert began[:60] == sorted(began[:60]), "those that have waited longest go first"
        assert max(call.at for call in script.calls if call.contract < 60) - back_at < 30


async def _keep_starting(cluster: Cluster, first: int, count: int) -> list[Any]:
    keys = []
    for number in range(first, first + count):
        keys.append((await cluster.start("single", number)).key)
        await cluster.clock.sleep(0.02)
    return keys


@virtual_time
async def test_a_takeover_that_the_store_interrupts_goes_on_until_everything_is_read_back() -> None:
    world = World(3)
    cluster = world.cluster
    failures = 0
    async with cluster:
        await world.begin(steps(), single("effect", "linger"))
        keys = [await world.start("single") for _ in range(12)]
        await cluster.clock.sleep(0.5)
        for name in ("o1", "o2"):
            inner: Any = world.faults(name)

            def failing(work: Any) -> Any:
                async def call(*arguments: Any) -> Any:
                    nonlocal failures
                    failures += 1
                    if failures <= 40:
                        raise StoreUnavailable("it blinks")
                    return await work(*arguments)

                return call

            for reading in ("load_checkpoint", "read_shard", "get_runs", "load_snapshot", "read_run"):
                setattr(inner, reading, failing(getattr(inner, reading)))
        await cluster.kill("o0")
        await cluster.clock.sleep(2.0)
        world.slow.set()
        world.slower.set()
        await world.ended(20.0)
        assert failures > 40
        assert len(world.bodies) == len(keys), "what ran was adopted"
        assert await world.judge() == set()


@pytest.mark.parametrize("seconds", [0.1, 0.25])
@virtual_time
async def test_an_orchestrator_whose_store_is_slow_keeps_its_shards_and_ends_its_runs(seconds: float) -> None:
    world = World(4, shards=16)
    cluster = world.cluster
    async with cluster:
        await world.begin(steps())
        await cluster.clock.sleep(60.0)  # every shard is where it belongs
        before = await cluster.store.owners()
        slow = cluster.members["o1"]
        assert slow.engine.shards
        slow.store.delay = seconds
        load = [asyncio.ensure_future(world.start()) for _ in range(40)]
        for _ in range(60):
            await cluster.clock.sleep(0.5)
            assert await cluster.store.owners() == before, "nothing is taken from it, and it gives nothing away"
        await asyncio.gather(*load)
        assert any([await cluster.owner_of(cluster.number_of(key)) is slow for key in world.started])
        await world.ended(0.0)
        assert await world.judge() == set()


class WallClock(VirtualClock):
    """Its wall time gains on its monotonic one, by so much a second."""

    gain = 0.0

    def now(self) -> int:
        return super().now() + int(self.monotonic() * self.gain * SECOND)


@pytest.mark.parametrize(("jump", "gain"), [(3600.0, 0.0), (-3600.0, 0.0), (0.0, 0.001), (0.0, -0.001)])
@virtual_time
async def test_a_clock_that_jumps_or_drifts_fires_no_timer_early_and_none_a_second_late(
    jump: float, gain: float
) -> None:
    """By the store's time, which never goes back. Runs are in memory, and paged out, when it jumps."""
    script = Script()
    clock = WallClock()
    clock.gain = gain
    store = MemoryStore(clock)
    due: dict[int, int] = {}
    done: dict[int, int] = {}
    script.answers["calc"] = lambda number: done.setdefault(number, store.now())
    async with Cluster(clock=clock, store=store) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        for number, delay in enumerate((1.0, 15.0, 22.0, 45.0, 300.0, 3000.0)):
            await cluster.start("single", number, delay=delay)
            due[number] = store.now() + int(delay * SECOND)
        await clock.sleep(20.0)
        assert sorted(done) == [0, 1]
        clock.skew += jump
        jumped_at = store.now()
        await clock.sleep(10.0 if jump > 0 else 3300.0)
        assert sorted(done) == sorted(due)
        for number, at in done.items():
            assert 0 <= at - max(due[number], jumped_at if number > 1 and jump > 0 else 0) < SECOND, number
        assert cluster.engine.watchdog.repaired == 0, "nobody takes a jump for a stall"


@virtual_time
async def test_who_follows_a_run_hears_that_it_waits_for_a_word() -> None:
    script = Script()
    gate = script.gate("charge")
    heard: dict[str, bool] = {}
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        key = (await cluster.start("single", 1)).key

        async def follow() -> None:
            async for event in cluster.follow(key):
                heard[f"{event.type}/{event.kind}"] = True

        following = asyncio.ensure_future(follow())
        await script.called("charge")
        cluster.kill_worker("w1")
        await until(lambda: "state.transitioned/task.waiting_for_input" in heard, 2.0)
        gate.set()
        await cluster.control(key, "resolve", task="a", result={"by": "hand"})
        await following


async def test_a_thousand_gaps_of_the_registry_miss_no_change() -> None:
    harness, chance = MemoryHarness(), Random(7)
    watcher, worker = await harness.started(), await harness.started()
    there: set[str] = set()
    told: set[str] = set()
    watcher.subscribe(
        lambda event: told.discard(event.record.node_id) if event.type == "down" else told.add(event.record.node_id)
    )
    for _ in range(1000):
        harness.hub.cut(watcher)
        for _ in range(chance.randint(1, 3)):
            name = f"w{chance.randrange(6)}"
            if name in there:
                there.discard(name)
                await worker.unregister("effect", name)
            else:
                there.add(name)
                await worker.register(node(name))
        harness.hub.heal(watcher)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert {record.node_id for record in watcher.members()} == told == there
    await watcher.close()
    await worker.close()
