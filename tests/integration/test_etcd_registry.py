"""The registry and a real etcd on its bad days: killed, frozen, wiped, away for longer than a lease, compacted, cut off.

*Down is not dead*: what lives is registered again within 3 s of etcd's return, no change is missed, and nobody hears
that a node went which did not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import grpc
import msgspec
import pytest

from etcd_support import NO_ETCD, EtcdHarness, etcd, etcd_harness  # noqa: F401 - a fixture
from onexflow.core.errors import RegistryUnavailable
from onexflow.ports.registry import Assignment, MemberEvent, NodeRecord, ShardAnnouncement
from onexflow.registry.etcd.client import EtcdClient, put_op
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.testing.conformance.registry import node, run_key
from onexflow.testing.faults.relay import Relay

pytestmark = pytest.mark.chaos

RESTORED_WITHIN = 3.0


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedEtcd]:
    """An etcd of this test's own, to be mistreated."""
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    server = EmbeddedEtcd()
    await server.start()
    yield server
    await server.stop()


class Content:
    """What is really in etcd, read by a client of its own."""

    def __init__(self, server: EmbeddedEtcd, harness: EtcdHarness) -> None:
        self._client = EtcdClient(_settings(harness, server.endpoint))

    async def keys(self) -> list[str]:
        prefix = self._client.settings.prefix.encode()
        answer = await self._client.range(prefix)
        return [kv.key[len(prefix) :].decode() for kv in answer.kvs if kv.lease]

    async def empty(self) -> bool:
        return not await self.keys()

    async def revision(self) -> int:
        return (await self._client.status()).header.revision

    async def compact_all(self) -> None:
        """Write on, so that there is something to forget, and forget everything before."""
        for _ in range(5):
            await self._client.txn(pb.TxnRequest(success=[put_op(b"/elsewhere", b"x")]))
        await self._client.compact(await self.revision())

    async def close(self) -> None:
        await self._client.close()


def _settings(harness: EtcdHarness, endpoint: str) -> EtcdSettings:
    return msgspec.structs.replace(harness.settings, endpoints=(endpoint,))


class Scene:
    """A worker w1 with a shard and a pin, and an observer who listens."""

    def __init__(self, harness: EtcdHarness, worker: EtcdRegistry, observer: EtcdRegistry, content: Content) -> None:
        self.harness = harness
        self.worker = worker
        self.observer = observer
        self.content = content
        self.events: list[MemberEvent] = []
        observer.subscribe(self.events.append)

    EXPECTED = ("assignments/", "nodes/effect/w1", "shards/00003")

    @property
    def story(self) -> list[tuple[str, str]]:
        return [(event.type, event.record.node_id) for event in self.events]

    async def restored(self) -> bool:
        """All that the worker and the pin's owner wished for is in etcd."""
        try:
            keys = await self.content.keys()
        except Exception:  # noqa: BLE001 - it is not back yet
            return False
        return all(any(key.startswith(each) for key in keys) for each in self.EXPECTED)

    async def change(self, slots: int) -> None:
        """Something new, which the observer must see after whatever happened."""
        await self.worker.register(node(slots=slots))
        await self.harness.until(lambda: node(slots=slots) in self.observer.members())
        await self.harness.until(lambda: node(slots=slots) in [event.record for event in self.events])


class MakeScene(Protocol):
    async def __call__(self, harness: EtcdHarness, *, worker_at: str = "", observer_at: str = "") -> Scene: ...


@pytest.fixture
async def make_scene(server: EmbeddedEtcd) -> AsyncIterator[MakeScene]:
    scenes: list[Scene] = []

    async def make(harness: EtcdHarness, *, worker_at: str = "", observer_at: str = "") -> Scene:
        worker = await harness.started(**({"endpoints": (worker_at,)} if worker_at else {}))
        observer = await harness.started(**({"endpoints": (observer_at,)} if observer_at else {}))
        scene = Scene(harness, worker, observer, Content(server, harness))
        scenes.append(scene)
        await worker.register(node())
        await worker.announce([ShardAnnouncement(shard=3, owner="w1", epoch=7)])
        await observer.assign(Assignment(key=run_key(), node_id="w1"))
        await harness.until(scene.restored)
        await harness.until(lambda: len(scene.events) == 1)
        scene.events.clear()
        return scene

    yield make
    for scene in scenes:
        await scene.content.close()


