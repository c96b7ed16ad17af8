"""The event bus on the wire: what goes out comes in the same."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from onexflow.codec.wire import events as wire
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure, Payload
from onexflow.ports import events as port
from onexflow.v1 import events_pb2 as pb

KEY = RunKey("space", "type/with slash", UUID(int=5))
EVENT = port.EventRecord(
    key=KEY, type="task.completed", sequence=7, event_id=UUID(int=9), correlation_id="c", causation_id="d",
    correlation_chain=("a", "b"), timestamp=123, source="s", idempotency_key="k", payload=Payload(b'{"n":1}'),
    metadata=Payload(b"{}"),
)  # fmt: skip
PLACE = port.Position(3, 1 << 40)
DELIVERY = port.Delivery(position=PLACE, event=EVENT, topic="t", partition=2, partition_key="p", attempt=4)
FILTER = port.Filter(namespace="space", topics=("a", "b"), event_types=("task.failed",))


def test_events_and_deliveries() -> None:
    assert wire.event(wire.event_to_pb(EVENT)) == EVENT
    assert wire.delivery(wire.delivery_to_pb(DELIVERY)) == DELIVERY
    bare = port.EventRecord(key=KEY, type="x")
    assert wire.event(wire.event_to_pb(bare)) == bare
    request = port.Publish(event=EVENT, topic="t", partition_key="p")
    assert wire.publish(wire.publish_to_pb(request)) == request
    published = port.Published(sequence=7, position=PLACE, topic="t", partition=1, created=True)
    assert wire.published(wire.published_to_pb(published)) == published
    status = port.EventStatus(
        event=EVENT, position=PLACE, topic="t", partition=1, acknowledged=("a",), pending=("b", "c"), dead=("d",)
    )
    assert wire.status(wire.status_to_pb(status)) == status
    assert wire.delivery_size(DELIVERY) >= wire.delivery_to_pb(DELIVERY).ByteSize()


def test_a_body_that_no_message_holds_is_left_out_and_says_so() -> None:
    large = port.EventRecord(key=KEY, type="x", payload=Payload(b'"%s"' % (b"x" * (wire.LARGEST + 1))))
    sent = wire.event_to_pb(large)
    assert sent.ByteSize() < 1000
    assert b"omitted" in sent.payload.data
    assert wire.event_size(large) <= wire.LARGEST + wire.ENTRY + 100


@pytest.mark.parametrize(
    "request_",
    [
        port.Consume(filter=FILTER),
        port.Consume(filter=FILTER, group="g", start="earliest", window=3, ack_timeout=0.0, max_deliveries=0),
        port.Consume(filter=FILTER, group="p", projection=True, ack_timeout=1.5, max_deliveries=2),
        port.Consume(filter=FILTER, positions={0: 5, 7: 1 << 40}),
    ],
)
def test_consumers(request_: port.Consume) -> None:
    assert wire.consume(wire.consume_to_pb(request_)) == request_


@pytest.mark.parametrize(
    "told",
    [
        port.Begun(positions={0: 1, 1: 5}, heads={0: 1, 1: 9}),
        port.Reached(positions={1: 9}),
        [DELIVERY, DELIVERY],
    ],
)
def test_what_consumers_are_told(told: port.Begun | port.Reached | list[port.Delivery]) -> None:
    assert wire.told(wire.told_to_pb(told)) == told


def test_groups_topics_and_projections() -> None:
    group = port.GroupView(
        name="g", filter=FILTER, projection=True, members=2, positions={0: 4}, lag=5, unanswered=6, dead_letters=7
    )
    assert wire.group(wire.group_to_pb(group)) == group
    error = Failure("Oops", "it", "trace", context={"n": 1})
    letter = port.DeadLetter(delivery=DELIVERY, error=error, at=77)
    assert wire.dead_letter(wire.dead_letter_to_pb(letter)) == letter
    assert wire.reject(wire.reject_to_pb(PLACE, error, 2.5)) == (PLACE, error, 2.5)
    topic = port.TopicView(name="t", partitions=4, created_at=5)
    assert wire.topic(wire.topic_to_pb(topic)) == topic
    states = {KEY: Payload(b"1"), msgspec.structs.replace(KEY, namespace="other"): Payload(b"")}
    assert wire.states(wire.states_to_pb(states)) == states
    for state in (None, Payload(b"[1]")):
        loaded = port.ProjectionState(state=state, offset=4, shard=2, head=9)
        assert wire.projection_state(wire.projection_state_to_pb(loaded)) == loaded


@pytest.mark.parametrize(
    "message",
    [
        pb.EventFilter(topics=[""]),
        pb.EventFilter(topics=["x"] * 1001),
        pb.EventFilter(event_types=["x" * 256]),
        pb.EventFilter(namespace="\0"),
    ],
)
def test_wrong_filters_are_refused(message: pb.EventFilter) -> None:
    with pytest.raises(InvalidArgument):
        wire.where(message)


def test_wrong_json_is_refused_with_its_field() -> None:
    message = wire.publish_to_pb(port.Publish(event=EVENT))
    message.event.payload.data = b"{"
    with pytest.raises(InvalidArgument) as refused:
        wire.publish(message)
    assert refused.value.context["field"] == "event.payload"
