"""The three metrics against what really happened: counts, rates and percentiles are those that an observer would find
who kept a record of everything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import pytest

import onexflow
from onexflow.core.errors import InvalidTransition
from onexflow.core.queue_state import PRIORITIES
from onexflow.engine.protocols import WorkflowNodeRegistry, WorkflowOrchestrator, WorkQueue
from onexflow.ports.client_link import EventView
from onexflow.spi import Percentiles, WorkTask
from onexflow.testing.clock import run_virtual
from onexflow.testing.cluster import Cluster
from onexflow.worker import Context, Worker

SECOND = 1_000_000_000


def spread(values: Sequence[float]) -> Percentiles:
    """By counting: the least value that so many of all do not exceed."""

    def rank(share: float) -> float:
        return min((v for v in values if sum(w <= v for w in values) >= share * len(values)), default=0.0)

    mean = sum(values) / len(values) if values else 0.0
    return Percentiles(mean=mean, p50=rank(0.5), p95=rank(0.95), p99=rank(0.99))


def same(given: Percentiles, wanted: Percentiles) -> None:
    for name in ("mean", "p50", "p95", "p99"):
        assert getattr(given, name) == pytest.approx(getattr(wanted, name), abs=1e-6), name


class Work:
    """What workers do, and the observer's record of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        #: By run: (worker, outcome, seconds).
        self.done: dict[str, tuple[str, str, float]] = {}

    def worker(self, name: str) -> Worker:
        worker = Worker(name)

        @worker.effect("job", idempotent=True)
        async def job(contract: Any, ctx: Context) -> str:
            begun = asyncio.get_running_loop().time()
            await asyncio.sleep(contract.seconds)
            outcome = "failed" if contract.fails else "completed"
            assert str(ctx.instance_id) not in self.done
            self.done[str(ctx.instance_id)] = (name, outcome, asyncio.get_running_loop().time() - begun)
            if contract.fails:
                raise onexflow.Fatal("as told")
            return name

        return worker


async def _runs(seed: int) -> None:
    """Runs that end in every way, on workers whose streams break."""
    work, random = Work(seed), Random(seed)
    async with Cluster(seed=seed) as cluster:
        flow = onexflow.workflow("job")
        flow.effect("a", handler="job")
        await cluster.register(flow.build())
        for name in ("w1", "w2"):
            await cluster.add_worker(work.worker(name), name, slots={"effect": 5})
        keys = []
        for _ in range(60):
            contract = {"seconds": random.choice((0, 0.01, 0.5, 2, 7)), "fails": random.random() < 0.25}
            started = await cluster.start("job", contract, delay=random.choice((0, 0, 3)))
            keys.append(started.key)
            await asyncio.sleep(random.choice((0, 0.1, 1)))
            chance = random.random()
            if chance < 0.1:
                with suppress(InvalidTransition):  # it has ended
                    await cluster.control(started.key, "cancel")
            elif chance < 0.2:
                cluster.cut(name := random.choice(("w1", "w2")))
                await asyncio.sleep(random.choice((0, 0.6)))
                cluster.reconnect(name)
        await asyncio.sleep(30)
        await cluster.start("job", {"seconds": 1e6, "fails": False})
        await asyncio.sleep(1)
        await _compare_runs(cluster)
        # An attempt that ended when its run was cancelled already counts for nobody.
        cancelled = (await cluster.engine.list_runs("default", states=["cancelled"], limit=1000))[0]
        for run in cancelled:
            work.done.pop(str(run.key.instance_id), None)
        await _compare_nodes(cluster, work.done.values())
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        await _compare_runs(cluster)


async def _compare_runs(cluster: Cluster) -> None:
    listed = (await cluster.engine.list_runs("default", limit=1000))[0]
    histories = {run.key: await cluster.history(run.key) for run in listed}
    states = Counter(run.state for run in listed)
    ended = [histories[run.key] for run in listed if run.state in {"completed", "failed", "cancelled"}]
    metrics = await WorkflowOrchestrator(cluster.engine).get_workflow_metrics("job")
    assert metrics.by_state == states
    assert (metrics.started, metrics.completed, metrics.failed) == (61, states["completed"], states["failed"])
    assert metrics.tasks == 61
    assert metrics.events == sum(map(len, histories.values()))
    same(metrics.durations, spread([_seconds(history) for history in ended]))
    window = (cluster.store.now() - min(history[0].timestamp for history in ended)) / SECOND
    assert metrics.window_seconds == pytest.approx(window, abs=1e-3)
    assert metrics.throughput == pytest.approx(len(ended) / window, rel=1e-3)


def _seconds(history: Sequence[EventView]) -> float:
    return (history[-1].timestamp - history[0].timestamp) / SECOND


