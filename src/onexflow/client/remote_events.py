"""The event bus at the other end of a client (`ports.events.EventService`).

A consumer is one stream. When it breaks, the consumer is told Unavailable as its last word, and whoever consumes opens
another one (`engine.protocols.feed`): a member of a group joins again, a reader for himself says where he was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import grpc
import msgspec

from onexflow.client.channels import is_answer
from onexflow.client.ids import new_request_id
from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire import events as wire
from onexflow.core.errors import Unavailable, UnknownRun
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure, Payload
from onexflow.ports.events import (
    Consume,
    ConsumeListener,
    DeadLetter,
    Done,
    EventRecord,
    EventStatus,
    GroupView,
    Position,
    ProjectionState,
    Publish,
    Published,
    Told,
    TopicView,
)
from onexflow.spi.exceptions import SPIError
from onexflow.telemetry.late import LateLogger
from onexflow.v1 import events_pb2 as pb

if TYPE_CHECKING:
    from onexflow.client.client import Client

log = LateLogger("onexflow.client")

#: Keeps what is under way; returns the way to stop it.
Keep = Callable[[Coroutine[Any, Any, None], Callable[[SPIError], None]], Callable[[], None]]

#: Answers of one message.
MAX_ANSWERS: Final = 1024


class RemoteEvents:
    """Implements `EventService` over the client that `source` gives."""

    def __init__(self, source: Callable[[], Awaitable[Client]], keep: Keep) -> None:
        self._source = source
        self._keep = keep

    async def publish_event(self, request: Publish) -> Published:
        if request.event.event_id is None and not request.event.idempotency_key:
            # The call may be repeated: its id makes it the same event.
            event = msgspec.structs.replace(request.event, event_id=UUID(new_request_id()))
            request = msgspec.structs.replace(request, event=event)
        return wire.published(await self._unary("PublishEvent", wire.publish_to_pb(request)))

    async def read_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        found: list[EventRecord] = []
        first = max(0, from_sequence)
        while True:  # a page has as many as fit into a message
            request = pb.ReadEventsRequest(
                key=wire_common.key_to_pb(key),
                from_sequence=first,
                to_sequence=to_sequence,
                limit=max(1, min(limit - len(found), 1000)),
            )
            page = await self._unary("ReadEvents", request)
            found.extend(wire.event(event) for event in page.events)
            if not page.events or len(found) >= limit or found[-1].sequence == to_sequence:
                return found
            first = found[-1].sequence + 1

    async def find_event(self, namespace: str, event_id: UUID) -> EventStatus | None:
        try:
            found = await self._unary("FindEvent", pb.FindEventRequest(namespace=namespace, event_id=str(event_id)))
        except UnknownRun:
            return None
        return wire.status(found)

    def consume(self, request: Consume, listener: ConsumeListener) -> RemoteConsumer:
        consumer = RemoteConsumer(self._source, request, listener)
        consumer.stop = self._keep(consumer.run(), consumer.fail)
        return consumer

    # ---- groups

    async def list_groups(self, namespace: str) -> Sequence[GroupView]:
        answer = await self._unary("ListGroups", pb.ListGroupsRequest(namespace=namespace))
        return [wire.group(group) for group in answer.groups]

    async def delete_group(self, namespace: str, name: str) -> bool:
        answer = await self._unary("DeleteGroup", pb.DeleteGroupRequest(namespace=namespace, name=name))
        return bool(answer.changed)

    async def list_dead_letters(self, namespace: str, group: str, limit: int = 100) -> Sequence[DeadLetter]:
        request = pb.ListDeadLettersRequest(namespace=namespace, group=group, limit=max(1, limit))
        answer = await self._unary("ListDeadLetters", request)
        return [wire.dead_letter(letter) for letter in answer.dead_letters]

    async def requeue_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        places = [wire.position_to_pb(place) for place in positions]
        request = pb.RequeueDeadLettersRequest(namespace=namespace, group=group, positions=places)
        return int((await self._unary("RequeueDeadLetters", request)).count)

    async def discard_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        places = [wire.position_to_pb(place) for place in positions]
        request = pb.DiscardDeadLettersRequest(namespace=namespace, group=group, positions=places)
        return int((await self._unary("DiscardDeadLetters", request)).count)

    # ---- topics

    async def create_topic(self, namespace: str, name: str, partitions: int) -> bool:
        # What does not fit into the field is refused by the orchestrator, as 0 is.
        count = partitions if 0 <= partitions < 1 << 31 else 0
        answer = await self._unary(
            "CreateTopic", pb.CreateTopicRequest(namespace=namespace, name=name, partitions=count)
        )
        return bool(answer.created)

    async def delete_topic(self, namespace: str, name: str) -> bool:
        answer = await self._unary("DeleteTopic", pb.DeleteTopicRequest(namespace=namespace, name=name))
        return bool(answer.changed)

    async def list_topics(self, namespace: str) -> Sequence[TopicView]:
        answer = await self._unary("ListTopics", pb.ListTopicsRequest(namespace=namespace))
        return [wire.topic(topic) for topic in answer.topics]

    # ---- projections

    async def save_projection(
        self, namespace: str, name: str, shard: int, expected: int, offset: int, states: dict[RunKey, Payload]
    ) -> None:
        request = pb.SaveProjectionRequest(
            namespace=namespace,
            name=name,
            shard=shard,
            expected=expected,
            offset=offset,
            states=wire.states_to_pb(states),
        )
        await self._unary("SaveProjection", request)

    async def load_projection(self, namespace: str, name: str, key: RunKey) -> ProjectionState:
        request = pb.LoadProjectionRequest(namespace=namespace, name=name, key=wire_common.key_to_pb(key))
        return wire.projection_state(await self._unary("LoadProjection", request))

    async def reset_projection(self, namespace: str, name: str) -> None:
        await self._unary("ResetProjection", pb.ResetProjectionRequest(namespace=namespace, name=name))

    async def _unary(self, method: str, request: Any) -> Any:
        client = await self._source()
        channels = client._channels
        return await client._unary(partial(_call, channels, method, request))


async def _call(channels: Any, method: str, request: Any, seconds: float) -> Any:
    return await getattr(channels.events, method)(request, timeout=seconds)


class RemoteConsumer:
    """Implements `ports.events.Consumer` over one stream."""

    def __init__(
        self, source: Callable[[], Awaitable[Client]], request: Consume, listener: ConsumeListener
    ) -> None:  # fmt: skip
        self._source = source
        self._request = request
        self._listener = listener
        self._acks: list[Position] = []
        self._rejects: list[pb.EventReject] = []
        self._buries: list[pb.EventReject] = []
        #: Who waits for what is not sent yet, and for what is.
        self._waiting: list[Done] = []
        self._sent: dict[int, list[Done]] = {}
        self._last_id = 0
        self._wake = asyncio.Event()
        self._closed = self._closing = False
        self.stop: Callable[[], None] = _nothing

    # ---- what the consumer says

    def ack(self, positions: Sequence[Position], done: Done | None = None) -> None:
        if not self._may_say(done):
            return
        self._acks.extend(positions)
        self._say(done)

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        if self._may_say(None):
            self._rejects.append(wire.reject_to_pb(position, error, max(0.0, delay)))
            self._say(None)

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        if self._may_say(done):
            self._buries.append(wire.reject_to_pb(position, error))
            self._say(done)

    def close(self) -> None:
        if self._closed or self._closing:
            return
        if self._acks or self._rejects or self._buries:
            self._closing = True  # what was said before is sent before
            self._wake.set()
        else:
            self._end(Unavailable("the consumer is closed"))
            self.stop()

    def _may_say(self, done: Done | None) -> bool:
        over = self._closed or self._closing
        if over and done is not None:
            done(Unavailable("the consumer is closed"))
        return not over

    def _say(self, done: Done | None) -> None:
        if done is not None:
            self._waiting.append(done)
        self._wake.set()

    # ---- its stream

    async def run(self) -> None:
        """Until the stream ends; then the listener has had its last word."""
        try:
            client = await self._source()
            channels = client._channels
            address = channels.address
            stream: Any = channels.events.Consume()
            writer: asyncio.Task[None] | None = None
            try:
                await stream.write(pb.ConsumeRequest(open=wire.consume_to_pb(self._request)))
                writer = asyncio.get_running_loop().create_task(self._write(stream), name="onexflow-consumer-writer")
                while (message := await stream.read()) is not grpc.aio.EOF:
                    self._told(message)
                error: SPIError = Unavailable(f"{address}: the stream ended")
                channels.failed(address)
            except grpc.aio.AioRpcError as failed:
                channels.ask_again(failed)  # and if it was no answer, the next orchestrator is asked
                error = channels.error_of(failed)
                if isinstance(error, Unavailable) and not is_answer(failed):
                    channels.failed(address)
            except asyncio.InvalidStateError:  # how grpc.aio says that the stream ended before the write
                error = Unavailable(f"{address}: {await stream.details()}")
                channels.failed(address)
            finally:
                if writer is not None:
                    writer.cancel()
                    await asyncio.wait([writer])
                stream.cancel()
        except SPIError as refused:
            error = refused
        self.fail(error)

    def _told(self, message: pb.ConsumeResponse) -> None:
        if message.WhichOneof("message") != "done":
            if not (self._closed or self._closing):
                self._tell(wire.told(message))
            return
        error = wire_common.error(message.done.error) if message.done.HasField("error") else None
        for done in self._sent.pop(message.done.answer_id, ()):
            done(error)

    async def _write(self, stream: Any) -> None:
        """Ends with the stream: the reader learns why and tells."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._acks or self._rejects or self._buries or self._waiting:
                    await stream.write(self._next())
                if self._closing:
                    await stream.done_writing()
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream.cancel()

    def _next(self) -> pb.ConsumeRequest:
        """What was said since the last message. Who waits for an answer waits for all of it."""
        acks, self._acks = self._acks[:MAX_ANSWERS], self._acks[MAX_ANSWERS:]
        rejects, self._rejects = self._rejects[:64], self._rejects[64:]
        buries, self._buries = self._buries[:64], self._buries[64:]
        answer_id = 0
        if self._waiting and not (self._acks or self._rejects or self._buries):
            self._last_id = answer_id = self._last_id + 1
            self._sent[answer_id], self._waiting = self._waiting, []
        places = [wire.position_to_pb(place) for place in acks]
        return pb.ConsumeRequest(
            answers=pb.ConsumeAnswers(answer_id=answer_id, acks=places, rejects=rejects, buries=buries)
        )

    def fail(self, error: SPIError) -> None:
        """The last word."""
        if not self._closed:
            self._end(error)
            if not self._closing:
                self._tell(error)

    def _tell(self, told: Told) -> None:
        """One that fails ends itself, as in process."""
        try:
            self._listener(told)
        except Exception:
            log.exception("consumer.failed", group=self._request.group)
            self.close()

    def _end(self, error: SPIError) -> None:
        self._closed = True
        waiting = [*self._waiting, *(done for dones in self._sent.values() for done in dones)]
        self._waiting, self._sent = [], {}
        for done in waiting:
            done(error)


def _nothing() -> None:
    """Until it is known how to stop."""
