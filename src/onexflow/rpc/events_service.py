# ruff: noqa: N802 - the methods have the names of the wire
"""EventBusService over ports.events.EventService: translation only, no decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from onexflow.codec.wire import common
from onexflow.codec.wire import events as wire
from onexflow.core.errors import UnknownRun
from onexflow.ports.events import EventService
from onexflow.rpc.consume_session import ConsumeStream
from onexflow.rpc.stream import Context
from onexflow.rpc.unary import unary
from onexflow.v1 import events_pb2 as pb

MAX_EVENTS: Final = 1000
MAX_DEAD_LETTERS: Final = 1000

T = TypeVar("T")


class EventsEndpoint:
    """The handlers of onexflow.v1.EventBusService. `streams`: the consumers that are connected."""

    def __init__(self, service: EventService, streams: set[ConsumeStream]) -> None:
        self._service = service
        self._streams = streams

    @unary
    async def PublishEvent(self, request: pb.PublishEventRequest, context: Context) -> pb.PublishEventResponse:
        return wire.published_to_pb(await self._service.publish_event(wire.publish(request)))

    @unary
    async def ReadEvents(self, request: pb.ReadEventsRequest, context: Context) -> pb.ReadEventsResponse:
        last = request.to_sequence if request.HasField("to_sequence") else None
        events = await self._service.read_events(
            common.key(request.key), request.from_sequence, last, wire.limit(request.limit, MAX_EVENTS)
        )
        return pb.ReadEventsResponse(events=[wire.event_to_pb(event) for event in fitting(events, wire.event_size)])

    @unary
    async def FindEvent(self, request: pb.FindEventRequest, context: Context) -> pb.FindEventResponse:
        event_id = common.run_id(request.event_id, "event_id")
        found = await self._service.find_event(wire.namespace(request.namespace), event_id)
        if found is None:
            raise UnknownRun(f"no event {event_id} was published", {"event_id": str(event_id)})
        return wire.status_to_pb(found)

    async def Consume(self, requests: object, context: Context) -> None:
        stream = ConsumeStream(context, self._service)
        self._streams.add(stream)
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)

    # ---- groups

    @unary
    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        groups = await self._service.list_groups(wire.namespace(request.namespace))
        return pb.ListGroupsResponse(groups=[wire.group_to_pb(group) for group in groups])

    @unary
    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Context) -> pb.DeleteGroupResponse:
        name = common.name(request.name, "name")
        return pb.DeleteGroupResponse(
            changed=await self._service.delete_group(wire.namespace(request.namespace), name)
        )  # fmt: skip

    @unary
    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        count = min(request.limit or 100, MAX_DEAD_LETTERS)
        letters = await self._service.list_dead_letters(wire.namespace(request.namespace), request.group, count)
        found = fitting(letters, wire.dead_letter_size)
        return pb.ListDeadLettersResponse(dead_letters=[wire.dead_letter_to_pb(letter) for letter in found])

    @unary
    async def RequeueDeadLetters(
        self, request: pb.RequeueDeadLettersRequest, context: Context
    ) -> pb.RequeueDeadLettersResponse:
        namespace, places = wire.namespace(request.namespace), wire.positions(request.positions)
        count = await self._service.requeue_dead_letters(namespace, request.group, places)
        return pb.RequeueDeadLettersResponse(count=count)

    @unary
    async def DiscardDeadLetters(
        self, request: pb.DiscardDeadLettersRequest, context: Context
    ) -> pb.DiscardDeadLettersResponse:
        namespace, places = wire.namespace(request.namespace), wire.positions(request.positions)
        count = await self._service.discard_dead_letters(namespace, request.group, places)
        return pb.DiscardDeadLettersResponse(count=count)

    # ---- topics

    @unary
    async def CreateTopic(self, request: pb.CreateTopicRequest, context: Context) -> pb.CreateTopicResponse:
        name = common.name(request.name, "name")
        created = await self._service.create_topic(wire.namespace(request.namespace), name, request.partitions)
        return pb.CreateTopicResponse(created=created)

    @unary
    async def DeleteTopic(self, request: pb.DeleteTopicRequest, context: Context) -> pb.DeleteTopicResponse:
        name = common.name(request.name, "name")
        return pb.DeleteTopicResponse(
            changed=await self._service.delete_topic(wire.namespace(request.namespace), name)
        )  # fmt: skip

    @unary
    async def ListTopics(self, request: pb.ListTopicsRequest, context: Context) -> pb.ListTopicsResponse:
        topics = await self._service.list_topics(wire.namespace(request.namespace))
        return pb.ListTopicsResponse(topics=[wire.topic_to_pb(topic) for topic in topics])

    # ---- projections

    @unary
    async def SaveProjection(self, request: pb.SaveProjectionRequest, context: Context) -> pb.SaveProjectionResponse:
        await self._service.save_projection(
            wire.namespace(request.namespace),
            common.name(request.name, "name"),
            request.shard,
            request.expected,
            request.offset,
            wire.states(request.states),
        )
        return pb.SaveProjectionResponse()

    @unary
    async def LoadProjection(self, request: pb.LoadProjectionRequest, context: Context) -> pb.LoadProjectionResponse:
        name = common.name(request.name, "name")
        state = await self._service.load_projection(wire.namespace(request.namespace), name, common.key(request.key))
        return wire.projection_state_to_pb(state)

    @unary
    async def ResetProjection(self, request: pb.ResetProjectionRequest, context: Context) -> pb.ResetProjectionResponse:
        await self._service.reset_projection(wire.namespace(request.namespace), common.name(request.name, "name"))
        return pb.ResetProjectionResponse()


def fitting(entries: Sequence[T], size: Callable[[T], int]) -> Sequence[T]:
    """As many, from the first, as fit into a message."""
    room = common.MAX_MESSAGE * 3 // 4
    for place, entry in enumerate(entries):
        room -= size(entry)
        if room < 0 and place:
            return entries[:place]
    return entries