async def test_killed_and_restarted(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await server.kill()
        await harness.until(lambda: not scene.observer.health().connected)
        assert len(scene.observer.members()) == 1
        await server.start()
        assert await harness.until(scene.restored) < RESTORED_WITHIN
        await scene.change(slots=9)
        assert scene.story == [("changed", "w1")]
        await harness.until(lambda: scene.observer.health().connected and scene.worker.health().connected)


async def test_away_for_longer_than_the_lease(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """What is asked for meanwhile is remembered; the view stays; nobody hears of a death."""
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await server.kill()
        away = time.monotonic() + 2.5 * harness.settings.ttl
        await harness.until(lambda: not scene.worker.health().connected)
        began = time.monotonic()
        await scene.worker.register(node("w2"))
        await scene.worker.announce([ShardAnnouncement(shard=3, owner="w1", epoch=8)])
        assert time.monotonic() - began < 0.5
        await harness.until(lambda: time.monotonic() > away)
        assert [record.node_id for record in scene.observer.members()] == ["w1"]
        assert [item.shard for item in await scene.observer.announcements()] == [3]
        await server.start()
        assert await harness.until(scene.restored) < RESTORED_WITHIN
        await harness.until(lambda: len(scene.observer.members()) == 2)
        await harness.until(lambda: ("up", "w2") in scene.story)
        assert scene.story == [("up", "w2")]
        assert [item.epoch for item in await scene.observer.announcements()] == [8]


@pytest.mark.parametrize("leases", [0.6, 3.0], ids=["shorter-than-the-lease", "longer-than-the-lease"])
async def test_frozen_and_thawed(server: EmbeddedEtcd, make_scene: MakeScene, leases: float) -> None:
    """Frozen for long, etcd ends all leases the moment it wakes, before a renewal can reach it."""
    async with etcd_harness(server.endpoint, return_time=3.0) as harness:
        scene = await make_scene(harness)
        server.freeze()
        until = time.monotonic() + leases * harness.settings.ttl
        await harness.until(lambda: time.monotonic() > until)
        server.thaw()
        thawed = time.monotonic()
        await harness.until(scene.restored)
        await scene.change(slots=9)
        # Seen before the leases ended, it was not restored yet; and the pin's owner has a lease of its own.
        await harness.until(scene.restored)
        assert time.monotonic() - thawed < RESTORED_WITHIN
        assert scene.story == [("changed", "w1")]


async def test_wiped(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """Same port, nothing in it: noticed, written again, and what has not returned yet is not called dead."""
    async with etcd_harness(server.endpoint, return_time=2.0) as harness:
        scene = await make_scene(harness)
        gone = await harness.started()
        await gone.register(node("gone"))
        await harness.until(lambda: ("up", "gone") in scene.story)
        scene.events.clear()
        await gone.crash()
        await server.wipe_and_restart()
        back = time.monotonic()
        await harness.until(scene.restored)
        await scene.change(slots=9)
        assert time.monotonic() - back < RESTORED_WITHIN
        assert scene.story == [("changed", "w1")]
        await harness.until(lambda: ("down", "gone") in scene.story)
        held = time.monotonic() - back
        assert held > harness.settings.ttl
        assert [record.node_id for record in scene.observer.members()] == ["w1"]


async def test_wiped_and_grown_past_the_old_revision(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """A watch from the old revision would be accepted here, and miss all that came before."""
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        before = await scene.content.revision()
        async with Relay(server.endpoint) as relay:
            late = await harness.started(endpoints=(relay.address,))
            await relay.refuse()
            await server.wipe_and_restart()
            await harness.until(scene.restored)
            for number in range(before + 20):
                await scene.worker.register(node("busy", slots=number))
            await scene.worker.unregister("effect", "busy")
            await scene.worker.register(node("new"))
            await relay.listen()
            await harness.until(lambda: {record.node_id for record in late.members()} == {"w1", "new"})


async def _no_space(server: EmbeddedEtcd, *, on: bool) -> None:
    """The alarm that etcd gives when its quota is used up: it takes no writes and no new leases."""
    request = bytes([0x08, 1 if on else 2, 0x18, 1])  # AlarmRequest(action=ACTIVATE or DEACTIVATE, alarm=NOSPACE)
    async with grpc.aio.insecure_channel(server.endpoint) as channel:
        await channel.unary_unary("/etcdserverpb.Maintenance/Alarm")(request, timeout=5.0)


async def test_etcd_without_space(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """Who is there stays there, for longer than a lease; what is new is told when there is space again."""
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await _no_space(server, on=True)
        began = time.monotonic()
        await asyncio.wait_for(scene.worker.register(node(slots=9)), 5.0)
        await harness.until(lambda: time.monotonic() - began > 2.5 * harness.settings.ttl)
        assert scene.story == []
        assert [record.slots for record in scene.observer.members()] == [node().slots]
        await harness.until(lambda: "etcd has used up its quota" in scene.worker.health().detail)
        late = await harness.open(start_timeout=2.0)
        with pytest.raises(RegistryUnavailable, match="etcd has used up its quota"):
            await late.start()
        await _no_space(server, on=False)
        back = time.monotonic()
        await harness.until(lambda: scene.story == [("changed", "w1")])
        assert time.monotonic() - back < RESTORED_WITHIN
        await harness.until(lambda: scene.worker.health().connected)


async def test_compacted_while_the_watch_was_away(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """The difference is told like any other change, deletions included."""
    async with Relay(server.endpoint) as relay, etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness, observer_at=relay.address)
        await scene.worker.register(node("leaves"))
        await harness.until(lambda: ("up", "leaves") in scene.story)
        scene.events.clear()
        await relay.refuse()
        await harness.until(lambda: not scene.observer.health().connected)
        await scene.worker.unregister("effect", "leaves")
        await scene.worker.register(node("joins"))
        await scene.content.compact_all()
        assert scene.story == []
        await relay.listen()
        await harness.until(lambda: len(scene.events) == 2)
        assert sorted(scene.story) == [("down", "leaves"), ("up", "joins")]
        assert await scene.restored()


async def test_no_change_is_missed_over_a_cut(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """Not compacted: every single change of the outage arrives, in order, none twice."""
    async with Relay(server.endpoint) as relay, etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness, observer_at=relay.address)
        for cut in range(3):
            await scene.worker.register(node(slots=10 * cut + 10))
            relay.cut()
            for step in range(1, 10):
                await scene.worker.register(node(slots=10 * cut + 10 + step))
        await harness.until(lambda: bool(scene.events) and scene.events[-1].record.slots == 39)
        assert [event.record.slots for event in scene.events] == list(range(10, 40))


async def test_a_silent_connection_is_left(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """A partition without any sign: both halves of the client move on, and the lease is kept."""
    async with Relay(server.endpoint) as relay, etcd_harness(server.endpoint, ttl=3.0) as harness:
        scene = await make_scene(harness)
        remote = await harness.open(endpoints=(relay.address, server.endpoint))
        for half in (remote._client.endpoints, remote._keeper._endpoints):
            half.all = [relay.address, server.endpoint]
        await remote.start()
        await remote.register(node("remote"))
        await harness.until(lambda: ("up", "remote") in scene.story)
        scene.events.clear()
        relay.hold()
        await scene.worker.register(node("fresh"))
        took = await harness.until(lambda: any(record.node_id == "fresh" for record in remote.members()))
        assert took < 4.0
        until = time.monotonic() + harness.settings.ttl
        await harness.until(lambda: time.monotonic() > until)
        assert scene.story == [("up", "fresh")]
        assert remote.health().connected


async def test_our_own_lease_revoked_behind_our_back(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """Versions up to 3.5.12 may revoke wrongly: seen by the missing key, not at the next renewal."""
    async with etcd_harness(server.endpoint, ttl=3.0) as harness:
        scene = await make_scene(harness)
        lease = scene.worker.view.actual[b"nodes/effect/w1"].lease
        await scene.content._client.revoke(lease)
        await harness.until(lambda: ("up", "w1") in scene.story)
        assert await harness.until(scene.restored) < 0.5
        assert scene.story == [("down", "w1"), ("up", "w1")]


async def test_a_killed_process_is_down_after_its_lease_and_not_before(
    server: EmbeddedEtcd, make_scene: MakeScene
) -> None:
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await scene.worker.crash()
        took = await harness.until(lambda: scene.story == [("down", "w1")])
        assert 0.4 < took < 2.5


async def test_revoking_while_etcd_is_away_is_remembered(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await scene.worker.crash()
        await server.kill()
        await harness.until(lambda: not scene.observer.health().connected)
        await scene.observer.revoke(node())
        assert not scene.observer.members()
        await harness.until(lambda: scene.story == [("down", "w1")])
        await server.start()
        await harness.until(lambda: scene.observer.health().connected)
        await harness.until(scene.content.empty)
        assert scene.story == [("down", "w1")]


async def test_an_idle_cluster_writes_nothing(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    """Renewals are no writes: etcd's own revision stands still."""
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await scene.change(slots=5)
        before = await scene.content.revision()
        until = time.monotonic() + 1.5 * harness.settings.ttl
        await harness.until(lambda: time.monotonic() > until)
        assert await scene.content.revision() == before


async def test_the_store_is_readable_by_people(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    async with etcd_harness(server.endpoint) as harness:
        scene = await make_scene(harness)
        await scene.worker.register(NodeRecord(kind="orchestrator", node_id="o/1", incarnation="i"))
        assert await scene.content.keys() == [
            "assignments/team%2F%C3%A4%20b/order.processing/00000000-0000-0000-0000-000000000001",
            "nodes/effect/w1",
            "orchestrators/o%2F1",
            "shards/00003",
        ]


async def test_something_else_under_our_prefix_hurts_nobody(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    # A lease that outlives a busy machine: one that ends meanwhile would be told, too.
    async with etcd_harness(server.endpoint, ttl=10.0, beat_limit=5.0, ping_interval=3.0) as harness:
        scene = await make_scene(harness)
        client = scene.content._client
        prefix = harness.settings.prefix.encode()
        strange = (b"nodes/effect/bad", b"nodes/effect/\xff", b"shards/x", b"assignments/x", b"what")
        for key in strange:
            await client.txn(pb.TxnRequest(success=[put_op(prefix + key, b"\xff{")]))
        await scene.change(slots=6)
        assert len(await scene.observer.announcements()) == 1
        assert len(await scene.observer.assignments()) == 1
        assert scene.story == [("changed", "w1")]


async def test_no_etcd_at_the_start() -> None:
    async with etcd_harness("127.0.0.1:1", "127.0.0.1:2", start_timeout=1.0) as harness:
        registry = await harness.open()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable) as caught:
            await registry.start()
        assert 0.9 < time.monotonic() - began < 2.0
        assert "127.0.0.1:1, 127.0.0.1:2" in str(caught.value)
        assert "refused" in str(caught.value)
        assert caught.value.context["endpoints"] == ["127.0.0.1:1", "127.0.0.1:2"]


async def test_a_silent_etcd_at_the_start(server: EmbeddedEtcd) -> None:
    async with Relay(server.endpoint) as relay, etcd_harness(relay.address, start_timeout=1.0) as harness:
        relay.hold()
        registry = await harness.open()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            await registry.start()
        assert time.monotonic() - began < 2.5


async def test_the_embedded_etcd_keeps_its_port_and_leaves_nothing(server: EmbeddedEtcd) -> None:
    port, root = server.port, server.root
    assert root is not None
    assert root.is_dir()
    await server.kill()
    await server.start()
    await server.wipe_and_restart()
    assert server.port == port
    await server.stop()
    await server.stop()
    assert not root.exists()
    await server.start()


async def test_an_embedded_etcd_whose_port_was_taken_waits_for_it(server: EmbeddedEtcd) -> None:
    await server.kill()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", server.port))
        other.listen()
        with pytest.raises(RegistryUnavailable, match=server.endpoint):
            await server.start(timeout=1.0)
    await server.start()


async def test_the_embedded_etcd_dies_with_its_supervisor() -> None:
    """Also when that is killed: nobody is left to end it."""
    program = """
import asyncio
from onexflow.registry.etcd.embedded import EmbeddedEtcd

async def main():
    etcd = EmbeddedEtcd()
    await etcd.start()
    print("running", etcd.pid, etcd.root, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert supervisor.stdout is not None
    line = b""
    while not line.startswith(b"running"):
        line = await asyncio.wait_for(supervisor.stdout.readline(), 15)
        assert line
    _, pid, root = line.decode().split(maxsplit=2)
    supervisor.kill()
    await supervisor.wait()
    end = time.monotonic() + 5
    while _runs(int(pid)):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    shutil.rmtree(root.strip())


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_listing_again_and_again_changes_nothing(server: EmbeddedEtcd, make_scene: MakeScene) -> None:
    async with etcd_harness(server.endpoint, relist_interval=0.0) as harness:
        scene = await make_scene(harness)
        for number in range(50):
            await scene.worker.register(node(f"n{number}"))
            if number % 2:
                await scene.worker.unregister("effect", f"n{number}")
        await scene.change(slots=3)
        await harness.until(lambda: scene.events[-1].record == node(slots=3))
        assert len(scene.observer.members()) == 26
        shown = {record.node_id: record for record in scene.observer.members()}
        rebuilt: dict[str, NodeRecord] = {"w1": node()}
        for event in scene.events:
            if event.type == "down":
                del rebuilt[event.record.node_id]
            else:
                assert (event.type == "up") == (event.record.node_id not in rebuilt)
                rebuilt[event.record.node_id] = event.record
        assert rebuilt == shown
