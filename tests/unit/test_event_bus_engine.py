"""The event bus in the engine: external streams, groups, dead letters, topics, projections; in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.errors import (
    Draining,
    InvalidArgument,
    InvalidTransition,
    OutOfRange,
    StoreUnavailable,
    UnknownGroup,
    UnknownProjection,
    UnknownRun,
    UnknownTopic,
)
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.cuts import cut_history
from onexflow.engine.event_records import record_of
from onexflow.engine.events import reader as engine_reader
from onexflow.engine.events.topics import partition_of
from onexflow.engine.protocols import records
from onexflow.engine.protocols.bus_records import event_of
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.engine.stream import stream_key
from onexflow.ports.event_store import SnapshotRecord
from onexflow.ports.events import Consume, EventRecord, Filter, Position, Publish
from onexflow.spi import WorkTask
from onexflow.testing import Cluster
from onexflow.testing.clock import VirtualClock, virtual_time
from support.bus_kit import Reader, publish, stream, uuid
from support.engine_kit import Script, ready, single, until


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
            await restart(cluster)
        assert (await publish(cluster.engine.events, stream("b"), 1, idempotency_key="k/1")).created
        assert (await publish(cluster.engine.events, key, 3)).sequence == 3


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
            {"type": "x" * 256},
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


# ---- groups


@virtual_time
async def test_a_group_goes_on_where_it_was() -> None:
    async with Cluster(seed=1) as cluster:
        first = await Reader(cluster.engine.events, group="g").begin()
        for n in range(6):
            await publish(cluster.engine.events, stream(), n)
        await first.have(6)
        await first.ack(first.places[0], first.places[1], first.places[3])
        await restart(cluster)
        await publish(cluster.engine.events, stream(), 6)
        second = Reader(cluster.engine.events, group="g")
        assert await second.have(4) == [2, 4, 5, 6]
        assert [delivery.attempt for delivery in second.got] == [2, 2, 2, 1]
        await second.ack()
        second.close()
        third = await Reader(cluster.engine.events, group="g").begin()
        await asyncio.sleep(1)
        assert third.got == []
        assert (await cluster.engine.events.list_groups("default"))[0].lag == 0


@virtual_time
async def test_a_new_group_begins_where_it_says_and_misses_nothing_while_nobody_is_there() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        await publish(bus, stream(), 0)
        late = await Reader(bus, group="late").begin()
        early = await Reader(bus, group="early", start="earliest").begin()
        late.close()
        early.close()
        await restart(cluster)
        bus = cluster.engine.events
        await publish(bus, stream(), 1)
        assert await Reader(bus, group="late", start="earliest").have(1) == [1]
        assert await Reader(bus, group="early").have(2) == [0, 1]


@virtual_time
async def test_members_share_shards_and_a_shard_moves_when_it_is_answered() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        keys = [stream(str(n)) for n in range(40)]
        one = await Reader(bus, group="g").begin()
        for n, key in enumerate(keys):
            await publish(bus, key, n)
        await one.have(40)
        two = await Reader(bus, group="g").begin()
        for n, key in enumerate(keys):
            await publish(bus, key, 100 + n)
        await asyncio.sleep(1)
        assert two.got == []  # all its shards have unanswered deliveries of the first member's
        held = {place.shard for place in one.places}
        await one.ack()
        await until(lambda: len(one.got) + len(two.got) >= 80)
        of_two = {place.shard for place in two.places}
        assert 3 <= len(of_two) <= 5
        later = {delivery.position.shard for delivery in one.got[40:]}
        assert not later & of_two
        assert later | of_two == held
        # Nothing came twice, and each stream's events in order.
        for key in keys:
            values = [v for r in (one, two) for v, d in zip(r.values, r.got, strict=True) if d.event.key == key]
            assert values == sorted(values)
        assert len({*one.places, *two.places}) == 80
        two.close()
        await one.have(80)
        assert sorted(one.values[40:]) == list(range(100, 140))


@virtual_time
async def test_what_is_not_answered_in_time_comes_again() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g", ack_timeout=5.0, max_deliveries=0).begin()
        await publish(bus, stream(), 1)
        began = cluster.clock.monotonic()
        await reader.have(3)
        assert 9.9 < cluster.clock.monotonic() - began < 11
        assert [delivery.attempt for delivery in reader.got] == [1, 2, 3]
        patient = await Reader(bus, group="h", ack_timeout=0.0, start="earliest").begin()
        await patient.have(1)
        await asyncio.sleep(600)
        assert len(patient.got) == 1


@virtual_time
async def test_a_rejected_delivery_comes_again_after_its_delay_and_then_is_a_dead_letter() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g", max_deliveries=3).begin()
        published = await publish(bus, stream(), "poison", event_id=uuid("p"))
        await publish(bus, stream(), "good")
        times = []
        for count in (1, 3, 4):  # the good one is the second
            await reader.have(count)
            times.append(cluster.clock.monotonic())
            reader.reject(published.position, delay=10.0)
        assert [round(later - earlier) for earlier, later in pairwise(times)] == [10, 10]
        await reader.ack(reader.places[1])
        [letter] = await bus.list_dead_letters("default", "g")
        assert (letter.delivery.attempt, letter.error.type, letter.delivery.position) == (3, "Oops", published.position)
        status = await bus.find_event("default", uuid("p"))
        assert status is not None
        assert (status.dead, status.pending, status.acknowledged) == (("g",), (), ())
        await restart(cluster)
        bus = cluster.engine.events
        again = await Reader(bus, group="g").begin()
        await asyncio.sleep(60)
        assert again.got == []
        assert await bus.requeue_dead_letters("default", "g") == 1
        assert await again.have(1) == ["poison"]
        assert again.got[0].attempt == 1
        await again.ack()
        assert await bus.list_dead_letters("default", "g") == []
        status = await bus.find_event("default", uuid("p"))
        assert status is not None
        assert status.acknowledged == ("g",)


@virtual_time
async def test_a_buried_delivery_is_a_dead_letter_at_once() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        group = await Reader(bus, group="g/with slash").begin()
        alone = await Reader(bus).begin()
        await publish(bus, stream(), {"n": 1})
        for reader in (group, alone):
            await reader.have(1)
            await reader.bury(reader.places[0])
        await restart(cluster)
        bus = cluster.engine.events
        for name in ("g/with slash", ""):
            [letter] = await bus.list_dead_letters("default", name)
            assert decode_value(letter.delivery.event.payload) == {"n": 1}
        assert await bus.list_dead_letters("other", "") == []
        with pytest.raises(InvalidTransition):
            await bus.requeue_dead_letters("default", "")
        with pytest.raises(UnknownGroup):
            await bus.requeue_dead_letters("default", "nobody")
        alone = await Reader(bus).begin()
        assert await bus.requeue_dead_letters("default", "", [group.places[0], Position(0, 77)]) == 1
        assert await alone.have(1) == [{"n": 1}]
        assert await bus.discard_dead_letters("default", "g/with slash") == 1
        assert (await bus.list_groups("default"))[0].dead_letters == 0


@virtual_time
async def test_a_consumer_that_is_lost_too_often_leaves_a_dead_letter() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        for attempt in (1, 2):
            reader = await Reader(bus, group="g", start="earliest", max_deliveries=2).begin()
            if attempt == 1:
                await publish(bus, stream(), "poison")
            await reader.have(1)
            reader.close()
        last = await Reader(bus, group="g").begin()
        await asyncio.sleep(1)
        assert last.got == []
        assert (await bus.list_dead_letters("default", "g"))[0].error.type == "ConsumerLost"


@virtual_time
async def test_the_number_of_those_that_wait_is_bounded() -> None:
    limit = 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_reader, "MAX_OPEN", limit)
        await wait_for_more_than(limit)


async def wait_for_more_than(limit: int) -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g", max_deliveries=0, window=10_000).begin()
        await asyncio.gather(*(publish(bus, stream(), n) for n in range(limit + 50)))
        await reader.have(limit)
        for place in reader.places:
            reader.reject(place, delay=1000.0)
        await asyncio.sleep(100)
        assert len(reader.got) == limit
        await asyncio.sleep(1000)
        await reader.ack()
        await until(lambda: len(set(reader.places)) == limit + 50)


@virtual_time
async def test_groups_are_listed_and_deleted() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g", topics=("ext",)).begin()
        for n in range(3):
            await publish(bus, stream(), n)
        await reader.have(3)
        await reader.ack(reader.places[0])
        [view] = await bus.list_groups("default")
        assert (view.name, view.members, view.unanswered, view.lag) == ("g", 1, 2, 2)
        assert view.positions[reader.places[0].shard] == reader.places[1].offset
        assert await bus.list_groups("other") == []
        with pytest.raises(InvalidTransition):
            await bus.delete_group("default", "g")
        with pytest.raises(InvalidTransition):
            Reader(bus, group="g", topics=("else",))
        await reader.bury(reader.places[1])
        reader.close()
        assert await bus.delete_group("default", "g")
        assert not await bus.delete_group("default", "g")
        assert await bus.list_groups("default") == []
        assert await bus.list_dead_letters("default", "g") == []
        await restart(cluster)
        bus = cluster.engine.events
        assert await bus.list_groups("default") == []
        fresh = await Reader(bus, group="g", start="earliest").begin()
        assert await fresh.have(3) == [0, 1, 2]


@virtual_time
async def test_what_became_of_an_event() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        done = await Reader(bus, group="done").begin()
        slow = await Reader(bus, group="slow").begin()
        other = await Reader(bus, group="other", topics=("x",)).begin()
        await publish(bus, stream(), 1, event_id=uuid("e"))
        await Reader(bus, group="too-late").begin()
        for reader in (done, slow):
            await reader.have(1)
        await done.ack()
        status = await bus.find_event("default", uuid("e"))
        assert status is not None
        assert (status.acknowledged, status.pending, status.dead) == (("done",), ("slow",), ())
        assert other.got == []
        assert status.event.event_id == uuid("e")


@virtual_time
async def test_cleaning_is_held_back_for_who_still_has_to_read() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        assert bus.held(0, stream()) is None
        reader = await Reader(bus, group="g", topics=("single",)).begin()
        script = Script()
        await ready(cluster, script, single("compute", "calc"))
        started = await cluster.start("single", {})
        await cluster.result(started.key)
        await reader.have(1)
        place = reader.places[0]
        assert bus.held(place.shard, started.key) == place.offset
        assert bus.held(place.shard, stream()) is None
        assert bus.held(place.shard, stream_key(stream())) == place.offset
        reader.close()
        assert isinstance(cluster.clock, VirtualClock)
        cluster.clock.skew += 8 * 86_400
        assert bus.held(place.shard, started.key) is None
        await Reader(bus, group="g", topics=("single",)).begin()
        assert bus.held(place.shard, started.key) == place.offset


# ---- cuts


async def cut(cluster: Cluster, key: RunKey, before: int) -> None:
    """As persistence does it, whatever it asks first."""
    kernel = cluster.engine._kernel
    external = await cluster.engine.events._publisher.stream(key)
    assert external is not None
    snapshot = SnapshotRecord(external.iid, external.state.seq, external.snapshot())
    await cut_history(kernel.store, kernel.lane, external.shard, external.iid, before, snapshot)


@virtual_time
async def test_reading_behind_a_cut_is_out_of_range() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        for n in range(1, 6):
            await publish(bus, stream(), n, sequence=2 * n)
        await cut(cluster, stream(), 3)  # events 2 and 4
        for first in (0, 1, 4, 5):
            with pytest.raises(OutOfRange) as refused:
                await bus.read_events(stream(), first)
            assert refused.value.context["earliest"] == 6
        assert [event.sequence for event in await bus.read_events(stream(), 6)] == [6, 8, 10]
        await cut(cluster, stream(), 6)
        await restart(cluster)
        bus = cluster.engine.events
        with pytest.raises(OutOfRange):
            await bus.read_events(stream(), 10)
        assert await bus.read_events(stream(), 11) == []
        assert (await publish(bus, stream(), "next")).sequence == 11
        assert [event.sequence for event in await bus.read_events(stream(), 11)] == [11]


@virtual_time
async def test_a_group_is_told_once_of_what_was_cut_away_from_it() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        (await Reader(bus, group="g").begin()).close()
        (await Reader(bus, group="h", topics=("x",)).begin()).close()
        for n in range(4):
            await publish(bus, stream(), n)
        await publish(bus, stream("b", "x"), "x")
        await cut(cluster, stream(), 3)
        await restart(cluster)
        bus = cluster.engine.events
        error = await Reader(bus, group="g").fails()
        assert isinstance(error, OutOfRange)
        assert error.context["earliest"] > error.context["position"]
        assert sorted(map(str, await Reader(bus, group="g").have(3))) == ["2", "3", "x"]
        early = await Reader(bus, start="earliest").begin()
        assert sorted(map(str, await early.have(3))) == ["2", "3", "x"]
        positions = dict.fromkeys(range(8), 1)
        assert isinstance(await Reader(bus, positions=positions).fails(), OutOfRange)


@virtual_time
async def test_a_reader_that_is_there_is_told_of_a_cut_before_it() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, window=1).begin()
        dealt = await Reader(bus, auto=True).begin()
        for n in range(4):
            await publish(bus, stream(), n)
        await reader.have(1)
        await dealt.have(4)
        await cut(cluster, stream(), 4)
        reader.consumer.ack(reader.places)
        assert isinstance(await reader.fails(), OutOfRange)
        await publish(bus, stream(), 4)
        assert (await dealt.have(5))[-1] == 4


# ---- topics


@virtual_time
async def test_topics_have_partitions_and_targets() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        assert await bus.create_topic("default", "ext", 8)
        assert not await bus.create_topic("default", "ext", 4)
        assert await bus.create_topic("other", "ext", 2)
        for count in (0, -1, 1 << 40):
            with pytest.raises(InvalidArgument):
                await bus.create_topic("default", "wrong", count)
        key = stream()
        plain = await publish(bus, key, 1)
        keyed = await publish(bus, key, 2, partition_key="k")
        assert plain.partition == partition_of(str(key.instance_id), 8)
        assert keyed.partition == partition_of("k", 8)
        aimed = await publish(bus, key, 3, topic="audit/log")
        assert (aimed.topic, aimed.partition) == ("audit/log", 0)
        await restart(cluster)
        views = {view.name: view.partitions for view in await cluster.engine.events.list_topics("default")}
        assert views == {"audit/log": 1, "ext": 8}
        assert (await publish(cluster.engine.events, key, 4)).partition == plain.partition


@virtual_time
async def test_a_deleted_topic_ends_its_consumers_and_a_later_one_begins_anew() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        assert not await bus.delete_topic("default", "ext")
        await publish(bus, stream(), "old")
        waits = await Reader(bus, topics=("ext",)).begin()
        all_topics = await Reader(bus, start="earliest").begin()
        group = await Reader(bus, group="g", topics=("ext", "x"), start="earliest").begin()
        await group.have(1)
        assert await bus.delete_topic("default", "ext")
        assert isinstance(await waits.fails(), UnknownTopic)
        assert isinstance(await group.fails(), UnknownTopic)
        assert all_topics.error is None
        assert await bus.list_topics("default") == []
        await restart(cluster)
        bus = cluster.engine.events
        await publish(bus, stream(), "new")
        assert [view.name for view in await bus.list_topics("default")] == ["ext"]
        early = await Reader(bus, topics=("ext",), start="earliest").begin()
        assert await early.have(1) == ["new"]
        assert await Reader(bus, group="g", topics=("ext", "x")).have(1) == ["new"]
        # The stream's own history has both.
        assert len(await bus.read_events(stream())) == 2


# ---- projections


async def projecting(cluster: Cluster, name: str = "p", **fields: Any) -> Reader:
    return await Reader(
        cluster.engine.events, group=name, projection=True, start="earliest", **fields
    ).begin()  # fmt: skip


@virtual_time
async def test_a_projection_stores_states_with_its_position() -> None:
    async with Cluster(seed=1) as cluster:
        bus, key = cluster.engine.events, stream()
        with pytest.raises(UnknownProjection):
            await bus.load_projection("default", "p", key)
        reader = await projecting(cluster)
        await publish(bus, key, 1)
        await publish(bus, key, 2)
        await reader.have(2)
        shard = reader.places[0].shard
        before = await bus.load_projection("default", "p", key)
        assert (before.state, before.offset, before.shard) == (None, 1, shard)
        state = encode_value({"sum": 1})
        await bus.save_projection("default", "p", shard, 0, 2, {key: state})
        await bus.save_projection("default", "p", shard, 0, 2, {key: state})  # the same again, as a repeated call
        for expected, offset in ((0, 3), (5, 6)):
            with pytest.raises(InvalidTransition):
                await bus.save_projection("default", "p", shard, expected, offset, {key: encode_value(0)})
        with pytest.raises(InvalidArgument):
            await bus.save_projection("default", "p", shard, 2, 99, {})
        loaded = await bus.load_projection("default", "p", key)
        assert (loaded.state, loaded.offset, loaded.head) == (state, 2, 3)
        await restart(cluster)
        bus = cluster.engine.events
        assert await bus.load_projection("default", "p", key) == loaded
        again = await projecting(cluster)
        assert await again.have(1) == [2]
        await bus.save_projection("default", "p", shard, 2, 3, {key: Payload(b"")})
        assert (await bus.load_projection("default", "p", key)).state is None
        assert (await bus.list_groups("default"))[0].projection


@virtual_time
async def test_a_projections_acks_open_its_window_and_a_rejected_event_holds_the_later_ones() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await projecting(cluster, window=2)
        for n in range(5):
            await publish(bus, stream(), n)
        assert await reader.have(2) == [0, 1]
        await reader.ack()
        assert await reader.have(4) == [0, 1, 2, 3]
        reader.reject(reader.places[2], delay=5.0)
        await asyncio.sleep(4)
        assert len(reader.got) == 4
        assert (await reader.have(6))[4:] == [2, 3]
        await reader.ack()
        assert (await reader.have(7))[6:] == [4]
        # Nothing was stored: who comes next begins at the start.
        reader.close()
        assert (await (await projecting(cluster)).have(5)) == [0, 1, 2, 3, 4]


@virtual_time
async def test_a_projection_is_reset() -> None:
    async with Cluster(seed=1) as cluster:
        bus, key = cluster.engine.events, stream()
        reader = await projecting(cluster)
        await publish(bus, key, 1)
        await reader.have(1)
        shard = reader.places[0].shard
        await bus.save_projection("default", "p", shard, 0, 2, {key: encode_value("old")})
        await bus.reset_projection("default", "p")
        assert isinstance(reader.error, InvalidTransition)
        loaded = await bus.load_projection("default", "p", key)
        assert (loaded.state, loaded.offset) == (None, 1)
        with pytest.raises(InvalidTransition):
            await bus.save_projection("default", "p", shard, 2, 2, {key: encode_value("zombie")})
        await restart(cluster)
        again = await projecting(cluster)
        assert await again.have(1) == [1]
        assert (await cluster.engine.events.load_projection("default", "p", key)).state is None
        again.close()
        assert await cluster.engine.events.delete_group("default", "p")
        with pytest.raises(UnknownProjection):
            await cluster.engine.events.reset_projection("default", "p")


@virtual_time
async def test_group_and_projection_do_not_share_a_name() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        await projecting(cluster, "p")
        with pytest.raises(InvalidTransition):
            Reader(bus, group="p")
        with pytest.raises(InvalidArgument):
            Reader(bus, projection=True)
        with pytest.raises(InvalidTransition):
            await bus.requeue_dead_letters("default", "p")
