"""What every event bus of ours must do with projections. Subclass `ProjectionConformance`, give it what
`EventBusConformance` needs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from onexflow.core.errors import DeadlineExceeded
from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.ports.client_link import RunService
from onexflow.spi import (
    Context,
    InvalidProtocolStateError,
    ProtocolHandlerError,
    ProtocolLiteralWorkflowStateProjection,
    RegistryError,
    WorkflowEvent,
)
from onexflow.testing.conformance.onex_event_bus import ORDER, BusSuite, Connect, until
from onexflow.testing.conformance.orchestrator_kit import state_when


class Totals:
    """Counts the completed tasks of each run, and lists their numbers; keeps how often it was given each event."""

    def __init__(self, name: str = "totals") -> None:
        self.projection_name = name
        self.applied: Counter[UUID] = Counter()
        self.asked: list[UUID] = []
        #: The number of an event that cannot be applied, and what is to be waited for before each.
        self.broken: int | None = None
        self.gate: asyncio.Event | None = None
        self.waiting = 0

    async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        self.applied[event.event_id] += 1
        if event.event_type != "task_completed":
            return current_state
        numbers = cast("list[Any]", current_state.setdefault("numbers", []))  # its copy is its own
        numbers.append(event.data.get("n"))
        if self.broken is not None and event.data.get("n") == self.broken:
            raise ValueError("it does not add up")
        return {**current_state, "count": cast("int", current_state.get("count", 0)) + 1}

    async def get_state(self, workflow_type: str, instance_id: UUID) -> Context:
        self.asked.append(instance_id)
        return {"told": "by itself"}


class ProjectionConformance(BusSuite):
    """register_projection and what is asked of it."""

    async def test_it_has_all_that_was_before_and_all_that_is_durable_at_a_call(self, bus: WorkflowEventBus) -> None:
        first, second, totals = uuid4(), uuid4(), Totals()
        assert isinstance(totals, ProtocolLiteralWorkflowStateProjection)
        await self.numbered(bus, first, 1, 2, 3)
        await bus.register_projection(totals)
        assert sum(totals.applied.values()) == 3
        assert await bus.get_projection_state("totals", ORDER, first) == {"numbers": [1, 2, 3], "count": 3}
        await self.numbered(bus, first, 4)
        assert (await bus.get_projection_state("totals", ORDER, first))["count"] == 4
        await self.numbered(bus, second, *range(20))
        state = await bus.get_projection_state("totals", ORDER, second)
        assert state == {"numbers": list(range(20)), "count": 20}
        assert set(totals.applied.values()) == {1}
        assert totals.asked == []

    async def test_events_of_runs_are_applied(self, service: RunService, bus: WorkflowEventBus) -> None:
        instance, orchestrator, totals = uuid4(), WorkflowOrchestrator(service), Totals()
        await bus.register_projection(totals)
        await orchestrator.start_workflow(ORDER, instance, {})
        await state_when(orchestrator, instance, "completed")
        assert (await bus.get_projection_state("totals", ORDER, instance))["count"] == 2
        assert len(totals.applied) == len(await orchestrator.get_workflow_history(ORDER, instance))

    async def test_many_large_states_are_stored_in_several_steps(self, bus: WorkflowEventBus) -> None:
        class Wide(Totals):
            async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
                return {"wide": "x" * 1_900_000}

        instances = [uuid4() for _ in range(40)]
        for instance in instances:
            await self.numbered(bus, instance, 1)
        await bus.register_projection(Wide())
        assert len(await bus.get_projection_state("totals", ORDER, instances[-1])) == 1

    async def test_a_state_that_is_too_large_stops_it_with_a_word(self, bus: WorkflowEventBus) -> None:
        class Huge(Totals):
            async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
                return {"huge": "x" * (3 << 20)}

        instance = uuid4()
        await self.numbered(bus, instance, 1)
        with pytest.raises(ProtocolHandlerError, match="bytes"):
            await bus.register_projection(Huge())

    async def test_messages_of_the_base_bus_are_none_of_its_business(self, bus: WorkflowEventBus) -> None:
        totals, instance = Totals(), uuid4()
        for n in range(5):
            await bus.base_event_bus.publish_envelope({"n": n}, ORDER)
        await bus.register_projection(totals)
        await bus.base_event_bus.publish_envelope({"n": 5}, ORDER)
        assert await bus.get_projection_state("totals", ORDER, instance) == {"told": "by itself"}
        assert not totals.applied

    async def test_it_is_asked_only_when_the_bus_has_nothing(self, bus: WorkflowEventBus) -> None:
        totals, unknown = Totals(), uuid4()
        await bus.register_projection(totals)
        assert await bus.get_projection_state("totals", ORDER, unknown) == {"told": "by itself"}
        assert totals.asked == [unknown]
        await bus.unregister_projection("totals")
        assert await bus.get_projection_state("totals", ORDER, unknown) == {}
        assert totals.asked == [unknown]

    async def test_names(self, bus: WorkflowEventBus) -> None:
        totals = Totals()
        with pytest.raises(RegistryError):
            await bus.get_projection_state("totals", ORDER, uuid4())
        with pytest.raises(RegistryError):
            await bus.unregister_projection("totals")
        with pytest.raises(RegistryError):
            await bus.projection_status("totals")
        with pytest.raises(RegistryError):
            await bus.rebuild_projection("totals")
        await asyncio.gather(*(bus.register_projection(totals) for _ in range(3)))
        await bus.register_projection(totals)
        with pytest.raises(InvalidProtocolStateError) as raised:
            await bus.register_projection(Totals())
        assert (raised.value.context["current_state"], raised.value.context["required_state"]) == (
            "registered", "not registered",
        )  # fmt: skip
        await bus.unregister_projection("totals")
        await bus.register_projection(Totals())
        with pytest.raises(Exception, match="projection_name"):
            await bus.register_projection(cast("Any", object()))

    async def test_it_goes_on_where_it_was(self, make: Connect) -> None:
        before, after, instance = Totals(), Totals(), uuid4()
        bus = make()
        await self.numbered(bus, instance, 1, 2)
        await bus.register_projection(before)
        await bus.close()
        bus = make()
        await self.numbered(bus, instance, 3)
        await bus.register_projection(after)
        assert (sum(before.applied.values()), sum(after.applied.values())) == (2, 1)
        assert await bus.get_projection_state("totals", ORDER, instance) == {"numbers": [1, 2, 3], "count": 3}

    async def test_two_buses_share_one_projection(self, make: Connect) -> None:
        ours, theirs, mine, yours = make(), make(), Totals(), Totals()
        instances = [uuid4() for _ in range(10)]
        for instance in instances:
            await self.numbered(ours, instance, 1)
        await ours.register_projection(mine)
        await theirs.register_projection(yours)
        for instance in instances:
            await self.numbered(ours, instance, 2, 3)
        for bus in (ours, theirs):
            for instance in instances:
                state = await bus.get_projection_state("totals", ORDER, instance)
                assert state == {"numbers": [1, 2, 3], "count": 3}
        assert (await ours.projection_status("totals")).members == 2
        await ours.close()
        await self.numbered(theirs, instances[0], 4)
        assert (await theirs.get_projection_state("totals", ORDER, instances[0]))["count"] == 4

    async def test_an_event_that_cannot_be_applied_stops_it_and_is_tried_again(self, bus: WorkflowEventBus) -> None:
        totals, instance = Totals(), uuid4()
        await bus.register_projection(totals)
        totals.broken = 2
        await self.numbered(bus, instance, 1, 2, 3)
        with pytest.raises(ProtocolHandlerError, match="does not add up") as raised:
            await bus.get_projection_state("totals", ORDER, instance)
        assert (raised.value.context["projection"], raised.value.context["sequence"]) == ("totals", 2)
        status = await bus.projection_status("totals")
        assert isinstance(status.error, ProtocolHandlerError)
        assert status.lag > 0
        totals.broken = None
        state = await bus.get_projection_state("totals", ORDER, instance)
        assert state == {"numbers": [1, 2, 3], "count": 3}
        status = await bus.projection_status("totals")
        assert (status.error, status.lag, status.registered) == (None, 0, True)

    async def test_one_that_cannot_catch_up_is_not_registered(self, bus: WorkflowEventBus) -> None:
        totals, instance = Totals(), uuid4()
        totals.broken = 2
        await self.numbered(bus, instance, 1, 2, 3)
        with pytest.raises(ProtocolHandlerError, match="does not add up"):
            await bus.register_projection(totals)
        await bus.register_projection(Totals())
        assert (await bus.get_projection_state("totals", ORDER, instance))["count"] == 3

    async def test_nobody_waits_for_ever_for_another_who_is_stuck(self, make: Connect) -> None:
        theirs, ours, stuck, instance = make(), make(patience=0.3), Totals(), uuid4()
        await theirs.register_projection(stuck)
        stuck.gate = asyncio.Event()
        await self.numbered(theirs, instance, 1, 2)
        await until(lambda: stuck.waiting)
        with pytest.raises(DeadlineExceeded):
            await ours.register_projection(Totals())
        stuck.gate.set()
        await ours.register_projection(Totals())
        assert (await ours.get_projection_state("totals", ORDER, instance))["count"] == 2

    async def test_it_is_rebuilt(self, make: Connect) -> None:
        bus, other, totals, theirs, instance = make(), make(), Totals(), Totals(), uuid4()
        await self.numbered(bus, instance, *range(10))
        await bus.register_projection(totals)
        await other.register_projection(theirs)
        await bus.rebuild_projection("totals")
        assert (await bus.get_projection_state("totals", ORDER, instance))["count"] == 10
        await self.numbered(bus, instance, 10)
        for one in (bus, other):
            state = await one.get_projection_state("totals", ORDER, instance)
            assert state == {"numbers": list(range(11)), "count": 11}

    async def test_its_lag_can_be_seen(self, bus: WorkflowEventBus) -> None:
        totals, instance = Totals(), uuid4()
        await bus.register_projection(totals)
        totals.gate = asyncio.Event()
        await self.numbered(bus, instance, *range(5))
        status = await bus.projection_status("totals")
        assert status.lag >= 5
        totals.gate.set()
        await bus.get_projection_state("totals", ORDER, instance)
        status = await bus.projection_status("totals")
        assert (status.lag, status.members, status.error) == (0, 1, None)
        assert sum(status.positions.values()) > 0

    async def test_what_it_makes_must_be_json(self, bus: WorkflowEventBus) -> None:
        class Wrong(Totals):
            async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
                return cast("Context", answers.pop(0)() if answers else {"fine": True})

        def cancelled() -> Any:
            raise asyncio.CancelledError

        answers: list[Any] = [lambda: None, lambda: {"a": object()}, lambda: {"a": float("nan")}, cancelled, list]
        wrong, instance = Wrong("wrong"), uuid4()
        await bus.register_projection(wrong)
        await self.numbered(bus, instance, 1)
        for _ in range(10):
            try:
                assert await bus.get_projection_state("wrong", ORDER, instance) == {"fine": True}
                break
            except ProtocolHandlerError:
                continue
        assert answers == []
