"""Topics, projections and cut histories as the event bus in the engine sees them; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    OutOfRange,
    UnknownProjection,
    UnknownTopic,
)
from onexflow.core.payload import Payload
from onexflow.engine.events.topics import partition_of
from onexflow.testing import Cluster
from onexflow.testing.clock import virtual_time
from support.bus_kit import Reader, cut, publish, stream


async def restart(cluster: Cluster) -> None:
    await cluster.crash_orchestrator()
    await cluster.restart_orchestrator()


# ---- cuts


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
