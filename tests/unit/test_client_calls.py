"""The table of calls: batches, windows, answers, losses. No network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from onexflow.client.calls import Calls
from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire.common import MAX_BATCH
from onexflow.core.errors import DeadlineExceeded, Draining, Overloaded, StoreFull, Unavailable, UnknownRun
from onexflow.spi.exceptions import SPIError
from onexflow.testing.clock import virtual_time
from onexflow.v1 import common_pb2
from onexflow.v1 import workflow_pb2 as pb

Start = Callable[..., "asyncio.Task[pb.Answer]"]


def request(data: bytes = b"{}", name: str = "greet") -> pb.StartWorkflowRequest:
    return pb.StartWorkflowRequest(workflow_type=name, request_id=name, input=common_pb2.Payload(data=data))


@pytest.fixture
async def calls() -> Calls:
    calls = Calls()
    calls.connected(window=1000)
    return calls


async def waiting(
    calls: Calls, *requests: pb.StartWorkflowRequest, timeout: float | None = None
) -> list[asyncio.Task[pb.Answer]]:
    tasks = [asyncio.ensure_future(calls.call(start=one, timeout=timeout)) for one in requests]
    await asyncio.sleep(0)
    return tasks


def ids(batch: pb.ConnectRequest | None) -> list[int]:
    assert batch is not None
    return [call.call_id for call in batch.batch.starts] + [call.call_id for call in batch.batch.waits]


def answers(*ids: int) -> pb.AnswerBatch:
    return pb.AnswerBatch(answers=[pb.Answer(call_id=one, started=pb.StartOutcome(version=one)) for one in ids])


async def test_calls_of_a_turn_share_a_batch(calls: Calls) -> None:
    tasks = await waiting(calls, *(request() for _ in range(3)))
    assert ids(calls.next_batch()) == [1, 2, 3]
    assert calls.next_batch() is None
    calls.answered(answers(3, 1, 2))
    assert [task.started.version for task in await asyncio.gather(*tasks)] == [1, 2, 3]
    assert not calls.unanswered


async def test_a_batch_is_cut_at_64_calls_and_one_mebibyte(calls: Calls) -> None:
    tasks = await waiting(calls, *(request() for _ in range(MAX_BATCH + 5)))
    assert len(ids(calls.next_batch())) == MAX_BATCH
    assert len(ids(calls.next_batch())) == 5
    tasks += await waiting(calls, *(request(b"x" * 700_000) for _ in range(2)), request(b"x" * 1_500_000))
    assert [len(ids(calls.next_batch())) for _ in range(3)] == [1, 1, 1]
    calls.close(Unavailable())
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_only_as_many_calls_are_sendable_as_the_window_leaves_room_for(calls: Calls) -> None:
    calls.connected(window=MAX_BATCH + 5)
    tasks = await waiting(calls, *(request() for _ in range(3 * MAX_BATCH)))
    assert calls.sendable == MAX_BATCH + 5
    calls.next_batch()
    assert calls.sendable == 5, "no full message"
    calls.next_batch()
    assert calls.sendable == 0
    calls.answered(answers(1))
    assert calls.sendable == 1
    calls.close(Unavailable())
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_window_bounds_open_calls(calls: Calls) -> None:
    calls.connected(window=2)
    tasks = await waiting(calls, *(request() for _ in range(3)))
    assert ids(calls.next_batch()) == [1, 2]
    assert calls.next_batch() is None
    calls.work.clear()
    calls.answered(answers(2))
    assert calls.work.is_set()
    assert ids(calls.next_batch()) == [3]
    calls.answered(answers(1, 3))
    await asyncio.gather(*tasks)


async def test_a_lost_stream_sends_again_in_order_and_first(calls: Calls) -> None:
    tasks = await waiting(calls, *(request(name=name) for name in ("a", "b", "c")))
    assert ids(calls.next_batch()) == [1, 2, 3]
    calls.answered(answers(2))
    tasks += await waiting(calls, request(name="d"))
    calls.lost()
    assert calls.next_batch() is None, "nothing leaves without a stream"
    calls.connected(window=10)
    batch = calls.next_batch()
    assert batch is not None
    assert [call.start.request_id for call in batch.batch.starts] == ["a", "c", "d"], "under the same request ids"
    calls.answered(answers(1, 3, 4))
    await asyncio.gather(*tasks)


async def test_errors_come_back_as_their_class(calls: Calls) -> None:
    (task,) = await waiting(calls, request())
    calls.next_batch()
    error = wire_common.error_to_pb(UnknownRun("no such run", {"instance_id": "7"}))
    calls.answered(pb.AnswerBatch(answers=[pb.Answer(call_id=1, error=error)]))
    with pytest.raises(UnknownRun, match="no such run") as caught:
        await task
    assert caught.value.context == {"instance_id": "7"}


async def test_an_answer_of_the_wrong_orchestrator_is_asked_again(calls: Calls) -> None:
    (task,) = await waiting(calls, request())
    calls.next_batch()
    error = wire_common.error_to_pb(Draining(context={"retry_after": 0.001}))
    calls.answered(pb.AnswerBatch(answers=[pb.Answer(call_id=1, error=error)]))
    calls.work.clear()
    async with asyncio.timeout(5):
        await calls.work.wait()
    assert ids(calls.next_batch()) == [1]
    calls.answered(answers(1))
    await task


async def test_a_cancelled_call_is_abandoned_once(calls: Calls) -> None:
    sent, unsent = await waiting(calls, request(), request())
    calls.connected(window=1)
    assert ids(calls.next_batch()) == [1]
    sent.cancel()
    unsent.cancel()
    await asyncio.gather(sent, unsent, return_exceptions=True)
    batch = calls.next_batch()
    assert batch is not None
    assert list(batch.batch.abandoned) == [1]
    assert not batch.batch.starts, "what was never sent is not sent any more"
    assert calls.next_batch() is None
    calls.answered(answers(1))  # too late, for nobody


async def test_a_deadline_ends_a_call(calls: Calls) -> None:
    (task,) = await waiting(calls, request(), timeout=0.01)
    calls.next_batch()
    with pytest.raises(DeadlineExceeded):
        await task
    batch = calls.next_batch()
    assert batch is not None
    assert list(batch.batch.abandoned) == [1]


async def test_closing_ends_everything(calls: Calls) -> None:
    sent, unsent = await waiting(calls, request(), request())
    calls.connected(window=1)
    calls.next_batch()
    calls.close(Unavailable("the client is closed"))
    for task in (sent, unsent):
        with pytest.raises(Unavailable, match="closed"):
            await task
    with pytest.raises(Unavailable, match="closed"):
        await calls.call(start=request())


def refusals(error: SPIError, *ids: int) -> pb.AnswerBatch:
    return pb.AnswerBatch(answers=[pb.Answer(call_id=one, error=wire_common.error_to_pb(error)) for one in ids])


@virtual_time
async def test_who_is_refused_for_overload_comes_again_after_the_pause_that_it_is_told() -> None:
    calls = Calls()
    calls.connected(window=1000)
    [task] = await waiting(calls, request(), timeout=30.0)
    assert ids(calls.next_batch()) == [1]
    for pause in (0.3, 2.0):
        calls.answered(refusals(Overloaded("Enough.", {"retry_after": pause}), 1))
        await asyncio.sleep(pause - 0.01)
        assert calls.next_batch() is None
        await asyncio.sleep(0.02)
        assert ids(calls.next_batch()) == [1]
    calls.answered(answers(1))
    assert (await task).started.version == 1


@virtual_time
async def test_who_is_refused_until_its_time_is_over_is_told_why() -> None:
    calls = Calls()
    calls.connected(window=1000)
    [task] = await waiting(calls, request(), timeout=1.0)
    calls.next_batch()
    calls.answered(refusals(Overloaded("Enough.", {"retry_after": 5.0}), 1))
    with pytest.raises(Overloaded, match="Enough"):
        await task
    await asyncio.sleep(10)
    assert calls.next_batch() is None


@virtual_time
async def test_a_store_without_space_is_told_at_once() -> None:
    calls = Calls()
    calls.connected(window=1000)
    [task] = await waiting(calls, request())
    calls.next_batch()
    calls.answered(refusals(StoreFull(), 1))
    with pytest.raises(StoreFull):
        await task
