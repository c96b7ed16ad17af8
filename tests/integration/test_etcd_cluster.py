"""Three members of etcd, and what becomes of registration, renewals and watches when they die, hang or come and go.

What lives is never called dead; what dies is found out; nothing is missed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import structlog

from etcd_support import NO_ETCD, EtcdHarness, etcd_harness
from onexflow.ports.registry import Assignment, MemberEvent, ShardAnnouncement
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.embedded import EmbeddedEtcdCluster, find_etcd
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.registry.etcd.watch import Watcher
from onexflow.testing.conformance.registry import node, run_key
from onexflow.testing.faults.relay import Relay

pytestmark = pytest.mark.chaos

#: Longer than the members' election, as in production.
TTL = 2.0
#: A new leader renews all leases: an election and the time of a lease may go by before the first one ends.
ELECTION = 2.5


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedEtcdCluster]:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    cluster = EmbeddedEtcdCluster()
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
async def harness(cluster: EmbeddedEtcdCluster) -> AsyncIterator[EtcdHarness]:
    async with etcd_harness(*cluster.endpoints, ttl=TTL) as harness:
        yield harness


class Scene(NamedTuple):
    """A worker w1 with a shard and a pin, and an observer; each goes to the endpoint `at` first."""

    worker: EtcdRegistry
    observer: EtcdRegistry
    events: list[MemberEvent]

    @property
    def story(self) -> list[tuple[str, str, int]]:
        return [(event.type, event.record.node_id, event.record.slots) for event in self.events]


def go_first_to(registry: EtcdRegistry, endpoint: str) -> None:
    """Both halves of the client choose their first endpoint by lot; not in this test."""
    for half in (registry._client.endpoints, registry._keeper._endpoints):
        half.all.sort(key=lambda each: each != endpoint)


async def make_scene(harness: EtcdHarness, at: str = "") -> Scene:
    worker, observer = await harness.open(), await harness.open()
    for registry in (worker, observer):
        if at:
            go_first_to(registry, at)
        await registry.start()
    scene = Scene(worker, observer, [])
    await worker.register(node())
    await worker.announce([ShardAnnouncement(shard=3, owner="w1", epoch=7)])
    await observer.assign(Assignment(key=run_key(), node_id="w1"))
    await harness.until(lambda: restored(harness))
    await harness.until(lambda: [record.node_id for record in observer.members()] == ["w1"])
    observer.subscribe(scene.events.append)
    return scene


async def content(harness: EtcdHarness) -> dict[str, int]:
    """The leased keys that are really there, each with how often it was written."""
    client = EtcdClient(harness.settings)
    cut = len(harness.settings.prefix)
    try:
        answer = await client.range(harness.settings.prefix.encode())
    finally:
        await client.close()
    return {kv.key.decode()[cut:]: kv.version for kv in answer.kvs if kv.lease}


async def restored(harness: EtcdHarness) -> bool:
    keys = await content(harness)
    return all(
        any(key.startswith(each) for key in keys) for each in ("assignments/", "nodes/effect/w1", "shards/00003")
    )


async def pass_time(harness: EtcdHarness, seconds: float) -> None:
    until = time.monotonic() + seconds
    await harness.until(lambda: time.monotonic() > until, within=seconds + 5)


async def goes_on(harness: EtcdHarness, scene: Scene, slots: int) -> None:
    """A change arrives at the observer, and nothing else."""
    await scene.worker.register(node(slots=slots))
    await harness.until(lambda: ("changed", "w1", slots) in scene.story, within=10.0)
    assert scene.story == [("changed", "w1", slots)]
    scene.events.clear()


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_the_leader_goes(cluster: EmbeddedEtcdCluster, harness: EtcdHarness, fault: str) -> None:
    """Both registries talk to it. They move on, and so does all that they do."""
    leader = await cluster.leader()
    scene = await make_scene(harness, at=cluster.endpoints[leader])
    if fault == "killed":
        await cluster.kill(leader)
    else:
        cluster.freeze(leader)
    await goes_on(harness, scene, slots=5)
    await pass_time(harness, 2 * TTL)
    assert scene.story == []
    assert await restored(harness)
    assert scene.worker.health().connected
    assert scene.observer.health().connected
    if fault == "killed":
        await cluster.start_member(leader)
        await goes_on(harness, scene, slots=6)
        await pass_time(harness, TTL)
        assert scene.story == []
        return
    # A leader that wakes may end leases that were renewed at its successor (etcd's issues 12528 and 15247, there in 3.5.1):
    # then who lives takes another one, and is back.
    cluster.thaw(leader)
    await scene.worker.register(node(slots=6))
    await pass_time(harness, TTL)
    await harness.until(lambda: restored(harness))
    await harness.until(lambda: [record.slots for record in scene.observer.members()] == [6])
    back = [("down", "w1", 5), ("up", "w1", 6)], [("changed", "w1", 6), ("down", "w1", 6), ("up", "w1", 6)]
    assert scene.story in ([("changed", "w1", 6)], *back)


async def test_a_process_that_dies_together_with_the_leader_is_found_out(
    cluster: EmbeddedEtcdCluster, harness: EtcdHarness
) -> None:
    scene = await make_scene(harness)
    await scene.worker.crash()
    await cluster.kill(await cluster.leader())
    took = await harness.until(lambda: ("down", "w1", node().slots) in scene.story)
    assert took < 2 * TTL + ELECTION + 1.0


async def test_quorum_lost_and_restored(cluster: EmbeddedEtcdCluster, harness: EtcdHarness) -> None:
    """Without a quorum nothing is forgotten and nobody is called dead, a warning and the health say why; on its return
    who lives is right within 3 s, and who died meanwhile is gone a lease and 2 s later."""
    scene = await make_scene(harness)
    dead = await harness.started()
    await dead.register(node("dead"))
    await harness.until(lambda: scene.story == [("up", "dead", node().slots)])
    scene.events.clear()
    with structlog.testing.capture_logs() as logs:
        first = await cluster.leader()
        second = (first + 1) % 3
        await asyncio.gather(cluster.kill(first), cluster.kill(second))
        await harness.until(lambda: not scene.worker.health().connected and not scene.observer.health().connected)
        assert scene.observer.health().detail.startswith(",".join(cluster.endpoints))
        await harness.until(lambda: any(line["event"] == "registry.lost" for line in logs))
        [lost, *_] = [line for line in logs if line["event"] == "registry.lost"]
        assert lost["log_level"] == "warning"
        assert lost["why"]
        await dead.crash()
        await scene.worker.register(node("late"))
        await pass_time(harness, 2 * TTL)
        assert scene.story == []
        assert {record.node_id for record in scene.observer.members()} == {"w1", "dead"}
        await cluster.start_member(second)
        back = time.monotonic()
        await harness.until(lambda: restored(harness))
        await harness.until(lambda: ("up", "late", node().slots) in scene.story)
        assert time.monotonic() - back < 3.0
        await harness.until(lambda: ("down", "dead", node().slots) in scene.story)
        assert time.monotonic() - back < TTL + 2.0
        await harness.until(lambda: scene.worker.health().connected and scene.observer.health().connected)
        assert any(line["event"] == "registry.back" for line in logs)
    assert sorted(scene.story) == [("down", "dead", node().slots), ("up", "late", node().slots)]


async def test_members_are_restarted_one_by_one(cluster: EmbeddedEtcdCluster, harness: EtcdHarness) -> None:
    """Every change arrives, in order and once, and nobody is called dead."""
    scene = await make_scene(harness)
    done = asyncio.Event()
    count = 0

    async def keep_changing() -> None:
        nonlocal count
        while not done.is_set():
            count += 1
            await scene.worker.register(node(slots=1000 + count))
            await asyncio.sleep(0.02)

    changing = asyncio.get_running_loop().create_task(keep_changing())
    for index in range(3):
        await cluster.kill(index)
        await pass_time(harness, 0.5)
        await cluster.start_member(index)
    done.set()
    await changing
    await harness.until(lambda: ("changed", "w1", 1000 + count) in scene.story)
    assert {kind for kind, _, _ in scene.story} == {"changed"}
    seen = [slots for _, _, slots in scene.story]
    assert seen == sorted(set(seen))
    assert await restored(harness)


async def test_the_first_endpoint_is_dead(cluster: EmbeddedEtcdCluster) -> None:
    async with etcd_harness("127.0.0.1:1", *cluster.endpoints) as harness:
        began = time.monotonic()
        await make_scene(harness, at="127.0.0.1:1")
        assert time.monotonic() - began < 3.0


async def test_the_first_endpoint_is_silent(cluster: EmbeddedEtcdCluster) -> None:
    """Connections are taken and nothing is ever answered."""
    async with Relay(cluster.endpoints[0]) as relay:
        relay.hold()
        async with etcd_harness(relay.address, *cluster.endpoints[1:]) as harness:
            began = time.monotonic()
            scene = await make_scene(harness, at=relay.address)
            assert time.monotonic() - began < 5.0
            assert relay.taken
            assert scene.observer._client.endpoints.current != relay.address


async def test_an_idle_connection_to_a_silent_member_is_given_up(cluster: EmbeddedEtcdCluster) -> None:
    """By the transport alone, in seconds: `grpc.http2.ping_timeout_ms` is set on the watch's channel. Without it the
    library waits for a minute."""
    async with (
        Relay(cluster.endpoints[0]) as relay,
        etcd_harness(relay.address, ping_interval=60.0) as harness,
    ):
        registry = await harness.started()
        await registry.register(node())
        relay.hold()
        took = await harness.until(lambda: not registry._watcher.live, within=14.0)
        assert took > 2.0
        assert "ping timeout" in registry.health().detail


async def test_an_answer_that_is_lost_costs_nothing(cluster: EmbeddedEtcdCluster, harness: EtcdHarness) -> None:
    """The transaction was done, who asked for it was not told: it is asked for again, and written once."""
    scene = await make_scene(harness)
    async with Relay(cluster.endpoints[0]) as relay:
        ambiguous = await harness.started(endpoints=(relay.address,))
        relay.drop("to_client")
        registering = asyncio.get_running_loop().create_task(ambiguous.register(node("twice")))
        await harness.until(lambda: ("up", "twice", node().slots) in scene.story)
        assert [record.node_id for record in ambiguous.members()] == ["w1"]
        relay.resume()
        await registering
        await harness.until(lambda: {record.node_id for record in ambiguous.members()} == {"w1", "twice"})
        await harness.until(lambda: not ambiguous._suspects and ambiguous.health().connected)
        assert (await content(harness))["nodes/effect/twice"] == 1
        assert scene.story == [("up", "twice", node().slots)]


async def test_a_watch_that_catches_up_on_megabytes(
    cluster: EmbeddedEtcdCluster, harness: EtcdHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd cuts what it has to tell into fragments, and not where a revision ends: they are applied when whole."""
    fragments: list[bool] = []
    accept = Watcher._accept

    def spy(self: Watcher, answer: object) -> object:
        fragments.append(bool(getattr(answer, "fragment", False)))
        return accept(self, answer)

    scene = await make_scene(harness)
    async with Relay(cluster.endpoints[0]) as relay:
        late = await harness.started(endpoints=(relay.address,))
        heard: list[MemberEvent] = []
        late.subscribe(heard.append)
        await relay.refuse()
        await harness.until(lambda: not late.health().connected)
        for number in range(12):
            await scene.worker.register(node(f"n{number}", slots=number, labels={"filling": "x" * 700_000}))
        monkeypatch.setattr(Watcher, "_accept", spy)
        await relay.listen()
        await harness.until(lambda: len(heard) == 12)
        assert [event.record.slots for event in heard] == list(range(12))
        assert any(fragments)
        # And all of it in one go, for who begins now.
        fresh = await harness.started()
        assert len(fresh.members()) == 13


async def test_more_keys_than_an_answer_holds(
    cluster: EmbeddedEtcdCluster, harness: EtcdHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onexflow.registry.etcd.client._PAGE", 7)
    scene = await make_scene(harness)
    await asyncio.gather(*(scene.worker.register(node(f"n{number}")) for number in range(40)))
    fresh = await harness.started()
    await harness.until(lambda: len(fresh.members()) == 41)
    assert len(await content(harness)) == 43
