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
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
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
    ProtocolWorkflowEventMessage,
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


class EventBusConformance:
    """The contract, member by member."""

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

    # ---- the base bus

    async def test_the_base_bus_takes_messages_of_any_kind(self, bus: WorkflowEventBus) -> None:
        base = bus.base_event_bus
        assert base is bus.base_event_bus
        got: list[Any] = []

        async def handle(message: Any) -> None:
            got.append(message)

        end = await base.subscribe("letters", handle)
        await base.publish_envelope({"n": 1}, "letters")
        await base.publish_envelope(Letter("me", 2), topic="letters")
        await base.publish(Letter("you", 3, topic="letters"))
        await base.publish({"topic": "letters", "n": 4})
        await base.publish_envelope([5, "five"], "letters")
        await base.publish_envelope(SimpleNamespace(to_dict=lambda: {"n": 6}), "letters")
        await base.publish_envelope({"n": 1}, "elsewhere")
        await until(lambda: len(got) == 6)
        assert got[0] == {"n": 1}
        assert [one.get("to") for one in got[1:3]] == ["me", "you"]
        assert got[3:] == [{"topic": "letters", "n": 4}, [5, "five"], {"n": 6}]
        await end()
        await base.publish_envelope({"n": 7}, "letters")
        assert len(got) == 6
        with pytest.raises(Exception, match="topic"):
            await base.publish_envelope({"n": 1}, "")

    async def test_the_base_bus_has_workflow_events_and_the_workflow_bus_no_messages(
        self, bus: WorkflowEventBus
    ) -> None:
        base, got, seen, instance = bus.base_event_bus, [], Seen(), uuid4()

        async def handle(message: Any) -> None:
            got.append(message)

        await base.subscribe(ORDER, handle)
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await base.publish_envelope({"n": 0}, ORDER)
        await base.publish(event(instance, data={"n": 1}))
        await until(lambda: len(got) == 2)
        await seen.got(1)
        assert seen.numbers == [1]
        assert [one for one in got if isinstance(one, dict)] == [{"n": 0}]
        [workflow_event] = [one for one in got if isinstance(one, WorkflowEvent)]
        assert workflow_event.instance_id == instance

    async def test_a_base_handler_that_raises_is_called_again(self, bus: WorkflowEventBus) -> None:
        calls: list[Any] = []

        async def handle(message: Any) -> None:
            calls.append(message)
            if len(calls) < 3:
                raise ValueError("not yet")

        await bus.base_event_bus.subscribe("letters", handle)
        await bus.base_event_bus.publish_envelope({"n": 1}, "letters")
        await until(lambda: len(calls) == 3)

    async def test_a_message_with_an_id_is_published_once(self, bus: WorkflowEventBus) -> None:
        got: list[Any] = []

        async def handle(message: Any) -> None:
            got.append(message["n"])

        await bus.base_event_bus.subscribe("letters", handle)
        for n, identity in ((1, "a"), (1, "a"), (2, "b")):
            await bus.base_event_bus.publish_envelope({"n": n, "message_id": identity}, "letters")
        await until(lambda: len(got) == 2)
        assert got == [1, 2]

    async def test_consuming_stops_and_starts(self, bus: WorkflowEventBus) -> None:
        base, got = bus.base_event_bus, []

        async def handle(message: Any) -> None:
            got.append(message["n"])

        await base.subscribe("letters", handle)
        await base.publish_envelope({"n": 1}, "letters")
        await until(lambda: got == [1])
        consuming = asyncio.ensure_future(base.start_consuming())
        await asyncio.sleep(0)
        await base.stop_consuming(timeout_seconds=5.0)
        async with asyncio.timeout(5):
            await consuming
        await base.publish_envelope({"n": 2}, "letters")
        health = await base.health_check()
        assert (health["status"], health["healthy"], health["consuming"]) == ("healthy", True, False)
        assert got == [1]
        await base.start_consuming(timeout_seconds=0.05)
        await until(lambda: got == [1, 2])

    # ---- messages to be pulled

    async def test_messages_are_pulled_and_acknowledged(self, bus: WorkflowEventBus) -> None:
        subscription = await bus.subscribe_to_workflow_events(ORDER)
        given = event(data={"n": 1}, source="tests", correlation_id="req-abc123")
        assert await bus.pull(subscription, timeout=0) == []
        await bus.publish_workflow_event(given)
        [message] = await bus.pull(subscription, max_messages=10)
        assert isinstance(cast("Any", message), ProtocolWorkflowEventMessage)
        assert (message.topic, message.workflow_type, message.instance_id) == (ORDER, ORDER, given.instance_id)
        assert message.key == str(given.instance_id).encode()
        assert (message.sequence_number, message.event_type) == (1, "task_completed")
        assert (message.correlation_id, message.idempotency_key) == (given.correlation_id, given.idempotency_key)
        assert (message.headers["correlation_id"], message.headers["source"]) == ("req-abc123", "tests")
        assert message.offset
        assert message.partition == 0
        value = json.loads(message.value)
        assert (value["event_type"], value["payload"]) == ("task.completed", {"n": 1})
        got = await message.get_workflow_event()
        assert (got.event_id, got.data) == (given.event_id, {"n": 1})
        await message.ack()
        await message.ack()
        assert bus.subscription_status(subscription).unanswered == 0
        assert await bus.pull(subscription, timeout=0) == []

    async def test_a_pull_waits_for_the_first_and_takes_no_more_than_asked(self, bus: WorkflowEventBus) -> None:
        subscription, instance = await bus.subscribe_to_workflow_events(ORDER), uuid4()
        pulling = asyncio.ensure_future(bus.pull(subscription, timeout=10))
        await asyncio.sleep(0)
        await self.numbered(bus, instance, 1, 2, 3)
        got = await pulling
        while len(got) < 3:
            got += await bus.pull(subscription, max_messages=1, timeout=10)
        assert [message.sequence_number for message in got] == [1, 2, 3]
        with pytest.raises(Exception, match="max_messages"):
            await bus.pull(subscription, max_messages=0)

    async def test_what_is_not_acknowledged_comes_again(self, make: Connect) -> None:
        bus = make(ack_timeout=0.05)
        subscription, instance = await bus.subscribe_to_workflow_events(ORDER), uuid4()
        await self.numbered(bus, instance, 1)
        [first] = await bus.pull(subscription)
        [second] = await bus.pull(subscription, timeout=10)
        assert (first.attempt, second.attempt) == (1, 2)
        assert (second.offset, second.headers["delivery_attempt"]) == (first.offset, 2)
        await first.ack()  # the event counts, not the message
        assert await bus.pull(subscription, timeout=0.2) == []

    async def test_what_nobody_acknowledges_is_a_dead_letter(self, make: Connect) -> None:
        bus = make(ack_timeout=0.02, max_deliveries=2)
        subscription, instance = await bus.subscribe_to_workflow_events(ORDER), uuid4()
        await self.numbered(bus, instance, 1, 2)
        attempts = []
        async for message in bus.messages(subscription):
            attempts.append((message.sequence_number, message.attempt))
            if message.sequence_number == 2:
                await message.ack()
            if (1, 2) in attempts:
                break
        await until(lambda: bus.subscription_status(subscription).unanswered == 0)
        letters = await self.letters(bus, 1)
        assert letters[0].error.type == "NotAcknowledged"
        assert letters[0].delivery.event.sequence == 1

    async def test_messages_end_with_the_subscription(self, bus: WorkflowEventBus) -> None:
        subscription, got = await bus.subscribe_to_workflow_events(ORDER), []

        async def collect() -> None:
            async for message in bus.messages(subscription):
                got.append(message.sequence_number)
                await message.ack()

        collecting = asyncio.ensure_future(collect())
        await self.numbered(bus, uuid4(), 1)
        await until(lambda: got == [1])
        await bus.unsubscribe_from_workflow_events(subscription)
        async with asyncio.timeout(5):
            await collecting

    async def test_there_is_nothing_to_pull_with_a_handler(self, bus: WorkflowEventBus) -> None:
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=Seen())
        with pytest.raises(InvalidProtocolStateError):
            await bus.pull(subscription)
        with pytest.raises(RegistryError):
            await bus.pull("subscription-none")

    async def test_a_group_has_one_filter_a_topic(self, make: Connect) -> None:
        group, seen = make(group="billing"), Seen()
        letters: list[Any] = []
        await group.subscribe_to_workflow_events(ORDER, ["task.completed"], seen)
        with pytest.raises(InvalidProtocolStateError):
            await group.subscribe_to_workflow_events(ORDER, ["task.failed"], seen)
        await group.subscribe_to_workflow_events("another", ["task.failed"], seen)
        await group.base_event_bus.subscribe(ORDER, cast("Any", letters.append))
        await group.publish_workflow_event(event(data={"n": 1}))
        await seen.got(1)
        await until(lambda: letters)

    # ---- failures and groups

    async def letters(self, bus: WorkflowEventBus, count: int) -> list[Any]:
        found: list[Any] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                found = await bus.dead_letters(ORDER)
                await asyncio.sleep(0.005)
        assert len(found) == count
        return found

    @pytest.mark.parametrize("group", [None, "billing"])
    async def test_a_raising_handler_is_called_again_and_then_it_is_a_dead_letter(
        self, make: Connect, group: str | None
    ) -> None:
        bus, patient, hopeless = make(group=group), Seen(failures=2), Seen(failures=3)
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=patient)
        instance = uuid4()
        await self.numbered(bus, instance, 1, 2)
        await patient.got(4)
        assert (patient.numbers, [one["delivery_attempt"] for one in patient.contexts]) == ([1, 1, 1, 2], [1, 2, 3, 1])
        assert await bus.dead_letters(ORDER) == []
        await bus.unsubscribe_from_workflow_events(subscription)
        await bus.subscribe_to_workflow_events(ORDER, handler=hopeless)
        await self.numbered(bus, instance, 3, 4)
        await hopeless.got(4)
        assert hopeless.numbers == [3, 3, 3, 4]
        [letter] = await self.letters(bus, 1)
        assert (letter.error.type, letter.error.message) == ("ValueError", "it does not work")
        assert "it does not work" in letter.error.traceback
        assert (letter.delivery.event.sequence, letter.delivery.topic) == (3, ORDER)
        assert letter.at > 0

    async def test_dead_letters_go_back_to_their_group_or_away(self, make: Connect) -> None:
        bus, seen, instance = make(group="billing"), Seen(failures=6), uuid4()
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await self.numbered(bus, instance, 1, 2, 3)
        await seen.got(7)
        letters = await self.letters(bus, 2)
        assert [letter.delivery.event.sequence for letter in letters] == [1, 2]
        assert await bus.requeue_dead_letters(ORDER, [letters[1].delivery.position]) == 1
        await seen.got(8)
        assert seen.numbers[-1] == 2
        await self.letters(bus, 1)
        assert await bus.discard_dead_letters(ORDER) == 1
        assert await bus.dead_letters(ORDER) == []

    async def test_a_late_subscriber_reads_from_the_start(self, make: Connect) -> None:
        early, alone, group, instance = make(), Seen(), Seen(), uuid4()
        await self.numbered(early, instance, *range(20))
        await make(start="earliest").subscribe_to_workflow_events(ORDER, handler=alone)
        await early.group("late", start="earliest").subscribe_to_workflow_events(ORDER, handler=group)
        await alone.got(20)
        await group.got(20)
        assert alone.numbers == group.numbers == list(range(20))

    async def test_a_group_s_place_outlives_its_members(self, make: Connect) -> None:
        publisher, instance, first, second = make(), uuid4(), Seen(), Seen()
        member = make().group("billing")
        await member.subscribe_to_workflow_events(ORDER, handler=first)
        await self.numbered(publisher, instance, 1, 2)
        await first.got(2)
        await until(lambda: not any(status.unanswered for status in member.subscriptions()))
        await member.close()
        await self.numbered(publisher, instance, 3, 4)
        await make(group="billing").subscribe_to_workflow_events(ORDER, handler=second)
        await second.got(2)
        assert (first.numbers, second.numbers) == ([1, 2], [3, 4])

    async def test_what_a_member_has_not_acknowledged_goes_to_another(self, make: Connect) -> None:
        publisher, instance, second = make(), uuid4(), Seen()
        member = make(group="billing")
        subscription = await member.subscribe_to_workflow_events(ORDER)
        await self.numbered(publisher, instance, 1, 2, 3)
        got = await member.pull(subscription)
        while len(got) < 3:
            got += await member.pull(subscription)
        await got[1].ack()
        await member.close()
        await make(group="billing").subscribe_to_workflow_events(ORDER, handler=second)
        await second.got(2)
        assert second.numbers == [1, 3]
        assert [context["delivery_attempt"] for context in second.contexts] == [2, 2]

    async def test_groups_are_listed_and_forgotten(self, make: Connect) -> None:
        bus, seen, instance = make(group="billing"), Seen(), uuid4()
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await self.numbered(bus, instance, 1)
        await seen.got(1)
        [view] = await bus.list_groups()
        assert (view.name, view.members, view.projection) == (f"billing/{ORDER}", 1, False)
        with pytest.raises(InvalidProtocolStateError):
            await bus.delete_group(view.name)
        await bus.unsubscribe_from_workflow_events(subscription)
        async with asyncio.timeout(5):
            while (await bus.list_groups())[0].members:  # noqa: ASYNC110 - as in until
                await asyncio.sleep(0.005)
        assert await bus.delete_group(view.name) is True
        assert await bus.delete_group(view.name) is False
        assert await bus.list_groups() == []

    async def test_members_share_and_groups_do_not(self, make: Connect) -> None:
        members, other = [Seen(), Seen()], Seen()
        for seen in members:
            await make(group="billing").subscribe_to_workflow_events(ORDER, handler=seen)
        await make(group="audit").subscribe_to_workflow_events(ORDER, handler=other)
        publisher = make()
        for n in range(30):
            await publisher.publish_workflow_event(event(data={"n": n}))
        await other.got(30)
        await until(lambda: sum(len(seen.events) for seen in members) == 30)
        assert sorted(n for seen in members for n in seen.numbers) == list(range(30))


@dataclass
class Letter:
    """A message as a dataclass."""

    to: str
    n: int
    topic: str = ""
