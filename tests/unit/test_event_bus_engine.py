"""The event bus in the engine: external streams and readers for themselves; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.codec.payload import decode_value
from onexflow.core.errors import (
    Draining,
    InvalidArgument,
    InvalidTransition,
    StoreUnavailable,
    UnknownProjection,
    UnknownRun,
)
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.event_records import record_of
from onexflow.engine.protocols import records
from onexflow.engine.protocols.bus_records import event_of
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.engine.stream import stream_key
from onexflow.ports.events import Consume, EventRecord, Filter, Publish
from onexflow.spi import WorkTask
from onexflow.testing import Cluster
from onexflow.testing.clock import virtual_time
from support.bus_kit import Reader, publish, stream, uuid
from support.engine_kit import Script, ready, single


async def restart(cluster: Cluster) -> None:
    await cluster.crash_orchestrator()
    await cluster.restart_orchestrator()


# ---- publishing


@virtual_time
async def test_the_bus_numbers_and_takes_numbers_above_the_head() -> None:
    async with Cluster(seed=1) as cluster:
        bus, key = cluster.engine.events, stream()
        assert [(await publish(bus, key, n)).sequence for n in range(2)] == [1, 2]
        assert (await publish(bus, key, 2, sequence=7)).sequence == 7
        assert (await publish(bus, key, 3)).sequence == 8
        with pytest.raises(InvalidTransition) as refused:
            await publish(bus, key, 4, sequence=5)
        assert {"current_state", "required_state"} <= set(refused.value.context)
        found = await bus.read_events(key)
        assert [(event.sequence, decode_value(event.payload)) for event in found] == [(1, 0), (2, 1), (7, 2), (8, 3)]
        assert [event.sequence for event in await bus.read_events(key, 3, 7)] == [7]
        assert [event.sequence for event in await bus.read_events(key, 2, None, 2)] == [2, 7]
        assert await bus.read_events(key, 9) == []
        assert await bus.read_events(key, 0) == found
        with pytest.raises(UnknownRun):
            await bus.read_events(stream("nobody"))


@virtual_time
async def test_the_same_event_is_published_once_before_and_after_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        bus, key = cluster.engine.events, stream()
        first = await publish(bus, key, 1, event_id=uuid("a"))
        by_key = await publish(bus, key, 2, idempotency_key="k/1")
        for _ in range(2):
            bus = cluster.engine.events
            again = await publish(bus, key, 1, event_id=uuid("a"))
            assert (again.created, again.position, again.sequence) == (False, first.position, 1)
            again = await publish(bus, key, "other", event_id=uuid("b"), idempotency_key="k/1", sequence=40)
            assert (again.created, again.position) == (False, by_key.position)
            # Elsewhere both are new.
            assert len(await bus.read_events(key)) == 2
            # An id is a key too, as long as its event has no other.
            as_key = await publish(bus, key, 1, event_id=uuid("c"), idempotency_key=str(uuid("a")))
            assert (as_key.created, as_key.position) == (False, first.position)
            await restart(cluster)
        bus = cluster.engine.events
        assert (await publish(bus, key, 3, event_id=uuid("d"), idempotency_key="k/2")).sequence == 3
        assert (await publish(bus, key, 4, event_id=uuid("e"), idempotency_key=str(uuid("d")))).sequence == 4
        assert (await publish(bus, stream("b"), 1, idempotency_key="k/1")).created
        assert (await publish(bus, key, 5)).sequence == 5


@virtual_time
async def test_many_at_once_get_different_numbers_and_one_event_is_made_once() -> None:
    async with Cluster(seed=1) as cluster:
        bus, key = cluster.engine.events, stream()
        done = await asyncio.gather(*(publish(bus, key, n, event_id=uuid(str(n % 50))) for n in range(100)))
        assert sorted(one.sequence for one in done if one.created) == list(range(1, 51))
        assert len(await bus.read_events(key)) == 50


@virtual_time
async def test_one_event_id_in_two_streams_and_two_namespaces() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        keys = [stream(str(n)) for n in range(20)] + [stream("0", namespace="other")]
        for key in keys:
            assert (await publish(bus, key, event_id=uuid("same"))).created
        for key in keys:
            assert not (await publish(bus, key, event_id=uuid("same"))).created
        found = await bus.find_event("other", uuid("same"))
        assert found is not None
        assert found.event.key == keys[-1]
        assert await bus.find_event("third", uuid("same")) is None


@virtual_time
async def test_a_run_is_written_by_its_orchestrator_alone() -> None:
    async with Cluster(seed=1) as cluster:
        script = Script()
        await ready(cluster, script, single("compute", "calc"))
        bus = cluster.engine.events
        started = await cluster.start("single", {"a": 1})
        await cluster.result(started.key)
        recorded = await bus.read_events(started.key)
        assert len(recorded) >= 5
        with pytest.raises(InvalidTransition) as refused:
            await publish(bus, started.key, 1, sequence=99)
        assert refused.value.context["required_state"]
        same = await bus.publish_event(Publish(event=recorded[2]))
        assert (same.created, same.sequence) == (False, 3)
        head = len(recorded)
        assert len(await bus.read_events(started.key)) == head


@virtual_time
async def test_events_of_a_run_are_those_of_its_history() -> None:
    async with Cluster(seed=1) as cluster:
        script = Script()
        await ready(cluster, script, single("compute", "calc"))
        reader = await Reader(cluster.engine.events, topics=("single",)).begin()
        started = await cluster.start("single", {"a": 1}, correlation_id="c-1")
        await cluster.result(started.key)
        history = await cluster.history(started.key)
        await reader.have(len(history))
        expected = [record_of(view, started.key, "c-1", "") for view in history]
        assert [delivery.event for delivery in reader.got] == expected
        assert list(await cluster.engine.events.read_events(started.key)) == expected
        for view, record in zip(history, expected, strict=True):
            assert event_of(record) == records.event_of(view, started.key, "c-1", "")
        # Also when nothing of it is in memory any more.
        await restart(cluster)
        again = Reader(cluster.engine.events, topics=("single",), start="earliest")
        await again.have(len(history))
        assert [delivery.event for delivery in again.got] == expected


@virtual_time
async def test_what_is_wrong_is_refused() -> None:
    async with Cluster(seed=1, payload_limit=1000) as cluster:
        bus = cluster.engine.events
        wrong: list[dict[str, Any]] = [
            {"type": ""}, {"sequence": -1}, {"topic": "$x"}, {"source": "x" * 300}, {"correlation_id": "\ud800"},
            {"type": "x" * 256}, {"sequence": 1 << 62}, {"timestamp": -1}, {"timestamp": 1 << 70},
            {"correlation_chain": ("x",) * 300}, {"partition_key": "\udfff"}, {"idempotency_key": "x" * 1021},
        ]  # fmt: skip
        for fields in wrong:
            with pytest.raises(InvalidArgument):
                await publish(bus, stream(), 1, **fields)
        for key in (stream(workflow_type=""), stream(workflow_type="$queue")):
            with pytest.raises(InvalidArgument):
                await publish(bus, key)
        with pytest.raises(InvalidArgument):
            await publish(bus, stream(), "x" * 1000)
        with pytest.raises(InvalidArgument):
            await bus.publish_event(Publish(event=EventRecord(key=stream(), type="t", payload=Payload(b"{"))))
        for window, timeout in ((0, 1.0), (1, -1.0), (100_000, 1.0)):
            with pytest.raises(InvalidArgument):
                bus.consume(Consume(filter=Filter(), window=window, ack_timeout=timeout), lambda _: None)
        for where in (Filter(topics=("\ud800",)), Filter(namespace=""), Filter(event_types=("x",) * 1001)):
            with pytest.raises(InvalidArgument):
                bus.consume(Consume(filter=where), lambda _: None)
        for positions in ({0: -1}, {0: 1 << 70}):
            with pytest.raises(InvalidArgument):
                bus.consume(Consume(filter=Filter(), positions=positions), lambda _: None)
        for call in (
            bus.create_topic("default", "\ud800", 1), bus.delete_topic("default", ""), bus.delete_group("", "x"),
            bus.list_dead_letters("default", "x" * 300), bus.find_event("\ud800", uuid("x")),
            bus.load_projection("default", "\ud800", stream()), bus.reset_projection("", "x"),
            bus.read_events(stream(namespace="\ud800")), bus.read_events(stream(), -1), bus.read_events(stream(), limit=0),
        ):  # fmt: skip
            with pytest.raises((InvalidArgument, UnknownProjection)):
                await call
        with pytest.raises(UnknownRun):
            await bus.read_events(stream(), 1 << 80)
        with pytest.raises(UnknownRun):
            await bus.read_events(stream())
        for key in (stream_key(stream()), RunKey("default", "$queue", stream().instance_id)):
            with pytest.raises(UnknownRun):
                await bus.read_events(key)


# ---- readers for themselves


@virtual_time
async def test_a_reader_gets_what_matches_from_now_or_from_the_start() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        for n in range(3):
            await publish(bus, stream(str(n)), n)
        late = await Reader(bus, auto=True).begin()
        early = await Reader(bus, start="earliest", auto=True).begin()
        typed = await Reader(bus, event_types=("task.failed",)).begin()
        other = await Reader(bus, topics=("elsewhere",)).begin()
        foreign = await Reader(bus, namespace="other", start="earliest").begin()
        await publish(bus, stream("0"), 3)
        await publish(bus, stream("0"), 4, type="task.failed", topic="elsewhere")
        assert sorted(await early.have(5)) == [0, 1, 2, 3, 4]
        assert await late.have(2) == [3, 4]
        assert await typed.have(1) == await other.have(1) == [4]
        await asyncio.sleep(1)
        assert foreign.got == []
        # Who waits for the heads of his beginning is told when he has come there, also when nothing matched.
        assert foreign.begun is not None
        assert all(foreign.reached[shard] >= head for shard, head in foreign.begun.heads.items())
        durable = {shard.id: shard.durable for shard in cluster.engine._kernel.shards.values()}
        assert foreign.reached == early.reached == durable


@virtual_time
async def test_a_window_bounds_what_is_unanswered_and_hurts_nobody_else() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        slow = await Reader(bus, window=3).begin()
        quick = await Reader(bus, window=3, auto=True).begin()
        for n in range(20):
            await publish(bus, stream(str(n % 5)), n)
        await quick.have(20)
        await asyncio.sleep(10)
        assert len(slow.got) == 3
        await slow.ack(slow.places[0])
        await slow.have(4)
        await asyncio.sleep(1)
        assert len(slow.got) == 4
        while len(slow.got) < 20:
            await slow.ack()
            await asyncio.sleep(0.1)
        assert sorted(slow.values) == list(range(20))


@virtual_time
async def test_a_window_is_bounded_in_bytes_too() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g").begin()
        for n in range(12):
            await publish(bus, stream(str(n)), {"n": n, "pad": "x" * 2_000_000})
        await asyncio.sleep(1)
        assert 8 <= len(reader.got) <= 10
        await reader.ack()
        await reader.have(12)
        assert sorted(value["n"] for value in reader.values) == list(range(12))


@virtual_time
async def test_a_reader_goes_on_from_its_positions() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, auto=True).begin()
        for n in range(4):
            await publish(bus, stream(), n)
        await reader.have(4)
        await restart(cluster)
        await publish(cluster.engine.events, stream(), 4)
        place = reader.places[2]
        assert reader.begun is not None
        positions = {**reader.begun.positions, place.shard: place.offset}
        again = Reader(cluster.engine.events, positions=positions)
        assert await again.have(3) == [2, 3, 4]


@virtual_time
async def test_a_listener_that_fails_ends_alone() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events

        def broken(told: object) -> None:
            raise RuntimeError("broken")

        bus.consume(Consume(filter=Filter()), broken)
        good = await Reader(bus).begin()
        await publish(bus, stream(), 1)
        assert await good.have(1) == [1]


@virtual_time
async def test_readers_are_told_the_end() -> None:
    async with Cluster(seed=1) as cluster:
        reader = await Reader(cluster.engine.events).begin()
        member = await Reader(cluster.engine.events, group="g").begin()
        await cluster.stop_orchestrator()
        assert isinstance(reader.error, Draining)
        assert isinstance(member.error, Draining)
        await cluster.restart_orchestrator()
        lost = await Reader(cluster.engine.events).begin()
        await cluster.crash_orchestrator()
        assert isinstance(lost.error, StoreUnavailable)
        await cluster.restart_orchestrator()


@virtual_time
async def test_events_of_runs_and_streams_are_not_mixed_up_with_queues() -> None:
    async with Cluster(seed=1) as cluster:
        reader = await Reader(cluster.engine.events).begin()
        await WorkQueue(cluster.engine).enqueue_task(WorkTask(task_id="t"))
        await publish(cluster.engine.events, stream(), 1)
        assert await reader.have(1) == [1]
        await restart(cluster)  # both are in the log behind the checkpoint
        assert (await cluster.engine.list_runs("default"))[0] == []
        assert len(await cluster.engine.events.read_events(stream())) == 1
