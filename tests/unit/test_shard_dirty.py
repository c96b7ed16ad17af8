"""A shard tells its lane, once, that it has something for the next append: what a commit costs depends on the shards that
were touched, not on how many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from onexflow.engine.shard import Shard
from onexflow.ports.event_store import Cut, RequestRecord, SnapshotRecord, Tombstone
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single, until

TOMBSTONE = Tombstone(1, 1, 2, 1, 2, 2, b"hash", 1)
WAYS: dict[str, Callable[[Shard], None]] = {
    "a register": lambda shard: shard.put("a", b"1"),
    "an answer": lambda shard: shard.answer(RequestRecord("default", "r1", b"body", b"answer", 1)),
    "a snapshot": lambda shard: shard.keep(SnapshotRecord(1, 3, b"state")),
    "a run that is in memory again": lambda shard: shard.unpark(1),
    "a cut": lambda shard: shard.cut(Cut(3, TOMBSTONE)),
}


async def owned() -> tuple[Shard, list[Shard]]:
    """A shard whose runs are read back, and what it has told."""
    store = MemoryStore(VirtualClock())
    await store.open()
    claim = await store.claim(0, 0, "me")
    assert claim is not None
    told: list[Shard] = []
    shard = Shard(claim, told.append)
    shard.early = None
    return shard, told


@pytest.mark.parametrize("way", WAYS)
@virtual_time
async def test_whatever_is_to_be_written_is_told_once_an_append(way: str) -> None:
    shard, told = await owned()
    for appends in (1, 2):
        WAYS[way](shard)
        WAYS[way](shard)
        assert shard.is_dirty
        assert told == [shard] * appends
        shard.stored(shard.take(1.0))
        assert not shard.is_dirty


@virtual_time
async def test_an_older_snapshot_than_the_one_to_be_written_changes_nothing() -> None:
    shard, _ = await owned()
    shard.keep(SnapshotRecord(1, 5, b"later"))
    shard.keep(SnapshotRecord(1, 4, b"earlier"))
    assert [one.seq for one in shard.take(1.0).snapshots] == [5]


@virtual_time
async def test_who_waits_for_the_shard_to_be_whole_is_told_again_by_each_append_until_then() -> None:
    shard, told = await owned()
    shard.early = []
    shard.unpark(1)
    shard.stored(shard.take(1.0))
    assert shard.is_dirty
    assert told == [shard, shard]
    shard.early = None
    assert shard.take(2.0).parked
    assert not shard.is_dirty


@virtual_time
async def test_undurable_events_are_counted_from_the_shards_that_were_touched() -> None:
    """It is the same as counted over all, also when a shard has events in the append under way and in the next one."""
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        script = Script()
        await ready(cluster, script, single("compute", "calc"))
        kernel = cluster.engine._kernel
        store.hold()
        counted: list[int] = []
        calls: list[asyncio.Future[object]] = []
        for ran in (12, 36):
            calls += [asyncio.ensure_future(cluster.start("single", number)) for number in range(ran - len(calls))]
            await until(partial(_have_run, script, ran), 1.0)
            counted.append(kernel.lane.undurable)
            assert counted[-1] == sum(shard.next - shard.durable for shard in kernel.shards.values())
        assert 0 < counted[0] < counted[1]
        store.release()
        await asyncio.gather(*calls)
        await kernel.lane.durable()
        assert kernel.lane.undurable == 0


def _have_run(script: Script, count: int) -> bool:
    return len(script.calls) >= count
