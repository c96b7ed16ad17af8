"""What a subscription does with its deliveries: it calls a handler (here), or keeps them until they are pulled (`pulling`)."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import structlog

from onexflow.core.definition import RetryPolicy
from onexflow.core.ids import RunKey
from onexflow.core.retry import delay, may_retry
from onexflow.engine.protocols import bus_records
from onexflow.engine.protocols.feed import Feed, Listener
from onexflow.ports.events import Consume, Delivery, EventRecord, EventService, Position
from onexflow.spi.exceptions import SPIError
from onexflow.spi.types import Context

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
