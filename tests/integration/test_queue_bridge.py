"""Tasks of work queues that are done on the workers' streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import onexflow
from onexflow.core import queue as core
from onexflow.core.errors import InvalidArgument, StoreFull
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.ports.client_link import RunSummary
from onexflow.spi import WorkTask
from onexflow.testing.clock import virtual_time
from onexflow.testing.cluster import Cluster
from onexflow.worker.errors import Fatal
from support.engine_kit import Script, until
from support.grpc_cluster import grpc_cluster


def task(name: str, handler: str = "send", **fields: Any) -> WorkTask:
    return WorkTask(task_id=name, task_name=handler, **{"payload": {"task": name}, **fields})


async def state(queue: WorkQueue, name: str) -> str:
    return (await queue.get_task_status(name)).state


async def reached(queue: WorkQueue, wanted: str, *names: str) -> None:
    async def there() -> bool:
        return all([await state(queue, name) == wanted for name in names])

    async with asyncio.timeout(3600):
        while not await there():
            await asyncio.sleep(0.05)


async def runs(cluster: Cluster) -> list[RunSummary]:
    return list((await cluster.engine.list_runs("default", limit=1000))[0])


@virtual_time
async def test_a_task_whose_name_is_a_handler_is_done_on_a_worker() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a"))
        await queue.enqueue_task(task("b", "calc", task_type="compute", payload=7))
        await queue.enqueue_task(task("c", "sum", task_type="reducer", payload=[1]))
        await reached(queue, "completed", "a", "b", "c")
        assert (await queue.get_task_status("a")).result == {"task": "a"}
        assert (await queue.get_task_status("b")).result == 7
        assert (await queue.get_task_status("b")).worker_id == "$workers"
        assert sorted(call.handler for call in script.calls) == ["calc", "send", "sum"]
        assert {run.key.workflow_type for run in await runs(cluster)} == {
            "queue.effect.send", "queue.compute.calc", "queue.reducer.sum"
        }  # fmt: skip


@virtual_time
async def test_what_nobody_can_do_stays_for_dequeue() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("other handler", "unknown"))
        await queue.enqueue_task(task("other role", "calc"))
        await queue.enqueue_task(task("capability", required_capability="gpu"))
        await queue.enqueue_task(WorkTask(task_id="no name"))
        await queue.enqueue_task(task("own handler", required_capability="charge"))
        await asyncio.sleep(60)
        assert [call.contract["task"] for call in script.calls] == ["own handler"]
        got = await queue.dequeue_task("someone", max_tasks=10)
        assert {str(one.task_id) for one in got} == {"other handler", "other role", "no name"}


@virtual_time
async def test_who_waits_in_a_dequeue_goes_before_the_workers_streams() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        patient, queue = WorkQueue(cluster.engine, wait_seconds=10), WorkQueue(cluster.engine)
        waiting = asyncio.ensure_future(patient.dequeue_task("someone"))
        await asyncio.sleep(1)
        await queue.enqueue_task(task("a"))
        await queue.enqueue_task(task("b"))
        assert [one.task_id for one in await waiting] == ["a"]
        await reached(queue, "completed", "b")
        assert [call.contract["task"] for call in script.calls] == ["b"]


@virtual_time
async def test_delay_pause_dependencies_and_priority_hold() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        queue = WorkQueue(cluster.engine)
        await queue.pause_queue("p")
        await queue.enqueue_task(task("paused", queue_name="p"))
        await queue.enqueue_task(task("late"), delay_seconds=30)
        await queue.enqueue_task(task("first", priority="high"))
        await queue.enqueue_task(task("last", priority="low"))
        await queue.enqueue_task(task("next", priority="urgent", dependencies=["first"]))
        await queue.enqueue_task(task("middle"))
        await cluster.add_worker(script.worker("w1"), "w1", slots={"effect": 1})
        await script.called("send")
        await asyncio.sleep(10)
        # One slot, and one task that waits for it; the others keep their places in the queue.
        statistics = await queue.get_queue_statistics()
        assert (statistics["in_progress"], len(script.calls)) == (2, 1)
        gate.set()
        await reached(queue, "completed", "first", "next", "middle", "last")
        order = [call.contract["task"] for call in script.calls]
        assert (order[:2], sorted(order[2:])) == (["first", "middle"], ["last", "next"])
        assert [await state(queue, name) for name in ("paused", "late")] == ["scheduled", "pending"]
        await asyncio.sleep(31)
        assert await state(queue, "late") == "completed"
        await queue.resume_queue("p")
        await reached(queue, "completed", "paused")


@virtual_time
async def test_waiting_makes_a_task_more_urgent() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("old", priority="low"))
        await asyncio.sleep(301)
        await queue.enqueue_task(task("new"))
        await cluster.add_worker(script.worker("w1"), "w1", slots={"effect": 1})
        gate.set()
        await reached(queue, "completed", "old", "new")
        assert [call.contract["task"] for call in script.calls] == ["old", "new"]


@virtual_time
async def test_a_failure_comes_again_by_the_queues_word_under_one_idempotency_key() -> None:
    worker, keys = onexflow.Worker("w"), []

    @worker.effect("flaky", idempotent=True)
    async def flaky(contract: Any, ctx: Any) -> str:
        keys.append(ctx.idempotency_key)
        if len(keys) < 3:
            raise ValueError("not yet")
        return "done"

    @worker.effect("fatal")
    async def fatal(contract: Any) -> None:
        raise Fatal("never")

    @worker.compute("bad")
    async def bad(contract: Any) -> None:
        raise ValueError("no")

    async with Cluster() as cluster:
        await cluster.add_worker(worker, "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a", "flaky"))
        await queue.enqueue_task(task("b", "fatal"))
        await queue.enqueue_task(task("c", "bad", task_type="compute", max_retries=1))
        await reached(queue, "completed", "a")
        await reached(queue, "failed", "b", "c")
        done, never, no = [await queue.get_task_status(name) for name in "abc"]
        assert (done.retry_count, done.result, len(keys), len(set(keys))) == (2, "done", 3, 1)
        assert (never.retry_count, never.error) == (0, "never")
        assert (no.retry_count, no.error) == (1, "no")
        # A key of the user's own goes to the handler as it is.
        keys.clear()
        await queue.enqueue_task(task("d", "flaky", idempotency_key="mine", max_retries=0))
        await reached(queue, "failed", "d")
        assert keys == ["mine"]


@virtual_time
async def test_an_effect_of_unknown_outcome_waits_and_so_does_its_task() -> None:
    script = Script()
    script.gate("charge")
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a", "charge"))
        await script.called("charge")
        cluster.kill_worker("w1")
        await cluster.add_worker(script.worker("w2"), "w2")
        await asyncio.sleep(3600)
        [run] = await runs(cluster)
        assert (await cluster.task(run.key, "execute")).state == "waiting_for_input"
        assert await state(queue, "a") == "running"
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        queue = WorkQueue(cluster.engine)
        await asyncio.sleep(600)
        assert (await state(queue, "a"), len(script.calls)) == ("running", 1)
        await cluster.control(run.key, "resolve", task="execute", result="found out")
        await reached(queue, "completed", "a")
        assert (await queue.get_task_status("a")).result == "found out"


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_taken_and_nobody_can_do_any_more_goes_back(restart: bool) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gates = script.gate("send"), script.gate("calc"), script.gate("charge")
        async with Cluster() as cluster:
            await cluster.add_worker(script.worker("w1"), "w1", slots={"effect": 1, "compute": 1, "reducer": 1})
            queue = WorkQueue(cluster.engine)
            await queue.enqueue_task(task("begun", "charge"))
            await script.called("charge")
            for name in ("waits", "stays"):
                await queue.enqueue_task(task(name))
            await queue.enqueue_task(task("pure", "calc", task_type="compute"))
            await script.called("calc")
            assert (await queue.get_queue_statistics())["in_progress"] == 3
            cluster.kill_worker("w1")
            if restart:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
                queue = WorkQueue(cluster.engine)
            await asyncio.sleep(30)
            # Nobody knows what became of the effect that was begun; the others are free, as if nothing had been.
            got = await queue.dequeue_task("someone", max_tasks=10)
            assert {str(one.task_id) for one in got} == {"waits", "stays", "pure"}
            assert {one.retry_count for one in got} == {0}
            assert await state(queue, "begun") == "running"
            for one in got:
                assert await queue.fail_task(one.task_id, "not for me")
            for gate in gates:
                gate.set()
            await cluster.add_worker(script.worker("w2"), "w2")
            await reached(queue, "completed", "waits", "stays", "pure")

    scenario()


@pytest.mark.parametrize(("handler", "wanted", "calls"), [("charge", "failed", 1), ("send", "completed", 2)])
def test_a_timeout_repeats_only_what_may_happen_twice(handler: str, wanted: str, calls: int) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        async with Cluster() as cluster:
            await cluster.add_worker(script.worker("w1"), "w1")
            queue = WorkQueue(cluster.engine)
            await queue.enqueue_task(task("a", handler, timeout_seconds=5))
            await script.called(handler)
            await asyncio.sleep(5.1)
            gate.set()
            await reached(queue, wanted, "a")
            await asyncio.sleep(60)
            assert len(script.calls) == calls

    scenario()


@virtual_time
async def test_a_pure_task_of_a_dead_worker_runs_on_another() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a", "calc", task_type="compute"))
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        cluster.kill_worker("w1")
        await script.called("calc", 2)
        gate.set()
        await reached(queue, "completed", "a")
        status = await queue.get_task_status("a")
        assert (status.retry_count, len(await runs(cluster))) == (0, 1)


@virtual_time
async def test_who_ends_a_task_by_hand_ends_its_run() -> None:
    script = Script()
    script.gate("send")
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a"))
        await script.called("send")
        assert await queue.complete_task("a", {"by": "hand"}) is True
        [run] = await runs(cluster)
        assert (await cluster.wait(run.key)).state == "cancelled"
        assert (await queue.get_task_status("a")).result == {"by": "hand"}
        # A run that is cancelled ends its task for good.
        await queue.enqueue_task(task("b"))
        await script.called("send", 2)
        [other] = [one for one in await runs(cluster) if one.key != run.key]
        await cluster.control(other.key, "cancel", reason="enough")
        await reached(queue, "failed", "b")
        status = await queue.get_task_status("b")
        assert (status.retry_count, status.error) == (0, "enough")


@virtual_time
async def test_the_engines_own_name_is_nobody_elses() -> None:
    async with Cluster() as cluster:
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a"))
        with pytest.raises(InvalidArgument, match="engine's own"):
            await queue.dequeue_task("$workers")
        with pytest.raises(InvalidArgument, match="engine's own"):
            await queue.assign_ticket_to_agent("a", "$workers")


@virtual_time
async def test_a_restart_between_lease_and_run_starts_it_once() -> None:
    """Each step of the way from the lease to its end is where the process ends, once."""
    for step in range(12):
        script = Script()
        async with Cluster(seed=step) as cluster:
            await cluster.add_worker(script.worker("w1"), "w1")
            queue = WorkQueue(cluster.engine)
            call = asyncio.ensure_future(queue.enqueue_task(task("a", "calc", task_type="compute")))
            for _ in range(step * 2):
                await asyncio.sleep(0)
            await cluster.crash_orchestrator()
            await asyncio.gather(call, return_exceptions=True)
            await cluster.restart_orchestrator()
            queue = WorkQueue(cluster.engine)
            await queue.enqueue_task(task("a", "calc", task_type="compute"))
            await reached(queue, "completed", "a")
            for run in await runs(cluster):
                assert (await cluster.wait(run.key)).state == "completed"


@virtual_time
async def test_a_full_store_holds_a_task_up_and_no_more() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        cluster.engine._kernel.on_full(True)
        with pytest.raises(StoreFull):
            await queue.enqueue_task(task("a"))
        cluster.engine._kernel.on_full(False)
        await queue.enqueue_task(task("a"), delay_seconds=1)
        cluster.engine._kernel.on_full(True)
        await asyncio.sleep(60)
        assert await state(queue, "a") == "scheduled"
        cluster.engine._kernel.on_full(False)
        await reached(queue, "completed", "a")


@virtual_time
async def test_many_tasks_are_taken_as_slots_become_free() -> None:
    script = Script()
    async with Cluster() as cluster:
        queue, other = WorkQueue(cluster.engine), WorkQueue(cluster.engine, name="other", namespace="ns")
        for number in range(60):
            await (queue, other)[number % 2].enqueue_task(task(f"t{number}", "calc", task_type="compute"))
        await cluster.add_worker(script.worker("w1"), "w1", slots={"compute": 2})
        await cluster.add_worker(script.worker("w2"), "w2", slots={"compute": 2})
        await reached(queue, "completed", *(f"t{number}" for number in range(0, 60, 2)))
        await reached(other, "completed", *(f"t{number}" for number in range(1, 60, 2)))
        assert len(script.calls) == 60
        assert cluster.engine._bridge._held == {}
        assert not +cluster.engine._bridge._coming


async def test_over_grpc() -> None:
    worker = onexflow.Worker("w")

    @worker.effect("greet", idempotent=True)
    async def greet(contract: Any) -> dict[str, str]:
        return {"said": f"hello {contract.name}"}

    async with grpc_cluster(worker) as client:
        queue = client.work_queue()
        for number in range(20):
            await queue.enqueue_task(WorkTask(task_id=f"t{number}", task_name="greet", payload={"name": f"n{number}"}))
        async with asyncio.timeout(20):
            await reached(queue, "completed", *(f"t{number}" for number in range(20)))
        assert (await queue.get_task_status("t7")).result == {"said": "hello n7"}
        listed = [run async for run in client.list("queue.effect.greet")]
        assert len(listed) == 20
        handle = client.get(listed[0].key.workflow_type, listed[0].key.instance_id)
        events = await handle.history()
        assert events[-1].type == "workflow.completed"


@virtual_time
async def test_a_queue_that_fails_at_the_end_of_a_task_is_read_back_and_told_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, failed, complete = Script(), [False], core.complete

    def fails_once(turn: core.QueueTurn, *given: Any) -> bool:
        if not failed[0]:
            failed[0] = True
            raise RuntimeError("a bug")
        return complete(turn, *given)

    monkeypatch.setattr(core, "complete", fails_once)
    async with Cluster() as cluster:
        await cluster.add_worker(script.worker("w1"), "w1")
        queue = WorkQueue(cluster.engine)
        await queue.enqueue_task(task("a"))
        await until(lambda: failed[0] and any(True for _ in cluster.engine._kernel.queues()))  # nobody asks for it
        await reached(queue, "completed", "a")
        assert script.count("send") == 1
