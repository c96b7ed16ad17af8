"""What a hostile or careless client says to the event bus: it costs the orchestrator little, and nobody else anything."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from onexflow.core.errors import InvalidArgument, Overloaded
from onexflow.engine.events import groups as event_groups
from onexflow.engine.events import topics as event_topics
from onexflow.engine.events.checks import MAX_STREAMS, MIN_ACK_TIMEOUT
from onexflow.engine.events.deliveries import NOT_GIVEN
from onexflow.ports.events import Consume, Filter
from onexflow.rpc import consume_session
from onexflow.rpc.consume_session import ConsumeStream
from onexflow.testing import Cluster, virtual_time
from onexflow.v1 import common_pb2, events_pb2, events_pb2_grpc
from support.bus_kit import Reader, publish, stream, uuid
from support.grpc_cluster import grpc_cluster

#: As much as an event's texts may be, in characters of four bytes.
LONG = "\U0001f600" * 255


def event(n: int, size: int = 0, **fields: Any) -> events_pb2.PublishEventRequest:
    key = common_pb2.RunKey(workflow_type="ext", instance_id=str(stream().instance_id))
    body = common_pb2.Payload(data=b'{"n":%d,"x":"%s"}' % (n, b"x" * size))
    return events_pb2.PublishEventRequest(
        event=events_pb2.Event(key=key, type="task.completed", payload=body, **fields)
    )  # fmt: skip


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[ConsumeStream]:
    """The consumers' streams, as the orchestrator has them."""
    found: list[ConsumeStream] = []
    told = ConsumeStream._told

    def watched(self: ConsumeStream, what: Any) -> None:
        if self not in found:
            found.append(self)
        told(self, what)

    monkeypatch.setattr(consume_session.ConsumeStream, "_told", watched)
    return found


async def test_one_who_does_not_read_has_no_more_kept_for_him_than_his_window(sessions: list[ConsumeStream]) -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        for n in range(30):
            await stub.PublishEvent(event(n, 200_000))
        call = stub.Consume()
        opened = events_pb2.ConsumeOpen(start="earliest", ack_timeout=MIN_ACK_TIMEOUT, max_deliveries=-1)
        await call.write(events_pb2.ConsumeRequest(open=opened))
        async with asyncio.timeout(20):
            while not (sessions and any(one.attempt > 3 for one in sessions[0]._deliveries.values())):
                await asyncio.sleep(0.05)  # events come again and again
        assert len(sessions[0]._deliveries) <= 30
        call.cancel()


async def test_one_who_acknowledges_what_he_has_not_read_has_no_more_kept_either(
    sessions: list[ConsumeStream],
) -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        places = [(await stub.PublishEvent(event(n, 100_000))).position for n in range(200)]
        call = stub.Consume()
        opened = events_pb2.ConsumeOpen(start="earliest", window=10)
        await call.write(events_pb2.ConsumeRequest(open=opened))
        most = 0
        for guess in places:
            await call.write(events_pb2.ConsumeRequest(answers=events_pb2.ConsumeAnswers(acks=[guess])))
            await asyncio.sleep(0.005)  # so that the next is given out
            most = max([most, *(len(session._deliveries) for session in sessions)])
        assert most <= 10
        call.cancel()


async def test_events_with_the_longest_texts_fit_into_messages() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        for n in range(50):
            await stub.PublishEvent(event(n, correlation_chain=[LONG] * 255))
        call = stub.Consume()
        await call.write(events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(start="earliest")))
        got = 0
        while got < 50:
            message = await call.read()
            assert message is not grpc.aio.EOF
            got += len(message.batch.deliveries)
        call.cancel()
        seen = 0
        while seen < 50:
            read = events_pb2.ReadEventsRequest(key=event(0).event.key, from_sequence=seen + 1)
            seen = (await stub.ReadEvents(read)).events[-1].sequence


