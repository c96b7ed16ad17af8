"""The event bus on the wire: values of `ports.events` ↔ the messages of `onexflow.v1` EventBusService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from onexflow.codec.payload import encode_value
from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.core.payload import Failure, Payload
from onexflow.ports import events as port
from onexflow.v1 import events_pb2 as pb

MAX_NAMES: Final = 1000
#: What a delivery takes on the wire beside its payloads and long texts, about.
ENTRY: Final = 512
#: Bytes of a body that still fits into a message with what surrounds it.
LARGEST: Final = common.MAX_MESSAGE // 2
#: Longest idempotency key and partition key.
MAX_KEY: Final = 1020

_STARTS: Final = frozenset({"latest", "earliest"})


# ---- checks


def namespace(text: str) -> str:
    return common.name(text, "namespace", default=DEFAULT_NAMESPACE)


def _names(texts: Iterable[str], field: str) -> tuple[str, ...]:
    found = tuple(common.name(text, field) for text in texts)
    if len(found) > MAX_NAMES:
        raise InvalidArgument(f"{field} has {len(found)} entries; {MAX_NAMES} is the most.", field=field)
    return found


def _long_text(text: str, field: str) -> str:
    if len(text) > MAX_KEY:
        raise InvalidArgument(f"{field} has {len(text)} characters; {MAX_KEY} is the most.", field=field)
    return text


def limit(given: int, default: int) -> int:
    return min(given, default) if given else default


# ---- events


def position(message: pb.EventPosition) -> port.Position:
    return port.Position(message.shard, message.offset)


def position_to_pb(value: port.Position) -> pb.EventPosition:
    return pb.EventPosition(shard=value[0], offset=value[1])


def positions(messages: Iterable[pb.EventPosition]) -> list[port.Position]:
    return [position(message) for message in messages]


def publish(message: pb.PublishEventRequest) -> port.Publish:
    """What is to be published, checked."""
    if not message.HasField("event"):
        raise InvalidArgument("There is no event.", field="event")
    given = message.event
    for field in ("correlation_id", "causation_id", "source"):
        common.optional_name(getattr(given, field), f"event.{field}")
    _long_text(given.idempotency_key, "event.idempotency_key")
    key = common.key(given.key, "event.key")
    common.name(given.type, "event.type")
    common.payload_or_null(given, "payload", "event.payload")
    common.payload_or_null(given, "metadata", "event.metadata")
    common.not_negative(given.timestamp, "event.timestamp")
    if given.event_id:
        common.run_id(given.event_id, "event.event_id")
    return port.Publish(
        event=_event(given, key, _names(given.correlation_chain, "event.correlation_chain")),
        topic=common.optional_name(message.topic, "topic"),
        partition_key=_long_text(message.partition_key, "partition_key"),
    )


def publish_to_pb(value: port.Publish) -> pb.PublishEventRequest:
    return pb.PublishEventRequest(
        event=event_to_pb(value.event), topic=value.topic, partition_key=value.partition_key
    )  # fmt: skip


def event(message: pb.Event) -> port.EventRecord:
    """An event from the orchestrator, which has checked it."""
    key = RunKey(message.key.namespace, message.key.workflow_type, UUID(message.key.instance_id))
    return _event(message, key, tuple(message.correlation_chain))


def _event(message: pb.Event, key: RunKey, chain: tuple[str, ...]) -> port.EventRecord:
    return port.EventRecord(
        key=key,
        type=message.type,
        sequence=message.sequence,
        event_id=UUID(message.event_id) if message.event_id else None,
        correlation_id=message.correlation_id,
        causation_id=message.causation_id,
        correlation_chain=chain,
        timestamp=message.timestamp,
        source=message.source,
        idempotency_key=message.idempotency_key,
        payload=_payload(message, "payload"),
        metadata=_payload(message, "metadata"),
    )


def _payload(message: Any, field: str) -> Payload:
    return common.trusted_payload(getattr(message, field)) if message.HasField(field) else Payload()


def event_to_pb(value: port.EventRecord) -> pb.Event:
    """A body that no message holds (of a mapped task with large results) is left out, and says so."""
    body = value.payload
    if len(body.data) > LARGEST:
        body = encode_value({"omitted": "the body is larger than a message", "bytes": len(body.data)})
    return pb.Event(
        key=common.key_to_pb(value.key),
        type=value.type,
        sequence=value.sequence,
        event_id=str(value.event_id) if value.event_id is not None else "",
        correlation_id=value.correlation_id,
        causation_id=value.causation_id,
        correlation_chain=value.correlation_chain,
        timestamp=value.timestamp,
        source=value.source,
        idempotency_key=value.idempotency_key,
        payload=common.payload_to_pb(body),
        metadata=common.payload_to_pb(value.metadata),
    )


def event_size(value: port.EventRecord) -> int:
    """About how many bytes it takes on the wire."""
    chain = value.correlation_chain
    texts = len(value.idempotency_key) + len(value.source) + len(value.correlation_id) + len(value.causation_id)
    texts += len(value.type) + len(value.key.namespace) + len(value.key.workflow_type)
    texts += sum(map(len, chain)) + len(chain) if chain else 0
    return ENTRY + min(len(value.payload.data), LARGEST) + len(value.metadata.data) + 4 * texts


def delivery_size(value: port.Delivery) -> int:
    return event_size(value.event) + ENTRY + 4 * (len(value.topic) + len(value.partition_key))


def dead_letter_size(value: port.DeadLetter) -> int:
    """About how many bytes it takes on the wire."""
    return delivery_size(value.delivery) + 4 * (len(value.error.message) + len(value.error.traceback)) + ENTRY


def published(message: pb.PublishEventResponse) -> port.Published:
    return port.Published(
        sequence=message.sequence,
        position=position(message.position),
        topic=message.topic,
        partition=message.partition,
        created=message.created,
    )


def published_to_pb(value: port.Published) -> pb.PublishEventResponse:
    return pb.PublishEventResponse(
        sequence=value.sequence,
        position=position_to_pb(value.position),
        topic=value.topic,
        partition=value.partition,
        created=value.created,
    )


def status(message: pb.FindEventResponse) -> port.EventStatus:
    return port.EventStatus(
        event=event(message.event),
        position=position(message.position),
        topic=message.topic,
        partition=message.partition,
        acknowledged=tuple(message.acknowledged),
        pending=tuple(message.pending),
        dead=tuple(message.dead),
    )


def status_to_pb(value: port.EventStatus) -> pb.FindEventResponse:
    return pb.FindEventResponse(
        event=event_to_pb(value.event),
        position=position_to_pb(value.position),
        topic=value.topic,
        partition=value.partition,
        acknowledged=value.acknowledged,
        pending=value.pending,
        dead=value.dead,
    )


def delivery(message: pb.EventDelivery) -> port.Delivery:
    return port.Delivery(
        position=position(message.position),
        event=event(message.event),
        topic=message.topic,
        partition=message.partition,
        partition_key=message.partition_key,
        attempt=message.attempt,
    )


def delivery_to_pb(value: port.Delivery) -> pb.EventDelivery:
    return pb.EventDelivery(
        position=position_to_pb(value.position),
        event=event_to_pb(value.event),
        topic=value.topic,
        partition=value.partition,
        partition_key=value.partition_key,
        attempt=value.attempt,
    )


# ---- consuming


def where(message: pb.EventFilter) -> port.Filter:
    return port.Filter(
        namespace=namespace(message.namespace),
        topics=_names(message.topics, "filter.topics"),
        event_types=_names(message.event_types, "filter.event_types"),
    )


def where_to_pb(value: port.Filter) -> pb.EventFilter:
    return pb.EventFilter(namespace=value.namespace, topics=value.topics, event_types=value.event_types)


def consume(message: pb.ConsumeOpen) -> port.Consume:
    start: Any = message.start or "latest"
    if start not in _STARTS:
        raise InvalidArgument(f"start must be one of {', '.join(sorted(_STARTS))}", field="start")
    timeout = message.ack_timeout or 60.0
    return port.Consume(
        filter=where(message.filter),
        group=common.optional_name(message.group, "group"),
        start=start,
        positions=dict(message.positions),
        window=message.window or 256,
        ack_timeout=0.0 if timeout < 0 else common.seconds(timeout, "ack_timeout"),
        max_deliveries=max(0, message.max_deliveries or 10),
        projection=message.projection,
    )


def consume_to_pb(value: port.Consume) -> pb.ConsumeOpen:
    return pb.ConsumeOpen(
        filter=where_to_pb(value.filter),
        group=value.group,
        start=value.start,
        positions=value.positions,
        window=value.window,
        ack_timeout=value.ack_timeout or -1.0,
        max_deliveries=value.max_deliveries or -1,
        projection=value.projection,
    )


def told(message: pb.ConsumeResponse) -> port.Told:
    """What a consumer is told, but for ConsumeDone."""
    match message.WhichOneof("message"):
        case "begun":
            begun = message.begun
            return port.Begun(positions=dict(begun.positions), heads=dict(begun.heads), epochs=dict(begun.epochs))
        case "reached":
            return port.Reached(positions=dict(message.reached.positions))
        case "left":
            return port.Left(shards=tuple(message.left.shards))
        case _:
            return [delivery(one) for one in message.batch.deliveries]


def told_to_pb(value: port.Begun | port.Reached | port.Left | Sequence[port.Delivery]) -> pb.ConsumeResponse:
    match value:
        case port.Begun():
            begun = pb.ConsumeBegun(positions=value.positions, heads=value.heads, epochs=value.epochs)
            return pb.ConsumeResponse(begun=begun)
        case port.Reached():
            return pb.ConsumeResponse(reached=pb.ConsumeReached(positions=value.positions))
        case port.Left():
            return pb.ConsumeResponse(left=pb.ConsumeLeft(shards=value.shards))
        case _:
            return pb.ConsumeResponse(batch=pb.DeliveryBatch(deliveries=[delivery_to_pb(one) for one in value]))


def reject(message: pb.EventReject) -> tuple[port.Position, Failure, float]:
    return position(message.position), common.failure(message.error), common.seconds(message.delay, "rejects.delay")


def reject_to_pb(place: port.Position, error: Failure, delay: float = 0.0) -> pb.EventReject:
    return pb.EventReject(position=position_to_pb(place), error=common.failure_to_pb(error), delay=delay)


# ---- groups, topics, projections


def group(message: pb.EventGroup) -> port.GroupView:
    return port.GroupView(
        name=message.name,
        filter=where(message.filter),
        projection=message.projection,
        members=message.members,
        positions=dict(message.positions),
        lag=message.lag,
        unanswered=message.unanswered,
        dead_letters=message.dead_letters,
    )


def group_to_pb(value: port.GroupView) -> pb.EventGroup:
    return pb.EventGroup(
        name=value.name,
        filter=where_to_pb(value.filter),
        projection=value.projection,
        members=value.members,
        positions=value.positions,
        lag=value.lag,
        unanswered=value.unanswered,
        dead_letters=value.dead_letters,
    )


def dead_letter(message: pb.DeadLetter) -> port.DeadLetter:
    return port.DeadLetter(delivery=delivery(message.delivery), error=common.failure(message.error), at=message.at)


def dead_letter_to_pb(value: port.DeadLetter) -> pb.DeadLetter:
    error = common.failure_to_pb(value.error)
    return pb.DeadLetter(delivery=delivery_to_pb(value.delivery), error=error, at=value.at)


def topic(message: pb.EventTopic) -> port.TopicView:
    return port.TopicView(name=message.name, partitions=message.partitions, created_at=message.created_at)


def topic_to_pb(value: port.TopicView) -> pb.EventTopic:
    return pb.EventTopic(name=value.name, partitions=value.partitions, created_at=value.created_at)


def states(messages: Iterable[pb.ProjectedState]) -> dict[RunKey, Payload]:
    found: dict[RunKey, Payload] = {}
    for message in messages:
        given = message.state
        state = common.payload(given, "states.state") if given.data else Payload(b"")
        found[common.key(message.key, "states.key")] = state
    return found


def states_to_pb(values: dict[RunKey, Payload]) -> list[pb.ProjectedState]:
    return [
        pb.ProjectedState(key=common.key_to_pb(key), state=common.payload_to_pb(state)) for key, state in values.items()
    ]


def projection_state(message: pb.LoadProjectionResponse) -> port.ProjectionState:
    state = common.trusted_payload(message.state) if message.HasField("state") else None
    return port.ProjectionState(state=state, offset=message.offset, shard=message.shard, head=message.head)


def projection_state_to_pb(value: port.ProjectionState) -> pb.LoadProjectionResponse:
    return pb.LoadProjectionResponse(
        state=common.optional_payload_to_pb(value.state), offset=value.offset, shard=value.shard, head=value.head
    )
