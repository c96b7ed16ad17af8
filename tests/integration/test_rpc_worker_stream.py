"""WorkerService.Session spoken with generated stubs alone, as any language would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from onexflow.core.errors import Draining, ProtocolViolation
from onexflow.core.ids import Token
from onexflow.core.payload import Payload
from onexflow.ports import worker_link as link
from onexflow.rpc import worker_session
from onexflow.rpc.server import GrpcServer
from onexflow.v1 import common_pb2, worker_pb2_grpc
from onexflow.v1 import worker_pb2 as pb
from support.rpc_kit import FakeService, RecordingPeer, served

TOKEN = common_pb2.Token(shard=0, epoch=7, offset=12)


def hello(**fields: Any) -> pb.SessionRequest:
    given: dict[str, Any] = {"protocol_version": 1, "worker_id": "w", "incarnation": "i1", **fields}
    return pb.SessionRequest(hello=pb.Hello(**given))


class Kit:
    """A service, its server, and streams to it."""

    def __init__(self, service: FakeService, server: GrpcServer, channel: grpc.aio.Channel) -> None:
        self.service, self.server, self.channel = service, server, channel

    def open(self) -> Any:
        return worker_pb2_grpc.WorkerServiceStub(self.channel).Session()

    async def welcomed(self) -> tuple[Any, RecordingPeer]:
        self.service.joined.clear()
        stream = self.open()
        await stream.write(hello())
        assert (await stream.read()).welcome.orchestrator_id == "o1"
        return stream, self.service.peers[-1]


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    service = FakeService()
    async with served(service) as (server, channel):
        yield Kit(service, server, channel)


async def ending(stream: Any) -> tuple[grpc.StatusCode, str]:
    """How a stream ends, whatever it still says."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        pass
    return await stream.code(), await stream.details()


async def test_a_session_from_hello_to_goodbye(kit: Kit) -> None:
    stream = kit.open()
    await stream.write(
        hello(handlers=[pb.HandlerInfo(role="compute", name="add")], slots={"compute": 2}, liveness="127.0.0.1:9")
    )
    welcome = (await stream.read()).welcome
    assert (welcome.protocol_version, welcome.orchestrator_id, dict(welcome.epochs)) == (1, "o1", {0: 7})
    (peer,) = kit.service.peers

    peer.link.send(link.Demand({"compute": 1}))
    assert dict((await stream.read()).demand.waiting) == {"compute": 1}
    await stream.write(pb.SessionRequest(credits=pb.Credits(granted={"compute": 2})))
    assert await peer.until(2) == link.Credits({"compute": 2})

    peer.link.send(
        link.Assignments(
            [
                link.Assignment(
                    token=Token(0, 7, 12), info=link.TaskInfo("sum", "add", "compute", "add"), namespace="default",
                    instance_id="01890000-0000-7000-8000-000000000001", attempt=1, input=Payload(b"[1,2]"),
                )
            ]
        )
    )  # fmt: skip
    (assignment,) = (await stream.read()).assignments.assignments
    assert (assignment.handler, assignment.input.data, assignment.token) == ("add", b"[1,2]", TOKEN)

    await stream.write(pb.SessionRequest(progress=pb.Progress(token=assignment.token)))
    result = pb.AttemptResult(token=assignment.token, status="completed", result=common_pb2.Payload(data=b"3"))
    await stream.write(pb.SessionRequest(results=pb.Results(results=[result])))
    assert await peer.until(4) == link.Results([link.AttemptResult(Token(0, 7, 12), "completed", Payload(b"3"))])
    peer.link.send(link.Ack([Token(0, 7, 12)], [], {0: 13}))
    assert list((await stream.read()).ack.tokens) == [TOKEN]

    await stream.write(pb.SessionRequest(goodbye=pb.Goodbye()))
    await stream.done_writing()
    assert await ending(stream) == (grpc.StatusCode.OK, "")
    assert await peer.closed is True


async def test_what_is_sent_in_one_turn_leaves_joined_and_in_order(kit: Kit) -> None:
    stream, peer = await kit.welcomed()
    for offset in range(100):
        peer.link.send(link.Ack([Token(0, 7, offset)]))
    peer.link.send(link.Demand({"effect": 1}))
    acks = (await stream.read()).ack
    assert [token.offset for token in acks.tokens] == list(range(100))
    assert (await stream.read()).WhichOneof("message") == "demand"


async def test_a_stream_that_ends_without_goodbye_was_not_planned(kit: Kit) -> None:
    stream, peer = await kit.welcomed()
    await stream.done_writing()
    assert (await ending(stream))[0] is grpc.StatusCode.OK
    assert await peer.closed is False

    stream, peer = await kit.welcomed()
    stream.cancel()
    assert await peer.closed is False


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (pb.SessionRequest(pong=pb.Pong(nonce=1)), "must be Hello"),
        (pb.SessionRequest(), "holds nothing"),
        (hello(protocol_version=2), "version 2"),
        (hello(worker_id=""), "worker_id"),
        (hello(slots={"boss": 1}), "boss"),
    ],
)
async def test_a_wrong_first_message_ends_the_stream_with_the_reason(
    kit: Kit, message: pb.SessionRequest, part: str
) -> None:
    stream = kit.open()
    await stream.write(message)
    code, details = await ending(stream)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert part in details
    assert kit.service.peers == []


