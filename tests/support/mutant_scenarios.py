"""Scenarios for bugs that a storm meets too seldom: each brings one thing about, and judges as the storm does."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from memory_registry_support import MemoryHarness
from onexflow.codec.payload import encode_value
from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy
from onexflow.core.ids import RunKey
from onexflow.engine.orchestrator import Orchestrator
from onexflow.ports.client_link import ControlRequest, RunOutcome, StartRequest
from onexflow.ports.persistence import CutView
from onexflow.spi.exceptions import SPIError
from onexflow.testing.conformance.registry import node
from onexflow.testing.faults.store import FaultyStore
from onexflow.testing.multi_cluster import ClusterMember
from support.engine_kit import single
from support.mutant_world import World, steps


async def woken_owner(seed: int, *, looks: bool = False) -> World:
    """An owner is stopped under a load of effects and computes, loses its shards, and wakes; with what it learns of the
    epochs switched off (unless it `looks`), it sends its appends. One is of a shard that nobody else has written to, so
    that its head is as it was."""
    world = World(seed, shards=64, slowest=0.02 * (seed % 2))
    cluster, clock = world.cluster, world.cluster.clock
    async with cluster:
        await world.begin(steps())
        for _ in range(20):
            await world.start()
        frozen = await world.owner_of(world.chance.choice(world.started))
        if not looks:
            frozen.engine._kernel.claims.compare = lambda owners, asked_at: None  # type: ignore[method-assign]  # the hook
        key = await _key_of_an_untouched_shard(world, frozen)
        await clock.sleep(world.chance.uniform(0.0, 0.4))
        held = list(frozen.engine.shards.values())
        cluster.freeze(frozen.id)
        frozen_at = clock.monotonic()
        while [shard for shard in held if await cluster.owner_of(shard.id) is frozen]:
            await clock.sleep(0.05)
        world.taken_within = clock.monotonic() - frozen_at
        world.lost_at = {shard.id: shard.epoch + 1 for shard in held}
        await clock.sleep(10.0 - world.taken_within)
        before = frozen.store.rejected
        cluster.thaw(frozen.id)
        request = StartRequest(
            namespace="default", workflow_type="steps", input=encode_value(1), instance_id=key.instance_id
        )
        answer: asyncio.Queue[object] = asyncio.Queue()
        frozen.engine.start_run(request, answer.put_nowait)
        if not isinstance(await asyncio.wait_for(answer.get(), 5.0), SPIError):
            world.started.append(key)  # acknowledged
        await clock.sleep(1.0)
        world.rejected = frozen.store.rejected - before
        await world.ended(20.0)
        await world.judge()
    return world


async def _key_of_an_untouched_shard(world: World, owner: ClusterMember) -> RunKey:
    empty = [shard.id for shard in owner.engine.shards.values() if shard.next == 1]
    while True:
        key = RunKey("default", "steps", world.cluster.ids.uuid())
        if world.cluster.number_of(key) in empty:
            return key


async def late_arrival(seed: int) -> World:
    """What an owner has sent lies in the sockets while its shard is taken over, and arrives then."""
    world = World(seed)
    cluster = world.cluster
    async with cluster:
        await world.begin(single("effect", "charge"))
        names = list(cluster.members)
        for worker in cluster.workers.values():
            worker.streams[names[0]].held = True
        while await world.owner_of(key := await world.start("single")) is not cluster.members[names[0]]:
            pass
        await cluster.clock.sleep(0.2)
        await world.add_worker("w3")
        cluster.workers["w3"].streams[names[0]].cut()
        number = cluster.number_of(key)
        placement = cluster.members[names[1]].engine._ownership._placement
        assert placement is not None
        await placement._claim(number, cluster.members[names[0]].engine.shards[number].epoch, names[0])
        while not world.bodies:
            await cluster.clock.sleep(0.01)
        for name in ("w1", "w2"):
            cluster.workers[name].streams[names[0]].release()
        await world.ended(20.0)
        await world.judge()
    return world


async def patient_runs(seed: int) -> World:
    """The owner of runs that wait for timers dies, after a checkpoint of others' making."""
    world = World(seed)
    cluster = world.cluster
    patient = single(
        "effect", "flaky", "patient", retry=RetryPolicy(policy="fixed", initial_delay=8.0, max_delay=8.0, jitter=0.0)
    )
    async with cluster:
        await world.begin(patient, steps())
        began = cluster.clock.monotonic()
        for number in range(6):
            await world.start("patient", 1, delay=8.0 if number % 2 else 0.0)
        last = cluster.clock.monotonic()
        while cluster.clock.monotonic() < began + 4.0:
            traffic = [asyncio.ensure_future(world.start()) for _ in range(6)]
            await asyncio.gather(*traffic)
            await cluster.clock.sleep(0.3)
        victim = await world.owner_of(world.started[world.chance.randrange(6)])
        await cluster.kill(victim.id)
        await world.ended(last + 8.0 + 9.5 - cluster.clock.monotonic())
        if "stalled" in world.found:
            world.accuse("late", "the timers were due")
        await world.judge()
    return world


