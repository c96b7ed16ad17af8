"""Subscriptions when their orchestrator is lost: in virtual time, with the test at the other end."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import uuid4

import pytest

from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidTransition, OutOfRange, Overloaded, Unavailable, UnknownTopic
from onexflow.core.ids import RunKey
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.ports.events import Begun
from onexflow.spi import ProtocolHandlerError, WorkflowEvent
from onexflow.testing.clock import virtual_time
from support.scripted_events import ScriptedEvents

BEGUN = Begun(positions={0: 1}, heads={0: 1})


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@virtual_time
async def test_a_subscription_is_there_when_it_is_in_force() -> None:
    events = ScriptedEvents()
    bus = WorkflowEventBus(events.service, patience=5.0)
    subscribing = asyncio.ensure_future(bus.subscribe_to_workflow_events("order"))
    await asyncio.sleep(3)
    assert not subscribing.done()
    events.last.begin()
    subscription = await subscribing
    assert bus.subscription_status(subscription).state == "active"
    with pytest.raises(Unavailable):
        await bus.subscribe_to_workflow_events("order")
    assert events.last.closed
    assert len(bus.subscriptions()) == 1
    await bus.close()
    assert events.consumers[0].closed


@virtual_time
async def test_what_refuses_a_subscription_is_raised_and_what_may_pass_is_waited_for() -> None:
    refused = ScriptedEvents(InvalidTransition("another filter"))
    with pytest.raises(InvalidTransition):
        await WorkflowEventBus(refused.service).subscribe_to_workflow_events("order")
    at_once = OutOfRange("cut", {"earliest": 7})
    cast("Any", at_once).at_once = True
    with pytest.raises(ProtocolHandlerError):
        await WorkflowEventBus(ScriptedEvents(at_once).service).subscribe_to_workflow_events("order")
    full = ScriptedEvents(*(Overloaded("too many consumers") for _ in range(1000)))
    with pytest.raises(Overloaded, match="too many"):
        await WorkflowEventBus(full.service).subscribe_to_workflow_events("order")
    moving = ScriptedEvents(Unavailable("starting"), Unavailable("starting"), BEGUN)
    bus = WorkflowEventBus(moving.service)
    await bus.subscribe_to_workflow_events("order")
    assert len(moving.consumers) == 3
    await bus.close()


@virtual_time
async def test_a_reader_for_himself_goes_on_where_he_was() -> None:
    events = ScriptedEvents(BEGUN)
    bus = WorkflowEventBus(events.service)
    subscription = await bus.subscribe_to_workflow_events("order")
    first = events.last
    first.deliver(1, 2, 3, 7)
    got = await bus.pull(subscription)
    acking = asyncio.ensure_future(got[1].ack())
    await turns()
    assert first.acks == [2]
    first.tell(Unavailable("gone"))
    assert bus.subscription_status(subscription).state == "reconnecting"
    await asyncio.sleep(1)
    second = events.last
    assert second is not first
    assert second.request.positions == {0: 1}  # the first that is not acknowledged
    second.begin()
    assert second.acks == [2]  # said again
    second.deliver(1, 2, 3, 7, 8)
    assert bus.subscription_status(subscription).unanswered == 4
    assert [message.sequence_number for message in await bus.pull(subscription)] == [8]
    second.dones[-1](None)
    await acking
    await bus.close()


@virtual_time
async def test_a_handler_is_not_called_twice_for_what_it_has() -> None:
    events, gate, calls = ScriptedEvents(BEGUN), asyncio.Event(), []

    async def handle(event: WorkflowEvent) -> None:
        calls.append(event.sequence_number)
        await gate.wait()

    bus = WorkflowEventBus(events.service, group="billing")
    await bus.subscribe_to_workflow_events("order", handler=cast("Any", handle))
    events.last.deliver(1, 2)
    await turns()
    events.last.tell(Unavailable("gone"))
    await asyncio.sleep(1)
    events.last.begin()
    events.last.deliver(1, 2, attempt=2)
    gate.set()
    await turns()
    assert calls == [1, 2]
    assert events.last.acks == [1, 2]
    events.last.tell(Unavailable("gone before it was durable"))
    await asyncio.sleep(1)
    events.last.begin()
    events.last.deliver(1, 2, 3, attempt=3)
    await turns()
    assert calls == [1, 2, 3]
    assert sorted(set(events.last.acks)) == [1, 2, 3]
    await bus.close()


@virtual_time
async def test_what_ends_a_subscription_is_seen_and_raised() -> None:
    events = ScriptedEvents(BEGUN)
    bus = WorkflowEventBus(events.service)
    subscription = await bus.subscribe_to_workflow_events("order")
    events.last.deliver(1)
    events.last.tell(UnknownTopic("the topic was deleted"))
    [message] = await bus.pull(subscription)
    with pytest.raises(UnknownTopic):
        await bus.pull(subscription)
    with pytest.raises(UnknownTopic):
        await message.ack()
    status = bus.subscription_status(subscription)
    assert (status.state, type(status.error)) == ("failed", UnknownTopic)
    assert cast("Any", await bus.base_event_bus.health_check())["status"] == "degraded"
    await bus.close()


@virtual_time
async def test_retries_wait_longer_each_time_and_fatal_ends_them() -> None:
    class Fatal(Exception):
        """As a worker's handlers raise it."""

    events, at = ScriptedEvents(BEGUN), []
    loop = asyncio.get_running_loop()

    async def handle(event: WorkflowEvent) -> None:
        at.append(round(loop.time(), 3))
        raise Fatal if event.sequence_number == 2 else ValueError("no")

    bus = WorkflowEventBus(events.service)
    await bus.subscribe_to_workflow_events("order", handler=cast("Any", handle))
    begun = loop.time()
    events.last.deliver(1, attempt=3)
    await asyncio.sleep(10)
    assert [round(one - begun, 1) for one in at] == [0.0, 0.1, 0.3, 0.7, 1.5]
    events.last.deliver(2)
    await asyncio.sleep(10)
    assert len(at) == 6
    assert [(offset, failure.type) for offset, failure in events.last.buried] == [(1, "ValueError"), (2, "Fatal")]
    await bus.close()


