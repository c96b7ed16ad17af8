"""What is bounded: how far decisions run ahead of the disk, how long a stop waits, what a follower waits for."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.errors import Overloaded, StoreFull, StoreUnavailable
from onexflow.engine import readiness
from onexflow.ports.client_link import EventView
from onexflow.spi.exceptions import SPIError
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, Fault, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single


def faulty() -> tuple[FaultyStore, Cluster]:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    return store, Cluster(store=store, clock=clock)


@virtual_time
async def test_new_runs_are_refused_while_too_much_waits_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "UNDURABLE_EVENTS", 20)
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, Script(), single("effect", "charge"))
        store.hold()
        waiting = [asyncio.ensure_future(cluster.start("single", number)) for number in range(30)]
        done, open_ones = await asyncio.wait(waiting, timeout=1.0)
        refused = [task for task in done if isinstance(task.exception(), Overloaded)]
        assert len(refused) == len(done) > 0
        assert 0 < len(open_ones) <= 10
        store.release()
        await asyncio.gather(*open_ones)
        await cluster.start("single", 31)


@virtual_time
async def test_a_stop_gives_up_a_store_that_takes_nothing() -> None:
    store, cluster = faulty()
    async with cluster:
        await ready(cluster, Script(), single("effect", "charge"))
        store.fail(Fault.FULL, times=None)
        with pytest.raises(StoreFull):
            await cluster.start("single", 1)
        began = asyncio.get_running_loop().time()
        await cluster.engine.stop()
        assert asyncio.get_running_loop().time() - began <= 6.0
        store.heal()


@virtual_time
async def test_a_follower_hears_that_the_store_is_lost() -> None:
    store, cluster = faulty()
    async with cluster:
        script = Script()
        await ready(cluster, script, single("effect", "charge"))
        gate = script.gate("charge")
        started = await cluster.start("single", 1)
        told: list[list[EventView] | SPIError | None] = []
        cluster.engine.follow_run(started.key, 1, told.append)
        await script.called("charge")
        store.fail(Fault.FATAL)
        gate.set()
        await asyncio.sleep(1)
        assert isinstance(told[-1], StoreUnavailable)


@virtual_time
async def test_a_bug_in_one_duty_does_not_end_the_beats_for_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Cluster() as cluster:
        await ready(cluster, Script(), single("effect", "charge"))

        def buggy(*_: object) -> int:
            raise ZeroDivisionError

        monkeypatch.setattr(cluster.engine._housekeeping, "park_idle", buggy)
        await asyncio.sleep(60)
        assert [node.registered for node in await cluster.engine.list_nodes() if node.kind == "orchestrator"] == [True]
