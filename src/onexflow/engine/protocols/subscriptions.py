"""What a subscription does with its deliveries: call a handler, or keep them until they are pulled."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import structlog

from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidArgument, InvalidTransition
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure
from onexflow.core.retry import delay, may_retry
from onexflow.engine.protocols import bus_records
from onexflow.engine.protocols.feed import Feed, Listener
from onexflow.ports.events import Consume, Delivery, EventRecord, EventService, Position
from onexflow.spi.event_type import EventType
from onexflow.spi.exceptions import SPIError
from onexflow.spi.types import Context, WorkflowEvent

log = structlog.get_logger("onexflow.bus")

#: Seconds that the end of a subscription waits for acknowledgements that are under way.
_SETTLE: Final = 2.0
#: A handler that raises is called again after 0.1, 0.2, 0.4 … seconds, five times in all. `worker.Fatal` ends that.
RETRIES: Final = RetryPolicy(max_attempts=5, initial_delay=0.1, max_delay=30.0, jitter=0.0, non_retryable=("Fatal",))


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a bus deals with deliveries."""

    retries: RetryPolicy = RETRIES
    #: Instances whose events handlers of one subscription deal with at the same time.
    concurrency: int = 16
    #: Deliveries that a subscription has at most, dealt with or waiting.
    window: int = 256
    #: Seconds after which a pulled message that was not acknowledged comes again.
    ack_timeout: float = 60.0
    #: Deliveries of a message that nobody acknowledges, before it becomes a dead letter; 0: any number.
    max_deliveries: int = 10
    #: Seconds that a subscription may take to come into force.
    patience: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatus:
    """A subscription as it stands."""

    subscription_id: str
    topic: str
    group: str
    state: Literal["active", "reconnecting", "failed"]
    error: SPIError | None
    #: Deliveries that it has and that are not acknowledged.
    unanswered: int


class Subscription(Listener):
    """What both kinds have in common."""

    def __init__(
        self, service: EventService, request: Consume, options: Options, subscription_id: str, topic: str
    ) -> None:
        self.id = subscription_id
        self.loop = asyncio.get_running_loop()
        self.error: SPIError | None = None
        self._topic = topic
        self._options = options
        self._group = request.group
        self._feed = Feed(service, request, self)
        #: Deliveries that are here.
        self._here: dict[Position, Delivery] = {}

    async def start(self) -> None:
        """Return when it is in force: what is published from now on is delivered."""
        await self._feed.start(self._options.patience)

    @property
    def status(self) -> SubscriptionStatus:
        return SubscriptionStatus(
            subscription_id=self.id,
            topic=self._topic,
            group=self._group,
            state="failed" if self.error else "active" if self._feed.connected else "reconnecting",
            error=self.error,
            unanswered=len(self._here),
        )

    def ended(self, error: SPIError) -> None:
        self.error = error
        log.error("subscription.ended", subscription=self.id, topic=self._topic, error=str(error))

    async def close(self) -> None:
        """End; what was acknowledged is durable, and what was not is delivered to the group again."""
        self._here.clear()
        await self._feed.settle(_SETTLE)
        self._feed.close()
        self._here.clear()


# ---- with a handler


#: The task in which a handler runs, for what the handler itself calls.
_working: ContextVar[asyncio.Task[None] | None] = ContextVar("onexflow_handler_task", default=None)


