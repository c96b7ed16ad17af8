"""The events of some namespaces, published: a consumer of the group for each namespace, one publisher for all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Literal

import msgspec
import structlog

from onexflow.bridge.lanes import Entry
from onexflow.bridge.message import message_of
from onexflow.bridge.publisher import Dial, Publisher
from onexflow.core.errors import InternalError, InvalidTransition, OutOfRange
from onexflow.core.payload import Failure
from onexflow.engine.protocols.feed import Feed, Listener
from onexflow.ports.events import Consume, Delivery, EventService, Filter, Position
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.bridge")

#: Seconds that acknowledgements to the group may wait for others: each lot is a write of the orchestrator's.
ACK_EVERY: Final = 0.05
#: Seconds in which an orchestrator must take a consumer at the start.
PATIENCE: Final = 10.0
#: Seconds that a stop gives to what is on the wire, and then to the acknowledgements.
SETTLE: Final = 2.0
#: Seconds between two questions how far the group is behind.
LOOK_EVERY: Final = 10.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is published, and as whose events."""

    cluster: str
    stream: str
    namespaces: tuple[str, ...]
    topics: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
    group: str = "nats"
    start: Literal["earliest", "latest"] = "earliest"
    #: Events of a namespace that are read and not acknowledged, and messages on the wire.
    window: int = 1000


class Reading(Listener):
    """One namespace's events, as one member of the group is given them."""

    def __init__(self, bridge: Bridge, namespace: str) -> None:
        self.namespace = namespace
        #: Events that were cut away before they were read here.
        self.missed = 0
        #: Events of the log behind which the group is (an upper bound), when it was last looked.
        self.lag = 0
        self._bridge = bridge
        self._feed = self._new_feed()
        #: On their way: what comes again meanwhile is not published twice.
        self._known: set[Position] = set()
        self._stored: list[Position] = []
        self._timer: asyncio.TimerHandle | None = None

    def _new_feed(self) -> Feed:
        plan = self._bridge.plan
        request = Consume(
            filter=Filter(namespace=self.namespace, topics=plan.topics, event_types=plan.event_types),
            group=plan.group,
            start=plan.start,
            window=plan.window,
            # How long NATS takes is no reason to give an event to another member, nor to give it up.
            ack_timeout=0,
            max_deliveries=0,
        )
        return Feed(self._bridge.service, request, self)

    async def open(self, patience: float = PATIENCE) -> None:
        """Return when events come. Raises what the orchestrator refuses it with."""
        while True:
            try:
                await self._feed.start(patience)
            except OutOfRange as error:
                self._cut(error)
            except InvalidTransition as error:
                group = self._bridge.plan.group
                hint = (
                    f"Name another group (--events-group), or forget this one: `onexflow event group delete {group}`."
                )
                raise InvalidTransition(str(error), {**error.context, "hint": hint}) from error
            else:
                log.info("events.reading", namespace=self.namespace, group=self._bridge.plan.group)
                return

    def stored(self, position: Position) -> None:
        """JetStream has it."""
        self._stored.append(position)
        if len(self._stored) >= max(1, self._bridge.plan.window // 4):
            self._acknowledge()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_EVERY, self._acknowledge)

    def parked(self, position: Position, failure: Failure) -> None:
        """JetStream will never have it."""
        self._known.discard(position)
        self._feed.bury(position, failure)

    async def settle(self) -> None:
        """Acknowledge what is stored, and wait for it to be durable."""
        self._acknowledge()
        await self._feed.settle(SETTLE)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._feed.close()

    def _acknowledge(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        stored, self._stored = self._stored, []
        for position in stored:
            self._known.discard(position)
            self._feed.ack(position)

    def _cut(self, error: OutOfRange) -> None:
        """Events are gone that were never read: loud, counted, and on with what is left."""
        events = error.context.get("events")
        count = events if isinstance(events, int) else 1
        self.missed += count
        log.error(
            "events.missed",
            namespace=self.namespace,
            group=self._bridge.plan.group,
            events=count,
            shard=error.context.get("shard"),
            earliest=error.context.get("earliest"),
            hint="histories were cut before the bridge had read them; it goes on with the earliest that is left",
        )
        self._feed = self._new_feed()

    # ---- Listener

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        plan = self._bridge.plan
        for delivery in deliveries:
            position = delivery.position
            if position in self._known:
                continue
            self._known.add(position)
            try:
                message = message_of(delivery, plan.cluster, plan.stream)
            except Exception as error:
                log.exception("event.unreadable", position=str(position), run=str(delivery.event.key))
                self.parked(position, Failure(type(error).__name__, str(error)))
                continue
            self._bridge.publisher.add(Entry(self, position, delivery.event.key, message))

    def ended(self, error: SPIError) -> None:
        if isinstance(error, OutOfRange):
            self._cut(error)
            self._bridge.reopen(self)
        else:
            self._bridge.fail(error)


class Bridge:
    """See the module's text. Everything runs on one event loop."""

    def __init__(self, service: EventService, dial: Dial, plan: Plan) -> None:
        self.service = service
        self.plan = plan
        self.publisher = Publisher(dial, plan.window, on_stored=_stored, on_parked=_parked)
        self.readings = [Reading(self, namespace) for namespace in plan.namespaces]
        self._tasks: set[asyncio.Task[None]] = set()
        #: Done when the bridge cannot go on.
        self.failed: asyncio.Future[SPIError] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Return when both sides are there and events go out. Raises what either side refuses it with."""
        await self.publisher.start()
        for reading in self.readings:
            await reading.open()
        self._spawn(self.publisher.run(), "publisher")
        self._spawn(self._look(), "lag")

    async def stop(self) -> None:
        """Let what is on the wire come to its end, acknowledge it, and end. What is left comes again at the next start."""
        if self._tasks:
            await self.publisher.finish(SETTLE)
            if not self.failed.done():
                await asyncio.gather(*(reading.settle() for reading in self.readings))
        for reading in self.readings:
            reading.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.publisher.close()

    def reopen(self, reading: Reading) -> None:
        self._spawn(self._reopened(reading), "reopening")

    def fail(self, error: SPIError) -> None:
        if not self.failed.done():
            self.failed.set_result(error)

    async def _reopened(self, reading: Reading) -> None:
        try:
            await reading.open(float("inf"))
        except SPIError as error:
            self.fail(error)

    async def _look(self) -> None:
        """Know how far the groups are behind, and say so while something is wrong."""
        while True:
            for reading in self.readings:
                try:
                    groups = await self.service.list_groups(reading.namespace)
                except SPIError:
                    continue  # the feed tells of it
                reading.lag = next((group.lag for group in groups if group.name == self.plan.group), 0)
                if self.publisher.trouble:
                    log.warning(
                        "bridge.behind", namespace=reading.namespace, events=reading.lag, why=self.publisher.trouble
                    )
            await asyncio.sleep(LOOK_EVERY)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"onexflow-bridge-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bridge.failed", exc_info=error)
            self.fail(error if isinstance(error, SPIError) else InternalError(f"the bridge failed: {error!r}"))


def _stored(entry: Entry) -> None:
    _reading_of(entry).stored(entry.position)


def _parked(entry: Entry, failure: Failure) -> None:
    _reading_of(entry).parked(entry.position, failure)


def _reading_of(entry: Entry) -> Reading:
    assert isinstance(entry.source, Reading), "all entries are made by readings"
    return entry.source
