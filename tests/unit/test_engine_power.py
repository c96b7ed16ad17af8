"""Nothing but speculative dispatch of pure tasks runs ahead of the disk: the power is cut, the disk fails, is full, lies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.codec.wire.common import retry_after
from onexflow.core.builder import workflow
from onexflow.core.errors import Draining, ShardMoved, StoreFull, StoreUnavailable, Unavailable, UnknownRun
from onexflow.core.ids import RunKey
from onexflow.engine.lane import LINGER_SECONDS
from onexflow.ports.client_link import StartRequest
from onexflow.ports.worker_link import Ack
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, Fault, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single, types


def faulty() -> tuple[FaultyStore, Cluster]:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    return store, Cluster(store=store, clock=clock)


class Asked:
    """A call that is under way: has it answered?"""

    def __init__(self, call: Any) -> None:
        self.task = asyncio.ensure_future(call)

    @property
    def is_open(self) -> bool:
        return not self.task.done()

    async def answer(self) -> Any:
        return await self.task


def pair() -> Any:
    """A pure task, and an effect behind it."""
    flow = workflow("pair")
    first = flow.compute("a", handler="calc", input="input")
    flow.effect("b", handler="charge", depends_on=[first])
    return flow


@virtual_time
async def test_while_a_commit_is_held_only_pure_tasks_leave() -> None:
    script = Script()
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, pair(), single("effect", "send"))
        instance = cluster.ids.uuid()
        key = RunKey("default", "pair", instance)
        store.hold()
        start = Asked(cluster.start("pair", 5, instance_id=instance))
        other = Asked(cluster.start("single", 5))
        await script.called("calc")
        await asyncio.sleep(5)
        stream = cluster.workers["w1"].stream
        calls = [
            start,
            other,
            Asked(cluster.wait(key)),
            Asked(cluster.state(key)),
            Asked(cluster.history(key)),
            Asked(cluster.start("pair", 5, instance_id=instance)),
            Asked(cluster.control(key, "pause", request_id="r1")),
            Asked(cluster.control(key, "pause", request_id="r1")),
        ]
        await asyncio.sleep(5)
        assert all(call.is_open for call in calls), "nothing is answered"
        assert not [m for m in stream.log if isinstance(m, Ack) and (m.tokens or m.discarded)]
        assert script.count("charge") == script.count("send") == 0, "no effect has left"
        listed, _ = await cluster.engine.list_runs("default")
        assert not listed
        store.release()
        assert (await start.answer()).created
        assert not (await calls[5].answer()).created
        assert (await calls[6].answer()) == (await calls[7].answer())
        await cluster.control(key, "resume")
        assert (await calls[2].answer()).state == "completed"
        assert script.count("charge") == 1


@virtual_time
async def test_a_store_that_does_not_confirm_is_told_by_the_health_answer() -> None:
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, Script(), single("effect", "send"))
        await asyncio.sleep(1)  # virtual time begins at 0, which means that no append is under way
        assert cluster.engine.health().details == {}
        store.hold()
        start = Asked(cluster.start("single", 5))
        await asyncio.sleep(5)
        assert "has not confirmed a write for 5 s" in cluster.engine.health().details["store"]
        store.release()
        with pytest.raises(StoreUnavailable):
            await start.answer()
        await asyncio.sleep(0.1)
        assert cluster.engine.health().details == {}


@virtual_time
async def test_a_power_cut_leaves_nothing_of_the_batch() -> None:
    script = Script()
    clock = VirtualClock()
    disk = MemoryStore(clock)
    store = FaultyStore(disk)
    cluster = Cluster(store=store, clock=clock)
    async with cluster:
        await ready(cluster, script, pair())
        store.hold()
        instance = cluster.ids.uuid()
        calls = [Asked(cluster.start("pair", 5, instance_id=instance))]
        key = RunKey("default", "pair", instance)
        await script.called("calc")
        calls.append(Asked(cluster.wait(key)))
        calls.append(Asked(cluster.state(key)))
        await asyncio.sleep(1)
        store.cut_power()
        for call in calls:
            with pytest.raises(Unavailable) as raised:
                await call.answer()
            assert raised.value.retryable
        assert isinstance(cluster.fatal, StoreUnavailable)
        with pytest.raises(Unavailable):
            await cluster.start("pair", 5)
        with pytest.raises(Unavailable):
            await cluster.control(key, "pause")
        with pytest.raises(Unavailable):
            await cluster.wait(key)
        assert script.count("charge") == 0
        await cluster.crash_orchestrator()
        cluster.store = disk
        await cluster.restart_orchestrator()
        with pytest.raises(UnknownRun):
            await cluster.state(key)
        assert await cluster.run("pair", 5, instance_id=instance) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_a_power_cut_in_the_middle_of_a_run_takes_it_up_where_the_disk_is() -> None:
    script = Script()
    gate = script.gate("calc")
    clock = VirtualClock()
    disk = MemoryStore(clock)
    store = FaultyStore(disk)
    cluster = Cluster(store=store, clock=clock)
    async with cluster:
        await ready(cluster, script, pair())
        key = (await cluster.start("pair", 5)).key
        await script.called("calc")
        store.hold()
        gate.set()
        await asyncio.sleep(1)
        store.cut_power()
        await asyncio.sleep(1)
        assert script.count("charge") == 0
        await cluster.crash_orchestrator()
        cluster.store = disk
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 5
        assert script.count("calc") == 1, "its result had not been acknowledged: the worker kept it"
        assert script.count("charge") == 1


@pytest.mark.parametrize("fault", [Fault.UNANSWERED, Fault.LOST])
def test_an_append_of_unknown_outcome_is_stored_once(fault: Fault) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        store, cluster = faulty()
        async with cluster:
            await ready(cluster, script, pair())
            store.fail(fault, times=3)
            key = (await cluster.start("pair", 5)).key
            store.fail(fault, times=3)
            assert await cluster.result(key) == 5
            events = await cluster.history(key)
            assert [e.sequence for e in events] == list(range(1, len(events) + 1))
            assert types(events).count("task.completed") == 2
            assert script.count("charge") == 1
            assert await cluster.run("pair", 6) == 6

    scenario()


@virtual_time
async def test_a_full_disk_refuses_new_runs_and_running_ones_go_on_when_there_is_space() -> None:
    script = Script()
    gate = script.gate("calc")
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, pair())
        key = (await cluster.start("pair", 5)).key
        await script.called("calc")
        store.fail(Fault.FULL, times=None)
        gate.set()
        await asyncio.sleep(5)
        with pytest.raises(StoreFull) as raised:
            await cluster.start("pair", 6)
        assert raised.value.retryable
        assert "full" in cluster.engine.health().details["store"]
        assert script.count("charge") == 0
        store.heal()
        assert await cluster.result(key) == 5
        assert await cluster.run("pair", 6) == 6
        assert "store" not in cluster.engine.health().details


@virtual_time
async def test_a_start_is_told_that_the_store_is_away_and_is_made_once_when_it_is_back() -> None:
    script = Script()
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, pair())
        instance = cluster.ids.uuid()
        await asyncio.sleep(1)  # virtual time begins at 0, which means that no append is under way
        store.hold()
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable) as raised:
            await cluster.start("pair", 5, instance_id=instance)
        assert raised.value.code == "OXF-1102"
        assert retry_after(raised.value) > 0, "the answer carries RetryInfo"
        assert 2.0 < asyncio.get_running_loop().time() - began < 3.0
        with pytest.raises(StoreUnavailable):  # at once
            await cluster.start("pair", 6)
        assert asyncio.get_running_loop().time() - began < 3.0
        assert script.count("charge") == 0
        store.release()
        await asyncio.sleep(0.1)
        again = await cluster.start("pair", 5, instance_id=instance)
        assert not again.created
        assert await cluster.result(again.key) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_a_start_that_finds_the_disk_full_is_told_so() -> None:
    script = Script()
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, pair())
        instance = cluster.ids.uuid()
        store.fail(Fault.FULL, times=None)
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreFull) as raised:
            await cluster.start("pair", 5, instance_id=instance)
        assert asyncio.get_running_loop().time() - began < 1.0
        assert raised.value.code == "OXF-1202"
        assert retry_after(raised.value) > 0, "the answer carries RetryInfo"
        store.heal()
        await asyncio.sleep(1)
        assert await cluster.result((await cluster.start("pair", 5, instance_id=instance)).key) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_a_deposed_owner_acknowledges_nothing() -> None:
    script = Script()
    gate = script.gate("calc")
    clock = VirtualClock()
    disk = MemoryStore(clock)
    cluster = Cluster(store=disk, clock=clock)
    async with cluster:
        await ready(cluster, script, pair())
        key = (await cluster.start("pair", 5)).key
        await script.called("calc")
        for shard, epoch, _ in await disk.owners():
            await disk.claim(shard, epoch, "another")
        gate.set()
        with pytest.raises(Unavailable):
            await cluster.result(key)
        assert cluster.fatal is not None
        assert cluster.fatal.code == "OXF-1103"
        assert script.count("charge") == 0
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_bug_in_the_store_ends_the_owner_instead_of_stalling_it() -> None:
    script = Script()
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, pair())

        async def append(batch: Any) -> Any:
            raise TypeError("a bug")

        store.append = append  # type: ignore[method-assign]  # the power is cut here
        with pytest.raises(Exception, match="a bug"):
            await asyncio.wait_for(cluster.start("pair", 5), 60)
        assert cluster.fatal is not None
        assert not cluster.engine.health().serving


@virtual_time
async def test_a_reply_that_raises_hurts_only_itself() -> None:
    script = Script()
    _, cluster = faulty()
    async with cluster:
        await ready(cluster, script, pair())

        def reply(_: Any) -> None:
            raise ValueError("the client's own bug")

        cluster.engine.start_run(StartRequest(workflow_type="pair"), reply)
        assert await asyncio.wait_for(cluster.run("pair", 5), 60) == 5


@virtual_time
async def test_a_run_whose_end_alone_is_waited_for_is_one_commit() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        lane = cluster.engine._kernel.lane
        for is_awaited, commits in ((True, 1), (False, 2)):
            await lane.durable()
            before = lane.commits
            key = (await cluster.start("single", 1, wait=is_awaited)).key
            assert await cluster.result(key) == 1
            await lane.durable()
            assert lane.commits == before + commits


@virtual_time
async def test_what_somebody_waits_for_does_not_linger() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        await cluster.engine._kernel.lane.durable()
        began = asyncio.get_running_loop().time()
        await cluster.result((await cluster.start("single", 1, wait=True)).key)
        assert asyncio.get_running_loop().time() - began < LINGER_SECONDS


@virtual_time
async def test_who_waits_for_a_run_that_may_not_be_durable_starts_it_again_when_its_shard_moves() -> None:
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, Script(), single("effect", "charge"))
        store.hold()
        key = (await cluster.start("single", 1, wait=True)).key  # answered before it is durable
        end = Asked(cluster.wait(key))
        await asyncio.sleep(0)
        kernel = cluster.engine._kernel
        kernel.claims.drop(kernel.number_of(key), ShardMoved("another has it"))
        with pytest.raises(Draining):
            await end.answer()
        store.release()


@virtual_time
async def test_an_effect_that_never_leaves_gives_its_slot_back() -> None:
    """Its shard is lost before the authorisation is durable: the worker has heard of nothing, so it cannot give it."""
    script = Script()
    script.gate("send")
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, single("effect", "send"))
        await asyncio.sleep(1)
        session = next(iter(cluster.engine._sessions.by_worker.values()))
        free = session.credits["effect"]
        store.hold()
        start = Asked(cluster.start("single", 5))
        await asyncio.sleep(0.1)
        assert session.credits["effect"] == free - 1
        for shard in cluster.engine._kernel.shards.values():
            cluster.engine._book.left(shard)
        assert session.credits["effect"] == free
        store.release()
        await start.answer()
        await asyncio.sleep(0.1)
        assert session.credits["effect"] == free
        assert script.count("send") == 0


@virtual_time
async def test_an_attempt_that_another_worker_still_runs_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was placed anew, and had not left when the worker that was out of sight came back with it."""
    script = Script()
    gate = script.gate("calc")
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        await asyncio.sleep(1)
        second = cluster.engine._sessions.by_worker["w2"]
        free = second.credits["compute"]
        monkeypatch.setattr(cluster.engine._book._placing, "_ahead", -1)
        store.hold()
        other = Asked(cluster.start("single", 6, delay=60.0))
        await asyncio.sleep(0.1)
        cluster.cut("w1")
        await asyncio.sleep(0.5)
        assert second.credits["compute"] == free - 1
        cluster.reconnect("w1")
        await asyncio.sleep(0.5)
        assert second.credits["compute"] == free
        store.release()
        await other.answer()
        gate.set()
        assert await cluster.result(key) == 5
        await asyncio.sleep(1)
        assert (script.count("calc"), second.credits["compute"]) == (1, free)
