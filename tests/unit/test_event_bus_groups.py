"""Groups of the event bus in the engine: members, redelivery, dead letters, what they hold back; in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from onexflow.codec.payload import decode_value
from onexflow.core.errors import (
    InvalidTransition,
    UnknownGroup,
)
from onexflow.core.payload import Failure
from onexflow.engine.events import reader as engine_reader
from onexflow.engine.stream import stream_key
from onexflow.ports.events import Position
from onexflow.testing import Cluster
from onexflow.testing.clock import VirtualClock, virtual_time
from support.bus_kit import Reader, publish, stream, uuid
from support.engine_kit import Script, ready, single, until


async def restart(cluster: Cluster) -> None:
    await cluster.crash_orchestrator()
    await cluster.restart_orchestrator()


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
async def test_a_dead_letter_holds_whatever_a_handler_raised() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g").begin()
        await publish(bus, stream(), 1)
        await reader.have(1)
        error = Failure("Ooop\ud800", "m\udfff", context={"n": 1 << 80, "object": object(), "text": "\ud800"})
        reader.consumer.bury(reader.places[0], error)
        [letter] = await bus.list_dead_letters("default", "g")
        assert letter.error.type == "Ooop?"


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
        await asyncio.sleep(0)  # the engine reads the time once in each turn of the loop
        assert bus.held(place.shard, started.key) is None
        await Reader(bus, group="g", topics=("single",)).begin()
        assert bus.held(place.shard, started.key) == place.offset
