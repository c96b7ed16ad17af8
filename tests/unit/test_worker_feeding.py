"""A worker's side of fed reducers: what it says of its items, and when it drops a fold."""

from __future__ import annotations

import asyncio
from typing import Any

from onexflow.core.ids import Token
from onexflow.core.payload import Payload
from onexflow.ports.worker_link import Assignment, Cancel, Fed, FedItem, Feed, Held, ShardEpoch, Welcome
from onexflow.worker import Worker
from onexflow.worker.context import Context
from onexflow.worker.feeding import REPORT_ITEMS
from support.worker_kit import Assigner, FakeLink, connect, serving, settle


class Folds:
    """A reducer `total` that sums up; `taken` has what each of its folds took."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []
        self.stopped = 0
        self.worker = Worker("fed")
        self.gate = asyncio.Event()
        self.gate.set()
        self.worker.reducer("total")(self.total)

    async def total(self, contract: Any, ctx: Context) -> int:
        await self.gate.wait()
        taken: list[int] = []
        self.taken.append(taken)
        try:
            async for index, value in ctx.items():
                assert value == index * 2
                taken.append(index)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return sum(taken)


def fed(assign: Assigner, **more: Any) -> Assignment:
    return assign("reducer", "total", fed=True, **more)


def feed(token: Token, *indices: int, is_last: bool = False) -> Feed:
    return Feed(token, [FedItem(index, Payload(b"%d" % (index * 2))) for index in indices], is_last)


def held(link: FakeLink) -> list[list[Token]]:
    return [message.running for message in link.of(Held)]


async def test_it_asks_for_the_first_item_and_says_what_was_taken() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        assert link.of(Fed) == [Fed(assignment.token, 0)]
        link.say(feed(assignment.token, 1, 0))
        await link.until(lambda: len(link.of(Fed)) == 2)
        assert link.of(Fed)[1] == Fed(assignment.token, 2), "both, as nothing else is here"
        link.say(feed(assignment.token, *range(2, 3 + REPORT_ITEMS), is_last=True))
        result = await link.result(assignment)
        assert (result.status, result.result.data) == ("completed", b"%d" % sum(range(3 + REPORT_ITEMS)))
        assert [one.count for one in link.of(Fed)] == [0, 2, REPORT_ITEMS, 1]
        assert folds.taken == [[1, 0, *range(2, 3 + REPORT_ITEMS)]]


async def test_one_that_waits_in_the_queue_asks_for_nothing() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker, reducer=1) as runtime:
        link = connect(runtime)
        first, second = fed(assign), fed(assign)
        link.assign(first)
        await link.until(lambda: bool(link.of(Fed)))
        link.assign(second)
        link.say(feed(second.token, 7))
        await settle()
        assert [one.token for one in link.of(Fed)] == [first.token]
        link.say(feed(first.token, is_last=True))
        await link.result(first)


async def test_an_ended_stream_ends_the_fold_and_nothing_is_said_of_it() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        link.say(feed(assignment.token, 1))
        await settle()
        assert link.peer is not None
        link.peer.on_close("cut")
        await settle()
        assert folds.stopped == 1
        assert runtime.statistics().running["reducer"] == 0
        again = connect(runtime)
        assert held(again) == [[]]
        again.assign(assignment)  # the same token
        await again.until(lambda: bool(again.of(Fed)))
        again.say(feed(assignment.token, 3, is_last=True))
        assert (await again.result(assignment)).result.data == b"3"
        assert folds.taken == [[1], [3]]
        assert len(again.results) == 1


async def test_a_higher_epoch_ends_the_fold_and_the_same_one_asked_again_does_not() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        link.say(ShardEpoch(0, 1))
        await settle()
        assert held(link)[-1] == [assignment.token]
        link.say(ShardEpoch(0, 2))
        await settle()
        assert held(link)[-1] == []
        assert folds.stopped == 1
        link.say(feed(assignment.token, 1, is_last=True))
        await settle()
        assert assignment.token not in link.results


async def test_another_owner_ends_the_fold() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        other = connect(runtime, {0: 2}, name="o2")
        assert held(other) == [[]]
        await settle()
        assert folds.stopped == 1


async def test_a_fold_that_has_its_last_item_is_held_and_goes_on() -> None:
    assign = Assigner()
    gate = asyncio.Event()
    worker = Worker("fed")

    @worker.reducer("total")
    async def total(contract: Any, ctx: Context) -> int:
        result: int = sum([value async for _, value in ctx.items()])
        await gate.wait()
        return result

    async with serving(worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        link.say(feed(assignment.token, 1, 2, is_last=True))
        await settle()
        assert link.peer is not None
        link.peer.on_close("cut")
        other = connect(runtime, {0: 2}, name="o2")
        assert held(other) == [[assignment.token]]
        gate.set()
        assert (await other.result(assignment)).result.data == b"6"


async def test_one_that_begins_while_nobody_is_there_asks_when_somebody_is() -> None:
    folds, assign = Folds(), Assigner()
    folds.gate.clear()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await settle()
        assert link.peer is not None
        link.peer.on_close("cut")
        folds.gate.set()
        await settle()
        other = connect(runtime, {0: 2}, name="o2")
        assert held(other) == [[assignment.token]], "it has nothing that it could lose"
        assert other.of(Fed) == [Fed(assignment.token, 0)]
        other.say(feed(assignment.token, 4, is_last=True))
        assert (await other.result(assignment)).result.data == b"4"


async def test_one_that_does_not_heed_its_cancel_is_told_at_the_next_item() -> None:
    assign = Assigner()
    worker = Worker("fed")
    ended: list[str] = []

    @worker.reducer("total")
    async def total(contract: Any, ctx: Context) -> int:
        try:
            async for _ in ctx.items():
                pass
        except asyncio.CancelledError:
            ended.append("deaf")
        try:
            async for _ in ctx.items():
                pass
        finally:
            ended.append("told")
        return 0

    async with serving(worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        link.say(Welcome(orchestrator_id="o1", epochs={0: 2}))
        await settle()
        assert ended == ["deaf", "told"]
        assert runtime.statistics().running["reducer"] == 0


async def test_a_cancel_stops_a_fold_and_is_answered() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        link.say(Cancel([assignment.token]))
        assert (await link.result(assignment)).status == "stopped"


async def test_items_that_cannot_be_read_fail_the_attempt() -> None:
    folds, assign = Folds(), Assigner()
    async with serving(folds.worker) as runtime:
        link = connect(runtime)
        assignment = fed(assign)
        link.assign(assignment)
        await link.until(lambda: bool(link.of(Fed)))
        link.say(Feed(assignment.token, [FedItem(7, Payload(b"\x00", "raw"))]))
        error = (await link.result(assignment)).error
        assert error is not None
        assert (error.type, error.retryable) == ("ContractError", False)
        assert "item 7 cannot be read" in error.message
