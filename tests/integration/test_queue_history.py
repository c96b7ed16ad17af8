"""A work queue's history is trimmed behind its snapshots: what is stored stays bounded, and nothing of it is silent."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from onexflow.app.system import SystemClock
from onexflow.core.queue_state import queue_key
from onexflow.engine import cuts
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.engine.queue import encode_queue
from onexflow.engine.run import SNAPSHOT_EVERY
from onexflow.ports.event_store import EventStore, Row, RunRecord, Tombstone
from onexflow.spi import WorkTask
from onexflow.storage.memory import MemoryStore
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import until

KEY = queue_key("default", "default")


async def work(cluster: Cluster, first: int, count: int, together: int = 100) -> None:
    """Three operations a task, `together` under way at a time, and one task that waits for an hour."""
    queue = WorkQueue(cluster.engine)
    if not first:
        await queue.enqueue_task(WorkTask(task_id="later"), delay_seconds=3600)

    async def one(number: int) -> None:
        await queue.enqueue_task(WorkTask(task_id=f"t{number}"))
        [got] = await queue.dequeue_task("w1")
        assert await queue.complete_task(got.task_id)

    for start in range(first, first + count, together):
        await asyncio.gather(*(one(number) for number in range(start, start + together)))


async def stored(store: EventStore) -> tuple[int, RunRecord, list[Row], list[Tombstone]]:
    """Shard, listing entry, rows and tombstones of the queue."""
    for shard in range(store.shards):
        if (record := await store.find_run(shard, KEY.to_bytes())) is not None:
            rows = await store.read_run(shard, record.iid, 1, 1 << 20)
            return shard, record, rows, await store.tombstones(shard, 0, record.iid)
    raise AssertionError("the queue is not there")


def accounted(rows: list[Row], graves: list[Tombstone]) -> int:
    """Tombstones and rows tell of every event, once and in order; how many there were."""
    seq = offset = 0
    for grave in sorted(graves, key=lambda grave: grave.first_seq):
        assert grave.first_seq == seq + 1
        assert grave.last_seq - grave.first_seq + 1 == grave.count
        assert offset < grave.first_offset <= grave.last_offset
        seq, offset = grave.last_seq, grave.last_offset
    for row in rows:
        assert row.seq == seq + 1
        assert row.offset > offset
        seq, offset = row.seq + row.count - 1, row.offset + row.count - 1
    return seq


@virtual_time
async def test_after_20000_operations_the_rows_are_few_and_the_state_is_whole() -> None:
    async with Cluster(seed=1) as cluster:
        await work(cluster, 0, 7000)
        _, record, rows, graves = await stored(cluster.store)
        [queue] = cluster.engine._kernel.queues()
        before = encode_queue(queue.state)
        head = queue.state.seq
        assert head > 20_000
        assert accounted(rows, graves) == head
        kept = cuts.TRIM_EVENTS + 2 * queue.snapshot_after + SNAPSHOT_EVERY
        assert sum(row.count for row in rows) <= kept
        assert 1 <= len(graves) <= head // cuts.TRIM_EVENTS
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        [again] = cluster.engine._kernel.queues()
        assert encode_queue(again.state) == before
        assert again.iid == record.iid
        # A timer that was armed by an event that was cut.
        assert await WorkQueue(cluster.engine).dequeue_task("w1") == []
        await asyncio.sleep(3600)
        assert [got.task_id for got in await WorkQueue(cluster.engine).dequeue_task("w1")] == ["later"]
        # The next owner goes on cutting where the last one stopped.
        await work(cluster, 7000, 2500)
        _, _, rows, more = await stored(cluster.store)
        assert len(more) > len(graves)
        assert accounted(rows, more) == again.state.seq


async def test_the_file_stays_small_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "TRIM_EVENTS", 500)
    monkeypatch.setattr(cuts, "STEP_EVENTS", 300)
    path = tmp_path / "store.db"
    async with Cluster(store=SqliteStore(path, clock=SystemClock()), clock=SystemClock()) as cluster:
        await work(cluster, 0, 1500, together=20)
        [queue] = cluster.engine._kernel.queues()
        await until(lambda: queue.trimmed_seq and not queue.is_trimmed)
        before = encode_queue(queue.state)
        await cluster.crash_orchestrator()
        cluster.store = SqliteStore(path, clock=SystemClock())
        await cluster.restart_orchestrator()
        [again] = cluster.engine._kernel.queues()
        assert encode_queue(again.state) == before
        _, _, rows, graves = await stored(cluster.store)
        assert accounted(rows, graves) == again.state.seq > 4500
        assert sum(row.count for row in rows) < 4000
        with sqlite3.connect(path) as database:
            counts = [
                database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("event_rows", "parts")
            ]
        assert counts[0] == len(rows)
        assert counts[1] <= counts[0]


@virtual_time
async def test_power_that_fails_around_a_cut_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "TRIM_EVENTS", 500)
    clock = VirtualClock()
    inner = MemoryStore(clock)
    done = 0
    async with Cluster(store=FaultyStore(inner), clock=clock) as cluster:
        for _ in range(4):
            await work(cluster, done, 250, together=1)
            done += 250
            store = cluster.store
            assert isinstance(store, FaultyStore)
            while not any(part.cuts for batch in store.asked for part in batch):
                await work(cluster, done, 10, together=1)
                done += 10
            store.hold()
            task = asyncio.ensure_future(WorkQueue(cluster.engine).enqueue_task(WorkTask(task_id=f"lost{done}")))
            await store.wait_held()
            store.cut_power()
            await cluster.crash_orchestrator()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], Exception)
            cluster.store = FaultyStore(inner)
            await cluster.restart_orchestrator()
            [queue] = cluster.engine._kernel.queues()
            _, _, rows, graves = await stored(cluster.store)
            assert accounted(rows, graves) == queue.state.seq
            assert (await WorkQueue(cluster.engine).get_queue_statistics())["completed"] == done
