"""Subscriptions without a handler: messages are pulled, and acknowledged one by one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final
from uuid import UUID

import structlog

from onexflow.core.errors import InvalidArgument, InvalidTransition
from onexflow.core.payload import Failure
from onexflow.engine.protocols import bus_records
from onexflow.engine.protocols.subscriptions import Options, Subscription
from onexflow.ports.events import Consume, Delivery, EventService, Position
from onexflow.spi.event_type import EventType
from onexflow.spi.exceptions import SPIError
from onexflow.spi.types import Context, WorkflowEvent

log = structlog.get_logger("onexflow.bus")


class WorkflowEventMessage:
    """An event as a topic delivers it, to be acknowledged. Not acknowledged, it comes again."""

    __slots__ = (
        "_ack",
        "_delivery",
        "attempt",
        "correlation_id",
        "event_type",
        "headers",
        "idempotency_key",
        "instance_id",
        "key",
        "offset",
        "partition",
        "sequence_number",
        "topic",
        "value",
        "workflow_type",
    )

    def __init__(self, delivery: Delivery, attempt: int, ack: Callable[[], asyncio.Future[None]]) -> None:
        event = bus_records.event_of(delivery.event)
        self._delivery = delivery
        self._ack = ack
        self.topic: str = delivery.topic
        self.key: bytes | None = delivery.partition_key.encode()
        self.value: bytes = bus_records.value_of(delivery.event)
        self.headers: Context = {
            "event_id": str(event.event_id),
            "event_type": str.__str__(event.event_type),
            "source": event.source,
            "correlation_id": delivery.event.correlation_id,
            "causation_id": delivery.event.causation_id,
            "delivery_attempt": attempt,
            **{name: value for name, value in event.metadata.items() if name not in _HEADERS},
        }
        self.offset: str | None = str(delivery.position)
        self.partition: int | None = delivery.partition
        self.workflow_type: str = event.workflow_type
        self.instance_id: UUID = event.instance_id
        self.correlation_id: UUID = event.correlation_id
        self.sequence_number: int = event.sequence_number
        self.event_type: EventType = event.event_type
        self.idempotency_key: str = event.idempotency_key
        #: Which delivery this is, from 1.
        self.attempt: int = attempt

    async def ack(self) -> None:
        """It is dealt with: durable when this returns. Idempotent. Raises Unavailable when that could not be said."""
        await asyncio.shield(self._ack())

    async def get_workflow_event(self) -> WorkflowEvent:
        return bus_records.event_of(self._delivery.event)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.topic} {self.offset} {self.event_type}>"


_HEADERS: Final = frozenset({"event_id", "event_type", "source", "correlation_id", "causation_id", "delivery_attempt"})


class BufferedSubscription(Subscription):
    """Keeps what is delivered, up to its window, until it is pulled and acknowledged."""

    def __init__(
        self, service: EventService, request: Consume, options: Options, subscription_id: str, topic: str
    ) -> None:
        super().__init__(service, request, options, subscription_id, topic)
        #: To be pulled, and how often each was, and the timers and acknowledgements of what is pulled.
        self._waiting: deque[Position] = deque()
        self._pulled: dict[Position, int] = {}
        self._timers: dict[Position, asyncio.TimerHandle] = {}
        self._acks: dict[Position, asyncio.Future[None]] = {}
        self._news = asyncio.Event()

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        if self.error is not None:
            return  # it is ending
        for delivery in deliveries:
            if delivery.position not in self._here:
                self._here[delivery.position] = delivery
                self._waiting.append(delivery.position)
        self._news.set()

    def ended(self, error: SPIError) -> None:
        super().ended(error)
        self._news.set()

    async def pull(self, max_messages: int, timeout: float | None) -> list[WorkflowEventMessage]:
        """Up to so many, at least one unless `timeout` seconds pass first (None: it waits). Raises what ended the
        subscription, once it has nothing more."""
        if max_messages < 1:
            raise InvalidArgument("max_messages must be at least 1", field="max_messages")
        if timeout is None or timeout > 0:
            try:
                async with asyncio.timeout(timeout):
                    while not self._waiting and self.error is None:
                        self._news.clear()
                        await self._news.wait()
            except TimeoutError:
                return []
        if not self._waiting and self.error is not None:
            raise self.error
        return [self._take() for _ in range(min(max_messages, len(self._waiting)))]

    async def messages(self) -> AsyncIterator[WorkflowEventMessage]:
        """One after the other, as they come; ends with the subscription."""
        while True:
            try:
                found = await self.pull(1, None)
            except _Closed:
                return
            yield found[0]

    async def close(self) -> None:
        self.error = self.error or _Closed(
            "the subscription has ended", {"current_state": "closed", "required_state": "active"}
        )
        self._waiting.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._news.set()
        await super().close()

    def _take(self) -> WorkflowEventMessage:
        position = self._waiting.popleft()
        delivery = self._here[position]
        pulled = self._pulled[position] = self._pulled.get(position, 0) + 1
        self._timers[position] = self.loop.call_later(self._options.ack_timeout, self._overdue, position)
        return WorkflowEventMessage(delivery, delivery.attempt + pulled - 1, lambda: self._ack(position))

    def _overdue(self, position: Position) -> None:
        """It was pulled and not acknowledged: again, or never more."""
        self._timers.pop(position, None)
        delivery = self._here.get(position)
        if delivery is None:
            return
        attempts = delivery.attempt + self._pulled[position] - 1
        if 0 < self._options.max_deliveries <= attempts:
            facts = {"subscription": self.id, "run": str(delivery.event.key), "offset": str(position)}
            log.error("event.buried", attempt=attempts, error="not acknowledged", **facts)
            message = f"not acknowledged within {self._options.ack_timeout:g} s, {attempts} times"
            self._feed.bury(position, Failure(type="NotAcknowledged", message=message))
            self._forget(position)
            return
        self._waiting.append(position)
        self._news.set()

    def _ack(self, position: Position) -> asyncio.Future[None]:
        known = self._acks.get(position)
        if known is not None:
            return known
        answer: asyncio.Future[None] = self.loop.create_future()
        if position not in self._here:  # acknowledged before, or the subscription has ended
            if self.error is not None:
                answer.set_exception(self.error)
            else:
                answer.set_result(None)
            return answer
        self._acks[position] = answer
        if position in self._waiting:
            self._waiting.remove(position)
        self._forget(position)

        def done(error: SPIError | None) -> None:
            self._acks.pop(position, None)
            if answer.done():
                return
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)
                answer.exception()  # looked at: its caller may be gone

        self._feed.ack(position, done)
        return answer

    def _forget(self, position: Position) -> None:
        self._here.pop(position, None)
        self._pulled.pop(position, None)
        timer = self._timers.pop(position, None)
        if timer is not None:
            timer.cancel()


class _Closed(InvalidTransition):
    """The subscription has ended."""


def buffered(subscription: Subscription) -> BufferedSubscription:
    """The subscription, if messages can be pulled from it."""
    if isinstance(subscription, BufferedSubscription):
        return subscription
    context = {"current_state": "with a handler", "required_state": "without a handler"}
    raise InvalidTransition("this subscription has a handler: there is nothing to pull", context)
