"""What every ProtocolWorkflowEventBus of ours must do. Subclass `EventBusConformance`, give it a `connect`.

class TestMine(EventBusConformance):
    @pytest.fixture
    async def service(self) -> AsyncIterator[RunService]:
        ...  # an orchestrator with `definitions()` of the orchestrator's suite registered and `Script().worker()`

    @pytest.fixture
    def connect(self, service: RunService) -> Connect:
        ...  # connect(**options) makes a bus at that orchestrator; the suite closes it
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Protocol, cast
from uuid import UUID, uuid4

import pytest

from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidArgument
from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.ports.client_link import RunService
from onexflow.spi import (
    Context,
    InvalidProtocolStateError,
    ProtocolEventBusBase,
    ProtocolHandlerError,
    ProtocolWorkflowEventBus,
    RegistryError,
    WorkflowEvent,
)

ORDER = "order-processing"
QUICK = RetryPolicy(policy="fixed", max_attempts=3, initial_delay=0.0, jitter=0.0)


class Connect(Protocol):
    """Makes a bus; all of them are at one orchestrator."""

    def __call__(self, **options: Any) -> WorkflowEventBus: ...


def event(
    instance: UUID | None = None, event_type: str = "task.completed", workflow_type: str = ORDER, **fields: Any
) -> WorkflowEvent:
    return WorkflowEvent(event_type=event_type, workflow_type=workflow_type, instance_id=instance or uuid4(), **fields)


async def until(reached: Callable[[], Any], seconds: float = 10.0) -> None:
    """Return when it is so."""
    async with asyncio.timeout(seconds):
        while not reached():  # noqa: ASYNC110 - what is waited for may be at the other end of a connection
            await asyncio.sleep(0.005)


class Seen:
    """A handler that keeps what it got."""

    def __init__(self, failures: int = 0) -> None:
        self.events: list[WorkflowEvent] = []
        self.contexts: list[Context] = []
        self.failures = failures

    async def __call__(self, event: WorkflowEvent, context: Context) -> None:
        self.events.append(event)
        self.contexts.append(context)
        if self.failures > 0:
            self.failures -= 1
            raise ValueError("it does not work")

    @property
    def numbers(self) -> list[Any]:
        return [event.data.get("n") for event in self.events]

    async def got(self, count: int) -> None:
        await until(lambda: len(self.events) >= count)
        assert len(self.events) == count


class BusSuite:
    """What the suites of the bus have in common."""

    @pytest.fixture
    async def make(self, connect: Connect) -> AsyncIterator[Connect]:
        buses: list[WorkflowEventBus] = []

        def make(**options: Any) -> WorkflowEventBus:
            buses.append(connect(**{"retries": QUICK, **options}))
            return buses[-1]

        yield make
        for bus in buses:
            await bus.close()

    @pytest.fixture
    def bus(self, make: Connect) -> WorkflowEventBus:
        return make()

    async def numbered(self, bus: WorkflowEventBus, instance: UUID, *numbers: int, **fields: Any) -> None:
        for n in numbers:
            await bus.publish_workflow_event(event(instance, data={"n": n}, **fields))


class EventBusConformance(BusSuite):
    """The contract, member by member."""

    # ---- shape

    async def test_it_is_one(self, bus: WorkflowEventBus) -> None:
        assert isinstance(bus, ProtocolWorkflowEventBus)
        assert isinstance(bus.base_event_bus, ProtocolEventBusBase)

    # ---- publish and subscribe

    async def test_what_is_published_is_delivered_as_it_was(self, bus: WorkflowEventBus) -> None:
        seen, causation, chain = Seen(), uuid4(), [uuid4(), uuid4()]
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        given = event(
            data={"task": "payment", "amounts": [1, 2.5, None, {"deep": True}]},
            correlation_id="req-abc123",
            causation_id=causation,
            correlation_chain=chain,
            source="tests",
            metadata={"why": "because"},
        )
        await bus.publish_workflow_event(given)
        await seen.got(1)
        [got] = seen.events
        assert (got.event_id, got.event_type, got.workflow_type) == (given.event_id, "task_completed", ORDER)
        assert (got.instance_id, got.sequence_number) == (given.instance_id, 1)
        assert (got.correlation_id, got.causation_id) == (given.correlation_id, causation)
        assert (got.data, got.payload) == (given.data, given.data)
        assert (got.correlation_chain, got.source, got.timestamp) == (chain, "tests", given.timestamp)
        assert got.metadata["why"] == "because"
        assert got.metadata["correlation_id"] == "req-abc123"
        assert got.idempotency_key == given.idempotency_key
        [context] = seen.contexts
        assert (context["topic"], context["delivery_attempt"]) == (ORDER, 1)
        assert context["partition_key"] == str(given.instance_id)
        assert isinstance(context["partition"], int)
        assert context["offset"]
        assert str(context["subscription_id"]) in {status.subscription_id for status in bus.subscriptions()}

    async def test_types_are_filtered_in_either_spelling(self, bus: WorkflowEventBus) -> None:
        dotted, underscored, everything, elsewhere = Seen(), Seen(), Seen(), Seen()
        await bus.subscribe_to_workflow_events(ORDER, ["task.completed"], dotted)
        await bus.subscribe_to_workflow_events(ORDER, cast("Any", ["task_completed", "task_failed"]), underscored)
        await bus.subscribe_to_workflow_events(ORDER, None, everything)
        await bus.subscribe_to_workflow_events("another", None, elsewhere)
        instance = uuid4()
        for n, spelling in enumerate(("task_completed", "task.failed", "workflow.paused")):
            await bus.publish_workflow_event(event(instance, spelling, data={"n": n}))
        await everything.got(3)
        await underscored.got(2)
        assert (everything.numbers, underscored.numbers, dotted.numbers) == ([0, 1, 2], [0, 1], [0])
        assert elsewhere.events == []
        with pytest.raises(ValueError, match="did you mean"):
            await bus.subscribe_to_workflow_events(ORDER, cast("Any", ["task.complete"]))

    async def test_an_event_of_another_class_is_taken(self, bus: WorkflowEventBus) -> None:
        seen = Seen()
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        fields = {"workflow_type": ORDER, "instance_id": uuid4(), "event_type": "task_failed", "event_id": uuid4()}
        await bus.publish_workflow_event(cast("Any", SimpleNamespace(**fields, sequence_number=None, data={"n": 1})))
        await seen.got(1)
        assert (seen.events[0].event_type, seen.numbers) == ("task.failed", [1])
        for wrong in ({"event_type": "task.fail"}, {"sequence_number": -1}, {"workflow_type": ""}, {"data": [1]}):
            with pytest.raises(ValueError if "workflow_type" not in wrong and "data" not in wrong else Exception):
                await bus.publish_workflow_event(cast("Any", SimpleNamespace(**{**fields, **wrong})))

    async def test_handlers_are_async_or_sync_and_take_one_or_two(self, bus: WorkflowEventBus) -> None:
        got: list[str] = []
        main = threading.get_ident()

        async def one(event: WorkflowEvent) -> None:
            got.append(f"async {event.data['n']}")

        async def two(event: WorkflowEvent, context: Context) -> None:
            got.append(f"async {event.data['n']} {context['delivery_attempt']}")

        def sync_one(event: WorkflowEvent) -> None:
            assert threading.get_ident() != main  # so it may block
            got.append(f"sync {event.data['n']}")

        def sync_two(event: WorkflowEvent, context: Context) -> None:
            got.append(f"sync {event.data['n']} {context['delivery_attempt']}")

        for handler in (one, two, sync_one, sync_two):
            await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", handler))
        await bus.publish_workflow_event(event(data={"n": 7}))
        await until(lambda: len(got) == 4)
        assert sorted(got) == ["async 7", "async 7 1", "sync 7", "sync 7 1"]
        with pytest.raises(InvalidArgument, match="called"):
            await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", "handler"))

    async def test_one_instance_in_order_and_different_ones_at_the_same_time(self, bus: WorkflowEventBus) -> None:
        first, second, got = uuid4(), uuid4(), []
        other = asyncio.Event()

        async def handle(event: WorkflowEvent) -> None:
            if event.instance_id == first and event.data["n"] == 0:
                await other.wait()
            if event.instance_id == second:
                other.set()
            got.append((event.instance_id, event.data["n"]))

        await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", handle))
        await self.numbered(bus, first, *range(10))
        await self.numbered(bus, second, 0, 1)
        await until(lambda: len(got) == 12)
        assert [n for instance, n in got if instance == first] == list(range(10))
        assert [n for instance, n in got if instance == second] == [0, 1]

    async def test_what_is_published_before_is_not_delivered_and_after_unsubscribing_neither(
        self, bus: WorkflowEventBus
    ) -> None:
        seen, control, instance = Seen(), Seen(), uuid4()
        await self.numbered(bus, instance, 0)
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await self.numbered(bus, instance, 1)
        await seen.got(1)
        await bus.unsubscribe_from_workflow_events(subscription)
        await bus.subscribe_to_workflow_events(ORDER, handler=control)
        await self.numbered(bus, instance, 2)
        await control.got(1)
        assert (seen.numbers, control.numbers) == ([1], [2])
        with pytest.raises(RegistryError):
            await bus.unsubscribe_from_workflow_events(subscription)

    async def test_a_slow_subscriber_slows_only_itself(self, make: Connect) -> None:
        bus, gate, quick = make(window=4), asyncio.Event(), Seen()
        slow: list[int] = []

        async def wait(event: WorkflowEvent) -> None:
            await gate.wait()
            slow.append(cast("int", event.data["n"]))

        await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", wait))
        await bus.subscribe_to_workflow_events(ORDER, handler=quick)
        instance = uuid4()
        await self.numbered(bus, instance, *range(40))
        await quick.got(40)
        assert slow == []
        gate.set()
        await until(lambda: len(slow) == 40)
        assert slow == list(range(40))

    async def test_a_handler_may_end_its_own_subscription(self, bus: WorkflowEventBus) -> None:
        got: list[int] = []

        async def once(event: WorkflowEvent, context: Context) -> None:
            await bus.unsubscribe_from_workflow_events(str(context["subscription_id"]))
            got.append(cast("int", event.data["n"]))

        await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", once))
        control, instance = Seen(), uuid4()
        await bus.subscribe_to_workflow_events(ORDER, handler=control)
        await self.numbered(bus, instance, 0, 1)
        await control.got(2)
        assert got == [0]

    async def test_wrong_values_are_refused_where_they_are_said(self, bus: WorkflowEventBus) -> None:
        instance = uuid4()
        wrong = ("", " ", "*", "a\0b", "\ud800", "x" * 256, 7)
        for name in wrong:
            with pytest.raises(ValueError, match="needed"):
                await bus.publish_workflow_event(event(instance, workflow_type=cast("Any", name)))
            with pytest.raises(ValueError, match="needed"):
                await bus.create_workflow_topic(cast("Any", name), 1)
            with pytest.raises(ValueError, match="needed"):
                await bus.base_event_bus.subscribe(cast("Any", name), cast("Any", Seen()))
            with pytest.raises(ValueError, match="needed"):
                bus.group(cast("Any", name))
        for name in ("a\0b", "\ud800", "x" * 1021):
            for fields in ({"partition_key": name}, {"target_topic": name}):
                with pytest.raises(ValueError, match="needed"):
                    await bus.publish_workflow_event(event(instance), **cast("Any", fields))
            for field in ("idempotency_key", "source"):
                with pytest.raises(ValueError, match=field):
                    await bus.publish_workflow_event(event(instance, **cast("Any", {field: name})))
        for data in ({"a": "\ud800"}, {"a": float("nan")}, {"a": object()}, {"a": "x" * 3_000_000}):
            with pytest.raises(InvalidArgument):
                await bus.publish_workflow_event(event(instance, data=cast("Any", data)))
        for number in (2**70, -1, 1.5, "1"):
            with pytest.raises(ValueError, match="sequence"):
                await bus.publish_workflow_event(event(instance, sequence_number=cast("Any", number)))
            with pytest.raises(ValueError, match="sequence"):
                await bus.replay_workflow_events(ORDER, instance, cast("Any", number))
            with pytest.raises(ValueError, match="partition"):
                await bus.create_workflow_topic("billing", cast("Any", number))
        for kind in ("$stream:x", "$queue:x"):
            with pytest.raises(InvalidArgument):
                await bus.publish_workflow_event(event(instance, workflow_type=kind))
        assert (await bus.publish(event(instance))).sequence == 1

    # ---- runs

    async def test_events_of_runs_are_delivered_and_replayed(
        self, make: Connect, service: RunService, bus: WorkflowEventBus
    ) -> None:
        seen, late, orchestrator, instance = Seen(), Seen(), WorkflowOrchestrator(service), uuid4()
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await orchestrator.start_workflow(ORDER, instance, {"a": 1}, uuid4())
        await until(lambda: any(event.event_type == "workflow.completed" for event in seen.events))
        history = await orchestrator.get_workflow_history(ORDER, instance)
        assert [one.event_id for one in seen.events] == [one.event_id for one in history]
        assert seen.events == history
        assert await bus.replay_workflow_events(ORDER, instance, 0) == history
        await make(start="earliest").subscribe_to_workflow_events(ORDER, ["workflow.created"], late)
        await late.got(1)
        assert late.events[0] == history[0]

    async def test_a_run_s_events_are_its_orchestrator_s_to_write(
        self, service: RunService, bus: WorkflowEventBus
    ) -> None:
        instance, orchestrator = uuid4(), WorkflowOrchestrator(service)
        await orchestrator.start_workflow(ORDER, instance, {})
        history = await orchestrator.get_workflow_history(ORDER, instance)
        with pytest.raises(InvalidProtocolStateError):
            await bus.publish_workflow_event(event(instance, data={"n": 1}))
        with pytest.raises(InvalidProtocolStateError):
            await bus.publish_workflow_event(event(instance, sequence_number=10_000))
        await bus.publish_workflow_event(history[0])  # the very same: it is there

    # ---- numbering of external streams

    async def test_the_bus_numbers_what_has_no_number(self, bus: WorkflowEventBus) -> None:
        instance = uuid4()
        numbers = [(await bus.publish(event(instance))).sequence for _ in range(3)]
        assert numbers == [1, 2, 3]

    async def test_a_number_above_the_head_is_taken(self, bus: WorkflowEventBus) -> None:
        instance, seen = uuid4(), Seen()
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        assert (await bus.publish(event(instance, sequence_number=5))).sequence == 5
        assert (await bus.publish(event(instance))).sequence == 6
        await seen.got(2)
        replayed = await bus.replay_workflow_events(ORDER, instance, 0)
        assert [one.sequence_number for one in replayed] == [5, 6]
        assert [one.sequence_number for one in seen.events] == [5, 6]

    async def test_the_same_event_again_changes_nothing_and_another_is_refused(self, bus: WorkflowEventBus) -> None:
        instance, seen = uuid4(), Seen()
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        first = event(instance, sequence_number=5, data={"n": 1}, idempotency_key="once")
        published = await bus.publish(first)
        assert published.created
        again = await bus.publish(first)
        assert (again.created, again.sequence, again.position) == (False, 5, published.position)
        by_key = await bus.publish(event(instance, data={"n": 1}, idempotency_key="once"))
        assert (by_key.created, by_key.sequence) == (False, 5)
        for number in (5, 4, 1):
            with pytest.raises(InvalidProtocolStateError):
                await bus.publish_workflow_event(event(instance, sequence_number=number, data={"n": 2}))
        await bus.publish_workflow_event(event(instance, sequence_number=6, data={"n": 3}))
        await seen.got(2)
        assert seen.numbers == [1, 3]

    # ---- topics

    async def test_topics_are_created_and_deleted(self, bus: WorkflowEventBus) -> None:
        assert await bus.create_workflow_topic("billing", 8) is True
        assert await bus.create_workflow_topic("billing", 4) is False
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="partition"):
                await bus.create_workflow_topic("shipping", wrong)
        seen = Seen()
        subscription = await bus.subscribe_to_workflow_events("billing", handler=seen)
        instance = uuid4()
        await self.numbered(bus, instance, 0, workflow_type="billing")
        await seen.got(1)
        assert await bus.delete_workflow_topic("billing") is True
        assert await bus.delete_workflow_topic("billing") is False
        await until(lambda: bus.subscription_status(subscription).state == "failed")
        assert isinstance(bus.subscription_status(subscription).error, RegistryError)
        # The events stay in the stream's history; a new topic of that name does not deliver them.
        assert len(await bus.replay_workflow_events("billing", instance, 0)) == 1
        assert await bus.create_workflow_topic("billing", 2) is True

    async def test_a_deleted_topic_s_events_do_not_come_again(self, make: Connect, bus: WorkflowEventBus) -> None:
        instance, seen = uuid4(), Seen()
        await bus.create_workflow_topic("billing", 1)
        await self.numbered(bus, instance, 0, workflow_type="billing")
        await bus.delete_workflow_topic("billing")
        await bus.create_workflow_topic("billing", 1)
        await self.numbered(bus, instance, 1, workflow_type="billing")
        await make(start="earliest").subscribe_to_workflow_events("billing", handler=seen)
        await seen.got(1)
        assert seen.numbers == [1]

    async def test_partitions_follow_the_key(self, bus: WorkflowEventBus) -> None:
        await bus.create_workflow_topic("billing", 8)
        instances = [uuid4() for _ in range(20)]
        chosen = [(await bus.publish(event(one, workflow_type="billing"))).partition for one in instances]
        again = [(await bus.publish(event(one, workflow_type="billing"))).partition for one in instances]
        assert chosen == again
        assert len(set(chosen)) > 1
        assert all(0 <= partition < 8 for partition in chosen)
        together = {
            (await bus.publish(event(one, workflow_type="billing"), partition_key="same")).partition
            for one in instances
        }
        assert len(together) == 1
        assert (await bus.publish(event(workflow_type="never-created"))).partition == 0

    async def test_a_target_topic_is_where_it_is_delivered(self, bus: WorkflowEventBus) -> None:
        usual, audit, instance = Seen(), Seen(), uuid4()
        await bus.subscribe_to_workflow_events(ORDER, handler=usual)
        await bus.subscribe_to_workflow_events("audit", handler=audit)
        await bus.publish_workflow_event(event(instance, data={"n": 0}), target_topic="audit", partition_key="k")
        await bus.publish_workflow_event(event(instance, data={"n": 1}))
        await audit.got(1)
        await usual.got(1)
        assert (audit.numbers, usual.numbers) == ([0], [1])
        assert (audit.contexts[0]["topic"], audit.contexts[0]["partition_key"]) == ("audit", "k")
        assert [one.data["n"] for one in await bus.replay_workflow_events(ORDER, instance, 0)] == [0, 1]

    # ---- replay

    async def test_a_replay_has_both_its_ends_and_reaches_only_its_handler(self, bus: WorkflowEventBus) -> None:
        instance, subscriber, handler = uuid4(), Seen(), Seen()
        await self.numbered(bus, instance, *range(1, 8))
        await bus.subscribe_to_workflow_events(ORDER, handler=subscriber)
        middle = await bus.replay_workflow_events(ORDER, instance, 2, 4, handler)
        assert [one.sequence_number for one in middle] == [2, 3, 4]
        assert handler.events == middle
        assert handler.contexts[0]["replay"] is True
        everything = await bus.replay_workflow_events(workflow_type=ORDER, instance_id=instance, from_sequence=0)
        assert everything == await bus.replay_workflow_events(ORDER, instance, 1)
        assert [one.sequence_number for one in everything] == list(range(1, 8))
        assert await bus.replay_workflow_events(ORDER, instance, 8) == []
        assert await bus.replay_workflow_events(ORDER, instance, 4, 3) == []
        await self.numbered(bus, instance, 8)
        await subscriber.got(1)
        assert subscriber.numbers == [8]

    async def test_a_replay_that_cannot_be(self, bus: WorkflowEventBus) -> None:
        with pytest.raises(RegistryError):
            await bus.replay_workflow_events(ORDER, uuid4(), 0)
        instance = uuid4()
        await self.numbered(bus, instance, 1)
        with pytest.raises(ValueError, match="from_sequence"):
            await bus.replay_workflow_events(ORDER, instance, -1)
        with pytest.raises(ProtocolHandlerError, match="does not work") as raised:
            await bus.replay_workflow_events(ORDER, instance, 0, None, Seen(failures=1))
        assert raised.value.context["sequence_number"] == 1