async def repeated_request(seed: int) -> World:
    """A control call is repeated after its answer was lost with the owner; another one was made meanwhile."""
    world = World(seed)
    cluster = world.cluster
    async with cluster:
        await world.begin(single("effect", "flaky", "patient", retry=RetryPolicy(initial_delay=8.0, jitter=0.0)))
        key = await world.start("patient", 1)
        await cluster.clock.sleep(0.5)
        pause = ControlRequest(key=key, action="pause", request_id="first")
        before = await cluster.control(pause)
        await cluster.control(ControlRequest(key=key, action="resume", request_id="second"))
        await cluster.kill((await world.owner_of(key)).id)
        await cluster.settled()
        if await cluster.control(pause) != before:
            world.accuse("request-twice", f"pause of {key}")
        await world.ended(20.0)
        await world.judge()
    return world


async def waiting_client(seed: int) -> World:
    """A client waits at the owner of its run, whose shard is then given away."""
    world = World(seed)
    cluster = world.cluster
    async with cluster:
        await world.begin(single("effect", "flaky", "patient", retry=RetryPolicy(initial_delay=3.0, jitter=0.0)))
        key = await world.start("patient", 1)
        owner = await world.owner_of(key)
        heard: asyncio.Queue[RunOutcome | SPIError] = asyncio.Queue()
        owner.engine.gateway.wait_run(key, heard.put_nowait)
        await cluster.clock.sleep(0.2)
        await owner.engine._kernel.claims.release(cluster.number_of(key))
        await world.ended(20.0)
        try:
            outcome = await asyncio.wait_for(heard.get(), 5.0)
        except TimeoutError:
            world.accuse("stalled", "the run has ended, and who waited was not told")
        else:
            if not isinstance(outcome, RunOutcome):
                world.accuse("failed", repr(outcome))
        await world.judge()
    return world


async def returned_worker(seed: int) -> World:
    """A worker is taken for dead while it works, its task is given to another, and it comes back with a result."""
    world = World(seed)
    cluster = world.cluster
    async with cluster:
        flow = workflow("slow")
        flow.effect("first", handler="linger")
        await world.begin(flow, workers=2)
        key = await world.start("slow")
        while not world.bodies:
            await cluster.clock.sleep(0.01)
        name = world.bodies[0].worker
        worker = cluster.workers[name]
        owner = await world.owner_of(key)
        worker.is_dead = True  # its port refuses, its lease runs out
        for stream in list(worker.streams.values()):
            stream.cut()
        while len(world.bodies) < 2:
            await cluster.clock.sleep(0.05)
        worker.is_dead = False
        world.slow.set()  # the first of the two has its result
        await cluster.clock.sleep(0.1)
        cluster.connect(worker, owner)
        await cluster.clock.sleep(0.5)
        world.slower.set()
        await world.ended(20.0)
        await world.judge()
    return world


async def parked_twice(seed: int) -> World:
    """A run is paged out, woken, and paged out again."""
    world = World(seed)
    cluster = world.cluster
    retry = RetryPolicy(policy="fixed", initial_delay=40.0, max_delay=40.0, jitter=0.0)
    async with cluster:
        await world.begin(single("effect", "flaky", "patient", retry=retry), orchestrators=2)
        await world.start("patient", 2)
        await cluster.clock.sleep(70.0)
        await world.ended(60.0)
        await world.judge()
    return world


