"""ProtocolEventBusBase on the workflow event bus: messages of any kind, durable, on the same topics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4  # noqa: TID251 - the id of a message that its publisher gave none, so that repeating the call is harmless

from onexflow.codec.payload import encode_value
from onexflow.core.errors import DeadlineExceeded
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.engine.protocols import bus_records, checked
from onexflow.engine.protocols.handlers import Handler
from onexflow.ports.events import EventRecord, Filter
from onexflow.spi.exceptions import SPIError
from onexflow.spi.types import Context, to_uuid

if TYPE_CHECKING:
    from onexflow.engine.protocols.event_bus import WorkflowEventBus

_IDS = ("event_id", "envelope_id", "message_id")


class BaseEventBus:
    """The six base calls.

    A message is anything with a JSON form (also by `to_dict`, `model_dump`, a dataclass or a msgspec struct); its handlers
    get its JSON value. Messages of one topic come in the order in which they were published. A workflow event that is
    published here is one as if it were published there, and handlers get it as one. One that raises is called again, and
    in the end its message is a dead letter, as with the workflow bus that this one belongs to.
    """

    def __init__(self, bus: WorkflowEventBus) -> None:
        self._bus = bus
        self._own: set[str] = set()
        self._consuming = True
        #: Those who wait in start_consuming.
        self._until_stopped: set[asyncio.Future[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def workflow_event_bus(self) -> WorkflowEventBus:
        """The bus that stands on this one."""
        return self._bus

    async def publish(self, event: Any) -> None:
        """Publish in the topic that the event names: `topic`, or a workflow event's type; else `event_type`, else the name
        of its class. Durable when this returns. An event with an id is published once."""
        if _is_workflow_event(event):
            await self._bus.publish(event, _field(event, "topic"))
        else:
            topic = _field(event, "topic") or _field(event, "event_type") or type(event).__name__
            await self._publish(event, topic)

    async def publish_envelope(self, envelope: Any, topic: str) -> None:
        """Publish in this topic. As `publish`."""
        bus_records.name(topic, "topic")
        if _is_workflow_event(envelope):
            await self._bus.publish(envelope, topic)
        else:
            await self._publish(envelope, topic)

    async def subscribe(self, topic: str, handler: Callable[[Any], Awaitable[None]]) -> Unsubscribe:
        """Call the handler with what is published in this topic from now on, or in its bus's group from where that was.
        Returns the way to end that: call it, and await it or not."""
        bus_records.name(topic, "topic")
        called = Handler(handler, bus_records.content_of, plain=True)
        filter_ = Filter(namespace=self._bus.namespace, topics=(topic,))
        subscription_id = await self._bus.subscribe(filter_, called, place="/messages")
        self._own.add(subscription_id)
        if not self._consuming:
            self._bus.pause((subscription_id,))
        return Unsubscribe(self, subscription_id)

    async def start_consuming(self, timeout_seconds: float | None = None) -> None:
        """Go on after `stop_consuming` and return when that is called, or after so many seconds. Handlers are called
        without it, too: subscribing is enough."""
        self._consuming = True
        self._bus.resume(self._own)
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._until_stopped.add(stopped)
        try:
            async with asyncio.timeout(timeout_seconds):
                await stopped
        except TimeoutError:
            return
        finally:
            self._until_stopped.discard(stopped)

    async def stop_consuming(self, timeout_seconds: float = 30.0) -> None:
        """Call no more handlers; returns when none is running. What comes meanwhile waits for `start_consuming`. Raises
        DeadlineExceeded when a handler still runs after so many seconds."""
        self._consuming = False
        for stopped in self._until_stopped:
            if not stopped.done():
                stopped.set_result(None)
        self._bus.pause(self._own)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._bus.idle(self._own)
        except TimeoutError:
            raise DeadlineExceeded(f"a handler still runs after {timeout_seconds:g} s") from None

    async def health_check(self) -> Context:
        """`healthy`, `status` (healthy, degraded, unhealthy) and what it is made of. Raises nothing."""
        return await health_of(self._bus, consuming=self._consuming)

    # ---- helpers

    async def _publish(self, message: Any, topic: str) -> None:
        given = next((value for name in _IDS if (value := _field(message, name))), "")
        identity = to_uuid(checked.text(given, "event_id")) if given else uuid4()
        correlation = _field(message, "correlation_id")
        bus_records.name(topic, "topic")
        key = RunKey(self._bus.namespace, topic, derived_uuid(f"topic:{topic}"))
        record = EventRecord(
            key=key,
            type=bus_records.MESSAGE,
            event_id=identity,
            correlation_id=checked.text(correlation, "correlation_id"),
            idempotency_key=str(identity),
            payload=encode_value(bus_records.builtins_of(message)),
            metadata=encode_value({}),
        )
        await self._bus.publish_record(record, topic)

    def _unsubscribe(self, subscription_id: str) -> asyncio.Task[None]:
        self._own.discard(subscription_id)
        task = asyncio.get_running_loop().create_task(self._end(subscription_id))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _end(self, subscription_id: str) -> None:
        known = {status.subscription_id for status in self._bus.subscriptions()}
        if subscription_id in known:
            await self._bus.unsubscribe_from_workflow_events(subscription_id)


class Unsubscribe:
    """Ends a subscription of the base bus: at once when it is called; when that is awaited, it has ended."""

    def __init__(self, bus: BaseEventBus, subscription_id: str) -> None:
        self._bus = bus
        self.subscription_id = subscription_id

    def __call__(self) -> Awaitable[None]:
        return self._bus._unsubscribe(self.subscription_id)  # noqa: SLF001 - the other end of the same thing


async def health_of(bus: WorkflowEventBus, *, consuming: bool) -> Context:
    """How a bus is, as JSON."""
    statuses = bus.subscriptions()
    failed = [status.subscription_id for status in statuses if status.state == "failed"]
    facts: Context = {"consuming": consuming, "subscriptions": len(statuses), "failed_subscriptions": list(failed)}
    try:
        groups = await bus.list_groups()
    except SPIError as error:
        return {"healthy": False, "status": "unhealthy", "error": str(error), **facts}
    dead = sum(view.dead_letters for view in groups)
    lag = max((view.lag for view in groups), default=0)
    degraded = bool(failed) or any(status.state == "reconnecting" for status in statuses)
    status = "degraded" if degraded else "healthy"
    return {"healthy": True, "status": status, "groups": len(groups), "dead_letters": dead, "lag": lag, **facts}


def _is_workflow_event(event: Any) -> bool:
    return not isinstance(event, Mapping) and all(
        hasattr(event, name) for name in ("workflow_type", "instance_id", "event_type", "event_id")
    )


def _field(message: Any, name: str) -> str:
    value = message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
    return str(value) if value is not None and not callable(value) else ""