@pytest.mark.parametrize(
    "message",
    [
        pb.SessionRequest(),
        pb.SessionRequest(credits=pb.Credits(granted={"boss": 1})),
        pb.SessionRequest(results=pb.Results(results=[pb.AttemptResult(status="completed")])),
        pb.SessionRequest(results=pb.Results(results=[pb.AttemptResult(token=TOKEN, status="fine")])),
    ],
)
async def test_a_hostile_message_ends_its_stream_and_hurts_no_other(kit: Kit, message: pb.SessionRequest) -> None:
    good, good_peer = await kit.welcomed()
    bad, bad_peer = await kit.welcomed()
    await bad.write(message)
    assert (await ending(bad))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert await bad_peer.closed is False

    good_peer.link.send(link.Demand({"effect": 1}))
    assert (await good.read()).demand.waiting["effect"] == 1


async def test_bytes_that_are_no_message_end_their_stream_only(kit: Kit) -> None:
    good, good_peer = await kit.welcomed()
    raw: Any = kit.channel.stream_stream("/onexflow.v1.WorkerService/Session")
    stream: Any = raw()
    await stream.write(hello().SerializeToString())
    await stream.read()
    await stream.write(b"\xff\xff\xff\xff")
    code, _ = await ending(stream)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert await kit.service.peers[-1].closed is False

    good_peer.link.send(link.Drain())
    assert (await good.read()).WhichOneof("message") == "drain"


async def test_an_oversized_message_ends_its_stream_only(kit: Kit) -> None:
    good, good_peer = await kit.welcomed()
    bad, bad_peer = await kit.welcomed()
    payload = common_pb2.Payload(data=b"x" * (9 << 20), encoding="raw")
    result = pb.AttemptResult(token=TOKEN, status="completed", result=payload)
    await bad.write(pb.SessionRequest(results=pb.Results(results=[result])))
    code, _ = await ending(bad)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await bad_peer.closed is False

    good_peer.link.send(link.Drain())
    assert (await good.read()).WhichOneof("message") == "drain"


async def test_what_the_engine_refuses_ends_the_stream_with_its_reason(kit: Kit) -> None:
    for error, code in (
        (ProtocolViolation("Hello may be said once."), grpc.StatusCode.INVALID_ARGUMENT),
        (Draining(), grpc.StatusCode.UNAVAILABLE),
        (KeyError("secret"), grpc.StatusCode.INTERNAL),
    ):
        stream, peer = await kit.welcomed()
        peer.raises = error
        await stream.write(pb.SessionRequest(worker_draining=pb.WorkerDraining()))
        ended = await ending(stream)
        assert ended[0] is code
        assert "secret" not in ended[1]
        assert await peer.closed is False


async def test_closing_sends_what_is_queued_and_says_why(kit: Kit) -> None:
    stream, peer = await kit.welcomed()
    peer.link.send(link.Drain("going"))
    peer.link.close("replaced by a newer stream")
    peer.link.send(link.Ping(1))
    assert (await stream.read()).drain.reason == "going"
    assert await ending(stream) == (grpc.StatusCode.UNAVAILABLE, "replaced by a newer stream")


async def test_a_stream_without_hello_is_ended(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker_session.WorkerStream.__init__.__kwdefaults__, "hello_within", 0.05)
    stream = kit.open()
    code, details = await ending(stream)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "first message" in details


async def test_a_silent_worker_is_asked_and_one_that_answers_stays(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker_session.WorkerStream.__init__.__kwdefaults__, "ping_after", 0.05)
    monkeypatch.setitem(worker_session.WorkerStream.__init__.__kwdefaults__, "ping_within", 0.1)
    stream, peer = await kit.welcomed()
    for count in (2, 3):
        ping = (await stream.read()).ping
        await stream.write(pb.SessionRequest(pong=pb.Pong(nonce=ping.nonce)))
        assert await peer.until(count) == link.Pong(ping.nonce)
    code, details = await ending(stream)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "said nothing" in details
    assert await peer.closed is False


async def test_draining_is_said_and_stopping_ends_the_streams(kit: Kit) -> None:
    stream, peer = await kit.welcomed()
    await kit.server.drain()
    assert (await stream.read()).WhichOneof("message") == "drain"
    await kit.server.stop(1.0)
    assert (await ending(stream))[0] is grpc.StatusCode.UNAVAILABLE
    assert await peer.closed is False
