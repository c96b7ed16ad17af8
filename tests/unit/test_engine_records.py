"""States, snapshots and cuts in the engine, in virtual time: through crashes, parking, full disks and readers who lag."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    OutOfRange,
    StoreFull,
    StoreUnavailable,
    UnknownRun,
)
from onexflow.core.ids import RunKey
from onexflow.engine import cuts, lane
from onexflow.engine.protocols import WorkflowPersistence
from onexflow.ports.persistence import CutView, StateRecord
from onexflow.spi import HandlerInitializationError, WorkflowState
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, Fault, FaultyStore, VirtualClock, virtual_time
from support.bus_kit import Reader, publish, stream
from support.engine_kit import Script, ready, single, until


async def restart(cluster: Cluster) -> None:
    await cluster.crash_orchestrator()
    await cluster.restart_orchestrator()


def saved(key: RunKey, sequence: int, value: Any = None) -> StateRecord:
    return StateRecord(key=key, state="running", sequence=sequence, data=encode_value(value))


def lines() -> WorkflowBuilder:
    """Results that are used long after they came: a list, a task for each of it, and a sum that also takes the list."""
    flow = workflow("lines")
    start = flow.compute("start", handler="calc", input="input")
    each = flow.compute("each", handler="work", map="tasks.start", depends_on=[start], max_parallel=2)
    flow.reducer("all", handler="sum", input={"each": "tasks.each", "start": "tasks.start"}, depends_on=[each])
    return flow


async def cut_all(cluster: Cluster, key: RunKey) -> CutView:
    """Cut everything that is there."""
    return await cluster.engine.records.cut_history(key, 1_000_000)


# ---- runs


@pytest.mark.parametrize("crash", [False, True])
@virtual_time
async def test_what_was_cut_is_still_the_input_of_what_comes(crash: bool) -> None:
    script = Script()
    gate = script.gate("work")
    async with Cluster() as cluster:
        await ready(cluster, script, lines())
        key = (await cluster.start("lines", [3, 4, 5])).key
        await script.called("work", 2)
        first = await cut_all(cluster, key)
        assert first.deleted == first.earliest - 1 > 0
        if crash:
            await restart(cluster)
        gate.set()
        await until(lambda: script.count("sum") == 1 or cluster.engine._kernel.resident(key) is None)
        assert await cluster.result(key) == {"each": [3, 4, 5], "start": [3, 4, 5]}
        await cut_all(cluster, key)
        if crash:
            await restart(cluster)
        assert await cluster.result(key) == {"each": [3, 4, 5], "start": [3, 4, 5]}
        view = await cluster.state(key)
        assert [task.state for task in view.tasks] == ["completed"] * 3
        assert [decode_value(task.result) for task in view.tasks if task.result][:2] == [[3, 4, 5], [3, 4, 5]]
        with pytest.raises(OutOfRange) as raised:
            await cluster.history(key)
        assert raised.value.context["earliest"] == view.sequence + 1
        assert script.count("calc") == 1


@pytest.mark.parametrize("crash", [False, True])
@virtual_time
async def test_retries_go_on_as_they_would_have(crash: bool) -> None:
    script = Script()
    policy = RetryPolicy(policy="fixed", initial_delay=600, max_delay=600, jitter=0, max_attempts=3)
    script.errors["calc"] = [ValueError("no"), ValueError("no")]
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc", retry=policy))
        key = (await cluster.start("single", 5)).key
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None, "it is parked"
        assert (await cut_all(cluster, key)).deleted > 0
        if crash:
            await restart(cluster)
        await asyncio.sleep(600)
        await cut_all(cluster, key)
        if crash:
            await restart(cluster)
        assert await cluster.result(key) == 5
        assert [call.attempt for call in script.calls] == [1, 2, 3]
        assert [call.at for call in script.calls] == pytest.approx([0, 600, 1200], abs=3)


@pytest.mark.parametrize("crash", [False, True])
@virtual_time
async def test_the_late_result_of_a_cut_attempt_is_taken(crash: bool) -> None:
    script = Script()
    gate = script.gate("charge")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        key = (await cluster.start("single", 5)).key
        await script.called("charge")
        worker = cluster.workers["w1"]
        worker.liveness = "refused"
        worker.cut()
        await asyncio.sleep(60)
        assert (await cluster.task(key, "a")).state == "waiting_for_input"
        assert (await cut_all(cluster, key)).deleted > 0
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None, "it waits, parked"
        worker.liveness = "alive"
        gate.set()
        await asyncio.sleep(1)
        if crash:
            await restart(cluster)
        else:
            cluster.reconnect("w1")
        assert await cluster.result(key) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_a_run_that_was_cut_right_before_a_crash_goes_on() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await cut_all(cluster, key)  # nothing of it is left behind the checkpoint
        await restart(cluster)
        gate.set()
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_repeated_start_finds_a_run_whose_start_was_cut() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await cluster.wait(key)
        await cut_all(cluster, key)
        await restart(cluster)
        again = await cluster.start("single", 5, instance_id=key.instance_id)
        assert (again.created, again.state) == (False, "completed")


@virtual_time
async def test_a_long_history_goes_in_steps_and_each_number_that_is_left_can_be_folded_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuts, "STEP_EVENTS", 4)
    monkeypatch.setattr(lane, "LINGER_SECONDS", 0.0)  # several rows a run: steps end between rows
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, lines())
        key = (await cluster.start("lines", list(range(12)))).key
        await cluster.wait(key)
        head = (await cluster.state(key)).sequence
        before = head - 3
        assert await cluster.engine.records.cut_history(key, before) == CutView(deleted=before - 1, earliest=before)
        shard = cluster.engine._kernel.shard_of(key).id
        record = await cluster.store.find_run(shard, key.to_bytes())
        assert record is not None
        graves = await cluster.store.tombstones(shard, 0, record.iid)
        assert len(graves) > 1
        assert sum(grave.count for grave in graves) == before - 1
        await restart(cluster)
        for number in range(before - 1, head + 1):
            assert await cluster.engine.records.create_snapshot(key, number)
            snapshot = await cluster.engine.records.load_snapshot(key)
            assert snapshot is not None
            assert snapshot.view is not None
            assert snapshot.view.sequence == number
        with pytest.raises(OutOfRange):
            await cluster.engine.records.create_snapshot(key, before - 2)


# ---- request ids


@virtual_time
async def test_a_cut_that_is_asked_for_again_has_the_same_answer() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, lines())
        key = (await cluster.start("lines", [1, 2])).key
        await cluster.wait(key)
        first = await cluster.engine.records.cut_history(key, 4, "r1")
        assert first == CutView(deleted=3, earliest=4)
        assert await cluster.engine.records.cut_history(key, 4, "r1") == first
        await restart(cluster)
        assert await cluster.engine.records.cut_history(key, 4, "r1") == first
        assert await cluster.engine.records.cut_history(key, 4, "r2") == CutView(deleted=0, earliest=4)
        assert (await cluster.engine.records.cut_history(key, 6, "r3")).deleted == 2
        assert await cluster.engine.records.cut_history(key, 4, "r1") == CutView(deleted=3, earliest=6)
        with pytest.raises(InvalidArgument):
            await cluster.engine.records.cut_history(key, 5, "r1")


@virtual_time
async def test_a_cut_that_the_power_ended_is_finished_under_its_request_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "STEP_EVENTS", 2)
    script, clock = Script(), VirtualClock()
    inner = MemoryStore(clock)
    store = FaultyStore(inner)
    async with Cluster(store=store, clock=clock) as cluster:
        await ready(cluster, script, lines())
        key = (await cluster.start("lines", list(range(8)))).key
        await cluster.wait(key)
        head = (await cluster.state(key)).sequence
        asked = len(store.asked)
        cutting = asyncio.ensure_future(cluster.engine.records.cut_history(key, head, "r1"))
        await store.wait_asked(asked + 2)
        store.hold()
        await store.wait_held()
        store.cut_power()
        await cluster.crash_orchestrator()
        with pytest.raises(StoreUnavailable):
            await cutting
        cluster.store = FaultyStore(inner)
        await cluster.restart_orchestrator()
        assert (await cluster.state(key)).state == "completed"
        left = await cluster.engine.records.cut_history(key, head, "r1")
        assert left == CutView(deleted=head - 1, earliest=head)
        assert len(await cluster.engine.read_history(key, head)) == 1


# ---- readers who lag


@virtual_time
async def test_what_a_group_has_yet_to_read_stays() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        events, records = cluster.engine.events, cluster.engine.records
        group = Reader(events, group="g", start="earliest", topics=("single",))
        await until(lambda: group.begun)
        key = (await cluster.start("single", 5)).key
        await cluster.wait(key)
        head = (await cluster.state(key)).sequence
        await until(lambda: len(group.got) == head)
        assert await records.cut_history(key, head) == CutView(deleted=0, earliest=1)
        group.consumer.ack(group.places[:2], group.done.append)
        await until(lambda: group.done)
        assert await records.cut_history(key, head) == CutView(deleted=2, earliest=3)
        group.consumer.close()
        await restart(cluster)
        assert await cluster.engine.records.cut_history(key, head) == CutView(deleted=0, earliest=3)
        again = Reader(cluster.engine.events, auto=True, group="g", topics=("single",))
        await until(lambda: len(again.got) == head - 2)
        assert [delivery.event.sequence for delivery in again.got] == list(range(3, head + 1))
        await until(lambda: again.reached)
        await asyncio.sleep(1)
        assert await cluster.engine.records.cut_history(key, head) == CutView(deleted=head - 3, earliest=head)


@virtual_time
async def test_what_a_group_does_not_read_is_not_held() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        Reader(cluster.engine.events, group="g", start="earliest", topics=("other",))
        key = (await cluster.start("single", 5)).key
        await cluster.wait(key)
        assert (await cut_all(cluster, key)).deleted > 0


@virtual_time
async def test_a_reader_for_himself_is_told_what_was_cut_before_him() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await cluster.wait(key)
        await cut_all(cluster, key)
        shard = cluster.engine._kernel.shard_of(key).id
        reader = Reader(cluster.engine.events, topics=("single",), positions={shard: 1})
        await until(lambda: reader.error)
        assert isinstance(reader.error, OutOfRange)
        assert reader.error.context["earliest"]


# ---- external streams


@virtual_time
async def test_what_was_saved_is_there_after_a_crash() -> None:
    async with Cluster() as cluster:
        key = stream()
        assert await cluster.engine.records.save_state(saved(key, 3, {"n": 3}))
        assert await cluster.engine.records.create_snapshot(key, 3)
        assert await cluster.engine.records.save_state(saved(key, 5, {"n": 5}))
        await restart(cluster)
        found = await cluster.engine.records.load_state(key)
        assert isinstance(found, StateRecord)
        assert (found.sequence, decode_value(found.data)) == (5, {"n": 5})
        assert await cluster.engine.records.save_state(saved(key, 4)) is False
        snapshot = await cluster.engine.records.load_snapshot(key)
        assert snapshot is not None
        assert snapshot.record is not None
        assert snapshot.record.sequence == 3


@virtual_time
async def test_a_stream_goes_on_behind_a_cut_through_a_crash() -> None:
    async with Cluster() as cluster:
        key = stream()
        for number in (1, 2, 5, 9):
            await publish(cluster.engine.events, key, number, sequence=number)
        await cluster.engine.records.save_state(saved(key, 9))
        assert await cluster.engine.records.cut_history(key, 6) == CutView(deleted=3, earliest=9)
        assert (await cut_all(cluster, key)) == CutView(deleted=1, earliest=10)
        await restart(cluster)
        assert (await publish(cluster.engine.events, key, "next")).sequence == 10
        assert [event.sequence for event in await cluster.engine.records.load_events(key, 10)] == [10]
        with pytest.raises(OutOfRange) as raised:
            await cluster.engine.records.load_events(key)
        assert raised.value.context["earliest"] == 10


@virtual_time
async def test_a_group_holds_back_the_cut_of_a_stream_too() -> None:
    async with Cluster() as cluster:
        key = stream()
        group = Reader(cluster.engine.events, group="g", start="earliest")
        await until(lambda: group.begun)
        for number in (2, 4, 6):
            await publish(cluster.engine.events, key, number, sequence=number)
        await cluster.engine.records.save_state(saved(key, 6))
        await until(lambda: len(group.got) == 3)
        group.consumer.ack(group.places[:1], group.done.append)
        await until(lambda: group.done)
        assert await cut_all(cluster, key) == CutView(deleted=1, earliest=4)
        group.consumer.ack(group.places[1:], group.done.append)
        await until(lambda: len(group.done) == 2)
        assert await cut_all(cluster, key) == CutView(deleted=2, earliest=7)


@virtual_time
async def test_a_run_that_is_started_under_the_name_of_a_stream_has_a_state_of_its_own() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = RunKey("default", "single", uuid4())
        await cluster.engine.records.save_state(saved(key, 50))
        await cluster.engine.records.create_snapshot(key, 50)
        await cluster.start("single", 5, instance_id=key.instance_id)
        await cluster.wait(key)
        head = (await cluster.state(key)).sequence
        assert not isinstance(await cluster.engine.records.load_state(key), StateRecord)
        assert await cluster.engine.records.load_snapshot(key) is None
        assert await cluster.engine.records.create_snapshot(key, 1)
        snapshot = await cluster.engine.records.load_snapshot(key)
        assert snapshot is not None
        assert snapshot.view is not None
        assert snapshot.view.sequence == 1
        with pytest.raises(InvalidTransition):
            await cluster.engine.records.save_state(saved(key, head + 100))


@virtual_time
async def test_the_engine_s_own_names_are_refused() -> None:
    async with Cluster() as cluster:
        key = RunKey("default", "$queue", uuid4())
        with pytest.raises(InvalidArgument):
            await cluster.engine.records.save_state(saved(key, 1))
        with pytest.raises(UnknownRun):
            await cluster.engine.records.cut_history(key, 5)
        with pytest.raises(UnknownRun):
            await cluster.engine.records.create_snapshot(key, 5)
        assert await cluster.engine.records.load_events(key) == []
        assert await cluster.engine.records.load_state(key) is None


@pytest.mark.parametrize("sequence", [-1, 1 << 63, 1 << 80])
@virtual_time
async def test_a_number_that_is_none_is_refused(sequence: int) -> None:
    async with Cluster() as cluster:
        with pytest.raises(InvalidArgument):
            await cluster.engine.records.save_state(saved(stream(), sequence))
        assert await cluster.engine.records.load_state(stream()) is None


# ---- stores that fail


def faulty() -> tuple[FaultyStore, Cluster]:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    return store, Cluster(store=store, clock=clock)


def state_of(key: RunKey, sequence: int) -> WorkflowState:
    return WorkflowState(
        workflow_type=key.workflow_type, instance_id=key.instance_id, state="running", sequence_number=sequence
    )


@virtual_time
async def test_a_store_that_does_not_confirm_is_a_connection_that_is_lost() -> None:
    store, cluster = faulty()
    async with cluster:
        persistence, key = WorkflowPersistence(cluster.engine), stream()
        await persistence.save_workflow_state("ext", key.instance_id, state_of(key, 1))
        store.hold()
        calls: list[Any] = [
            lambda: persistence.save_workflow_state("ext", key.instance_id, state_of(key, 2)),
            lambda: persistence.load_workflow_state("ext", key.instance_id),
            lambda: persistence.create_snapshot("ext", key.instance_id, 2),
            lambda: persistence.load_snapshot("ext", key.instance_id),
            lambda: persistence.cleanup_old_events("ext", key.instance_id, 2),
        ]
        for call in calls:
            with pytest.raises(HandlerInitializationError) as raised:
                await call()
            assert isinstance(raised.value, StoreUnavailable)
        store.release()
        assert await persistence.save_workflow_state("ext", key.instance_id, state_of(key, 2)) is True
        assert await persistence.load_workflow_state("ext", key.instance_id) == state_of(key, 2)


@virtual_time
async def test_a_store_without_room_has_failed_to_write() -> None:
    store, cluster = faulty()
    async with cluster:
        persistence, key = WorkflowPersistence(cluster.engine), stream()
        store.fail(Fault.FULL, times=None)
        for _ in range(2):  # the one that finds it out, and one that comes later
            with pytest.raises(StoreFull) as raised:
                await persistence.save_workflow_state("ext", key.instance_id, state_of(key, 1))
            assert not isinstance(raised.value, HandlerInitializationError)
        store.heal()
        await until(lambda: not cluster.engine.health().details)
        assert await persistence.save_workflow_state("ext", key.instance_id, state_of(key, 2)) is True


@virtual_time
async def test_a_state_that_was_not_confirmed_may_be_lost_with_the_power_and_one_that_was_is_not() -> None:
    clock = VirtualClock()
    inner = MemoryStore(clock)
    store = FaultyStore(inner)
    async with Cluster(store=store, clock=clock) as cluster:
        key = stream()
        assert await cluster.engine.records.save_state(saved(key, 1))
        store.hold()
        saving = asyncio.ensure_future(cluster.engine.records.save_state(saved(key, 2)))
        await store.wait_held()
        assert not saving.done()
        store.cut_power()
        await cluster.crash_orchestrator()
        with pytest.raises(StoreUnavailable):
            await saving
        cluster.store = FaultyStore(inner)
        await cluster.restart_orchestrator()
        found = await cluster.engine.records.load_state(key)
        assert isinstance(found, StateRecord)
        assert found.sequence == 1


@virtual_time
async def test_names_that_nothing_can_be_stored_under_are_refused() -> None:
    async with Cluster(seed=1) as cluster:
        records = cluster.engine.records
        for namespace, workflow_type in (("default", "x\ud800"), ("\ud800", "x"), ("default", "x" * 10_000_000)):
            key = RunKey(namespace, workflow_type, uuid4())
            for call in (
                records.save_state(saved(key, 1)), records.load_state(key), records.load_events(key),
                records.create_snapshot(key, 1), records.load_snapshot(key), records.cut_history(key, 1),
            ):  # fmt: skip
                with pytest.raises(InvalidArgument):
                    await call
