"""What idle runs cost: nothing that grows with their number, in memory and at a restart. Counted, not timed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest

from onexflow.core.ids import RunKey
from onexflow.engine import housekeeping
from onexflow.engine.loader import READ_TOGETHER
from onexflow.engine.ownership import BEGIN_SECONDS
from onexflow.engine.run import Run
from onexflow.ports.event_store import AppendOutcome, ParkedRecord, RunRecord, ShardAppend, StoredRun
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single, until

DELAY = 1000.0


class CountingStore(MemoryStore):
    """Counts what recovery reads. `gate` holds reading runs back; each such read takes `seconds`."""

    def __init__(self) -> None:
        super().__init__(VirtualClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.seconds = 0.0
        self.most_parked = 0
        self.forget()

    def forget(self) -> None:
        self.calls = 0
        self.read: set[tuple[int, int]] = set()
        self.listed = self.looks = 0

    async def read_back(self, shard: int, iids: Sequence[int], limit: int = 64) -> list[StoredRun]:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        await self.gate.wait()
        self.read.update((shard, iid) for iid in iids)
        return await super().read_back(shard, iids, limit)

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        self.listed += len(iids)
        return await super().get_runs(shard, iids)

    async def due_parked(self, shard: int, until: int, limit: int = 1024) -> list[ParkedRecord]:
        self.looks += 1
        return await super().due_parked(shard, until, limit)

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        self.most_parked = max(self.most_parked, sum(len(part.parked) for part in batch))
        return await super().append(batch)


async def started(cluster: Cluster, count: int, **fields: Any) -> list[RunKey]:
    outcomes = await asyncio.gather(*(cluster.start("single", number, **fields) for number in range(count)))
    return [outcome.key for outcome in outcomes]


def in_memory(cluster: Cluster) -> int:
    return sum(len(shard.runs) for shard in cluster.engine.shards.values())


async def settled(cluster: Cluster) -> None:
    """Until there is a checkpoint that says how it stands: one more run that ends, in each shard."""
    await asyncio.sleep(3)
    await asyncio.gather(*(cluster.run("single", number) for number in range(60)))
    await asyncio.sleep(1)


@virtual_time
async def test_a_restart_reads_nothing_of_runs_that_are_paged_out() -> None:
    store = CountingStore()
    async with Cluster(store=store) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        keys = await started(cluster, 300, delay=DELAY)
        await until(lambda: not in_memory(cluster), 30)
        await cluster.crash_orchestrator()
        store.forget()
        await cluster.restart_orchestrator()
        await asyncio.sleep(30)
        assert (store.calls, store.listed, in_memory(cluster)) == (0, 0, 0)
        assert {(await cluster.wait(key)).state for key in keys} == {"completed"}


@virtual_time
async def test_runs_that_are_paged_out_leave_nothing_in_memory() -> None:
    async with Cluster() as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        await started(cluster, 200, delay=DELAY, timeout=2 * DELAY)
        assert len(cluster.engine._book.timers) == 400
        await until(lambda: not in_memory(cluster), 30)
        await asyncio.sleep(1)
        gc.collect()
        shards = list(cluster.engine.shards.values())
        assert not [one for one in gc.get_objects() if type(one) is Run and one.shard in shards]
        assert not len(cluster.engine._book.timers)


@virtual_time
async def test_many_idle_runs_are_paged_out_sooner_and_so_many_with_one_append(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "IDLE_RUNS", 100)
    monkeypatch.setattr(housekeeping, "PAGED_TOGETHER", 30)
    store = CountingStore()
    async with Cluster(store=store) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        await started(cluster, 300, delay=DELAY)
        await asyncio.sleep(housekeeping.SWEEP_SECONDS + 1)
        assert not in_memory(cluster), "they need not be idle for long"
        assert store.most_parked == 30
        await started(cluster, 50, delay=DELAY)
        await asyncio.sleep(housekeeping.IDLE_SECONDS - 1)
        assert in_memory(cluster) == 50, "few may stay for a while"


@virtual_time
async def test_timers_that_are_due_together_are_read_back_together() -> None:
    store = CountingStore()
    async with Cluster(store=store) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        keys = await started(cluster, 500, delay=DELAY)
        await until(lambda: not in_memory(cluster), 30)
        store.forget()
        await asyncio.sleep(DELAY)
        assert len(store.read) == 500
        assert store.calls <= 500 / READ_TOGETHER + len(cluster.engine.shards)
        assert {(await cluster.wait(key)).state for key in keys} == {"completed"}


@virtual_time
async def test_shards_in_which_nothing_is_due_are_not_looked_at() -> None:
    store = CountingStore()
    async with Cluster(store=store) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        await asyncio.sleep(5)
        store.forget()
        await asyncio.sleep(100)
        assert store.looks == 0
        late = (await cluster.start("single", 1, delay=DELAY)).key
        await asyncio.sleep(30)
        soon = (await cluster.start("single", 2, delay=100.0)).key
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(90)
        assert store.looks == 0
        assert (await cluster.wait(soon)).state == "completed"
        assert asyncio.get_running_loop().time() - began == pytest.approx(100, abs=0.1)
        assert (await cluster.wait(late)).state == "completed"
        assert asyncio.get_running_loop().time() - began == pytest.approx(DELAY - 30, abs=0.1)
        assert store.looks < 20


@virtual_time
async def test_what_is_paged_out_while_a_shard_is_looked_at_is_woken_in_time() -> None:
    """Its row is not stored yet when the store is asked for the first that is due."""
    script, store = Script(), FaultyStore(MemoryStore(VirtualClock(), shards=1))
    async with Cluster(store=store) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        housekeeper, (shard,) = cluster.engine._housekeeping, cluster.engine.shards.values()
        key = (await cluster.start("single", 1, delay=60.0)).key
        await asyncio.sleep(1)
        store.hold()
        other = asyncio.ensure_future(cluster.start("single", 2, delay=90.0))
        await store.wait_held()  # an append is under way that knows nothing of what comes
        looking = asyncio.ensure_future(housekeeper._learn_next_wake(shard))
        await asyncio.sleep(0)  # it waits for that one
        assert housekeeper._park([run for run in shard.runs.values() if run.key == key]) == 1
        store.release()
        await asyncio.gather(looking, other)
        await asyncio.sleep(60)
        assert script.count("calc") == 1, "nobody asked for it: it woke by itself"


@virtual_time
async def test_runs_that_only_waited_are_read_back_while_the_shard_is_served() -> None:
    script, store = Script(), CountingStore()
    async with Cluster(store=store) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        keys = await started(cluster, 300, delay=DELAY)
        await settled(cluster)
        for life in range(3):  # in the second, most of them have still to be read when it ends
            store.gate.clear()
            store.forget()
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
            await settled(cluster)  # served, and written that these are not read yet
            assert not store.read
            blocked = [one.blocked.kind for one in await cluster.engine.explain_runs(keys[:3])]
            assert blocked == ["recovering"] * 3
            if life == 2:
                store.gate.set()
        assert (await cluster.control(keys[0], "cancel")).state == "cancelled"
        assert {(await cluster.wait(key)).state for key in keys[1:]} == {"completed"}
        assert store.calls <= 300 / READ_TOGETHER + 2 * len(cluster.engine.shards)


@virtual_time
async def test_a_start_does_not_wait_for_all_that_was_at_work() -> None:
    store = CountingStore()
    async with Cluster(store=store) as cluster:
        await ready(cluster, Script(), single("compute", "calc"), single("compute", "nobody", name="held"))
        held = [(await cluster.start("held", number)).key for number in range(200)]
        await cluster.crash_orchestrator()
        store.seconds = 5.0
        began = asyncio.get_running_loop().time()
        await cluster.restart_orchestrator()
        assert asyncio.get_running_loop().time() - began <= BEGIN_SECONDS + 0.1
        assert await cluster.run("single", 7) == 7
        assert not in_memory(cluster)
        await asyncio.sleep(30)
        assert in_memory(cluster) == len(held)
        for key in held:
            await cluster.control(key, "cancel")


@virtual_time
async def test_the_starts_that_are_remembered_are_few_however_many_shards_there_are() -> None:
    async with Cluster(store=MemoryStore(VirtualClock(), shards=1024)) as cluster:
        limits = [shard.recent._limit for shard in cluster.engine._kernel.shards.values()]
        assert len(limits) == 1024
        assert sum(limits) <= 110_000
