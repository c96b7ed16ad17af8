"""The queue behind a stream: what leaves together, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from onexflow.codec.wire.common import MAX_BATCH
from onexflow.codec.wire.worker_request import to_requests
from onexflow.core.ids import Token
from onexflow.core.payload import NULL
from onexflow.ports.worker_link import (
    Ack,
    Assignment,
    Assignments,
    AttemptResult,
    Credits,
    Held,
    Ping,
    Results,
    TaskInfo,
)
from onexflow.rpc.outbox import ACK_PATIENCE, Outbox
from onexflow.rpc.receipts import FULL_WINDOW
from onexflow.testing.clock import virtual_time


def token(number: int) -> Token:
    return Token(1, 1, number)


def assignment(number: int) -> Assignment:
    return Assignment(
        token=token(number), info=TaskInfo("t", "a", "compute", "h"), namespace="n", instance_id="i", attempt=1, input=NULL,
    )  # fmt: skip


def result(number: int) -> AttemptResult:
    return AttemptResult(token(number), "completed")


class Wire:
    """An outbox, and what it has written: at which loop time, which message. A write takes `seconds`. `encode` cuts."""

    def __init__(
        self, seconds: float = 0.0, encode: Callable[[Any], Iterable[Any]] = lambda message: [message]
    ) -> None:
        self._seconds = seconds
        self.written: list[tuple[float, Any]] = []
        self.outbox: Outbox[Any] = Outbox(encode, self._write, self._fail)
        self._began = asyncio.get_running_loop().time()

    async def _write(self, message: Any) -> None:
        if self._seconds:
            await asyncio.sleep(self._seconds)
        self.written.append((asyncio.get_running_loop().time() - self._began, message))

    def _fail(self, error: Exception) -> None:
        raise error

    async def say(self, *messages: Any) -> list[Any]:
        for message in messages:
            self.outbox.put(message)
        self.outbox.finish()
        await self.outbox.run()
        return [message for _, message in self.written]


@virtual_time
async def test_acks_go_with_the_assignments_behind_them() -> None:
    said = await Wire().say(Ack([token(1)]), Ack([token(2)], [token(3)], {1: 9}), Assignments([assignment(4)]))
    assert said == [Assignments([assignment(4)], Ack([token(1), token(2)], [token(3)], {1: 9}))]


@virtual_time
async def test_an_ack_goes_with_the_assignments_before_it() -> None:
    said = await Wire().say(
        Assignments([assignment(1)]), Ack([token(2)]), Ack([token(3)]), Assignments([assignment(4)])
    )
    assert said == [Assignments([assignment(1)], Ack([token(2), token(3)])), Assignments([assignment(4)])]


@virtual_time
async def test_credits_go_with_the_results_before_them() -> None:
    said = await Wire().say(Results([result(1)]), Results([result(2)]), Credits({"compute": 2}), Credits({"effect": 1}))
    assert said == [Results([result(1), result(2)], {"compute": 2, "effect": 1})]


@virtual_time
async def test_other_messages_keep_their_places() -> None:
    said = await Wire().say(Credits({"compute": 1}), Results([result(1)]), Ping(1), Credits({"compute": 2}))
    assert said == [Credits({"compute": 1}), Results([result(1)]), Ping(1), Credits({"compute": 2})]
    many = [token(number) for number in range(1000)]
    said = await Wire().say(Ack(many), Assignments([assignment(1)]))
    assert said == [Ack(many), Assignments([assignment(1)])]


@virtual_time
async def test_an_ack_waits_a_little_for_something_to_go_with_and_no_longer() -> None:
    wire = Wire()
    running = asyncio.ensure_future(wire.outbox.run())
    await asyncio.sleep(0)
    wire.outbox.put(Ack([token(1)]))
    await asyncio.sleep(ACK_PATIENCE / 2)
    assert wire.written == []
    wire.outbox.put(Assignments([assignment(2)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ((at, message),) = wire.written
    assert at == pytest.approx(ACK_PATIENCE / 2, rel=0.01)
    assert message == Assignments([assignment(2)], Ack([token(1)]))
    wire.outbox.put(Ack([token(3)]))
    await asyncio.sleep(10 * ACK_PATIENCE)
    (at, message) = wire.written[1]
    assert at == pytest.approx(ACK_PATIENCE * 1.5, rel=0.01)
    assert message == Ack([token(3)])
    assert len(wire.written) == 2
    wire.outbox.finish()
    await running


@virtual_time
async def test_an_ack_does_not_overtake_an_assignment_of_its_token() -> None:
    """It would be forgotten first, and then run once more."""
    for ack in (Ack([token(1)]), Ack([token(2)], [token(1)])):
        said = await Wire().say(Assignments([assignment(1)]), Ack([token(3)]), ack, Ack([token(4)]))
        assert said[0] == Assignments([assignment(1)], Ack([token(3)]))
        assert [one for message in said[1:] for one in (*message.tokens, *message.discarded)].count(token(1)) == 1


@virtual_time
async def test_so_many_acks_that_they_do_not_all_go_with_assignments_go_within_their_patience() -> None:
    wire = Wire()
    running = asyncio.ensure_future(wire.outbox.run())
    first, second = (Ack([token(number) for number in range(start, start + 300)]) for start in (100, 400))
    for message in (Assignments([assignment(1)]), first, second):
        wire.outbox.put(message)
    await asyncio.sleep(2 * ACK_PATIENCE)
    (at, joined), (later, alone) = wire.written
    assert (joined, alone) == (Assignments([assignment(1)], first), second)
    assert at == 0.0
    assert later == pytest.approx(ACK_PATIENCE, rel=0.01)
    wire.outbox.finish()
    await running


@virtual_time
async def test_the_patience_of_an_ack_that_has_left_is_not_that_of_the_next() -> None:
    wire = Wire(ACK_PATIENCE / 2)
    running = asyncio.ensure_future(wire.outbox.run())
    wire.outbox.put(Ack([token(1)]))
    await asyncio.sleep(ACK_PATIENCE * 0.8)
    wire.outbox.put(Assignments([assignment(2)]))
    await asyncio.sleep(ACK_PATIENCE * 0.1)
    wire.outbox.put(Ack([token(3)]))
    await asyncio.sleep(ACK_PATIENCE * 0.8)
    assert [message for _, message in wire.written] == [Assignments([assignment(2)], Ack([token(1)]))]
    await asyncio.sleep(ACK_PATIENCE)
    assert [message for _, message in wire.written][1:] == [Ack([token(3)])]
    wire.outbox.finish()
    await running


@virtual_time
async def test_an_ack_that_comes_during_a_write_waits_for_company_too() -> None:
    wire = Wire(ACK_PATIENCE / 4)
    running = asyncio.ensure_future(wire.outbox.run())
    wire.outbox.put(Assignments([assignment(1)]))
    await asyncio.sleep(ACK_PATIENCE / 8)
    wire.outbox.put(Ack([token(2)]))
    await asyncio.sleep(ACK_PATIENCE / 2)
    assert [message for _, message in wire.written] == [Assignments([assignment(1)])]
    wire.outbox.put(Assignments([assignment(3)]))
    await asyncio.sleep(ACK_PATIENCE / 2)
    assert [message for _, message in wire.written][1:] == [Assignments([assignment(3)], Ack([token(2)]))]
    wire.outbox.put(Ack([token(4)]))
    await asyncio.sleep(2 * ACK_PATIENCE)
    assert [message for _, message in wire.written][2:] == [Ack([token(4)])], "its patience is counted from anew"
    wire.outbox.put(Ack([token(5)]))
    wire.outbox.hurry(Ack([]))
    await asyncio.sleep(ACK_PATIENCE / 2)
    assert [message for _, message in wire.written][3:] == [Ack([token(5)])]
    wire.outbox.finish()
    await running


async def busy(wire: Wire) -> asyncio.Task[None]:
    """The writer of an outbox whose other end has taken one message, and not the two that are on their way."""
    running = asyncio.ensure_future(wire.outbox.run())
    wire.outbox.put(Ping(1))
    await asyncio.sleep(0)
    wire.outbox.told(1)
    for number in (1, 2):
        wire.outbox.put(Results([result(number)]))
        await asyncio.sleep(1)
    wire.written.clear()
    return running


@virtual_time
async def test_what_can_be_joined_waits_for_a_busy_end_and_goes_in_one_message() -> None:
    wire = Wire()
    running = await busy(wire)
    for number in (3, 4, 5):
        wire.outbox.put(Results([result(number)]))
        wire.outbox.put(Credits({"compute": 1}))
        await asyncio.sleep(1)
    assert wire.written == []
    wire.outbox.told(2)
    await asyncio.sleep(1)
    assert [said for _, said in wire.written] == [Results([result(3), result(4), result(5)], {"compute": 3})]
    wire.outbox.finish()
    await running


@virtual_time
async def test_what_cannot_be_joined_goes_at_once_and_takes_what_stands_before_it_along() -> None:
    """A new owner is answered with the results and then what runs, shard by shard: it waits for the last of these."""
    wire = Wire()
    running = await busy(wire)
    said: list[Any] = []
    for number in range(3, 40):
        said += [Results([result(number)]), Held(number, 1, [])]
        wire.outbox.put(said[-2])
        wire.outbox.put(said[-1])
    wire.outbox.put(Results([result(40)]))
    await asyncio.sleep(1)
    assert [one for _, one in wire.written] == said, "the last result waits"
    wire.outbox.finish()
    await running


@virtual_time
async def test_a_full_message_does_not_wait_for_company_and_what_is_left_does() -> None:
    wire = Wire(encode=to_requests)
    running = await busy(wire)

    def sizes() -> list[int]:
        return [len(said.results.results) for _, said in wire.written]

    wire.outbox.put(Credits({"compute": 1}))
    wire.outbox.put(Results([result(number) for number in range(MAX_BATCH - 1)]))
    await asyncio.sleep(1)
    assert sizes() == []
    wire.outbox.put(Results([result(number) for number in range(5)]))
    await asyncio.sleep(1)
    assert sizes() == [MAX_BATCH]
    assert wire.written[0][1].results.credits.granted == {"compute": 1}, "credits go with them"
    wire.outbox.put(Results([result(number) for number in range(MAX_BATCH - 4)]))  # a full one with what was left
    await asyncio.sleep(1)
    assert sizes() == [MAX_BATCH] * (FULL_WINDOW - 2)
    wire.outbox.put(Results([result(number) for number in range(2 * MAX_BATCH)]))
    await asyncio.sleep(1)
    assert sizes() == [MAX_BATCH] * (FULL_WINDOW - 2), "no more than so many are on their way"
    wire.outbox.put(Results([result(0)]))
    wire.outbox.told(1 + FULL_WINDOW)
    await asyncio.sleep(1)
    assert sizes() == [*[MAX_BATCH] * 4, 1], "and all that is left when there is room for any"
    wire.outbox.finish()
    await running


@virtual_time
async def test_the_end_does_not_wait_for_a_busy_end() -> None:
    wire = Wire()
    running = await busy(wire)
    wire.outbox.put(Results([result(3)]))
    await asyncio.sleep(1)
    assert wire.written == []
    wire.outbox.finish()
    await running
    assert [said for _, said in wire.written] == [Results([result(3)], {})]
