"""The part of the persistence's suite that is about clean-ups: what goes, what stays, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.engine.protocols import WorkflowEventBus, WorkflowOrchestrator
from onexflow.engine.protocols.persistence import WorkflowPersistence
from onexflow.ports.client_link import EventView
from onexflow.spi import Context, InvalidProtocolStateError, ProtocolHandlerError, SPIError, WorkflowEvent
from onexflow.testing.conformance.orchestrator_kit import ORDER, TERMINAL, Script, state_when
from onexflow.testing.conformance.persistence_kit import TYPE, PersistenceSuite, Service, event_of, state_of


class Counting:
    """A projection: how many events a run has."""

    projection_name = "counting"

    async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
        before = current_state.get("events", 0)
        return {"events": before + 1 if isinstance(before, int) else 1}

    async def get_state(self, workflow_type: str, instance_id: UUID) -> Context:
        return {}


class CleanUpConformance(PersistenceSuite):
    """What `cleanup_old_events` leaves of a history."""

    async def test_a_clean_up_leaves_a_snapshot_and_the_rest(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        ins = (TYPE, instance)
        state = await orchestrator.get_workflow_state(*ins)
        events = await orchestrator.get_workflow_history(*ins)
        assert await persistence.cleanup_old_events(*ins, 4) == 3
        snapshot = await persistence.load_snapshot(*ins)
        assert snapshot is not None
        assert snapshot.sequence_number == 3
        assert await persistence.load_workflow_events(*ins, 4) == events[3:]
        assert await persistence.load_workflow_events(*ins, 5, 6) == events[4:6]
        assert await orchestrator.replay_workflow(*ins, 4) == events[3:]
        assert await orchestrator.replay_workflow(*ins, 6) == events[5:]
        assert await orchestrator.get_workflow_state(*ins) == state
        assert await persistence.save_workflow_state(*ins, state) is True
        assert await persistence.cleanup_old_events(*ins, 4) == 0
        assert await persistence.cleanup_old_events(*ins, 3) == 0
        assert await persistence.cleanup_old_events(*ins, 1) == 0
        assert await persistence.cleanup_old_events(*ins, 0) == 0
        assert await persistence.cleanup_old_events(*ins, 6) == 2
        assert await persistence.load_workflow_events(*ins, 6) == events[5:]

    async def test_what_was_cut_is_out_of_range_and_never_silence(
        self, service: Service, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        ins = (TYPE, instance)
        await persistence.cleanup_old_events(*ins, 4)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: persistence.load_workflow_events(*ins),
            lambda: persistence.load_workflow_events(*ins, 1, 2),
            lambda: persistence.load_workflow_events(*ins, 3, 10),
            lambda: orchestrator.get_workflow_history(*ins),
            lambda: orchestrator.replay_workflow(*ins, 0),
            lambda: orchestrator.replay_workflow(*ins, 2, 3),
            lambda: persistence.create_snapshot(*ins, 1),
            lambda: persistence.create_snapshot(*ins, 2),
            lambda: follow(service, instance, 1),
        ]
        for call in calls:
            with pytest.raises(ProtocolHandlerError) as raised:
                await call()
            assert raised.value.context["earliest"] == 4
        assert (await follow(service, instance, 4))[0].sequence == 4

    async def test_a_projection_holds_back_what_it_has_not_applied_and_a_replay_tells_of_the_rest(
        self, service: Service, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        bus, counting = WorkflowEventBus(service.events), Counting()
        try:
            await bus.register_projection(counting)
            await bus.unregister_projection(counting.projection_name)
            instance = await self.ended(orchestrator)
            ins = (TYPE, instance)
            last = (await orchestrator.get_workflow_state(*ins)).sequence_number
            assert await persistence.cleanup_old_events(*ins, last) == 0
            await bus.register_projection(counting)
            assert await bus.get_projection_state(counting.projection_name, *ins) == {"events": last}
            assert await persistence.cleanup_old_events(*ins, last) == last - 1
            assert await bus.get_projection_state(counting.projection_name, *ins) == {"events": last}
            for bounds in ((0,), (1, 2), (last - 1,)):
                with pytest.raises(ProtocolHandlerError) as raised:
                    await bus.replay_workflow_events(*ins, *bounds)
                assert raised.value.context["earliest"] == last
            [event] = await bus.replay_workflow_events(*ins, last)
            assert event.event_type == "workflow.completed"
        finally:
            await bus.close()

    async def test_after_a_clean_up_every_later_event_can_be_folded_to(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        cut, whole = [await self.ended(orchestrator) for _ in range(2)]
        last = (await orchestrator.get_workflow_state(TYPE, cut)).sequence_number
        assert await persistence.cleanup_old_events(TYPE, cut, 5) == 4
        for number in range(4, last + 1):
            for instance in (cut, whole):
                assert await persistence.create_snapshot(TYPE, instance, number) is True
            one, other = [await persistence.load_snapshot(TYPE, instance) for instance in (cut, whole)]
            assert one is not None
            assert other is not None
            assert (one.sequence_number, one.state) == (number, other.state)
            assert one.context == other.context
            assert {name: task.state for name, task in one.tasks.items()} == {
                name: task.state for name, task in other.tasks.items()
            }

    async def test_a_run_goes_on_after_a_clean_up(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence, script: Script
    ) -> None:
        instance, gate = await self.halfway(orchestrator, script)
        ins = (TYPE, instance)
        last = (await orchestrator.get_workflow_state(*ins)).sequence_number
        assert await persistence.cleanup_old_events(*ins, last + 1) == last
        assert await orchestrator.replay_workflow(*ins, last + 1) == []
        assert await orchestrator.pause_workflow(*ins) is True
        assert await orchestrator.resume_workflow(*ins) is True
        gate.set()
        state = await state_when(orchestrator, instance, *TERMINAL)
        assert state.current_state == "completed"
        assert state.context["tasks"] == {name: {"by": name} for name in ("reserve", "payment_processing")}
        events = await persistence.load_workflow_events(*ins, last + 1)
        assert [event.sequence_number for event in events] == list(range(last + 1, state.sequence_number + 1))
        again = await orchestrator.start_workflow(*ins, dict(ORDER))
        assert (again.state, again.initial_data) == ("completed", ORDER)

    async def test_a_clean_up_beyond_the_head_deletes_all_and_the_run_is_still_known(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        ins = (TYPE, instance)
        state = await orchestrator.get_workflow_state(*ins)
        assert await persistence.cleanup_old_events(*ins, 10_000) == state.sequence_number
        assert await orchestrator.get_workflow_state(*ins) == state
        assert await persistence.load_workflow_events(*ins, state.sequence_number + 1) == []
        snapshot = await persistence.load_snapshot(*ins)
        assert snapshot is not None
        assert (snapshot.sequence_number, snapshot.state) == (state.sequence_number, "completed")
        metrics = await orchestrator.get_workflow_metrics(TYPE)
        assert (metrics.completed, metrics.events) == (1, state.sequence_number)

    async def test_clean_ups_at_the_same_time_count_each_event_once(
        self, orchestrator: WorkflowOrchestrator, persistence: WorkflowPersistence
    ) -> None:
        instance = await self.ended(orchestrator)
        counts = await asyncio.gather(
            *(persistence.cleanup_old_events(TYPE, instance, before) for before in (3, 6, 4, 6))
        )
        assert sum(counts) == 5

    async def test_of_a_stream_elsewhere_only_what_its_state_covers_goes(
        self, persistence: WorkflowPersistence
    ) -> None:
        instance = uuid4()
        ins = ("elsewhere", instance)
        for number in (1, 2, 5, 6, 9):
            await persistence.save_workflow_event(event_of(instance, number))
        assert await persistence.cleanup_old_events(*ins, 9) == 0
        await persistence.save_workflow_state(*ins, state_of(instance, 5, context={"n": 5}))
        events = await persistence.load_workflow_events(*ins)
        assert await persistence.cleanup_old_events(*ins, 9) == 3
        snapshot = await persistence.load_snapshot(*ins)
        assert snapshot is not None
        assert (snapshot.sequence_number, snapshot.context) == (5, {"n": 5})
        with pytest.raises(ProtocolHandlerError) as raised:
            await persistence.load_workflow_events(*ins)
        assert raised.value.context["earliest"] == 6
        assert await persistence.load_workflow_events(*ins, 6) == events[3:]
        assert await persistence.save_workflow_event(event_of(instance)) is True
        assert [event.sequence_number for event in await persistence.load_workflow_events(*ins, 7)] == [9, 10]
        assert await persistence.save_workflow_event(events[0]) is True
        with pytest.raises(InvalidProtocolStateError):
            await persistence.save_workflow_event(event_of(instance, 2))


async def follow(service: Service, instance: UUID, start: int) -> list[EventView]:
    """What a follower of an ended order is told, from an event on."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    heard: list[EventView] = []

    def listen(told: Any) -> None:
        if isinstance(told, SPIError):
            done.set_exception(told)
        elif told is None:
            done.set_result(None)
        else:
            heard.extend(told)

    stop = service.follow_run(RunKey(DEFAULT_NAMESPACE, TYPE, instance), start, listen)
    try:
        async with asyncio.timeout(10):
            await done
    finally:
        stop()
    return heard
