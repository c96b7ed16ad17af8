"""Consumers of events whose shards several orchestrators own: through any of them, over moves and deaths."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from onexflow.core.errors import Draining, InvalidTransition, Unavailable, UnknownGroup, UnknownTopic
from onexflow.core.ids import shard_of_slot
from onexflow.core.payload import Payload
from onexflow.engine.stream import stream_key
from onexflow.ports.events import EventService
from onexflow.testing.clock import virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from support.bus_kit import Reader, publish, stream
from support.engine_kit import until

NAMES = [f"s{number}" for number in range(16)]


async def three(cluster: MultiCluster) -> None:
    """Three members, and everyone has its share."""
    for name in "abc":
        await cluster.add_orchestrator(name)
    await cluster.settled()
    await shared(cluster)


async def shared(cluster: MultiCluster) -> None:
    while len([shards for shards in (await cluster.owned()).values() if shards]) < len(cluster.members):
        await cluster.clock.sleep(1.0)
    await cluster.settled()


def bus(cluster: MultiCluster, name: str) -> EventService:
    """The event bus as a client of that member has it."""
    return cluster.members[name].engine.gateway.events


def shard_of(name: str) -> int:
    return shard_of_slot(stream_key(stream(name)).slot, 8)


async def send(cluster: MultiCluster, through: str, first: int, last: int) -> list[Any]:
    """Publish numbers, one after the other to the streams in turns."""
    values = []
    for number in range(first, last):
        name = NAMES[number % len(NAMES)]
        await persist(cluster, through, name, [name, number])
        values.append([name, number])
    return values


async def persist(cluster: MultiCluster, through: str, name: str, value: Any) -> None:
    """Publish, again while its owner does not answer, as a client would."""
    event_id = cluster.ids.uuid()
    while True:
        try:
            async with asyncio.timeout(2.0):
                await publish(bus(cluster, through), stream(name), value, event_id=event_id)
            return
        except (TimeoutError, Unavailable):
            await cluster.clock.sleep(0.1)


def in_order(values: list[Any]) -> bool:
    """Are those of every stream in order, repeated ones left out?"""
    seen: dict[str, int] = {}
    first = [value for place, value in enumerate(values) if value not in values[:place]]
    return all(number > seen.get(name, -1) and seen.update({name: number}) is None for name, number in first)


@virtual_time
async def test_a_group_and_a_reader_for_himself_have_all_events_through_any_orchestrator() -> None:
    async with MultiCluster(seed=1) as cluster:
        await three(cluster)
        for name in "abc":
            group = await Reader(bus(cluster, name), auto=True, group=f"g-{name}").begin()
            alone = await Reader(bus(cluster, name), auto=True).begin()
            assert group.begun is not None
            assert set(group.begun.positions) == set(range(8)) == set(group.begun.epochs)
            sent = await send(cluster, "b", 0, 32)
            for reader in (group, alone):
                assert sorted(await reader.have(32)) == sorted(sent)
                assert in_order(reader.values)
                reader.close()


@virtual_time
async def test_members_at_different_orchestrators_share_a_groups_events() -> None:
    async with MultiCluster(seed=2) as cluster:
        await three(cluster)
        readers = [await Reader(bus(cluster, name), auto=True, group="g").begin() for name in "abc"]
        sent = await send(cluster, "a", 0, 64)
        await until(lambda: sum(len(reader.got) for reader in readers) >= 64)
        assert sorted(value for reader in readers for value in reader.values) == sorted(sent)
        shards = Counter(shard for reader in readers for shard in {place.shard for place in reader.places})
        assert set(shards.values()) == {1}  # each shard has one member
        [view] = await bus(cluster, "c").list_groups("default")
        assert view.members == 3
        with pytest.raises(InvalidTransition):
            await bus(cluster, "b").delete_group("default", "g")
        for reader in readers:
            reader.close()
        await cluster.clock.sleep(0.1)
        assert await bus(cluster, "c").delete_group("default", "g")
        assert not await bus(cluster, "a").list_groups("default")
        with pytest.raises(UnknownGroup):
            await bus(cluster, "a").requeue_dead_letters("default", "g")


@pytest.mark.parametrize("end", ["kill", "stop", "freeze"])
@pytest.mark.parametrize("group", ["g", ""])
@virtual_time
async def test_a_consumer_does_not_see_that_shards_move(group: str, end: str) -> None:
    async with MultiCluster(seed=3) as cluster:
        await three(cluster)
        reader = await Reader(bus(cluster, "a"), group=group).begin()
        sent = await send(cluster, "b", 0, 32)
        await reader.have(32)
        kept = [place for place in reader.places if place.offset % 2]
        await reader.ack(*[place for place in reader.places if place not in kept])
        if end == "freeze":
            cluster.freeze("c")
        else:
            await getattr(cluster, end)("c")
        sent += await send(cluster, "b", 32, 64)
        await reader.have(64)
        assert reader.values == [
            value for place, value in enumerate(reader.values) if value not in reader.values[:place]
        ]
        await reader.ack()
        assert in_order(reader.values)
        assert sorted(reader.values) == sorted(sent)
        if end == "freeze":
            cluster.thaw("c")
        sent += await send(cluster, "b", 64, 96)
        await reader.have(96)
        await reader.ack()
        assert sorted(reader.values) == sorted(sent)
        if group:  # all is dealt with, whoever owns it
            reader.close()
            await cluster.clock.sleep(0.1)
            again = await Reader(bus(cluster, "b"), group=group).begin()
            await send(cluster, "b", 96, 97)
            assert await again.have(1) == [[NAMES[0], 96]]
            again.close()


@virtual_time
async def test_a_consumer_is_told_when_its_own_orchestrator_stops_and_goes_on_through_another() -> None:
    async with MultiCluster(seed=4) as cluster:
        await three(cluster)
        reader = await Reader(bus(cluster, "c"), auto=True, group="g").begin()
        sent = await send(cluster, "a", 0, 16)
        await reader.have(16)
        await cluster.stop("c")
        assert isinstance(await reader.fails(), Draining)
        sent += await send(cluster, "a", 16, 32)
        other = await Reader(bus(cluster, "b"), auto=True, group="g").begin()
        values = await other.have(16)
        assert all(value in [*reader.values, *values] for value in sent)
        other.close()


@virtual_time
async def test_one_that_joins_takes_part() -> None:
    async with MultiCluster(seed=5) as cluster:
        await three(cluster)
        readers = [await Reader(bus(cluster, "a"), auto=True, group=name).begin() for name in ("g", "")]
        await send(cluster, "a", 0, 16)
        await cluster.add_orchestrator("d")
        await shared(cluster)
        await send(cluster, "d", 16, 48)
        for reader in readers:
            await reader.have(48)
            assert in_order(reader.values)
            assert len(reader.values) == 48
            assert reader.error is None


@virtual_time
async def test_the_window_is_the_consumers_and_what_was_not_given_is_not_counted() -> None:
    async with MultiCluster(seed=6) as cluster:
        await three(cluster)
        await send(cluster, "a", 0, 16)
        for _ in range(6):
            reader = await Reader(bus(cluster, "b"), group="g", start="earliest", window=1).begin()
            await reader.have(1)
            await cluster.clock.sleep(1.0)
            assert len(reader.got) == 1
            reader.close()
            await cluster.clock.sleep(0.1)
        reader = await Reader(bus(cluster, "c"), auto=True, group="g").begin()
        await reader.have(16)
        # What was given six times is one event, or one of each owner: whose part is first is chance.
        assert sum(delivery.attempt - 1 for delivery in reader.got) == 6
        reader.close()


@virtual_time
async def test_a_delivery_that_is_not_answered_comes_again_and_becomes_a_dead_letter() -> None:
    async with MultiCluster(seed=7) as cluster:
        await three(cluster)
        reader = await Reader(bus(cluster, "a"), group="g", ack_timeout=1.0, max_deliveries=3).begin()
        await send(cluster, "a", 0, 3)
        await reader.have(9)
        await cluster.clock.sleep(5.0)
        assert Counter(delivery.attempt for delivery in reader.got) == {1: 3, 2: 3, 3: 3}
        letters = await bus(cluster, "b").list_dead_letters("default", "g")
        assert len(letters) == 3
        assert await bus(cluster, "c").requeue_dead_letters("default", "g") == 3
        await reader.have(12)
        await reader.ack(*set(reader.places))
        assert not await bus(cluster, "b").list_dead_letters("default", "g")
        reader.close()


@virtual_time
async def test_a_projection_is_stored_by_the_owners_of_its_shards() -> None:
    async with MultiCluster(seed=8) as cluster:
        await three(cluster)
        reader = await Reader(bus(cluster, "a"), group="p", start="earliest", projection=True).begin()
        await send(cluster, "b", 0, 16)
        await reader.have(16)
        state = Payload(b"{}")
        for name in NAMES:
            shard = shard_of(name)
            heads = await cluster.store.heads()
            [view] = await bus(cluster, "c").list_groups("default")
            states = {stream(other): state for other in NAMES if shard_of(other) == shard}
            await bus(cluster, "c").save_projection(
                "default", "p", shard, view.positions.get(shard, 0), heads[shard], states
            )
        await cluster.kill("c")
        for name in NAMES:
            for through in "ab":
                found = await bus(cluster, through).load_projection("default", "p", stream(name))
                assert found.state == state
                assert found.offset == found.head
        await bus(cluster, "b").reset_projection("default", "p")
        assert isinstance(await reader.fails(), InvalidTransition)
        for name in NAMES:
            again = await Reader(bus(cluster, "a"), group="p", start="earliest", projection=True).begin()
            assert (await bus(cluster, "b").load_projection("default", "p", stream(name))).state is None
            again.close()


@virtual_time
async def test_topics_are_known_whoever_keeps_them() -> None:
    async with MultiCluster(seed=9) as cluster:
        await three(cluster)
        for number in range(6):
            assert await bus(cluster, "a").create_topic("default", f"t{number}", 4)
            assert not await bus(cluster, "b").create_topic("default", f"t{number}", 4)
        for name in "abc":
            assert len(await bus(cluster, name).list_topics("default")) == 6
        reader = await Reader(bus(cluster, "c"), topics=("t1",)).begin()
        for name in NAMES:
            await publish(bus(cluster, "a"), stream(name), name, topic="t1")
        await reader.have(16)
        assert await bus(cluster, "b").delete_topic("default", "t1")
        assert isinstance(await reader.fails(), UnknownTopic)
        await cluster.clock.sleep(2.0)
        late = await Reader(bus(cluster, "a"), topics=("t1",), start="earliest").begin()
        await publish(bus(cluster, "b"), stream("s0"), "new", topic="t1")
        assert await late.have(1) == ["new"]
        late.close()
