"""What is sent when: order a run, the window, refusals, lost links. Over a NATS that does as the test says."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from onexflow.bridge.lanes import Entry, Lanes
from onexflow.bridge.message import Message
from onexflow.bridge.publisher import ACK_WITHIN, LAST_TRY, Ear, Link, Publisher, Refusal
from onexflow.core.errors import NatsUnavailable
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.core.payload import Failure
from onexflow.ports.events import Position
from onexflow.testing import virtual_time
from support.engine_kit import until


def entry(run: str, number: int, size: int = 100) -> Entry:
    message = Message(f"s.{run}", {"Nats-Msg-Id": f"{run}/{number}"}, b"", size)
    return Entry(None, Position(1, number), RunKey("n", "w", derived_uuid(run)), message)


def name_of(message: Message) -> tuple[str, int]:
    run, _, number = message.headers["Nats-Msg-Id"].partition("/")
    return run, int(number)


class Nats:
    """A stream that knows ids, and links that break."""

    def __init__(self) -> None:
        self.stream: list[tuple[str, int]] = []
        self.links = 0
        self.is_up = True
        #: What is on the wire: (the link's number, the try's number, the message).
        self.wire: list[tuple[int, int, Message]] = []
        self.ear: Ear | None = None
        self.peak = 0

    async def dial(self, ear: Ear) -> Link:
        if not self.is_up:
            raise NatsUnavailable("it is away")
        self.links += 1
        self.ear = ear
        return _Link(self, self.links)

    def store(self, refusal: Refusal | None = None) -> None:
        """Deal with the oldest message on the wire; that of an older link is stored, and nobody hears of it."""
        link, number, message = self.wire.pop(0)
        if refusal is None and name_of(message) not in self.stream:
            self.stream.append(name_of(message))
        if link == self.links and self.is_up:
            assert self.ear is not None
            self.ear.answered(number, refusal)

    def cut(self, *, up: bool = True) -> None:
        assert self.ear is not None
        self.is_up = up
        self.ear.lost("cut")


class _Link:
    max_size = 1000

    def __init__(self, nats: Nats, number: int) -> None:
        self._nats = nats
        self._number = number
        self.closed = False

    async def send(self, number: int, message: Message) -> None:
        self._nats.wire.append((self._number, number, message))
        self._nats.peak = max(self._nats.peak, sum(link == self._number for link, *_ in self._nats.wire))

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def publishing(nats: Nats, window: int = 10) -> AsyncIterator[tuple[Publisher, list[Entry], list[Failure]]]:
    done: list[Entry] = []
    parked: list[Failure] = []
    publisher = Publisher(nats.dial, window, on_stored=done.append, on_parked=lambda _, failure: parked.append(failure))
    await publisher.start()
    running = asyncio.create_task(publisher.run())
    try:
        yield publisher, done, parked
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@virtual_time
async def test_runs_go_side_by_side_and_each_one_after_the_other() -> None:
    nats = Nats()
    async with publishing(nats, window=3) as (publisher, done, _):
        for number in range(1, 4):
            for run in "abcd":
                publisher.add(entry(run, number))
        await until(lambda: len(nats.wire) == 3)
        assert [name_of(message) for _, _, message in nats.wire] == [("a", 1), ("b", 1), ("c", 1)]
        while len(done) < 12:
            await until(lambda: nats.wire)
            nats.store()
        assert nats.peak == 3
        assert publisher.waiting == 0
    assert [number for run, number in nats.stream if run == "d"] == [1, 2, 3]


@virtual_time
async def test_what_was_on_a_lost_link_is_sent_again_before_what_follows() -> None:
    nats = Nats()
    async with publishing(nats) as (publisher, done, _):
        for number in range(1, 5):
            publisher.add(entry("a", number))
        await until(lambda: nats.wire)
        nats.store()
        await until(lambda: nats.wire)
        nats.cut()
        await until(lambda: nats.links == 2)
        nats.store()  # the message of the old link arrives late; its acknowledgement is lost
        while len(done) < 4:
            await until(lambda: nats.wire)
            nats.store()
        assert nats.stream == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
        assert publisher.repeated == 1
        assert not publisher.trouble


@virtual_time
async def test_a_late_answer_to_an_earlier_try_counts_for_nothing() -> None:
    nats = Nats()
    async with publishing(nats) as (publisher, done, _):
        publisher.add(entry("a", 1))
        await until(lambda: nats.wire)
        _, number, _ = nats.wire.pop()
        nats.cut()
        await until(lambda: nats.wire)
        publisher.answered(number, None)
        assert done == []
        nats.store()
        assert len(done) == 1


@virtual_time
async def test_a_link_without_an_answer_is_given_up_and_one_that_is_only_slow_is_not() -> None:
    nats = Nats()
    loop = asyncio.get_running_loop()
    async with publishing(nats) as (publisher, done, _):
        for run in "abc":
            publisher.add(entry(run, 1))
        await until(lambda: len(nats.wire) == 3)
        for _ in range(3):
            await asyncio.sleep(0.8 * ACK_WITHIN)
            nats.store()
        assert (nats.links, len(done)) == (1, 3)
        publisher.add(entry("d", 1))
        began = loop.time()
        await until(lambda: nats.links == 2)
        assert ACK_WITHIN <= loop.time() - began < ACK_WITHIN + 1
        assert "no acknowledgement" in publisher.trouble


@virtual_time
async def test_a_refusal_slows_down_and_success_speeds_up_again() -> None:
    nats = Nats()
    async with publishing(nats, window=8) as (publisher, done, _):
        for number in range(1, 4):
            for run in range(8):
                publisher.add(entry(str(run), number))
        await until(lambda: len(nats.wire) == 8)
        for _ in range(8):
            nats.store(Refusal("full"))
        await until(lambda: nats.wire)
        assert len(nats.wire) == 1, "one alone is tried first"
        began = asyncio.get_running_loop().time()
        for _ in range(6):
            await until(lambda: nats.wire)
            nats.store(Refusal("full"))
        assert asyncio.get_running_loop().time() - began > 3, "with growing pauses"
        assert publisher.trouble == "full"
        while len(done) < 24:
            await until(lambda: nats.wire)
            nats.store()
        assert nats.peak == 8
        assert not publisher.trouble
        assert publisher.repeated == 14


@virtual_time
async def test_a_run_that_is_refused_holds_up_no_other() -> None:
    nats = Nats()
    async with publishing(nats, window=1) as (publisher, done, _):
        for run in ("bad", "a", "b", "c"):
            publisher.add(entry(run, 1))
        while len(done) < 3:
            await until(lambda: nats.wire)
            bad = name_of(nats.wire[0][2])[0] == "bad"
            nats.store(Refusal("no") if bad else None)
        assert [run for run, _ in nats.stream] == ["a", "b", "c"]
        assert publisher.waiting == 1


@virtual_time
async def test_what_can_never_be_stored_is_parked_and_what_follows_goes_on() -> None:
    nats = Nats()
    async with publishing(nats) as (publisher, done, parked):
        publisher.add(entry("a", 1, size=1001))
        publisher.add(entry("a", 2))
        publisher.add(entry("b", 1, size=1000))
        await until(lambda: len(nats.wire) == 2)
        nats.store(Refusal("too large for the stream", "never"))
        nats.store()
        assert [failure.message for failure in parked] == [
            "1,001 bytes, and NATS takes 1,000 (max_payload)",
            "too large for the stream",
        ]
        assert (len(done), publisher.parked, publisher.waiting) == (1, 2, 0)


@virtual_time
async def test_while_nats_is_away_it_is_asked_now_and_then_and_what_waits_is_kept() -> None:
    nats = Nats()
    loop = asyncio.get_running_loop()
    async with publishing(nats) as (publisher, done, _):
        nats.cut(up=False)
        publisher.add(entry("a", 1))
        await until(lambda: publisher.trouble == "it is away")
        await asyncio.sleep(600)
        nats.is_up = True
        began = loop.time()
        await until(lambda: nats.wire)
        assert loop.time() - began <= LAST_TRY
        nats.store()
        assert len(done) == 1


@virtual_time
async def test_a_missing_stream_gives_the_link_up_so_that_the_stream_is_looked_at() -> None:
    nats = Nats()
    async with publishing(nats) as (publisher, done, _):
        publisher.add(entry("a", 1))
        await until(lambda: nats.wire)
        nats.store(Refusal("no stream", "gone"))
        await until(lambda: nats.links == 2 and nats.wire)
        nats.store()
        assert len(done) == 1


@virtual_time
async def test_finishing_waits_for_what_is_on_the_wire_and_sends_nothing_more() -> None:
    nats = Nats()
    async with publishing(nats) as (publisher, done, _):
        publisher.add(entry("a", 1))
        publisher.add(entry("a", 2))
        await until(lambda: nats.wire)
        finishing = asyncio.create_task(publisher.finish(5.0))
        await asyncio.sleep(1.0)
        assert not finishing.done()
        nats.store()
        await finishing
        assert (len(done), nats.wire) == (1, [])


@virtual_time
async def test_whatever_nats_does_every_event_arrives_and_each_runs_events_in_order() -> None:
    for seed in range(30):
        await _chance(random.Random(seed))


async def _chance(chance: random.Random) -> None:
    nats = Nats()
    wanted: dict[str, list[int]] = defaultdict(list)
    async with publishing(nats, window=chance.randrange(1, 9)) as (publisher, done, _):
        for _ in range(80):
            run = chance.choice("abcd")
            wanted[run].append(len(wanted[run]) + 1)
            publisher.add(entry(run, wanted[run][-1]))
        count = 0
        while len(done) < 80:
            count += 1
            assert count < 5000
            match chance.randrange(10):
                case 0:
                    nats.cut(up=chance.random() < 0.7)
                case 1 if nats.wire:
                    nats.store(Refusal("later"))
                case 2 if nats.wire and chance.random() < 0.1:
                    nats.wire.pop(chance.randrange(len(nats.wire)))  # dropped by a leader that is going
                case 3:
                    nats.is_up = True
                    await asyncio.sleep(chance.random() * 3)
                case _ if nats.wire:
                    nats.store()
                case _:
                    nats.is_up = True
                    await asyncio.sleep(chance.random() * 3)
            await asyncio.sleep(0)
    found: dict[str, list[int]] = defaultdict(list)
    for run, number in nats.stream:
        found[run].append(number)
    assert found == wanted


STEPS = st.lists(st.tuples(st.sampled_from(["add", "take", "done", "again", "reset"]), st.integers(0, 5)), max_size=80)


@given(STEPS)
def test_lanes_never_have_two_of_a_run_on_the_wire_nor_lose_one(steps: list[tuple[str, int]]) -> None:
    lanes = Lanes()
    added: dict[Any, list[int]] = defaultdict(list)
    finished: dict[Any, list[int]] = defaultdict(list)
    for step, choice in steps:
        sent = list(lanes.sent)
        picked = sent[choice % len(sent)] if sent else 0
        if step == "add":
            one = entry(str(choice), len(added[str(choice)]) + 1)
            added[str(choice)].append(one.position.offset)
            lanes.add(one)
        elif step == "take":
            lanes.take()
        elif step == "done" and (ended := lanes.done(picked)) is not None:
            finished[ended.message.subject.removeprefix("s.")].append(ended.position.offset)
        elif step == "again":
            lanes.again(picked)
        elif step == "reset":
            lanes.reset()
        runs = [one.key for one in lanes.sent.values()]
        assert len(runs) == len(set(runs))
        assert len(lanes) == sum(map(len, added.values())) - sum(map(len, finished.values()))
    while lanes.take() is not None:
        pass
    while lanes.sent:
        ended = lanes.done(next(iter(lanes.sent)))
        assert ended is not None
        finished[ended.message.subject.removeprefix("s.")].append(ended.position.offset)
        lanes.take()
    assert {run: numbers for run, numbers in finished.items() if numbers} == added