async def ended_while_read(seed: int) -> World:
    """A slow look-up for a run that was paged out (a late result is of it) comes when the run is back in memory: its last
    effect ends while the look-up waits for the disk, and the run leaves memory before the look-up has read all. Then the
    effect's worker dies."""
    world = World(seed, shards=1, slowest=0.0)
    cluster, clock = world.cluster, world.cluster.clock
    retry = RetryPolicy(policy="fixed", initial_delay=40.0, max_delay=40.0, jitter=0.0)
    flow = single("effect", "flaky", "patient", retry=retry)
    flow.effect("last", handler="linger", after="a")
    async with cluster:
        await world.begin(flow, steps(), orchestrators=1)
        await clock.sleep(world.chance.uniform(0.0, 1.0))
        shard, store = cluster.members["o0"].engine.shards[0], world.faults("o0")
        key = await world.start("patient", 1)
        iid = shard.by_key[key].iid
        while key in shard.by_key:
            await clock.sleep(1.0)
        looked, found = _late(store, "get_runs")
        late = asyncio.ensure_future(cluster.members["o0"].engine._kernel.find_numbered(shard, iid))
        await looked.wait()
        await cluster.call(key, lambda engine: engine.describe_run(key))  # reads it back, too
        while len(world.bodies) < 2:
            await clock.sleep(0.1)
        store.hold()
        other = asyncio.ensure_future(world.start())
        await store.wait_held()
        found.set()
        await clock.sleep(0.1)
        world.slower.set()
        await clock.sleep(0.1)
        read, told = _late(store, "read_back")
        store.release()  # what it waits for, and not the end
        store.hold()
        await read.wait()
        store.release()
        await other
        while key in shard.by_key:
            await clock.sleep(0.1)
        told.set()
        await late
        await clock.sleep(0.5)
        worker = cluster.workers[world.bodies[1].worker]
        worker.is_dead = True
        for stream in list(worker.streams.values()):
            stream.cut()
        await clock.sleep(20.0)
        if len([body for body in world.bodies if body.key == world.bodies[1].key]) > 1:
            world.accuse("twice", "the last effect of a run that had ended")
        await world.ended(0.0)
        await world.judge()
    return world


def _late(store: FaultyStore, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """The answer of the next call of that name is on its way, as the first event tells, until the second one is set."""
    asked, arrived = asyncio.Event(), asyncio.Event()
    call = getattr(store, name)

    async def late(*arguments: Any) -> Any:
        setattr(store, name, call)
        answer = await call(*arguments)
        asked.set()
        await arrived.wait()
        return answer

    setattr(store, name, late)
    return asked, arrived


async def cut_history(seed: int) -> World:
    """The history of a run that has ended is cut."""
    world = World(seed)
    cluster = world.cluster
    async with cluster:
        await world.begin(steps())
        keys = [await world.start() for _ in range(4)]
        await world.ended(20.0)
        for key in keys:
            if not (await cluster.call(key, partial(_cut, key))).deleted:
                world.accuse("failed", f"nothing of {key} was cut")
        await world.judge()
    return world


async def _cut(key: RunKey, engine: Orchestrator) -> CutView:
    return await engine.records.cut_history(key, 4)


async def registry_gap(seed: int) -> World:
    """A node leaves while the registry is away for another."""
    world = World(seed)
    harness = MemoryHarness()
    one, two = await harness.started(), await harness.started()
    await two.register(node("stays"))
    await two.register(node("leaves"))
    await harness.until(lambda: len(one.members()) == 2)
    harness.hub.cut(one)
    await two.unregister("effect", "leaves")
    harness.hub.heal(one)
    await harness.pass_time(20.0)
    if {record.node_id for record in one.members()} != {"stays"}:
        world.accuse("missed", f"{[record.node_id for record in one.members()]}")
    for registry in (one, two):
        await registry.close()
    return world
