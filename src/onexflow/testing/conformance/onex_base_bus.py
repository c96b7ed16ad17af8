"""What the base bus of every event bus of ours must do. Subclass `BaseBusConformance`, give it what `EventBusConformance`
needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.spi import WorkflowEvent
from onexflow.testing.conformance.onex_event_bus import ORDER, BusSuite, Seen, event, until


class BaseBusConformance(BusSuite):
    """The six calls."""

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


@dataclass
class Letter:
    """A message as a dataclass."""

    to: str
    n: int
    topic: str = ""
