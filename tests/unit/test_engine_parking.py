"""Idle runs leave memory and come back: with their timers, and for what comes in meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.definition import RetryPolicy
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import RunRecord
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single, until


@virtual_time
async def test_an_idle_run_leaves_memory_and_comes_back_with_its_timer() -> None:
    script = Script()
    policy = RetryPolicy(policy="fixed", initial_delay=600, max_delay=600, jitter=0)
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc", retry=policy))
        script.errors["calc"] = [ValueError("no")]
        key = (await cluster.start("single", 5)).key
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None
        assert (await cluster.store.statistics())["parked"] == 1
        assert await cluster.result(key) == 5
        assert script.calls[1].at == pytest.approx(600, abs=1)
        await asyncio.sleep(5)
        assert (await cluster.store.statistics())["parked"] == 0


@pytest.mark.parametrize("crash", ["while parked", "after a look"])
def test_a_parked_runs_timer_survives_a_crash(crash: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        policy = RetryPolicy(policy="fixed", initial_delay=600, max_delay=600, jitter=0)
        async with Cluster() as cluster:
            await ready(cluster, script, single("compute", "calc", retry=policy))
            script.errors["calc"] = [ValueError("no")]
            key = (await cluster.start("single", 5)).key
            await asyncio.sleep(60)
            assert cluster.engine._kernel.resident(key) is None
            if crash == "after a look":
                await cluster.state(key)
                await asyncio.sleep(1)
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
            await asyncio.sleep(1000)
            assert [call.at for call in script.calls[1:]] == pytest.approx([600], abs=1)
            assert await cluster.result(key) == 5

    scenario()


@pytest.mark.parametrize("restart", [False, True])
def test_a_late_result_finds_a_parked_run(restart: bool) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate("charge")
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", "charge"))
            key = (await cluster.start("single", 5)).key
            await script.called("charge")
            worker = cluster.workers["w1"]
            worker.liveness = "refused"
            worker.cut()
            await asyncio.sleep(60)
            assert cluster.engine._kernel.resident(key) is None, "it waits for input, parked"
            worker.liveness = "alive"
            gate.set()
            await asyncio.sleep(1)
            if restart:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
            else:
                cluster.reconnect("w1")
            assert await cluster.result(key) == 5
            assert script.count("charge") == 1

    scenario()


@virtual_time
async def test_a_call_wakes_a_parked_run() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5, delay=9000)).key
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None
        await cluster.control(key, "cancel")
        assert (await cluster.wait(key)).state == "cancelled"
        await asyncio.sleep(60)
        assert (await cluster.store.statistics())["parked"] == 0


@virtual_time
async def test_an_end_that_is_decided_while_its_run_is_read_back_is_told_when_it_is_durable() -> None:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        key = (await cluster.start("single", 5, delay=9000)).key
        kernel = cluster.engine._kernel
        await until(lambda: kernel.resident(key) is None)
        load, gate, asking = kernel.loader.load, asyncio.Event(), 0

        async def load_later(shard: Shard, record: RunRecord) -> Run | None:
            nonlocal asking
            asking += 1
            await gate.wait()
            return await load(shard, record)

        kernel.loader.load = load_later  # type: ignore[method-assign]  # both are to wait for it, in this order
        cancelled = asyncio.ensure_future(cluster.control(key, "cancel"))
        await until(lambda: asking == 1)
        waited = asyncio.ensure_future(cluster.wait(key))
        await until(lambda: asking == 2)
        store.hold()
        gate.set()
        await until(lambda: store.waiting > 0)  # its end is decided, and not durable
        await asyncio.sleep(1)  # in virtual time: whatever can be told now has been
        assert not waited.done()
        store.release()
        await cancelled
        assert (await waited).state == "cancelled"
