"""WorkflowService.Connect spoken with generated stubs alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from onexflow.core.errors import Overloaded
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.ports.client_link import RunOutcome
from onexflow.rpc import client_session
from onexflow.rpc.server import GrpcServer
from onexflow.v1 import common_pb2, workflow_pb2_grpc
from onexflow.v1 import workflow_pb2 as pb
from support.rpc_kit import RUN, FakeService, served


def start(call_id: int, workflow_type: str = "echo", **fields: Any) -> pb.StartCall:
    return pb.StartCall(call_id=call_id, start=pb.StartWorkflowRequest(workflow_type=workflow_type, **fields))


def wait(call_id: int, workflow_type: str = "stuck", instance_id: str = str(RUN)) -> pb.WaitCall:
    return pb.WaitCall(call_id=call_id, key=common_pb2.RunKey(workflow_type=workflow_type, instance_id=instance_id))


def batch(*, starts: Any = (), waits: Any = (), abandoned: Any = ()) -> pb.ConnectRequest:
    return pb.ConnectRequest(batch=pb.CallBatch(starts=starts, waits=waits, abandoned=abandoned))


class Kit:
    def __init__(self, service: FakeService, server: GrpcServer, channel: grpc.aio.Channel) -> None:
        self.service, self.server, self.channel = service, server, channel

    async def open(self) -> Any:
        stream: Any = workflow_pb2_grpc.WorkflowServiceStub(self.channel).Connect()
        await stream.write(pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=1, client_id="c")))
        welcome = (await stream.read()).welcome
        assert (welcome.protocol_version, welcome.orchestrator_id) == (1, "o1")
        return stream


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    service = FakeService()
    async with served(service) as (server, channel):
        yield Kit(service, server, channel)


async def answers(stream: Any, count: int) -> dict[int, pb.Answer]:
    found: dict[int, pb.Answer] = {}
    while len(found) < count:
        message = await stream.read()
        assert len(message.batch.answers) <= 64
        found.update({answer.call_id: answer for answer in message.batch.answers})
    return found


async def ending(stream: Any) -> tuple[grpc.StatusCode, str]:
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        pass
    return await stream.code(), await stream.details()


async def test_starts_and_waits_are_answered_once_each_by_their_call_id(kit: Kit) -> None:
    stream = await kit.open()
    value = common_pb2.Payload(data=b'{"a":1}')
    await stream.write(
        batch(
            starts=[start(1), start(2, wait=True, input=value), start(3, "none"), start(4, "stuck")],
            waits=[wait(5, "echo")],
        )
    )
    found = await answers(stream, 5)
    assert found[1].started.state == "running"
    assert found[1].started.created
    assert found[2].ended.state == "completed"
    assert found[2].ended.result.data == b'{"a":1}'
    assert (found[3].error.code, found[3].error.retry_after) == ("OXF-2001", 0.0)
    assert found[4].started.key.workflow_type == "stuck"
    assert found[5].ended.state == "completed"


async def test_the_answers_of_one_turn_leave_in_one_message(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(starts=[start(n) for n in range(1, 65)]))
    assert len((await stream.read()).batch.answers) == 64


async def test_one_wrong_call_is_its_own_affair(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(
        batch(
            starts=[start(1, ""), start(2, delay=-1.0), pb.StartCall(call_id=3), start(4)],
            waits=[wait(5, instance_id="x")],
        )
    )
    found = await answers(stream, 5)
    assert {call: found[call].error.code for call in (1, 2, 3, 5)} == dict.fromkeys((1, 2, 3, 5), "OXF-1001")
    assert '"field":"delay"' in found[2].error.context_json
    assert found[4].WhichOneof("answer") == "started"

    kit.service.explodes = True
    await stream.write(batch(starts=[start(6)]))
    error = (await answers(stream, 1))[6].error
    assert error.code == "OXF-9001"
    assert "secret" not in error.message


async def test_calls_beyond_the_window_are_refused_and_the_others_go_on(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(client_session.ClientStream.__init__.__kwdefaults__, "window", 2)
    stream = await kit.open()
    await stream.write(batch(waits=[wait(1), wait(2), wait(3)]))
    found = await answers(stream, 1)
    assert (found[3].error.code, found[3].error.retry_after > 0) == ("OXF-1201", True)

    (key,) = kit.service.waiting
    for reply in kit.service.waiting[key]:
        reply(RunOutcome(key=key, state="cancelled"))
    assert set(await answers(stream, 2)) == {1, 2}
    await stream.write(batch(starts=[start(4)]))
    assert set(await answers(stream, 1)) == {4}


async def test_a_start_is_refused_unseen_and_an_orchestrations_call_is_not(kit: Kit) -> None:
    kit.service.refuses = Overloaded("Enough.", {"retry_after": 0.3})
    caller = pb.Caller(run=common_pb2.RunKey(workflow_type="w", instance_id=str(RUN)), task="t", number="1")
    stream = await kit.open()
    await stream.write(batch(starts=[start(1), start(2, caller=caller)], waits=[wait(3, "echo")]))
    found = await answers(stream, 3)
    assert found[1].error.code == "OXF-1201"
    assert found[1].error.retry_after == pytest.approx(0.3)
    assert found[2].WhichOneof("answer") == "started"
    assert found[3].WhichOneof("answer") == "ended"
    assert len(kit.service.starts) == 1
    kit.service.refuses = None
    await stream.write(batch(starts=[start(1)]))
    assert (await answers(stream, 1))[1].WhichOneof("answer") == "started", "its id is free"


async def test_a_flood_is_read_first_and_begun_a_few_at_a_time(kit: Kit) -> None:
    stream = await kit.open()
    for first in range(1, 301, 60):
        await stream.write(batch(waits=[wait(number) for number in range(first, first + 60)]))
    for first in range(1000, 1640, 64):
        await stream.write(batch(starts=[start(number) for number in range(first, first + 64)]))
    found = await answers(stream, 640)
    assert {answer.WhichOneof("answer") for answer in found.values()} == {"started"}
    assert len(kit.service.asked) == 640
    assert max(behind for _, behind in kit.service.asked) >= 64 - client_session.FLOOD_BEGINS
    assert max(waited for waited, _ in kit.service.asked) > 0


async def test_few_calls_are_begun_as_they_come(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(starts=[start(number) for number in range(1, 65)]))
    await answers(stream, 64)
    assert [behind for _, behind in kit.service.asked] == [*range(63, -1, -1)], "in one go"


async def test_a_client_that_says_its_last_in_a_flood_gets_all_its_answers(kit: Kit) -> None:
    stream = await kit.open()
    for first in range(1, 641, 64):
        await stream.write(batch(starts=[start(number) for number in range(first, first + 64)]))
    await stream.done_writing()
    assert len(await answers(stream, 640)) == 640
    assert await stream.read() is grpc.aio.EOF


async def test_an_abandoned_call_is_given_up_and_its_id_is_free(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(waits=[wait(1)]))
    await stream.write(batch(abandoned=[1, 99], starts=[start(1)]))
    found = await answers(stream, 1)
    assert found[1].WhichOneof("answer") == "started"
    assert kit.service.given_up == 1


async def test_a_late_answer_to_an_abandoned_start_is_not_taken_for_another_calls(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(starts=[start(1, "stuck", wait=True)]))
    await stream.write(batch(abandoned=[1], waits=[wait(1, "echo")]))
    found = await answers(stream, 1)
    assert found[1].ended.key.workflow_type == "echo"


async def test_a_broken_stream_gives_up_its_waits(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(waits=[wait(1), wait(2)], starts=[start(3)]))
    await answers(stream, 1)
    stream.cancel()
    while kit.service.given_up < 2:
        kit.service.changed.clear()
        await kit.service.changed.wait()


async def test_a_half_closed_stream_is_still_answered_and_then_ends(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(waits=[wait(1)], starts=[start(2)]))
    await answers(stream, 1)
    await stream.done_writing()
    key = RunKey("default", "stuck", RUN)
    kit.service.waiting[key][0](RunOutcome(key=key, state="completed", result=Payload(b"1")))
    assert (await answers(stream, 1))[1].ended.result.data == b"1"
    assert (await ending(stream))[0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([batch(starts=[start(0)])], "0 is no call id"),
        ([batch(waits=[wait(1), wait(1)])], "open already"),
        ([batch(starts=[start(n) for n in range(1, 66)])], "65 calls"),
        ([pb.ConnectRequest()], "holds nothing"),
        ([pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=1))], "once a stream"),
    ],
)
async def test_a_broken_protocol_ends_the_stream_with_the_reason(kit: Kit, messages: list[Any], part: str) -> None:
    good = await kit.open()
    stream = await kit.open()
    for message in messages:
        await stream.write(message)
    code, details = await ending(stream)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert part in details
    await good.write(batch(starts=[start(1)]))
    assert set(await answers(good, 1)) == {1}


@pytest.mark.parametrize("message", [batch(), pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=9))])
async def test_a_wrong_first_message_ends_the_stream(kit: Kit, message: pb.ConnectRequest) -> None:
    stream = workflow_pb2_grpc.WorkflowServiceStub(kit.channel).Connect()
    await stream.write(message)
    assert (await ending(stream))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_large_answers_are_cut_at_a_mebibyte(kit: Kit) -> None:
    stream = await kit.open()
    value = common_pb2.Payload(data=b'"' + b"x" * (700 << 10) + b'"')
    await stream.write(batch(starts=[start(n, wait=True, input=value) for n in range(1, 5)]))
    sizes = [len((await stream.read()).batch.answers) for _ in range(4)]
    assert sizes == [1, 1, 1, 1]


async def test_draining_is_said_and_open_calls_are_still_answered(kit: Kit) -> None:
    stream = await kit.open()
    await stream.write(batch(waits=[wait(1)], starts=[start(2)]))
    await answers(stream, 1)
    await kit.server.drain("going")
    assert (await stream.read()).drain.reason == "going"
    key = RunKey("default", "stuck", RUN)
    kit.service.waiting[key][0](RunOutcome(key=key, state="cancelled"))
    assert set(await answers(stream, 1)) == {1}
    await kit.server.stop(1.0)
    assert (await ending(stream))[0] is grpc.StatusCode.UNAVAILABLE
