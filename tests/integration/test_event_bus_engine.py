"""The event bus over a file and over gRPC: groups that go on after a restart, plain stubs, windows, lost connections."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

import onexflow
from onexflow.app.system import SystemClock, SystemIds
from onexflow.client.remote import RemoteService
from onexflow.codec.payload import JsonCodec, encode_value
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    OutOfRange,
    Unavailable,
    UnknownProjection,
    UnknownRun,
    UnknownTopic,
)
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.server import GrpcServer
from onexflow.storage.memory import MemoryStore
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing.cluster import Cluster
from onexflow.v1 import common_pb2, events_pb2, events_pb2_grpc
from support.bus_kit import OOPS, Reader, publish, stream, uuid
from support.engine_kit import until
from support.grpc_cluster import grpc_cluster


async def test_a_group_goes_on_after_a_restart_of_a_file(tmp_path: Path) -> None:
    clock = SystemClock()
    async with Cluster(seed=1, store=SqliteStore(tmp_path / "ledger.db", clock=clock), clock=clock) as cluster:
        bus = cluster.engine.events
        reader = await Reader(bus, group="g").begin()
        for n in range(6):
            await publish(bus, stream(), n, event_id=uuid(str(n)))
        await reader.have(6)
        await reader.ack(*reader.places[:2], reader.places[3])
        await reader.bury(reader.places[4])
        await cluster.crash_orchestrator()
        cluster.store = SqliteStore(tmp_path / "ledger.db", clock=clock)
        await cluster.restart_orchestrator()
        bus = cluster.engine.events
        again = Reader(bus, group="g")
        assert sorted(await again.have(2)) == [2, 5]
        assert all(delivery.attempt == 2 for delivery in again.got)
        assert not (await publish(bus, stream(), 0, event_id=uuid("0"))).created
        assert [letter.delivery.position for letter in await bus.list_dead_letters("default", "g")] == [
            reader.places[4]
        ]
        status = await bus.find_event("default", uuid("1"))
        assert status is not None
        assert status.acknowledged == ("g",)


# ---- plain stubs


def event(n: int, **fields: Any) -> events_pb2.Event:
    key = common_pb2.RunKey(workflow_type="ext", instance_id=str(stream().instance_id))
    body = common_pb2.Payload(data=b'{"n":%d}' % n)
    return events_pb2.Event(key=key, type="task.completed", payload=body, **fields)


async def test_plain_stubs_publish_and_read() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        assert (await stub.CreateTopic(events_pb2.CreateTopicRequest(name="ext", partitions=4))).created
        first = await stub.PublishEvent(events_pb2.PublishEventRequest(event=event(1, event_id=str(uuid("1")))))
        assert (first.sequence, first.created, first.topic) == (1, True, "ext")
        again = await stub.PublishEvent(events_pb2.PublishEventRequest(event=event(1, event_id=str(uuid("1")))))
        assert (again.created, again.position) == (False, first.position)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.PublishEvent(events_pb2.PublishEventRequest(event=event(2, sequence=1)))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        key = event(1).key
        found = await stub.ReadEvents(events_pb2.ReadEventsRequest(key=key))
        assert [one.payload.data for one in found.events] == [b'{"n":1}']
        shown = await stub.FindEvent(events_pb2.FindEventRequest(event_id=str(uuid("1"))))
        assert (shown.position, shown.topic) == (first.position, "ext")
        for missing in (
            stub.FindEvent(events_pb2.FindEventRequest(event_id=str(uuid("2")))),
            stub.LoadProjection(events_pb2.LoadProjectionRequest(name="p", key=key)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await missing
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        topics = await stub.ListTopics(events_pb2.ListTopicsRequest())
        assert [(topic.name, topic.partitions) for topic in topics.topics] == [("ext", 4)]
        assert (await stub.DeleteTopic(events_pb2.DeleteTopicRequest(name="ext"))).changed


async def test_plain_stubs_consume_and_answer() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        call = stub.Consume()
        await call.write(
            events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(group="g", window=2, start="earliest"))
        )  # fmt: skip
        begun = await call.read()
        assert begun.WhichOneof("message") == "begun"
        for n in range(4):
            await stub.PublishEvent(events_pb2.PublishEventRequest(event=event(n)))
        got = await deliveries(call, 2)
        assert [one.event.payload.data for one in got] == [b'{"n":0}', b'{"n":1}']
        [view] = (await stub.ListGroups(events_pb2.ListGroupsRequest())).groups
        assert (view.members, view.unanswered, view.lag) == (1, 2, 4)
        answers = events_pb2.ConsumeAnswers(
            answer_id=7,
            acks=[got[0].position],
            buries=[events_pb2.EventReject(position=got[1].position, error=common_pb2.Failure(type="Oops"))],
        )
        await call.write(events_pb2.ConsumeRequest(answers=answers))
        more: list[Any] = []
        done = None
        while len(more) < 2 or done is None:
            message = await call.read()
            more.extend(message.batch.deliveries)
            done = message.done if message.HasField("done") else done
        assert (done.answer_id, done.HasField("error")) == (7, False)
        assert [one.event.payload.data for one in more] == [b'{"n":2}', b'{"n":3}']
        await call.done_writing()
        [letter] = (await stub.ListDeadLetters(events_pb2.ListDeadLettersRequest(group="g"))).dead_letters
        assert (letter.error.type, letter.delivery.position) == ("Oops", got[1].position)
        assert (await stub.RequeueDeadLetters(events_pb2.RequeueDeadLettersRequest(group="g"))).count == 1
        assert (await stub.DiscardDeadLetters(events_pb2.DiscardDeadLettersRequest(group="g"))).count == 0
        while (await call.read()) is not grpc.aio.EOF:
            pass
        assert (await stub.DeleteGroup(events_pb2.DeleteGroupRequest(name="g"))).changed


async def deliveries(call: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        found.extend((await call.read()).batch.deliveries)
    return found


async def test_plain_stubs_keep_a_projection() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        call = stub.Consume()
        opened = events_pb2.ConsumeOpen(group="p", projection=True, start="earliest")
        await call.write(events_pb2.ConsumeRequest(open=opened))
        await call.read()
        await stub.PublishEvent(events_pb2.PublishEventRequest(event=event(1)))
        [got] = await deliveries(call, 1)
        state = events_pb2.ProjectedState(key=got.event.key, state=common_pb2.Payload(data=b"1"))
        request = events_pb2.SaveProjectionRequest(
            name="p", shard=got.position.shard, offset=got.position.offset + 1, states=[state]
        )
        await stub.SaveProjection(request)
        loaded = await stub.LoadProjection(events_pb2.LoadProjectionRequest(name="p", key=got.event.key))
        assert (loaded.state.data, loaded.offset, loaded.head) == (b"1", request.offset, request.offset)
        request.offset += 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SaveProjection(request)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await stub.ResetProjection(events_pb2.ResetProjectionRequest(name="p"))
        loaded = await stub.LoadProjection(events_pb2.LoadProjectionRequest(name="p", key=got.event.key))
        assert not loaded.HasField("state")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while (await call.read()) is not grpc.aio.EOF:
                pass
            raise AssertionError(await call.code())
        assert ended.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "first",
    [
        events_pb2.ConsumeRequest(),
        events_pb2.ConsumeRequest(answers=events_pb2.ConsumeAnswers()),
        events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(start="middle")),
        events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(window=1_000_000)),
        events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(projection=True)),
        events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(ack_timeout=float("nan"))),
        events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(group="x" * 300)),
    ],
    ids=["nothing", "answers", "start", "window", "projection", "timeout", "group"],
)
async def test_a_wrong_first_message_ends_the_stream_with_its_reason(first: Any) -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        call = stub.Consume()
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_about_what_nobody_delivered_change_nothing() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        call = stub.Consume()
        await call.write(events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(group="g")))
        await call.read()
        nowhere = [events_pb2.EventPosition(shard=s, offset=o) for s, o in ((0, 5), (99, 1), (0, 0))]
        reject = [events_pb2.EventReject(position=place) for place in nowhere]
        answers = events_pb2.ConsumeAnswers(answer_id=1, acks=nowhere, rejects=reject, buries=reject)
        await call.write(events_pb2.ConsumeRequest(answers=answers))
        while not (message := await call.read()).HasField("done"):
            pass
        assert not message.done.HasField("error")
        await stub.PublishEvent(events_pb2.PublishEventRequest(event=event(1)))
        assert len(await deliveries(call, 1)) == 1


HUGE = (1 << 64) - 1
HOSTILE: list[tuple[str, Any]] = [
    ("PublishEvent", events_pb2.PublishEventRequest()),
    ("PublishEvent", events_pb2.PublishEventRequest(event=event(1, event_id="no uuid"))),
    ("PublishEvent", events_pb2.PublishEventRequest(event=event(1, sequence=HUGE))),
    ("PublishEvent", events_pb2.PublishEventRequest(event=event(1, timestamp=-1))),
    ("PublishEvent", events_pb2.PublishEventRequest(event=event(1, idempotency_key="x" * 5000))),
    ("PublishEvent", events_pb2.PublishEventRequest(event=event(1), topic="$queue")),
    ("PublishEvent", events_pb2.PublishEventRequest(event=event(1), topic="\0")),
    ("ReadEvents", events_pb2.ReadEventsRequest()),
    ("ReadEvents", events_pb2.ReadEventsRequest(key=event(1).key, from_sequence=HUGE, limit=(1 << 32) - 1)),
    ("FindEvent", events_pb2.FindEventRequest(event_id="x")),
    ("DeleteGroup", events_pb2.DeleteGroupRequest()),
    ("ListDeadLetters", events_pb2.ListDeadLettersRequest(group="x" * 300)),
    ("RequeueDeadLetters", events_pb2.RequeueDeadLettersRequest(group="nobody")),
    ("CreateTopic", events_pb2.CreateTopicRequest(name="t")),
    ("DeleteTopic", events_pb2.DeleteTopicRequest()),
    ("SaveProjection", events_pb2.SaveProjectionRequest()),
    ("SaveProjection", events_pb2.SaveProjectionRequest(name="p", shard=99, offset=HUGE)),
    ("LoadProjection", events_pb2.LoadProjectionRequest(name="p")),
    ("ResetProjection", events_pb2.ResetProjectionRequest(name="p")),
]


@pytest.mark.parametrize(("method", "request_"), HOSTILE, ids=[f"{n}-{name}" for n, (name, _) in enumerate(HOSTILE)])
async def test_wrong_calls_say_what_is_wrong(method: str, request_: Any) -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(stub, method)(request_)
        assert refused.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


async def test_huge_positions_end_the_stream_with_their_reason() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        call = stub.Consume()
        await call.write(events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(positions={0: HUGE})))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        places = [events_pb2.EventPosition(shard=1, offset=HUGE)]
        request = events_pb2.DiscardDeadLettersRequest(group="g", positions=places)
        assert (await stub.DiscardDeadLetters(request)).count == 0


# ---- the client's side of the port


async def test_the_same_service_over_grpc() -> None:
    async with grpc_cluster() as client:
        bus = RemoteService.of(client).events
        reader = await Reader(bus, window=8).begin()
        group = await Reader(bus, group="g", max_deliveries=1).begin()
        for n in range(10):
            await publish(bus, stream(str(n)), {"n": n, "pad": "x" * 200_000}, event_id=uuid(str(n)))
        await reader.have(8)
        await reader.ack()
        assert sorted(value["n"] for value in await reader.have(10)) == list(range(10))
        await group.have(10)
        group.reject(group.places[0])
        await group.ack(*group.places[1:])
        await until(lambda: group.done)
        assert len(await bus.list_dead_letters("default", "g")) == 1
        assert [record.sequence for record in await bus.read_events(stream("3"))] == [1]
        with pytest.raises(UnknownRun):
            await bus.read_events(stream("nobody"))
        with pytest.raises(InvalidTransition) as refused:
            await publish(bus, stream("3"), "other", sequence=1)
        assert refused.value.context["required_state"]
        with pytest.raises(InvalidArgument):
            await publish(bus, stream(), type="")
        status = await bus.find_event("default", uuid("3"))
        assert status is not None
        assert status.event.idempotency_key == str(uuid("3"))
        assert await bus.find_event("default", uuid("none")) is None
        with pytest.raises(UnknownProjection):
            await bus.load_projection("default", "p", stream())
        wrong = await Reader(bus, group="g", topics=("x",)).begin()
        assert isinstance(wrong.error, InvalidTransition)
        topical = await Reader(bus, topics=("ext",)).begin()
        assert await bus.delete_topic("default", "ext")
        assert isinstance(await topical.fails(), UnknownTopic)
        assert not isinstance(topical.error, OutOfRange)


async def test_many_large_events_are_read_in_pages() -> None:
    async with grpc_cluster() as client:
        bus = RemoteService.of(client).events
        for n in range(12):
            await publish(bus, stream(), {"n": n, "pad": "x" * 1_000_000})
        found = await bus.read_events(stream())
        assert [record.sequence for record in found] == list(range(1, 13))
        assert len(await bus.read_events(stream(), 2, 11, 4)) == 4
        reader = Reader(bus, start="earliest")
        assert [value["n"] for value in await reader.have(12)] == list(range(12))


async def test_what_was_said_before_closing_counts() -> None:
    async with grpc_cluster() as client:
        bus = RemoteService.of(client).events
        reader = await Reader(bus, group="g").begin()
        await publish(bus, stream(), 1)
        await reader.have(1)
        reader.consumer.ack(reader.places)
        reader.close()
        reader.consumer.ack(reader.places, reader.done.append)
        assert isinstance(reader.done[0], Unavailable)
        async with asyncio.timeout(10):
            while (view := (await bus.list_groups("default"))[0]).members or view.lag:
                await asyncio.sleep(0.01)


async def test_a_lost_orchestrator_ends_the_stream_and_a_new_one_goes_on() -> None:
    clock, ids = SystemClock(), SystemIds()
    registry = MemoryRegistry(MemoryRegistryHub(clock))
    await registry.start()
    store = MemoryStore(clock)

    async def serve(address: str, incarnation: str) -> tuple[Orchestrator, GrpcServer]:
        orchestrator = Orchestrator(
            store, registry, clock=clock, ids=ids, codec=JsonCodec(), orchestrator_id="o", incarnation=incarnation
        )
        await orchestrator.start()
        server = GrpcServer(orchestrator, address)
        await server.start()
        return orchestrator, server

    orchestrator, server = await serve("127.0.0.1:0", "1")
    address = server.address
    async with await onexflow.connect(address) as client:
        bus = RemoteService.of(client).events
        reader = await Reader(bus, group="g").begin()
        await publish(bus, stream(), encode_value(1).encoding)
        await reader.have(1)
        acked = len(reader.done)
        await server.stop(0.5)
        await orchestrator.stop()
        assert isinstance(await reader.fails(), Unavailable)
        reader.consumer.ack(reader.places, reader.done.append)
        assert isinstance(reader.done[acked], Unavailable)
        reader.consumer.reject(reader.places[0], OOPS, 0.0)
        orchestrator, server = await serve(address, "2")
        again = Reader(bus, group="g")
        await again.have(1)
        assert again.got[0].attempt == 2
        await again.ack()
    await server.stop(0.5)
    await orchestrator.stop()
    await registry.close()
