"""The orchestrator's end of a consumer's stream (the protocol is at the head of proto/onexflow/v1/events.proto)."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import ClassVar, Final

import msgspec

from onexflow.codec.wire import common
from onexflow.codec.wire import events as wire
from onexflow.core.errors import Draining, ProtocolViolation
from onexflow.engine.events.deliveries import NOT_GIVEN
from onexflow.engine.routing import FORWARDED
from onexflow.ports.events import Begun, Consumer, Delivery, EventService, Left, Position, Reached, Told
from onexflow.rpc.stream import HELLO_WITHIN, Context, ServerStream
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import events_pb2 as pb

#: Words that answers are durable, which may wait before the stream is no longer read.
MAX_WAITING: Final = 1024


class ConsumeStream(ServerStream):
    """One consumer. What waits to be written is bounded by its window."""

    method: ClassVar[str] = "EventBusService.Consume"

    def __init__(self, context: Context, service: EventService, *, hello_within: float = HELLO_WITHIN) -> None:
        super().__init__(context, hello_within=hello_within)
        self._service = service
        self._consumer: Consumer | None = None
        self._is_open = False
        #: Not sent yet. One that comes again before it was sent, or was answered by guess, is not sent twice, so there
        #: are never more than the consumer's window.
        self._deliveries: dict[Position, Delivery] = {}
        self._words: deque[pb.ConsumeResponse] = deque()
        self._reached: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._finished = False

    def close(self, reason: str = "") -> None:
        """End the stream after what is ready was sent."""
        self.end(Draining(reason or "The orchestrator ended the stream."))

    # ---- what the client says

    def _on_message(self, message: pb.ConsumeRequest) -> None:
        if self._end.done():
            return
        kind = message.WhichOneof("message")
        if not self._is_open:
            if kind != "open":
                raise ProtocolViolation(f"The first message must be open; it is {kind}.", {"field": "message"})
            self._is_open = True
            self._consumer = self._service.consume(wire.consume(message.open), self._told)
        elif kind == "answers":
            self._answers(message.answers)
        else:
            raise ProtocolViolation(
                "A consumer is opened once a stream." if kind else "A message holds nothing.", {"field": "message"}
            )

    def _answers(self, message: pb.ConsumeAnswers) -> None:
        consumer = self._consumer
        assert consumer is not None, "it was opened before"
        acks = wire.positions(message.acks)
        for place in (*acks, *(wire.position(one.position) for one in (*message.rejects, *message.buries))):
            self._deliveries.pop(place, None)
        for reject in message.rejects:
            place, error, delay = wire.reject(reject)
            if error.type == NOT_GIVEN.type and not FORWARDED.get():  # it would never be given up
                error = msgspec.structs.replace(error, type="Rejected")
            consumer.reject(place, error, delay)
        waiting = len(message.buries) + 1
        first: SPIError | None = None

        def done(error: SPIError | None) -> None:
            nonlocal waiting, first
            waiting -= 1
            first = first or error
            if not waiting and message.answer_id:
                self._done(message.answer_id, first)

        for bury in message.buries:
            place, error, _ = wire.reject(bury)
            consumer.bury(place, error, done)
        consumer.ack(acks, done)

    def _done(self, answer_id: int, error: SPIError | None) -> None:
        word = pb.ConsumeDone(answer_id=answer_id, error=common.error_to_pb(error) if error is not None else None)
        self._words.append(pb.ConsumeResponse(done=word))
        if len(self._words) >= MAX_WAITING:
            self._has_room.clear()
        self._wake.set()

    # ---- what it is told

    def _told(self, told: Told) -> None:
        match told:
            case SPIError():
                self.end(told)
            case Begun() | Left():
                self._words.append(wire.told_to_pb(told))
            case Reached():
                self._reached.update(told.positions)
            case _:
                for delivery in told:
                    self._deliveries.pop(delivery.position, None)
                    self._deliveries[delivery.position] = delivery
        self._wake.set()

    # ---- ServerStream

    def _room(self) -> asyncio.Future[object] | None:
        return None if self._has_room.is_set() else asyncio.ensure_future(self._has_room.wait())

    async def _write(self) -> None:
        while True:
            while self._words or self._deliveries or self._reached:
                while self._words:
                    await self._send(self._words.popleft())
                self._has_room.set()
                if self._deliveries:
                    await self._write_deliveries()
                elif self._reached:
                    reached, self._reached = self._reached, {}
                    await self._send(wire.told_to_pb(Reached(positions=reached)))
            if self._finished:
                return
            self._wake.clear()
            await self._wake.wait()

    async def _write_deliveries(self) -> None:
        """Nothing that was reached after them is told before them."""
        deliveries = list(self._deliveries.values())
        self._deliveries.clear()
        reached, self._reached = self._reached, {}
        for part in common.cut(deliveries, list(map(wire.delivery_size, deliveries))):
            await self._send(wire.told_to_pb(part))
        if reached:
            await self._send(wire.told_to_pb(Reached(positions=reached)))

    def _finish(self) -> None:
        self._finished = True
        self._wake.set()

    def _ended(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