async def test_a_dead_letter_keeps_so_much_of_its_failure_that_it_can_be_told() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        call = stub.Consume()
        await call.write(events_pb2.ConsumeRequest(open=events_pb2.ConsumeOpen(group="g")))
        await call.read()
        failure = common_pb2.Failure(type="Loud", message="m" * 4_000_000)
        for n in range(4):
            place = (await stub.PublishEvent(event(n))).position
            while not (await call.read()).HasField("batch"):
                pass
            bury = events_pb2.EventReject(position=place, error=failure)
            answers = events_pb2.ConsumeAnswers(answer_id=n + 1, buries=[bury])
            await call.write(events_pb2.ConsumeRequest(answers=answers))
            while not (message := await call.read()).HasField("done"):
                pass
            assert not message.done.HasField("error")
        found = await stub.ListDeadLetters(events_pb2.ListDeadLettersRequest(group="g"))
        assert [len(letter.error.message) for letter in found.dead_letters] == [16 << 10] * 4
        call.cancel()


@virtual_time
async def test_groups_are_no_more_than_can_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_groups, "MAX_GROUPS", 5)
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        for n in range(5):
            (await Reader(bus, group=f"g{n}").begin()).close()
        with pytest.raises(Overloaded):
            Reader(bus, group="another")
        (await Reader(bus, group="g3").begin()).close()
        assert await bus.delete_group("default", "g0")
        (await Reader(bus, group="another").begin()).close()
        assert len(await bus.list_groups("default")) == 5
    monkeypatch.undo()
    async with Cluster(seed=1) as cluster:
        wide = Filter(topics=(LONG,) * 1000)
        with pytest.raises(Overloaded):
            for n in range(10):
                cluster.engine.events.consume(Consume(filter=wide, group=f"g{n}"), lambda _: None)


@virtual_time
async def test_topics_are_no_more_than_can_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_topics, "MAX_TOPICS", 3)
    async with Cluster(seed=1) as cluster:
        for n in range(3):
            await publish(cluster.engine.events, stream(), n, topic=f"t{n}")
        for _ in range(2):
            bus = cluster.engine.events
            with pytest.raises(Overloaded):
                await publish(bus, stream(), 3, topic="t3")
            with pytest.raises(Overloaded):
                await bus.create_topic("default", "t4", 1)
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
        assert (await publish(cluster.engine.events, stream(), 3, topic="t0")).sequence == 4


@virtual_time
async def test_one_id_is_published_to_so_many_streams_and_no_more() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        with pytest.raises(InvalidArgument):
            for n in range(10 * MAX_STREAMS):
                await publish(bus, stream(f"s{n}"), 1, event_id=uuid("a"))
        assert not (await publish(bus, stream("s0"), 1, event_id=uuid("a"))).created


@virtual_time
async def test_what_would_come_again_all_the_time_is_refused() -> None:
    async with Cluster(seed=1) as cluster:
        for timeout in (1e-9, float("nan")):
            with pytest.raises(InvalidArgument):
                cluster.engine.events.consume(Consume(filter=Filter(), ack_timeout=timeout), lambda _: None)


async def test_a_rejection_counts_whatever_the_consumer_calls_it() -> None:
    async with grpc_cluster() as client:
        stub: Any = events_pb2_grpc.EventBusServiceStub(client._channels._channel())
        await stub.PublishEvent(event(1))
        call = stub.Consume()
        opened = events_pb2.ConsumeOpen(group="g", start="earliest", max_deliveries=3)
        await call.write(events_pb2.ConsumeRequest(open=opened))
        error = common_pb2.Failure(type=NOT_GIVEN.type, message="so it says")
        given = 0
        async with asyncio.timeout(20):
            while not (await stub.ListDeadLetters(events_pb2.ListDeadLettersRequest(group="g"))).dead_letters:
                for delivery in (await call.read()).batch.deliveries if given < 3 else ():
                    given += 1
                    answers = events_pb2.ConsumeAnswers(
                        rejects=[events_pb2.EventReject(position=delivery.position, error=error)]
                    )
                    await call.write(events_pb2.ConsumeRequest(answers=answers))
        assert given == 3
        call.cancel()