async def _compare_nodes(cluster: Cluster, done: Iterable[tuple[str, str, float]]) -> None:
    registry = WorkflowNodeRegistry(cluster.engine.node_registry)
    running = 0
    for name in ("w1", "w2"):
        mine = [one for one in done if one[0] == name]
        outcomes = Counter(outcome for _, outcome, _ in mine)
        metrics = await registry.get_node_metrics(name)
        assert (metrics.completed, metrics.failed) == (outcomes["completed"], outcomes["failed"])
        assert metrics.max_concurrent_tasks == 5
        running += metrics.current_task_count
        wanted = spread([seconds for _, _, seconds in mine])
        assert metrics.mean_duration_seconds == pytest.approx(wanted.mean, abs=1e-3)
        for rank in ("p50", "p95", "p99"):
            assert getattr(metrics.duration, rank) == pytest.approx(getattr(wanted, rank), abs=1e-3)
    assert running == 1
    await registry.close()


class Record:
    """The observer's record of one task of a queue."""

    def __init__(self, task: WorkTask, due: float, created: float) -> None:
        self.task = task
        self.created = created
        self.due = due
        self.state = "waiting"
        self.leased = self.ended = 0.0


async def _queue(seed: int) -> None:
    """Tasks of two queue names, in the hands of three workers who complete and fail them."""
    random = Random(seed)
    async with Cluster(seed=seed) as cluster:
        began = asyncio.get_running_loop().time()
        queue = WorkQueue(cluster.engine)
        records: dict[str, Record] = {}
        held: list[Any] = []

        def now() -> float:
            return asyncio.get_running_loop().time() - began

        for number in range(80):
            delay = random.choice((0, 0, 0, 5, 500))
            task = WorkTask(
                task_id=f"t{number}", queue_name=random.choice(("a", "b")), max_retries=0, timeout_seconds=1e6,
                priority=random.choice(PRIORITIES),
            )  # fmt: skip
            records[f"t{number}"] = Record(task, now() + delay, now())
            await queue.enqueue_task(task, delay_seconds=delay)
            await asyncio.sleep(random.choice((0, 0.5, 3)))
            if random.random() < 0.6:
                for got in await queue.dequeue_task(f"w{random.randrange(3)}", max_tasks=2):
                    record = records[str(got.task_id)]
                    record.state, record.leased = "held", now()
                    held.append(got)
            while held and random.random() < 0.4:
                got = held.pop(random.randrange(len(held)))
                record = records[str(got.task_id)]
                record.state = random.choice(("completed", "completed", "failed"))
                record.ended = now()
                if record.state == "completed":
                    assert await queue.complete_task(got.task_id)
                else:
                    assert await queue.fail_task(got.task_id, "no")
            if number in {30, 60}:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
                queue = WorkQueue(cluster.engine)
            if number % 10 == 9:
                await _compare_queue(queue, list(records.values()), now())


async def _compare_queue(queue: WorkQueue, records: list[Record], now: float) -> None:
    metrics = await queue.get_queue_metrics()
    waiting = [one for one in records if one.state == "waiting"]
    delayed = [one for one in waiting if one.due > now]
    held = [one for one in records if one.state == "held"]
    ended = [one for one in records if one.state in {"completed", "failed"}]
    totals = Counter(one.state for one in records)
    assert (metrics.completed, metrics.failed) == (totals["completed"], totals["failed"])
    assert (metrics.pending, metrics.delayed) == (len(waiting) - len(delayed), len(delayed))
    assert metrics.in_progress == len(held)
    assert metrics.by_priority == Counter(one.task.priority for one in waiting)
    oldest = max((now - one.created for one in waiting), default=0.0)
    assert metrics.oldest_age_seconds == pytest.approx(oldest, abs=1e-3)
    # Who was told to come later has not waited before.
    same(metrics.wait, spread([one.leased - max(one.created, one.due) for one in ended]))
    same(metrics.run, spread([one.ended - one.leased for one in ended]))
    if ended:
        window = now - min(one.ended for one in ended)
        assert metrics.throughput == pytest.approx(len(ended) / window if window else 0.0, rel=1e-2)
    for name in ("a", "b"):
        status = await queue.get_queue_status(name)
        mine = [one for one in records if one.task.queue_name == name]
        assert status.in_progress == sum(one.state == "held" for one in mine)
        assert status.pending + status.delayed == sum(one.state == "waiting" for one in mine)


def test_figures_of_runs_and_nodes() -> None:
    for seed in range(6):
        run_virtual(_runs(seed))


def test_figures_of_queues() -> None:
    for seed in range(8):
        run_virtual(_queue(seed))