class HandlerSubscription(Subscription):
    """Calls a handler: for one instance in order, one at a time; for different instances at the same time. What waits,
    waits for this subscription only. A handler that returns has acknowledged."""

    def __init__(
        self,
        service: EventService,
        request: Consume,
        options: Options,
        subscription_id: str,
        topic: str,
        call: Callable[[EventRecord, Context], Any],
    ) -> None:
        super().__init__(service, request, options, subscription_id, topic)
        self._call = call
        self._lanes: dict[RunKey, deque[Delivery]] = {}
        self._ready: deque[RunKey] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused = False

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.position in self._here:
                continue  # it came again because the orchestrator was lost; its handler still has it
            self._here[delivery.position] = delivery
            key = delivery.event.key
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = deque()
                self._ready.append(key)
            lane.append(delivery)
        self._dispatch()

    def pause(self) -> None:
        """Call no handler for what comes, or waits."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._dispatch()

    async def idle(self) -> None:
        """Return when no handler is running: of a paused subscription, soon."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        self._paused = True
        self._lanes.clear()
        self._ready.clear()
        tasks = [task for task in self._tasks if task is not _working.get()]  # a handler may end its own subscription
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()

    def _dispatch(self) -> None:
        while self._ready and not self._paused and len(self._tasks) < self._options.concurrency:
            task = self.loop.create_task(self._work(self._ready.popleft()), name=f"onexflow-{self.id}")
            self._tasks.add(task)
            task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("subscription.failed", subscription=self.id, exc_info=error)
        self._dispatch()

    async def _work(self, key: RunKey) -> None:
        """What an instance has, in order. A lane that is under way stands in `_lanes` and not in `_ready`."""
        _working.set(asyncio.current_task())
        lane = self._lanes[key]
        while lane and not self._paused:
            delivery = lane[0]
            await self._handle(delivery)
            if not lane or lane[0] is not delivery:
                return  # closed
            lane.popleft()
        if not lane:
            self._lanes.pop(key, None)
        else:
            self._ready.append(key)

    async def _handle(self, delivery: Delivery) -> None:
        """Call the handler until it returns; when it is of no use, keep the delivery as a dead letter."""
        policy = self._options.retries
        attempt = 0
        while True:
            attempt += 1
            context = bus_records.context_of(delivery, delivery.attempt + attempt - 1, self.id)
            try:
                done = self._call(delivery.event, context)
                if inspect.isawaitable(done):
                    await done
            except (Exception, asyncio.CancelledError) as error:
                if bus_records.is_cancelled(error):
                    raise
                failure = bus_records.failure_of(error)
            else:
                self._feed.ack(delivery.position)
                self._here.pop(delivery.position, None)
                return
            facts = {"subscription": self.id, "run": str(delivery.event.key), "offset": str(delivery.position)}
            if not may_retry(policy, failure, attempt):
                log.error("event.buried", attempt=attempt, error=f"{failure.type}: {failure.message}", **facts)
                self._feed.bury(delivery.position, failure)
                self._here.pop(delivery.position, None)
                return
            log.warning("event.retried", attempt=attempt, error=f"{failure.type}: {failure.message}", **facts)
            await asyncio.sleep(delay(policy, attempt, 0.0))


class Handler:
    """A user's handler, async or sync, that takes (event, context) or (event). A sync one runs on threads of its own, so
    that one which blocks holds up nobody else."""

    def __init__(
        self,
        handler: Callable[..., Any],
        content: Callable[[EventRecord], Any],
        *,
        plain: bool = False,
        wanted: Callable[[Any], bool] | None = None,
    ) -> None:
        """`content`: what of the event it gets. `plain`: it gets no context, whatever it takes. `wanted`: whether it is
        called at all."""
        if not callable(handler):
            raise InvalidArgument(f"handler: {type(handler).__name__} cannot be called", field="handler")
        self._handler = handler
        self._content = content
        self._wanted = wanted
        self._takes_context = not plain and _takes_two(handler)
        self._threads = None if _is_async(handler) else ThreadPoolExecutor(64, thread_name_prefix="onexflow-handler")

    async def __call__(self, record: EventRecord, context: Context) -> None:
        await self.handle(self._content(record), context)

    async def handle(self, content: Any, context: Context) -> None:
        if self._wanted is not None and not self._wanted(content):
            return
        arguments = (content, context) if self._takes_context else (content,)
        if self._threads is None:
            done = self._handler(*arguments)
        else:
            within = copy_context()
            done = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: within.run(self._handler, *arguments)
            )
        if inspect.isawaitable(done):
            await done

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _is_async(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - whether it is async, not whether it can be called


def _takes_two(handler: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # of a builtin
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


# ---- to be pulled


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
