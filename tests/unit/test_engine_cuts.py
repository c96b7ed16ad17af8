"""Cut histories and registers in the engine: what is left behind a cut, who is told, and who must not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import pytest

from onexflow.codec.rows import decode_row, encode_row
from onexflow.core.builder import workflow
from onexflow.core.errors import Coded, InternalError, OutOfRange
from onexflow.core.events import Event, WorkflowPaused
from onexflow.core.ids import RunKey
from onexflow.engine import cuts, lane
from onexflow.engine.recovery import hot_runs, read_run
from onexflow.engine.shard import Shard
from onexflow.engine.stream import read_stream, stream_key
from onexflow.ports.client_link import EventView
from onexflow.ports.event_store import Row, RunRecord, ShardAppend, SnapshotRecord, Tombstone
from onexflow.ports.events import EventRecord, Publish
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from onexflow.testing.conformance.store_kit import key as run_key
from support.engine_kit import Script, ready, single, until

T = TypeVar("T")


async def small_store() -> tuple[MemoryStore, Shard]:
    """Shard 0 with run 1: rows of 3, 1, 4 and 2 events; offsets 1 to 13, as run 2 stands between."""
    store = MemoryStore(VirtualClock())
    await store.open()
    claim = await store.claim(0, 0, "me")
    assert claim is not None
    rows, offset, seq = [], 1, 1
    for count in (3, 1, 4, 2):
        events: list[Event] = [WorkflowPaused(f"{number}") for number in range(seq, seq + count)]
        rows += [Row(offset, count, 1, 1, seq, encode_row(7, events)), Row(offset + count, 1, 1, 2, seq, b"other")]
        offset, seq = offset + count + 1, seq + count
    run = RunRecord(1, run_key(1), 2, 1, 1, b"start", 10)
    await store.append([ShardAppend(shard=0, epoch=1, head=1, next=offset, rows=rows, runs=[run])])
    return store, Shard(claim._replace(head=offset), lambda _: None)


async def numbers(store: MemoryStore) -> list[str]:
    return [
        event.reason
        for row in await store.read_run(0, 1)
        for event in decode_row(row.data)[1]
        if isinstance(event, WorkflowPaused)
    ]


@pytest.mark.parametrize("before", range(12))
@virtual_time
async def test_a_cut_leaves_the_events_behind_it_and_tells_of_the_others(before: int) -> None:
    store, shard = await small_store()
    rows = await store.read_run(0, 1)
    cut = await cuts.build_cut(store, 0, 1, before)
    if before <= 1:
        assert cut is None
        return
    assert cut is not None
    shard.cut(cut)
    assert shard.is_dirty
    await store.append([shard.take(0.0)])
    last = min(before - 1, 10)
    assert await numbers(store) == [str(number) for number in range(last + 1, 11)]
    places = [row.offset + index for row in rows for index in range(row.count)]
    [grave] = await store.tombstones(0)
    assert grave[:6] == (1, 1, last, 1, places[last - 1], last)
    if before in {4, 5, 9, 11}:  # between rows
        assert grave.hash == blake2b(b"".join(row.data for row in rows if row.seq < before), digest_size=16).digest()
    left = await store.read_run(0, 1)
    assert [row.offset + index for row in left for index in range(row.count)] == places[last:]
    assert await cuts.earliest_kept(store, 0, 1) == last + 1
    # The next cut begins where this one ended.
    again = await cuts.build_cut(store, 0, 1, 11)
    assert (again is None) == (last == 10)
    assert again is None or (again.tombstone.first_seq, again.tombstone.last_seq) == (last + 1, 10)


@virtual_time
async def test_what_was_cut_since_the_checkpoint_was_at_work() -> None:
    store, shard = await small_store()
    cut = await cuts.build_cut(store, 0, 1, 11)
    assert cut is not None
    shard.cut(cut)
    await store.append([shard.take(0.0, checkpoint=False)])
    hot, _ = await hot_runs(store, shard)
    assert [record.iid for record in hot] == [1]


# ---- registers


@virtual_time
async def test_a_register_is_seen_as_it_is_from_the_moment_it_is_put() -> None:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        kernel = cluster.engine._kernel
        shard = kernel.shards[0]

        async def seen() -> tuple[bytes | None, bytes | None]:
            return shard.peek("a"), await shard.register(store, "a")

        assert await seen() == (None, None)
        store.hold()
        shard.put("a", b"one")
        assert shard.is_dirty
        assert await seen() == (b"one", b"one")
        kernel.lane.mark()
        await store.wait_held()
        assert await seen() == (b"one", b"one"), "on its way"
        assert await store.get_register(0, "a") is None
        shard.put("a", b"two")
        kernel.lane.mark()
        assert await seen() == (b"two", b"two")
        store.release()
        await kernel.lane.durable()
        assert await seen() == (None, b"two")
        shard.put("a", b"")
        assert await seen() == (b"", None)
        kernel.lane.mark()
        await kernel.lane.durable()
        assert await seen() == (None, None)
        assert not shard.is_dirty


@virtual_time
async def test_a_value_that_is_put_while_an_older_one_is_read_is_what_the_reader_gets() -> None:
    class Slow(FaultyStore):
        gate = asyncio.Event()

        async def get_register(self, shard: int, name: str) -> bytes | None:
            found = await super().get_register(shard, name)
            await self.gate.wait()
            return found

    clock = VirtualClock()
    store = Slow(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        kernel = cluster.engine._kernel
        shard = kernel.shards[0]
        shard.put("a", b"one")
        kernel.lane.mark()
        await kernel.lane.durable()
        read, other = (asyncio.ensure_future(shard.register(store, name)) for name in ("a", "b"))
        await asyncio.sleep(1)
        shard.put("a", b"two")
        kernel.lane.mark()
        await kernel.lane.durable()
        assert shard.peek("a") is None
        store.gate.set()
        assert await read == b"two"
        assert await other is None


# ---- runs


def chain() -> Any:
    flow = workflow("chain")
    before = flow.compute("t0", handler="calc", input="input")
    for number in range(1, 6):
        before = flow.compute(f"t{number}", handler="calc", depends_on=[before])
    return flow


async def cut_run(cluster: Cluster, key: RunKey, before: int) -> list[Tombstone]:
    """As a retention would: with a snapshot of its state, which is at least as new."""
    kernel = cluster.engine._kernel
    run = await kernel.find(key)
    snapshot = SnapshotRecord(run.iid, run.state.seq, run.snapshot())
    return await cuts.cut_history(kernel.store, kernel.lane, run.shard, run.iid, before, snapshot)


async def followed(cluster: Cluster, key: RunKey, start: int) -> list[int] | Coded:
    """Numbers of the events that a follower is told, or the error that ends it."""
    told: list[int] = []
    end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def listener(events: Sequence[EventView] | Exception | None) -> None:
        if events is None or isinstance(events, Exception):
            end.set_result(events)
        else:
            told.extend(event.sequence for event in events)

    cluster.engine.follow_run(key, start, listener)
    error = await end
    return told if error is None else error


@virtual_time
async def test_reading_behind_a_cut_says_what_is_left() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, chain())
        key = (await cluster.start("chain", 5)).key
        await cluster.wait(key)
        whole = await cluster.history(key)
        view = await cluster.state(key)
        [grave] = await cut_run(cluster, key, 6)
        assert (grave.first_seq, grave.last_seq, grave.count) == (1, 5, 5)
        for restart in (False, True):
            if restart:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
            for start in (0, 1, 5):
                with pytest.raises(OutOfRange) as raised:
                    await cluster.engine.read_history(key, start, 100)
                assert raised.value.context["earliest"] == 6
                error = await followed(cluster, key, start)
                assert isinstance(error, OutOfRange)
                assert error.context["earliest"] == 6
            assert list(await cluster.engine.read_history(key, 6, 100)) == list(whole[5:])
            assert await followed(cluster, key, 6) == [event.sequence for event in whole[5:]]
            assert await cluster.state(key) == view
        # All of it: nothing is left but the snapshot.
        await cut_run(cluster, key, len(whole) + 1)
        with pytest.raises(OutOfRange):
            await cluster.engine.read_history(key, len(whole), 100)
        assert list(await cluster.engine.read_history(key, len(whole) + 1, 100)) == []
        assert await followed(cluster, key, len(whole) + 1) == []
        assert await cluster.state(key) == view


@virtual_time
async def test_an_open_run_goes_on_behind_a_cut_and_its_late_result_is_found() -> None:
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
        run = await cluster.engine._kernel.find(key)
        await cut_run(cluster, key, run.state.seq + 1)
        worker.liveness = "alive"
        gate.set()
        await asyncio.sleep(1)
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_nothing_is_cut_that_no_snapshot_holds() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, chain())
        key = (await cluster.start("chain", 5)).key
        await cluster.wait(key)
        kernel = cluster.engine._kernel
        run = await kernel.find(key)
        with pytest.raises(InternalError):
            await cuts.cut_history(kernel.store, kernel.lane, run.shard, run.iid, 3)
        old = SnapshotRecord(run.iid, 1, b"")
        with pytest.raises(InternalError):
            await cuts.cut_history(kernel.store, kernel.lane, run.shard, run.iid, 3, old)
        assert (await cluster.history(key))[0].sequence == 1
        assert await cuts.cut_history(kernel.store, kernel.lane, run.shard, run.iid, 1, old) == []


class Between(FaultyStore):
    """Stops a reader after it has loaded a snapshot, if asked to."""

    stop: asyncio.Event | None = None
    stopped = 0

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        found = await super().load_snapshot(shard, iid, max_seq)
        if self.stop is not None:
            self.stopped += 1
            await self.stop.wait()
        return found

    async def meanwhile(self, read: Awaitable[T], act: Callable[[], Awaitable[object]]) -> T:
        """What a reader gets while `act` is done between its look at the snapshot and its look at the rows."""
        stop = self.stop = asyncio.Event()
        self.stopped = 0
        reading = asyncio.ensure_future(read)
        await until(lambda: self.stopped)
        self.stop = None
        await act()
        stop.set()
        return await reading


def between() -> tuple[Between, Cluster]:
    clock = VirtualClock()
    store = Between(MemoryStore(clock))
    return store, Cluster(store=store, clock=clock)


@virtual_time
async def test_a_run_that_is_read_back_while_it_is_cut_is_whole() -> None:
    store, cluster = between()
    async with cluster:
        await ready(cluster, Script(), chain())
        key = (await cluster.start("chain", 5)).key
        await cluster.wait(key)
        kernel = cluster.engine._kernel
        run = await kernel.find(key)
        record = (await store.get_runs(run.shard.id, [run.iid]))[0]
        snapshot = SnapshotRecord(run.iid, run.state.seq, run.snapshot())
        for before in (5, run.state.seq + 1):
            cut = partial(cuts.cut_history, store, kernel.lane, run.shard, run.iid, before, snapshot)
            read = await store.meanwhile(read_run(store, kernel.catalog, run.shard, record), cut)
            assert read.state == run.state


@virtual_time
async def test_a_stream_that_is_read_back_while_it_is_cut_is_whole() -> None:
    store, cluster = between()
    async with cluster:
        key = RunKey("default", "orders", cluster.ids.uuid())
        for _ in range(7):
            await cluster.engine.events.publish_event(Publish(event=EventRecord(key=key, type="order.paid")))
        await asyncio.sleep(2)
        kernel = cluster.engine._kernel
        shard = kernel.shard_of(stream_key(key))
        record = await store.find_run(shard.id, stream_key(key).to_bytes())
        assert record is not None
        stream = await read_stream(store, shard, record)
        assert stream.state.seq == 7
        snapshot = SnapshotRecord(record.iid, 7, stream.snapshot())
        cut = partial(cuts.cut_history, store, kernel.lane, shard, record.iid, 8, snapshot)
        read = await store.meanwhile(read_stream(store, shard, record), cut)
        assert (read.state, read.snapshot_seq) == (stream.state, 7)


@virtual_time
async def test_cuts_of_one_shard_come_one_after_the_other_and_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "STEP_EVENTS", 2)
    monkeypatch.setattr(lane, "LINGER_SECONDS", 0.0)  # several rows a run: steps end between rows
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, chain())
        key = (await cluster.start("chain", 5)).key
        await cluster.wait(key)
        run = await cluster.engine._kernel.find(key)
        cancelled = asyncio.ensure_future(cut_run(cluster, key, 9))
        others = [asyncio.ensure_future(cut_run(cluster, key, before)) for before in (7, 9, 4, 8)]
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, *others, return_exceptions=True)
        assert not [other for other in others if other.exception()]
        graves = await cluster.store.tombstones(run.shard.id, 0, run.iid)
        assert [grave.first_seq for grave in graves] == [1, *(grave.last_seq + 1 for grave in graves[:-1])]
        assert graves[-1].last_seq == 8
        assert len(graves) > 2
        assert not run.shard.cutting.locked()
