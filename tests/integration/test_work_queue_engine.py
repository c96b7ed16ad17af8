"""The work queue in the engine: crashes and restarts, workers that go, request ids, plain stubs, and runs beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from onexflow.app.system import SystemClock
from onexflow.core.errors import InvalidArgument, UnknownRun
from onexflow.core.queue_state import QUEUE_TYPE, queue_key
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.ports import queue as port
from onexflow.ports.registry import NodeRecord
from onexflow.registry.memory import MemoryRegistry
from onexflow.spi import WorkTask
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing.clock import virtual_time
from onexflow.testing.cluster import Cluster
from onexflow.v1 import common_pb2, queue_pb2, queue_pb2_grpc
from support.grpc_cluster import grpc_cluster


def work_queue(cluster: Cluster, wait: float = 0.0) -> WorkQueue:
    return WorkQueue(cluster.engine, wait_seconds=wait)


async def restart(cluster: Cluster) -> WorkQueue:
    await cluster.crash_orchestrator()
    await cluster.restart_orchestrator()
    return work_queue(cluster)


@virtual_time
async def test_everything_said_survives_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        queue = work_queue(cluster)
        await queue.enqueue_task(WorkTask(task_id="done"))
        await queue.enqueue_task(WorkTask(task_id="held"))
        await queue.enqueue_task(WorkTask(task_id="later"), delay_seconds=60)
        await queue.enqueue_task(WorkTask(task_id="paused", queue_name="p"))
        await queue.enqueue_task(WorkTask(task_id="blocked", dependencies=["held"]))
        await queue.pause_queue("p")
        await queue.set_assignment_strategy("least_loaded")
        done, held = await queue.dequeue_task("w1", max_tasks=2)
        await queue.complete_task(done.task_id, {"n": 1})
        await queue.update_ticket_progress("held", 0.5)
        before = [await queue.get_task_status(name) for name in ("done", "held", "later", "paused", "blocked")]
        queue = await restart(cluster)
        assert [await queue.get_task_status(status.task_id) for status in before] == before
        assert (await queue.get_queue_status("p")).paused
        assert (await queue.get_queue_statistics())["strategy"] == "least_loaded"
        # The lease goes on, and ends by the engine's timer: nobody asks before.
        assert await queue.complete_task(held.task_id) is True
        assert [ticket.id for ticket in await queue.get_ready_tickets()] == ["blocked"]
        [got] = await queue.dequeue_task("w2", max_tasks=5)
        queue = await restart(cluster)
        await asyncio.sleep(301)
        assert (await queue.get_task_status("blocked")).state == "scheduled"
        assert await queue.complete_task(got.task_id) is False
        assert {ticket.id for ticket in await queue.get_ready_tickets()} == {"later", "blocked"}


@virtual_time
async def test_a_long_history_is_read_back_from_its_snapshot() -> None:
    async with Cluster(seed=1) as cluster:
        queue = work_queue(cluster)
        for number in range(400):
            await queue.enqueue_task(WorkTask(task_id=f"t{number}"))
            [got] = await queue.dequeue_task("w1")
            await queue.complete_task(got.task_id)
        key = queue_key("default", "default")
        shards = range(cluster.store.shards)
        records = [record for shard in shards if (record := await cluster.store.find_run(shard, key.to_bytes()))]
        snapshots = [s for shard in shards for r in records if (s := await cluster.store.load_snapshot(shard, r.iid))]
        assert snapshots
        queue = await restart(cluster)
        assert (await queue.get_queue_statistics())["completed"] == 400


@virtual_time
async def test_a_dead_workers_tasks_come_back_before_their_lease_ends() -> None:
    async with Cluster(seed=1) as cluster:
        registry = MemoryRegistry(cluster.hub)
        await registry.start()
        labels = {"capabilities": "gpu,cpu"}
        record = NodeRecord(kind="effect", node_id="w1", incarnation="w1.1", handlers=("h",), labels=labels)
        await registry.register(record)
        queue = work_queue(cluster)
        await queue.enqueue_task(WorkTask(task_id="a", required_capability="gpu", timeout_seconds=3600))
        await queue.enqueue_task(WorkTask(task_id="b", required_capability="h", timeout_seconds=3600))
        held = await queue.dequeue_task("w1", max_tasks=5)
        assert [got.task_id for got in held] == ["a", "b"]
        await registry.crash()
        await asyncio.sleep(60)
        assert (await queue.get_task_status("a")).state == "scheduled"
        assert [await queue.complete_task(got.task_id) for got in held] == [False, False]


@virtual_time
async def test_those_who_wait_are_served_by_the_strategy() -> None:
    async with Cluster(seed=1) as cluster:
        patient = work_queue(cluster, wait=30.0)
        served: list[str] = []

        async def wait(worker: str) -> None:
            served.extend(f"{worker}:{got.task_id}" for got in await patient.dequeue_task(worker))

        for expected in (["w1:t0"], ["w2:t1"], ["w3:t2"]):
            served.clear()
            async with asyncio.TaskGroup() as group:
                waits = [group.create_task(wait(worker)) for worker in ("w1", "w2", "w3")]
                await asyncio.sleep(1)
                await patient.enqueue_task(WorkTask(task_id=expected[0][3:]))
                await asyncio.sleep(1)
                assert served == expected  # round robin: each in its turn
                for task in waits:
                    task.cancel()
        assert await work_queue(cluster, wait=1.0).dequeue_task("w9") == []


@virtual_time
async def test_a_repeated_call_gets_the_first_answer_also_after_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        enqueue = port.Enqueue(task_id="t", request_id="r1")
        first = await cluster.engine.queue_call(enqueue)
        assert await cluster.engine.queue_call(enqueue) == first
        with pytest.raises(InvalidArgument, match="another body"):
            await cluster.engine.queue_call(port.Enqueue(task_id="u", request_id="r1"))
        dequeue = port.Dequeue(worker_id="w", request_id="r2")
        leased = await cluster.engine.queue_call(dequeue)
        complete = port.Complete(task_id="t", token=leased.tasks[0].token, request_id="r3")
        assert (await cluster.engine.queue_call(complete)).changed
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert await cluster.engine.queue_call(enqueue) == first
        assert await cluster.engine.queue_call(dequeue) == leased
        assert (await cluster.engine.queue_call(complete)).changed
        again = port.Complete(task_id="t", token=leased.tasks[0].token, request_id="r4")
        assert not (await cluster.engine.queue_call(again)).changed


@virtual_time
async def test_queues_are_no_runs() -> None:
    async with Cluster(seed=1) as cluster:
        await work_queue(cluster).enqueue_task(WorkTask(task_id="t"))
        key = queue_key("default", "default")
        assert await cluster.engine.list_runs("default", limit=1) == ([], "")
        assert await cluster.engine.list_runs("default", QUEUE_TYPE) == ([], "")
        assert (await cluster.engine.measure_runs("default")).by_state == {}
        for ask in (cluster.engine.describe_run, cluster.engine.read_history):
            with pytest.raises(UnknownRun):
                await ask(key)
        await asyncio.sleep(60)  # nor is it paged out
        assert len(await work_queue(cluster).dequeue_task("w")) == 1


@virtual_time
async def test_two_queues_and_namespaces_are_apart() -> None:
    async with Cluster(seed=1) as cluster:
        await work_queue(cluster).enqueue_task(WorkTask(task_id="t"))
        assert await WorkQueue(cluster.engine, name="other").dequeue_task("w") == []
        assert await WorkQueue(cluster.engine, namespace="other").dequeue_task("w") == []


async def test_crash_and_restart_on_sqlite(tmp_path: Path) -> None:
    clock = SystemClock()
    completed: list[str] = []
    names = [f"t{number}" for number in range(20)]
    cluster = Cluster(store=SqliteStore(tmp_path / "store.db", clock=clock), clock=clock)
    async with cluster:
        for life in range(4):
            queue = work_queue(cluster)
            if not life:
                for name in names:
                    await queue.enqueue_task(WorkTask(task_id=name, timeout_seconds=0.3))
            for got in await queue.dequeue_task(f"w{life}", max_tasks=8):
                if int(got.task_id[1:]) % 3:
                    assert await queue.complete_task(got.task_id, {"life": life}) is True
                    completed.append(str(got.task_id))
            await cluster.crash_orchestrator()
            cluster.store = SqliteStore(tmp_path / "store.db", clock=clock)
            await cluster.restart_orchestrator()
        patient = work_queue(cluster, wait=5.0)
        while len(completed) < len(names):
            for got in await patient.dequeue_task("last", max_tasks=20):
                assert await patient.complete_task(got.task_id) is True
                completed.append(str(got.task_id))
        assert sorted(completed) == sorted(names)
        assert (await patient.get_queue_statistics())["completed"] == len(names)


async def test_plain_stubs() -> None:
    async with grpc_cluster() as client:
        stub: Any = queue_pb2_grpc.WorkQueueServiceStub(client._channels._channel())
        where = queue_pb2.WorkQueueRef(name="q")
        added = await stub.EnqueueTask(
            queue_pb2.EnqueueTaskRequest(
                work_queue=where, task_id="t", priority="critical", payload=common_pb2.Payload(data=b"[1]")
            )
        )
        assert (added.changed, added.task.state) == (True, "scheduled")
        leased = await stub.DequeueTasks(queue_pb2.DequeueTasksRequest(work_queue=where, worker_id="w"))
        [task] = leased.tasks
        assert (task.payload.data, task.priority, task.attempt) == (b"[1]", "critical", 1)
        done = queue_pb2.CompleteTaskRequest(work_queue=where, task_id="t", token=task.token)
        assert (await stub.CompleteTask(done)).changed
        assert not (await stub.CompleteTask(done)).changed
        shown = await stub.GetTask(queue_pb2.GetTaskRequest(work_queue=where, task_id="t"))
        assert shown.task.state == "completed"
        figures = (await stub.GetQueueMetrics(queue_pb2.GetQueueMetricsRequest(work_queue=where))).figures
        assert figures.completed == 1


async def test_plain_stubs_steer_assign_and_fail() -> None:
    async with grpc_cluster() as client:
        stub: Any = queue_pb2_grpc.WorkQueueServiceStub(client._channels._channel())
        where = queue_pb2.WorkQueueRef(name="q")
        for task_id in ("first", "second"):
            task = queue_pb2.EnqueueTaskRequest(work_queue=where, task_id=task_id, queue="letters", max_retries=1)
            await stub.EnqueueTask(task)
        assert (await stub.PauseQueue(queue_pb2.PauseQueueRequest(work_queue=where, queue="letters"))).changed
        lease = queue_pb2.DequeueTasksRequest(work_queue=where, worker_id="w")
        assert list((await stub.DequeueTasks(lease)).tasks) == []
        assert (await stub.ResumeQueue(queue_pb2.ResumeQueueRequest(work_queue=where, queue="letters"))).changed
        strategy = queue_pb2.SetAssignmentStrategyRequest(work_queue=where, strategy="least_loaded")
        assert (await stub.SetAssignmentStrategy(strategy)).changed
        given = await stub.AssignTask(queue_pb2.AssignTaskRequest(work_queue=where, task_id="first", worker_id="w"))
        assert given.task.worker == "w"
        half = queue_pb2.ReportProgressRequest(work_queue=where, task_id="first", token=given.task.token, share=0.5)
        assert (await stub.ReportProgress(half)).changed
        ready = await stub.ListTasks(queue_pb2.ListTasksRequest(work_queue=where, which="ready"))
        assert [task.task_id for task in ready.tasks] == ["second"]
        failed = queue_pb2.FailTaskRequest(work_queue=where, task_id="first", token=given.task.token, error="torn")
        assert (await stub.FailTask(failed)).changed
        shown = (await stub.GetTask(queue_pb2.GetTaskRequest(work_queue=where, task_id="first"))).task
        assert (shown.state, shown.retry_count, shown.error) == ("retrying", 1, "torn")
