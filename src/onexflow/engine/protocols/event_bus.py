"""ProtocolWorkflowEventBus over `ports.events.EventService`: publish, subscribe, replay and project.

In process it is given the engine's `orchestrator.events`, over gRPC `RemoteService.events`. What was published is in the log
before the call returns; what is delivered is read from there, so it can be delivered again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final, Literal, TypeAlias, TypedDict
from uuid import UUID

import msgspec

from onexflow.codec.payload import decode_value
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidTransition, UnknownGroup, UnknownProjection
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.engine.protocols import bus_records, checked, projections
from onexflow.engine.protocols.base_bus import BaseEventBus
from onexflow.engine.protocols.checked import InvalidValue
from onexflow.engine.protocols.handlers import Handler
from onexflow.engine.protocols.projections import ProjectionRunner, ProjectionStatus
from onexflow.engine.protocols.pulling import BufferedSubscription, WorkflowEventMessage, buffered
from onexflow.engine.protocols.subscriptions import (
    RETRIES,
    HandlerSubscription,
    Options,
    Subscription,
    SubscriptionStatus,
)
from onexflow.ports.events import (
    Consume,
    DeadLetter,
    EventRecord,
    EventService,
    Filter,
    GroupView,
    Position,
    Publish,
    Published,
)
from onexflow.spi.protocols import ProtocolLiteralWorkflowStateProjection, ProtocolWorkflowEventHandler
from onexflow.spi.types import Context, WorkflowEvent

Start = Literal["latest", "earliest"]
#: What may be given as a handler: the specification's, and its shorter and its sync forms.
EventHandler: TypeAlias = (
    ProtocolWorkflowEventHandler | Callable[[WorkflowEvent], Any] | Callable[[WorkflowEvent, Context], Any]
)
ALL: Final = bus_records.ALL
_PAGE: Final = 1000
_numbers = count(1)
#: Buses that have subscriptions or projections: these go on, whether or not anybody keeps the bus.
_in_use: set[WorkflowEventBus] = set()


class BusOptions(TypedDict, total=False):
    """What a bus can be given; see `WorkflowEventBus`."""

    group: str | None
    start: Start
    retries: RetryPolicy
    concurrency: int
    window: int
    ack_timeout: float
    max_deliveries: int
    patience: float


class WorkflowEventBus:
    """The specification's event bus.

    A topic is called like the workflow type whose events it has; `*` stands for all. A handler is async or sync and takes
    (event, context) or (event). It is called in order for one instance, at the same time for different ones; when it
    returns, the event is acknowledged; when it raises, it is called again, and after the last try the event is kept as a
    dead letter with its error. Without a handler, messages are pulled and acknowledged.

    Without a group a subscription is its program's own and begins anew with it. In a group (`bus.group("billing")`) the
    members share the events of a topic, and the group's place outlives them.
    """

    def __init__(
        self,
        service: EventService,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        group: str | None = None,
        start: Start = "latest",
        retries: RetryPolicy = RETRIES,
        concurrency: int = 16,
        window: int = 256,
        ack_timeout: float = 60.0,
        max_deliveries: int = 10,
        patience: float = 30.0,
    ) -> None:
        """`start`: where a subscription without a group begins, or a group that is new: with what comes, or with the
        first event that there is. `retries`: how often a handler that raises is called, and when. `concurrency`: for how
        many instances a subscription's handler runs at the same time. `window`: how many events a subscription has at
        once. `ack_timeout`: seconds after which a pulled message that was not acknowledged comes again;
        `max_deliveries`: how often, before it is a dead letter (0: always). `patience`: seconds that a subscription may
        take to come into force."""
        if start not in ("latest", "earliest"):
            raise InvalidValue(f"start must be latest or earliest, not {start!r}", field="start")
        if ack_timeout <= 0:
            raise InvalidValue(f"ack_timeout must be above 0, not {ack_timeout}", field="ack_timeout")
        checked.whole(concurrency, "concurrency", 1, 10_000)
        checked.whole(window, "window", 1, 100_000)
        checked.whole(max_deliveries, "max_deliveries", 0, 1_000_000)
        bus_records.name(namespace, "namespace")
        self._service = service
        self._namespace = namespace
        self._group = "" if group is None else bus_records.name(group, "group")
        self._start: Start = start
        self._options = Options(
            retries=retries,
            concurrency=concurrency,
            window=window,
            ack_timeout=ack_timeout,
            max_deliveries=max_deliveries,
            patience=patience,
        )
        self._subscriptions: dict[str, tuple[Subscription, Handler | None]] = {}
        self._projections: dict[str, tuple[ProjectionRunner, asyncio.Task[None]]] = {}
        self._base: BaseEventBus | None = None

    @property
    def base_event_bus(self) -> BaseEventBus:
        """The bus that this one stands on: for messages of any kind, on the same topics."""
        if self._base is None:
            self._base = BaseEventBus(self)
        return self._base

    @property
    def namespace(self) -> str:
        return self._namespace

    def group(self, name: str, *, start: Start | None = None) -> WorkflowEventBus:
        """The same bus for subscriptions that take part in the durable group `name`. `start` is for a group that is new
        (default: as this bus). It shares this bus's subscriptions and projections: closing either closes both."""
        bus = WorkflowEventBus(
            self._service,
            namespace=self._namespace,
            group=bus_records.name(name, "group"),
            start=start or self._start,
            **msgspec.structs.asdict(self._options),
        )
        bus._subscriptions = self._subscriptions
        bus._projections = self._projections
        return bus

    # ---- publish

    async def publish_workflow_event(
        self, event: WorkflowEvent, target_topic: str | None = None, partition_key: str | None = None
    ) -> None:
        """Append the event to its instance's stream; durable when this returns, and the same event again changes nothing.

        The bus numbers an event without a number; one above the stream's head is taken, with a gap. Raises
        InvalidProtocolStateError for another event at or below the head, and for an instance that an orchestrator runs:
        its events are the orchestrator's to write. `target_topic`: deliver it there instead of in the topic of its
        workflow type. `partition_key`: what its partition is chosen by, instead of the instance."""
        await self.publish(event, target_topic, partition_key)

    async def publish(
        self, event: WorkflowEvent, target_topic: str | None = None, partition_key: str | None = None
    ) -> Published:
        """As publish_workflow_event, and says where the event stands."""
        return await self.publish_record(
            bus_records.record_of(event, self._namespace), target_topic or "", partition_key or ""
        )

    async def publish_record(self, record: EventRecord, topic: str = "", partition_key: str = "") -> Published:
        """As `publish`, of an event as the port has it."""
        topic = bus_records.name(topic, "target_topic") if topic else ""
        key = checked.text(partition_key, "partition_key")
        return await self._service.publish_event(Publish(event=record, topic=topic, partition_key=key))

    # ---- subscribe

    async def subscribe_to_workflow_events(
        self,
        workflow_type: str,
        event_types: Sequence[str] | None = None,
        handler: EventHandler | None = None,
    ) -> str:
        """Subscribe to a topic, to these types of events (None: all), in either spelling; returns the subscription's id.
        What is published after that is delivered. Without a handler, `pull` and `messages` give what was delivered."""
        filter_ = self._filter(workflow_type, bus_records.event_types(event_types))
        called = None if handler is None else Handler(handler, bus_records.event_of)
        return await self.subscribe(filter_, called)

    async def subscribe(self, filter_: Filter, handler: Handler | None = None, *, place: str = "") -> str:
        """As subscribe_to_workflow_events, to whatever the filter lets through. `place` tells apart what reads one topic in
        one group for another purpose."""
        topic = ",".join(filter_.topics) or ALL
        subscription_id = f"subscription-{next(_numbers)}"
        request = Consume(
            filter=filter_,
            group=self._group_name(topic + place),
            start=self._start,
            window=self._options.window,
            # What waits to be pulled, or for its handler, is not overdue; what was pulled is timed here.
            ack_timeout=0.0,
            max_deliveries=self._options.max_deliveries,
        )
        subscription: Subscription
        if handler is None:
            subscription = BufferedSubscription(self._service, request, self._options, subscription_id, topic)
        else:
            subscription = HandlerSubscription(self._service, request, self._options, subscription_id, topic, handler)
        self._subscriptions[subscription_id] = (subscription, handler)
        _in_use.add(self)
        try:
            await subscription.start()
        except BaseException:
            await self._end(subscription_id)
            raise
        return subscription_id

    async def unsubscribe_from_workflow_events(self, subscription_id: str) -> None:
        """End a subscription: its handler is called no more, and stopped if it is running. A group keeps its place.
        Raises RegistryError for an id that there is not."""
        self._subscription(subscription_id)
        await self._end(subscription_id)

    async def pull(
        self, subscription_id: str, *, max_messages: int = 100, timeout: float | None = None
    ) -> list[WorkflowEventMessage]:
        """What a subscription without a handler has: at least one message, unless `timeout` seconds pass first (None: it
        waits). Raises RegistryError for an unknown subscription, and what has ended it."""
        return await buffered(self._subscription(subscription_id)).pull(max_messages, timeout)

    def messages(self, subscription_id: str) -> AsyncIterator[WorkflowEventMessage]:
        """The same, one after the other, until the subscription ends."""
        return buffered(self._subscription(subscription_id)).messages()

    def subscription_status(self, subscription_id: str) -> SubscriptionStatus:
        """How a subscription is, and what has ended it if something has."""
        return self._subscription(subscription_id).status

    def subscriptions(self) -> list[SubscriptionStatus]:
        """Those of this bus and its groups."""
        return [subscription.status for subscription, _ in self._subscriptions.values()]

    def pause(self, subscription_ids: Iterable[str]) -> None:
        """Call these subscriptions' handlers no more, until `resume`; what comes waits."""
        for subscription in self._handled(subscription_ids):
            subscription.pause()

    def resume(self, subscription_ids: Iterable[str]) -> None:
        for subscription in self._handled(subscription_ids):
            subscription.resume()

    async def idle(self, subscription_ids: Iterable[str]) -> None:
        """Return when none of these subscriptions' handlers is running."""
        for subscription in self._handled(subscription_ids):
            await subscription.idle()

    # ---- groups and dead letters

    async def list_groups(self) -> Sequence[GroupView]:
        """The durable groups of the namespace, those of projections too. A group of this bus is called NAME/TOPIC."""
        return await self._service.list_groups(self._namespace)

    async def delete_group(self, name: str) -> bool:
        """Forget the place and the dead letters of a group, or the states of a projection, by its name in `list_groups`.
        False when there is none. Raises InvalidProtocolStateError while it has members."""
        return await self._service.delete_group(self._namespace, bus_records.name(name, "group"))

    async def dead_letters(self, workflow_type: str = ALL, limit: int = 100) -> list[DeadLetter]:
        """What was given up, with its error: of this bus's group and topic; without a group, of all subscriptions of the
        namespace that have none, on this topic."""
        most = checked.whole(limit, "limit", 1, 10_000)
        letters = await self._service.list_dead_letters(self._namespace, self._group_name(workflow_type), most)
        if self._group or workflow_type == ALL:
            return list(letters)
        return [letter for letter in letters if letter.delivery.topic == workflow_type]

    async def requeue_dead_letters(self, workflow_type: str = ALL, positions: Sequence[Position] = ()) -> int:
        """Deliver these (none named: all) to the group again; how many. Without a group: to all subscriptions that have
        none and want them now; InvalidProtocolStateError when there is none of these."""
        chosen = await self._chosen(workflow_type, positions)
        if chosen is None:
            return 0
        return await self._service.requeue_dead_letters(self._namespace, self._group_name(workflow_type), chosen)

    async def discard_dead_letters(self, workflow_type: str = ALL, positions: Sequence[Position] = ()) -> int:
        """Forget these (none named: all); how many."""
        chosen = await self._chosen(workflow_type, positions)
        if chosen is None:
            return 0
        return await self._service.discard_dead_letters(self._namespace, self._group_name(workflow_type), chosen)

    async def _chosen(self, workflow_type: str, positions: Sequence[Position]) -> Sequence[Position] | None:
        """The dead letters that are meant; empty: all of the group; None: there are none. Without a group those of all
        topics lie together."""
        places = _positions(positions)
        if self._group or places or workflow_type == ALL:
            return places
        return [letter.delivery.position for letter in await self.dead_letters(workflow_type, 10_000)] or None

    # ---- replay

    async def replay_workflow_events(
        self,
        workflow_type: str,
        instance_id: UUID,
        from_sequence: int,
        to_sequence: int | None = None,
        handler: EventHandler | None = None,
    ) -> list[WorkflowEvent]:
        """The events of a run or an external stream from one sequence number to another, both in it; 0 is as 1. The handler
        gets each in order, and nobody else does. Raises RegistryError for an unknown instance, ProtocolHandlerError when
        the handler raises or the history was cut (`earliest` in the context)."""
        wanted = max(1, checked.whole(from_sequence, "from_sequence"))
        if to_sequence is not None:
            checked.whole(to_sequence, "to_sequence")
        key = bus_records.key_of(self._namespace, workflow_type, instance_id)
        called = None if handler is None else Handler(handler, bus_records.event_of)
        events: list[WorkflowEvent] = []
        try:
            while True:
                page = await self._service.read_events(key, wanted, to_sequence, _PAGE)
                for record in page:
                    events.append(bus_records.event_of(record))
                    if called is not None:
                        await self._replay(called, events[-1])
                if len(page) < _PAGE:
                    return events
                wanted = page[-1].sequence + 1
        finally:
            if called is not None:
                called.close()

    async def _replay(self, handler: Handler, event: WorkflowEvent) -> None:
        context: Context = {
            "topic": event.workflow_type,
            "partition": None,
            "partition_key": str(event.instance_id),
            "offset": None,
            "delivery_attempt": 1,
            "subscription_id": None,
            "replay": True,
        }
        try:
            await handler.handle(event, context)
        except Exception as error:
            facts: Context = {"workflow_type": event.workflow_type, "sequence_number": event.sequence_number}
            raise bus_records.handler_failed("the handler of a replay", error, facts) from error

    # ---- projections

    async def register_projection(self, projection: ProtocolLiteralWorkflowStateProjection) -> None:
        """Apply all events to this projection, from the first or from where it was; returns when it has caught up with
        what is durable now. The same object again changes nothing. Raises InvalidProtocolStateError when another object
        has its name here, ProtocolHandlerError when an event cannot be applied: then it is not registered."""
        name = projections.name_of(projection)
        known = self._projections.get(name)
        if known is None or known[0].loop.is_closed():
            runner = ProjectionRunner(self._service, self._namespace, projection, self._options.patience)
            start = runner.loop.create_task(runner.start(), name=f"onexflow-register-{name}")
            known = self._projections[name] = (runner, start)
            _in_use.add(self)
        elif known[0].projection is not projection:
            context = {"projection": name, "current_state": "registered", "required_state": "not registered"}
            raise InvalidTransition(f"another projection is registered as {name}", context)
        try:
            await asyncio.shield(known[1])
        except BaseException:
            if self._projections.get(name) is known:
                del self._projections[name]
                await _stop(known)
            raise

    async def unregister_projection(self, projection_name: str) -> None:
        """Apply no more events here; the stored states stay. Raises RegistryError when it is not registered here."""
        known = self._projections.pop(projection_name, None)
        if known is None:
            raise UnknownProjection(
                f"no projection is registered as {projection_name}", {"projection": projection_name}
            )
        await _stop(known)

    async def get_projection_state(self, projection_name: str, workflow_type: str, instance_id: UUID) -> Context:
        """The stored state. If the projection is registered here, all events that were durable at the call are in it; if it
        has none for this instance, its own get_state is asked. {} when there is none. Raises RegistryError for a name that
        was never registered, ProtocolHandlerError while an event cannot be applied (it is tried again)."""
        key = bus_records.key_of(self._namespace, workflow_type, instance_id)
        bus_records.name(projection_name, "projection_name")
        found = await self._service.load_projection(self._namespace, projection_name, key)
        known = self._projections.get(projection_name)
        if known is not None and found.offset < found.head:
            await known[0].reach(found.shard, found.head)
            found = await self._service.load_projection(self._namespace, projection_name, key)
        if found.state is not None:
            state: Context = decode_value(found.state)
            return state
        return {} if known is None else await projections.ask(known[0].projection, workflow_type, key.instance_id)

    async def projection_status(self, projection_name: str) -> ProjectionStatus:
        """Where a projection is and what keeps it from getting on. Raises RegistryError for an unknown name."""
        bus_records.name(projection_name, "projection_name")
        view = await projections.find_view(self._service, self._namespace, projection_name)
        known = self._projections.get(projection_name)
        if view is None:
            raise UnknownProjection(f"there is no projection {projection_name}", {"projection": projection_name})
        return ProjectionStatus(
            name=projection_name,
            positions=dict(view.positions),
            lag=view.lag,
            members=view.members,
            registered=known is not None,
            error=None if known is None else known[0].error,
        )

    async def rebuild_projection(self, projection_name: str) -> None:
        """Forget its states and apply all events again; if it is registered here, returns when it has caught up. Raises
        RegistryError for an unknown name."""
        known = self._projections.pop(bus_records.name(projection_name, "projection_name"), None)
        if known is not None:
            await _stop(known)
        await self._service.reset_projection(self._namespace, projection_name)
        if known is not None:
            await self.register_projection(known[0].projection)

    # ---- topics

    async def create_workflow_topic(self, workflow_type: str, partition_count: int) -> bool:
        """Create the topic of a workflow type with so many partitions; False when there is one. A topic that nobody
        created comes with its first use, with one partition."""
        topic = bus_records.name(workflow_type, "workflow_type")
        partitions = checked.whole(partition_count, "partition_count", 1, 100_000)
        return await self._service.create_topic(self._namespace, topic, partitions)

    async def delete_workflow_topic(self, workflow_type: str) -> bool:
        """Delete a topic: its subscriptions end, and what it had is not delivered by a later one of that name. The events
        stay in the histories of their instances. False when there is none."""
        return await self._service.delete_topic(self._namespace, bus_records.name(workflow_type, "workflow_type"))

    # ---- life

    async def close(self) -> None:
        """End the subscriptions and projections that were made on the running loop. What they have not acknowledged is
        delivered again, what they stored stays. Idempotent."""
        loop = asyncio.get_running_loop()
        for subscription_id, (subscription, _) in list(self._subscriptions.items()):
            if subscription.loop is loop:
                await self._end(subscription_id)
        for name, known in list(self._projections.items()):
            if known[0].loop is loop:
                del self._projections[name]
                await _stop(known)
        self._leave()

    # ---- helpers

    def _leave(self) -> None:
        """Who has nothing under way may be forgotten."""
        if not self._subscriptions and not self._projections:
            _in_use.discard(self)

    def _filter(self, workflow_type: str, types: tuple[str, ...]) -> Filter:
        topics = () if workflow_type == ALL else (bus_records.name(workflow_type, "workflow_type"),)
        return Filter(namespace=self._namespace, topics=topics, event_types=types)

    def _group_name(self, topic: str) -> str:
        """A group's place is kept for each topic."""
        return f"{self._group}/{topic}" if self._group else ""

    def _subscription(self, subscription_id: str) -> Subscription:
        known = self._subscriptions.get(checked.text(subscription_id, "subscription_id"))
        if known is None:
            raise UnknownGroup(f"there is no subscription {subscription_id}", {"subscription_id": subscription_id})
        return known[0]

    def _handled(self, subscription_ids: Iterable[str]) -> list[HandlerSubscription]:
        found = [self._subscriptions[one][0] for one in subscription_ids if one in self._subscriptions]
        return [one for one in found if isinstance(one, HandlerSubscription)]

    async def _end(self, subscription_id: str) -> None:
        known = self._subscriptions.pop(subscription_id, None)
        if known is None:
            return
        await known[0].close()
        if known[1] is not None:
            known[1].close()
        self._leave()


def _positions(given: Any) -> list[Position]:
    """Those that dead letters say of themselves."""
    places = checked.each(given, "positions")
    if not all(isinstance(place, Position) for place in places):
        raise InvalidValue("positions: each must be a dead letter's `delivery.position`", field="positions")
    return places


async def _stop(known: tuple[ProjectionRunner, asyncio.Task[None]]) -> None:
    runner, start = known
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    await runner.close()


__all__ = ["ALL", "BusOptions", "ProjectionStatus", "SubscriptionStatus", "WorkflowEventBus", "WorkflowEventMessage"]
