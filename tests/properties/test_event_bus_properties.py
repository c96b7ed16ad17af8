"""Every event reaches the group, in order the first time, and never again once it is acknowledged durably: under any
interleaving of publications, answers, members that come and go, late answers, and crashes."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow.core.ids import RunKey
from onexflow.ports.events import Delivery, Position, Told
from onexflow.spi.exceptions import SPIError
from onexflow.testing import Cluster
from onexflow.testing.clock import run_virtual
from support.bus_kit import OOPS, Reader, publish, stream

STREAMS = [stream(str(n)) for n in range(5)]

STEP = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 4), st.integers(1, 4)),
    st.tuples(st.just("join"), st.integers(1, 8)),
    st.tuples(st.just("leave"), st.integers(0, 3)),
    st.tuples(st.just("ack"), st.integers(0, 3), st.integers(1, 5)),
    st.tuples(st.just("reject"), st.integers(0, 3), st.integers(0, 5)),
    st.tuples(st.just("late"), st.integers(0, 3), st.integers(1, 5)),
    st.tuples(st.just("bury"), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 1.0, 12.0])),
    st.tuples(st.just("crash"), st.booleans()),
)


class Group:
    """The group's members, and what all of them have seen together."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.members: list[Reader] = []
        self.published: set[Position] = set()
        self.seen: set[Position] = set()
        self.first: defaultdict[RunKey, list[int]] = defaultdict(list)
        #: Said to be durable: acknowledged, or a dead letter.
        self.settled: set[Position] = set()

    async def join(self, window: int) -> None:
        group = self

        class Watching(Reader):
            def _told(self, told: Told) -> None:
                if isinstance(told, list):
                    for delivery in told:
                        group.delivered(delivery)
                super()._told(told)

        bus = self.cluster.engine.events
        reader = Watching(bus, group="g", start="earliest", window=window, ack_timeout=10.0, max_deliveries=0)
        self.members.append(reader)
        await reader.begin()

    def delivered(self, delivery: Delivery) -> None:
        place = delivery.position
        assert place not in self.settled, f"{place} was settled, and comes again"
        if place not in self.seen:
            self.seen.add(place)
            self.first[delivery.event.key].append(delivery.event.sequence)

    def ack(self, member: Reader, places: list[Position]) -> None:
        def done(error: SPIError | None) -> None:
            if error is None:
                self.settled.update(places)

        member.consumer.ack(places, done)

    def step(self, step: tuple[object, ...]) -> None:
        """What needs no waiting."""
        member = self.members[int(str(step[1])) % len(self.members)] if self.members else None
        if member is None or (not member.got and step[0] != "late"):
            return
        match step:
            case ("ack", _, int(count)):
                self.ack(member, member.places[-count:])
            case ("late", _, int(count)):  # who had it before says so now, to whom it may concern
                self.ack(member, sorted(self.seen - self.settled)[:count])
            case ("reject", _, int(delay)):
                member.consumer.reject(member.places[-1], OOPS, float(delay))
            case ("bury", _):
                self._bury(member, member.places[0])

    def _bury(self, member: Reader, place: Position) -> None:
        """What the member no longer has, it cannot bury: then nothing happens, and it may come again."""
        member.consumer.bury(place, OOPS)


async def live(steps: list[tuple[object, ...]]) -> None:
    async with Cluster(seed=1) as cluster:
        group = Group(cluster)
        await group.join(4)
        for step in steps:
            match step:
                case ("publish", int(which), int(count)):
                    for _ in range(count):
                        group.published.add((await publish(cluster.engine.events, STREAMS[which])).position)
                case ("join", int(window)):
                    if len(group.members) < 4:
                        await group.join(window)
                case ("leave", int(which)) if group.members:
                    group.members.pop(which % len(group.members)).close()
                case ("wait", float(seconds)):
                    await asyncio.sleep(seconds)
                case ("crash", bool(planned)):
                    await (cluster.stop_orchestrator() if planned else cluster.crash_orchestrator())
                    await cluster.restart_orchestrator()
                    group.members.clear()
                case _:
                    group.step(step)
        for member in group.members:
            member.close()
        group.members.clear()
        await group.join(1000)
        [last] = group.members
        dead = {letter.delivery.position for letter in await cluster.engine.events.list_dead_letters("default", "g")}
        for _ in range(4):
            await asyncio.sleep(5)
            group.ack(last, last.places)
        await asyncio.sleep(1)
        assert last.error is None
        assert group.published <= group.seen, "an event never came"
        assert group.published <= group.settled | dead
        for key, numbers in group.first.items():
            assert numbers == sorted(numbers), f"{key}: {numbers}"
        [view] = await cluster.engine.events.list_groups("default")
        assert (view.lag, view.unanswered) == (0, 0)


@settings(max_examples=120, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_every_event_is_delivered_and_none_that_is_settled_again(steps: list[tuple[object, ...]]) -> None:
    run_virtual(live(steps))
