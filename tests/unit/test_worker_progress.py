"""Progress: many reports come in, few messages go out, and the last word is never lost."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from onexflow.core.errors import InvalidArgument
from onexflow.core.payload import Payload
from onexflow.ports.worker_link import Cancel, Progress
from onexflow.worker import Context, Worker
from onexflow.worker.progress import ProgressReports
from support.worker_kit import Assigner, FakeLink, ManualClock, connect, serving, settle


def details(value: Any) -> Payload:
    return Payload(msgspec.json.encode(value))


class Sent:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.messages: list[Any] = []
        self.reports = ProgressReports(
            self.clock, lambda _shard, m: self.messages.append(msgspec.json.decode(m.details.data))
        )


async def test_the_same_details_go_out_once_a_second() -> None:
    sent, attempt = Sent(), Assigner()("effect", "x")
    for _ in range(50):
        sent.reports.report(attempt, details(1))
        await sent.clock.advance(0.1)
    assert 4 <= len(sent.messages) <= 6


async def test_changed_details_go_out_five_times_a_second_and_the_last_always() -> None:
    sent, attempt = Sent(), Assigner()("effect", "x")
    for n in range(100):
        sent.reports.report(attempt, details(n))
        await sent.clock.advance(0.01)
    assert len(sent.messages) <= 7
    await sent.clock.advance(1)
    assert sent.messages[-1] == 99
    assert sent.reports._ticker is None


async def test_a_sign_of_life_without_details_keeps_the_last_ones() -> None:
    sent, attempt = Sent(), Assigner()("effect", "x")
    sent.reports.report(attempt, details({"row": 7}))
    await sent.clock.advance(2)
    sent.reports.report(attempt, Payload())
    assert sent.messages == [{"row": 7}, {"row": 7}]


async def test_a_short_heartbeat_is_met() -> None:
    sent, attempt = Sent(), Assigner()("effect", "x", heartbeat=0.5)
    for _ in range(10):
        sent.reports.report(attempt, details(1))
        await sent.clock.advance(0.1)
    assert len(sent.messages) == 4


async def test_an_ended_attempt_reports_nothing_more() -> None:
    sent, attempt = Sent(), Assigner()("effect", "x")
    sent.reports.report(attempt, details(1))
    sent.reports.report(attempt, details(2))
    sent.reports.forget(attempt.token)
    await sent.clock.advance(1)
    assert sent.messages == [1]


async def test_the_context_says_what_the_assignment_says() -> None:
    worker, assign, clock = Worker("w"), Assigner(), ManualClock()
    seen: list[Context] = []

    @worker.effect("look")
    async def look(contract: Any, ctx: Context) -> None:
        seen.append(ctx)
        await clock.sleep(3)
        ctx.progress({"done": 1})
        with pytest.raises(InvalidArgument):
            ctx.progress(object())

    async with serving(worker, clock=clock) as running:
        link = connect(running)
        attempt = assign(
            "effect", "look", attempt=2, idempotency_key="key", timeout=10.0, progress=details([5]), trace="00-a-b-01"
        )
        link.assign(attempt)
        await settle()
        (ctx,) = seen
        assert (ctx.attempt, ctx.idempotency_key, ctx.token, ctx.item) == (2, "key", "0.1.1.0", 0)
        assert (ctx.namespace, ctx.workflow_type, ctx.task, ctx.trace) == ("default", "order", "look", "00-a-b-01")
        assert str(ctx.run_key) == f"default/order/{ctx.instance_id}"
        assert ctx.last_progress == [5]
        assert ctx.deadline is not None
        assert ctx.deadline.timestamp() == pytest.approx(clock.now() / 1e9 + 10)
        await clock.advance(3)
        assert ctx.remaining == pytest.approx(7)
        assert link.of(Progress) == [Progress(attempt.token, details({"done": 1}))]


async def test_wait_cancelled_wakes_a_helper_of_the_handler() -> None:
    worker, assign, order = Worker("w"), Assigner(), []

    @worker.effect("tidy")
    async def tidy(contract: Any, ctx: Context) -> None:
        async def watch() -> None:
            await ctx.wait_cancelled()
            order.append(ctx.cancelled.reason)

        helper = asyncio.ensure_future(watch())
        try:
            await asyncio.Event().wait()
        finally:
            await helper

    async with serving(worker) as running:
        link: FakeLink = connect(running)
        attempt = assign("effect", "tidy")
        link.assign(attempt)
        await settle()
        link.say(Cancel([attempt.token], "enough"))
        assert (await link.result(attempt)).status == "stopped"
        assert order == ["enough"]
