"""The queue behind a stream: what leaves together, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.core.ids import Token
from onexflow.core.payload import NULL
from onexflow.ports.worker_link import Ack, Assignment, Assignments, AttemptResult, Credits, Ping, Results
from onexflow.rpc.outbox import ACK_PATIENCE, Outbox
from onexflow.testing.clock import virtual_time


def token(number: int) -> Token:
    return Token(1, 1, number)


def assignment(number: int) -> Assignment:
    return Assignment(
        token=token(number), role="compute", handler="h", namespace="n", workflow_type="t", instance_id="i", task="a",
        attempt=1, input=NULL,
    )  # fmt: skip


def result(number: int) -> AttemptResult:
    return AttemptResult(token(number), "completed")


class Wire:
    """An outbox, and what it has written: at which loop time, which message."""

    def __init__(self) -> None:
        self.written: list[tuple[float, Any]] = []
        self.outbox: Outbox[Any] = Outbox(lambda message: [message], self._write, self._fail)
        self._began = asyncio.get_running_loop().time()

    async def _write(self, message: Any) -> None:
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