@virtual_time
async def test_a_dead_letter_is_kept_over_a_loss() -> None:
    events = ScriptedEvents(BEGUN)

    async def handle(event: WorkflowEvent) -> None:
        raise ValueError("no")

    bus = WorkflowEventBus(events.service, retries=RetryPolicy(policy="none"))
    subscription = await bus.subscribe_to_workflow_events("order", handler=cast("Any", handle))
    events.last.deliver(1)
    await turns()
    first = events.last
    assert [offset for offset, _ in first.buried] == [1]
    first.tell(Unavailable("gone before it was kept"))
    first.kept[0](Unavailable("gone"))
    await asyncio.sleep(1)
    assert events.last.request.positions == {0: 1}
    events.last.begin()
    events.last.deliver(1)
    assert [offset for offset, _ in events.last.buried] == [1]
    events.last.kept[0](None)
    events.last.tell(Unavailable("gone"))
    await asyncio.sleep(1)
    assert events.last.request.positions == {0: 2}
    events.last.begin(2)
    await bus.unsubscribe_from_workflow_events(subscription)


@virtual_time
async def test_a_handler_that_is_cancelled_by_itself_has_failed() -> None:
    events, calls = ScriptedEvents(BEGUN), []

    async def handle(event: WorkflowEvent) -> None:
        calls.append(event.sequence_number)
        if len(calls) == 1:
            raise asyncio.CancelledError
        if event.sequence_number == 2:
            await asyncio.Event().wait()

    bus = WorkflowEventBus(events.service)
    await bus.subscribe_to_workflow_events("order", handler=cast("Any", handle))
    events.last.deliver(1, 2, 3)
    await asyncio.sleep(1)
    assert calls == [1, 1, 2]
    await bus.close()
    assert calls == [1, 1, 2]
    assert events.last.buried == []


@virtual_time
async def test_handlers_run_for_so_many_instances_at_the_same_time() -> None:
    events, running, most, gate = ScriptedEvents(BEGUN), 0, 0, asyncio.Event()

    async def handle(event: WorkflowEvent) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    bus = WorkflowEventBus(events.service, concurrency=3, retries=RetryPolicy(policy="none"))
    await bus.subscribe_to_workflow_events("order", handler=cast("Any", handle))
    for offset in range(1, 11):
        events.last.deliver(offset, key=RunKey("default", "order", uuid4()))
    await turns()
    assert (running, most) == (3, 3)
    gate.set()
    await turns(100)
    assert (running, most) == (0, 3)
    assert sorted(events.last.acks) == list(range(1, 11))
    await bus.close()


@virtual_time
async def test_a_bus_says_what_it_cannot_be() -> None:
    service = ScriptedEvents().service
    for options in (
        {"start": "yesterday"},
        {"window": 0},
        {"concurrency": 0},
        {"ack_timeout": 0},
        {"max_deliveries": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            WorkflowEventBus(service, **cast("Any", options))
    with pytest.raises(Exception, match="name"):
        WorkflowEventBus(service).group("")
