"""The joining of a consumer's parts, step by step: the owners are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from onexflow.core.errors import ShardMoved, Unavailable
from onexflow.core.payload import Failure
from onexflow.engine.events.deliveries import NOT_GIVEN
from onexflow.engine.events.joined import BEGUN_WITHIN, JoinedConsumer
from onexflow.ports.events import (
    Begun,
    Consume,
    ConsumeListener,
    Delivery,
    Done,
    EventRecord,
    EventService,
    Filter,
    Left,
    Position,
    Reached,
    Told,
)
from onexflow.testing.clock import virtual_time
from support.bus_kit import stream
from support.engine_kit import until


class Owner:
    """The event bus of one orchestrator, and the newest part that it was asked for."""

    def __init__(self) -> None:
        self.requests: list[Consume] = []
        self.acks: list[Position] = []
        self.rejects: list[tuple[Position, Failure]] = []
        self.dones: list[Done] = []
        self.keeps = True  #: says that acknowledgements are durable
        self.closed = 0
        self._tell: ConsumeListener | None = None

    def consume(self, request: Consume, listener: ConsumeListener) -> Owner:
        self.requests.append(request)
        self._tell = listener
        return self

    def ack(self, positions: Sequence[Position], done: Done | None = None) -> None:
        self.acks.extend(positions)
        if done is not None:
            self.dones.append(done)
            if self.keeps:
                done(None)

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        self.rejects.append((position, error))

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1

    def tell(self, told: Told) -> None:
        assert self._tell is not None
        self._tell(told)

    def begin(self, epoch: int, **shards: int) -> None:
        """Say from where it reads: s0=1 is shard 0 from 1 on."""
        positions = {int(name[1:]): offset for name, offset in shards.items()}
        self.tell(Begun(positions=positions, heads=dict(positions), epochs=dict.fromkeys(positions, epoch)))

    def bring(self, shard: int, *offsets: int) -> None:
        event = EventRecord(key=stream(), type="task.completed")
        self.tell(
            [
                Delivery(
                    position=Position(shard, offset), event=event, topic="t", partition=0, partition_key=""
                )
                for offset in offsets
            ]
        )  # fmt: skip


class Joined:
    """A consumer of two shards and two owners."""

    def __init__(self, **fields: Any) -> None:
        self.own, self.other = Owner(), Owner()
        self.told: list[Told] = []
        self.got: list[Position] = []
        services = {"": cast("EventService", self.own), "other": cast("EventService", self.other)}
        request = Consume(filter=Filter(), **fields)
        self.consumer = JoinedConsumer(request, self._told, lambda: services, 2, lambda _: None)
        self.consumer.look()

    def _told(self, told: Told) -> None:
        if isinstance(told, Sequence):
            self.got.extend(delivery.position for delivery in told)
        else:
            self.told.append(told)

    def begin(self) -> Joined:
        self.own.begin(1, s0=1)
        self.other.begin(1, s1=1)
        return self


@virtual_time
async def test_it_begins_when_every_shard_has_an_owner() -> None:
    joined = Joined(group="g")
    joined.own.begin(1, s0=1)
    joined.own.bring(0, 1)
    assert joined.told == []
    assert joined.got == []
    joined.other.begin(3, s1=7)
    assert joined.told == [Begun(positions={0: 1, 1: 7}, heads={0: 1, 1: 7}, epochs={0: 1, 1: 3})]
    assert joined.got == [(0, 1)]


@virtual_time
async def test_one_that_does_not_know_that_it_was_deposed_is_not_listened_to() -> None:
    joined = Joined(group="g").begin()
    joined.other.begin(5, s0=1)
    joined.own.bring(0, 1)
    joined.own.begin(4, s0=1)
    joined.own.bring(0, 1)
    assert joined.got == []
    joined.other.bring(0, 1)
    joined.consumer.ack([Position(0, 1)])
    assert joined.got == [(0, 1)]
    assert (joined.own.acks, joined.other.acks) == ([], [(0, 1)])


@virtual_time
async def test_what_the_last_owner_has_not_stored_is_said_to_the_next() -> None:
    joined = Joined(group="g").begin()
    joined.own.keeps = False
    joined.own.bring(0, 1, 2)
    done: list[object] = []
    joined.consumer.ack([Position(0, 1)], done.append)
    joined.own.tell(Left(shards=(0,)))
    joined.own.dones.pop()(ShardMoved("it has gone"))
    assert done == []
    joined.other.begin(2, s0=1)
    assert joined.other.acks == [(0, 1)]
    assert done == [None]
    joined.other.bring(0, 2)  # the consumer has it in hand
    assert joined.got == [(0, 1), (0, 2)]
    joined.consumer.ack([Position(0, 2)])
    assert joined.other.acks == [(0, 1), (0, 2)]


@virtual_time
async def test_what_is_not_stored_is_said_again_to_the_same_owner() -> None:
    joined = Joined(group="g").begin()
    joined.own.keeps = False
    joined.own.bring(0, 1)
    done: list[object] = []
    joined.consumer.ack([Position(0, 1)], done.append)
    joined.own.dones.pop()(Unavailable("another shard of that append has gone"))
    joined.own.keeps = True
    await until(lambda: done)
    assert done == [None]


@virtual_time
async def test_a_reader_for_himself_goes_on_where_he_was() -> None:
    joined = Joined(start="earliest").begin()
    joined.own.bring(0, 1, 2, 3)
    joined.consumer.ack([Position(0, 1), Position(0, 3)])
    joined.own.tell(Reached(positions={0: 9}))
    joined.own.tell(Left(shards=(0,)))
    joined.other.tell(ShardMoved("shard 0 has come"))
    await until(lambda: len(joined.other.requests) == 2)
    assert joined.other.requests[1].positions == {0: 2, 1: 1}
    joined.other.begin(2, s0=2, s1=1)
    joined.other.bring(0, 2, 3, 9)
    assert joined.got == [(0, 1), (0, 2), (0, 3), (0, 9)]  # 2 is in hand, 3 was answered
    assert joined.other.acks == [(0, 3)]
    joined.other.bring(0, 3)  # a dead letter that comes again
    assert joined.got[-1] == (0, 3)


@virtual_time
async def test_the_window_and_the_time_to_answer_are_the_consumers() -> None:
    joined = Joined(group="g", window=2, ack_timeout=1.0).begin()
    assert [owner.requests[0].window for owner in (joined.own, joined.other)] == [1, 1]
    assert joined.own.requests[0].ack_timeout == 0
    joined.own.bring(0, 1)
    joined.other.bring(1, 1, 2)
    joined.other.tell(Reached(positions={1: 3}))
    assert joined.got == [(0, 1), (1, 1)]
    joined.consumer.ack([Position(0, 1)])
    assert joined.got == [(0, 1), (1, 1), (1, 2)]
    assert joined.told[1:] == [Reached(positions={1: 3})]
    await until(lambda: len(joined.other.rejects) == 2)
    assert [place for place, _ in joined.other.rejects] == [(1, 1), (1, 2)]
    joined.other.bring(1, 1, 2)
    joined.other.bring(1, 3)
    joined.consumer.close()
    assert joined.other.rejects[2:] == [((1, 3), NOT_GIVEN)]
    assert joined.own.closed == joined.other.closed == 1


@virtual_time
async def test_what_says_something_of_the_consumer_ends_it_and_what_does_not_is_mended() -> None:
    joined = Joined(group="g").begin()
    joined.other.tell(Unavailable("the connection broke"))
    await until(lambda: len(joined.other.requests) == 2)
    joined.own.tell(Unavailable("this orchestrator is going away"))
    assert isinstance(joined.told[-1], Unavailable)
    assert joined.other.closed == 1


@virtual_time
async def test_it_is_sent_away_when_a_shard_has_nobody_for_long() -> None:
    joined = Joined(group="g")
    joined.own.begin(1, s0=1)
    await asyncio.sleep(BEGUN_WITHIN + 1)
    joined.consumer.look()
    assert isinstance(joined.told[-1], Unavailable)
