"""The vocabulary of reasons, and what tasks of work queues wait for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.codec.wire import common
from onexflow.core.blocked import BY_NAME, KINDS, Blocked, sentence
from onexflow.core.ids import RunKey
from onexflow.engine.blocking import decode_parked, encode_parked
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.ports import queue as port
from onexflow.spi import WorkTask
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from onexflow.v1 import workflow_pb2
from onexflow.worker.context import Context
from support.engine_kit import Script, ready, single, until
from support.orchestration_kit import SLOTS, Conductor, flow

FULL = Blocked(
    kind="running", task="a", worker="w1", attempt=2, since=3, until=4, role="effect", handler="h", node="n",
    names=("x", "y"), by="me", reason="why", owner="o1", shard=0, next_wake_at=5,
)  # fmt: skip


@pytest.mark.parametrize("name", [kind.name for kind in KINDS])
def test_every_kind_says_in_words_what_it_is_and_what_ends_it(name: str) -> None:
    assert sentence(Blocked(kind=name))
    assert sentence(Blocked(**{**_fields(FULL), "kind": name})) != name
    assert Blocked(kind=name).ended_by
    assert set(BY_NAME[name].facts) <= set(Blocked.__struct_fields__)


def _fields(blocked: Blocked) -> dict[str, Any]:
    return {name: getattr(blocked, name) for name in Blocked.__struct_fields__}


def test_a_kind_of_a_newer_release_is_shown_as_it_is() -> None:
    assert sentence(Blocked(kind="quantum")) == "quantum"
    assert Blocked(kind="quantum").ended_by == ""


def test_it_comes_through_the_wire_and_the_row_of_a_parked_run_as_it_was() -> None:
    message = workflow_pb2.TaskView(blocked=common.blocked_to_pb(FULL))
    assert common.blocked(message) == FULL
    assert message.blocked.text == sentence(FULL)
    assert message.blocked.ended_by == FULL.ended_by
    assert common.blocked(workflow_pb2.TaskView()) is None
    none = workflow_pb2.TaskView(blocked=common.blocked_to_pb(Blocked(kind="paused")))
    assert common.blocked(none) == Blocked(kind="paused")
    assert decode_parked(encode_parked(FULL), 5) == FULL
    old = decode_parked("a timer", 9)
    assert (old.kind, old.reason, old.next_wake_at) == ("run", "a timer", 9)


async def _ticket(cluster: Cluster, task_id: str) -> Blocked | None:
    answer = await cluster.engine.queue_call(port.GetTask(work_queue="jobs", task_id=task_id))
    return answer.tasks[0].blocked


@virtual_time
async def test_every_task_of_a_work_queue_says_what_it_waits_for() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script)
        queue = WorkQueue(cluster.engine, name="jobs")
        await queue.enqueue_task(WorkTask(task_id="held", task_name="nobody"))
        [held] = await queue.dequeue_task("me")
        await queue.enqueue_task(WorkTask(task_id="free", task_name="nobody"))
        await queue.enqueue_task(WorkTask(task_id="later", task_name="nobody"), delay_seconds=60)
        await queue.enqueue_task(WorkTask(task_id="after", task_name="nobody", dependencies=["held", "free"]))
        await queue.enqueue_task(WorkTask(task_id="stopped", task_name="nobody", queue_name="p"))
        await queue.pause_queue("p")
        await queue.enqueue_task(WorkTask(task_id="bridged", task_name="send"))
        await script.called("send")

        async def kind(task_id: str) -> str:
            blocked = await _ticket(cluster, task_id)
            assert blocked is not None
            assert blocked.next_wake_at or blocked.ended_by
            return f"{blocked.kind}: {sentence(blocked)}"

        assert (await kind("held")).startswith("leased: leased by me until 2026-")
        assert (await kind("free")).startswith("unclaimed: ")
        assert (await kind("later")).startswith("delayed: starts at 2026-")
        assert await kind("after") == "dependencies: waits for held, free"
        assert await kind("stopped") == "paused: paused: the queue p"
        assert (await kind("bridged")).startswith("leased: done by run ")
        await queue.complete_task(held.task_id)
        assert await _ticket(cluster, "held") is None
        assert await kind("after") == "dependencies: waits for free"
        listed = await cluster.engine.queue_call(port.ListTasks(work_queue="jobs"))
        assert {task.task_id: task.blocked.kind for task in listed.tasks if task.blocked} == {
            "free": "unclaimed", "later": "delayed", "stopped": "paused",
        }  # fmt: skip
        gate.set()


@virtual_time
async def test_a_run_that_is_paged_out_says_what_it_waits_for_without_being_read_back() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"))
        later = (await cluster.start("single", 1, delay=3600)).key
        paused = (await cluster.start("single", 2, delay=0, timeout=7200)).key
        await cluster.control(paused, "pause", reason="lunch", principal="ann")
        script.gate("send")
        await cluster.clock.sleep(30)
        kernel = cluster.engine._kernel
        assert kernel.resident(later) is None
        found = {run.key: run for run in await cluster.engine.explain_runs([later, paused])}
        assert kernel.resident(later) is None
        assert found[later].blocked.kind == "delayed"
        assert found[later].blocked.next_wake_at == found[later].blocked.until > 0
        assert (found[paused].blocked.kind, found[paused].blocked.by) == ("paused", "ann")
        assert sentence(found[paused].blocked) == "paused by ann: lunch"
        await cluster.control(paused, "cancel")
        assert {run.key for run in await cluster.engine.explain_runs([later, paused])} == {later}


@virtual_time
async def test_of_what_is_on_its_way_to_the_store_no_state_is_told() -> None:
    script = Script()
    gate = script.gate("send")
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        await ready(cluster, script, single("effect", "send"))

        async def seen(key: RunKey) -> tuple[str, str]:
            [run] = await cluster.engine.explain_runs([key])
            return run.blocked.kind, run.state

        store.hold()
        new = RunKey("default", "single", cluster.ids.uuid())
        start = asyncio.ensure_future(cluster.start("single", 1, instance_id=new.instance_id))
        await store.wait_held()
        assert await seen(new) == ("store", ""), "nobody was promised that it will be there"
        store.release()
        await start
        await script.called("send")
        await cluster.clock.sleep(0.1)
        assert await seen(new) == ("running", "running")
        store.hold()
        other = asyncio.ensure_future(cluster.start("single", 2))
        await store.wait_held()
        gate.set()
        await cluster.clock.sleep(0.1)
        assert await seen(new) == ("store", "running"), "its end waits behind another write"
        store.release()
        store.hold()
        await store.wait_held()
        await cluster.clock.sleep(0.1)
        assert await seen(new) == ("store", ""), "its end is on its way"
        store.release()
        await other
        await until(lambda: cluster.engine._kernel.resident(new) is None, 1.0)
        assert await cluster.engine.explain_runs([new]) == []


@virtual_time
async def test_an_orchestration_waits_for_a_commit_though_that_is_of_other_runs() -> None:
    """It leaves with the commit that is under way; the watchdog took that for a stall (found by `scripts/simulate`)."""
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        conductor = Conductor()
        conductor.code = _answer
        await cluster.register(flow())
        await cluster.register(single("compute", "calc").build())
        key = (await cluster.start("flow")).key
        kernel = cluster.engine._kernel
        ids = (cluster.ids.uuid() for _ in range(100))
        elsewhere = next(one for one in ids if kernel.number_of(cluster.key("single", one)) != kernel.number_of(key))
        store.hold()
        other = asyncio.ensure_future(cluster.start("single", 1, instance_id=elsewhere))
        await store.wait_held()
        await cluster.add_worker(conductor.worker(), "conductor", slots=SLOTS)
        await clock.sleep(5.0)
        [run] = await cluster.engine.explain_runs([key])
        assert run.blocked.kind == "store"
        assert cluster.engine.watchdog.repaired == 0
        store.release()
        await other
        assert await cluster.result(key) == "done"


async def _answer(contract: Any, ctx: Context) -> str:
    return "done"
