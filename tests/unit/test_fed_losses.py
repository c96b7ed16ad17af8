"""Fed reducers when a worker, a stream or the orchestrator is lost or silent: the fold is begun anew, and counts once."""

from __future__ import annotations

import asyncio
from typing import Any

from onexflow import Worker
from onexflow.core.definition import RetryPolicy
from onexflow.ports.worker_link import Feed
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.context import Context
from support.engine_kit import until
from support.fed_kit import Work, begun, feeds_of, flow, folded, holder


@virtual_time
async def test_a_worker_killed_amid_the_fold_costs_a_new_fold_elsewhere() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        cluster.kill_worker(holder(cluster))
        await folded(cluster, work, key)


@virtual_time
async def test_a_cut_stream_costs_a_new_fold_and_the_old_one_is_stopped() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work, workers=1)
        cluster.cut("r0")
        await until(lambda: not cluster.workers["r0"].runtime.statistics().running["reducer"])
        cluster.reconnect("r0")
        await folded(cluster, work, key)


@virtual_time
async def test_a_stream_cut_and_opened_at_once_gives_the_same_worker_a_new_fold() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work, workers=1)
        cluster.cut("r0")
        cluster.reconnect("r0")
        await folded(cluster, work, key)


@virtual_time
async def test_a_crashed_orchestrator_costs_a_new_fold() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        await folded(cluster, work, key)


@virtual_time
async def test_a_fold_that_has_all_its_items_survives_the_orchestrator() -> None:
    async with Cluster() as cluster:
        work = Work()
        work.gate.clear()
        await cluster.register(flow().build())
        worker = await cluster.add_worker(work.worker())
        key = (await cluster.start("fed", list(range(100)))).key
        await until(
            lambda: worker.stream is not None and any(isinstance(m, Feed) and m.is_last for m in worker.stream.log)
        )
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        await asyncio.sleep(1)
        work.gate.set()
        await folded(cluster, work, key, 100, folds=1)


@virtual_time
async def test_a_silent_worker_is_overtaken_by_another_and_the_first_result_wins() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        frozen = cluster.workers[holder(cluster)]
        frozen.freeze()
        await until(lambda: len(work.folds) == 2)
        frozen.thaw()
        await until(lambda: not frozen.runtime.statistics().running["reducer"])
        await folded(cluster, work, key)


@virtual_time
async def test_a_fold_that_is_overtaken_by_a_late_result_is_stopped() -> None:
    """The silent worker has all its items and ends: the other's fold, which nobody feeds any more, gives its slot back."""
    made = flow()
    made.reducer("slow", feed=True, depends_on=["item"])
    async with Cluster() as cluster:
        work = Work()
        slow = asyncio.Event()
        workers = [work.worker() for _ in range(2)]

        async def other(contract: Any, ctx: Context) -> int:
            await slow.wait()
            return len([index async for index, value in ctx.items()])

        await cluster.register(made.build(output="tasks.total"))
        for number, worker in enumerate(workers):
            worker.reducer("slow")(other)
            await cluster.add_worker(worker, f"w{number}")
        work.gate.clear()
        key = (await cluster.start("fed", list(range(500)))).key
        await until(lambda: work.done == 500)
        await asyncio.sleep(1)
        work.gate.set()
        work.pace = 0.01
        await until(lambda: work.folds and len(work.folds[0]) > 450)
        frozen = next(
            one for one in cluster.workers.values() if one.stream and feeds_of(one) and feeds_of(one)[-1].is_last
        )
        frozen.freeze()
        await until(lambda: len(work.folds) == 2 and len(work.folds[0]) == 500)
        frozen.thaw()
        await asyncio.sleep(1)
        assert (await cluster.task(key, "total")).state == "completed"
        assert len(work.folds[1]) < 500
        running = sum(one.runtime.statistics().running["reducer"] for one in cluster.workers.values())
        assert running == 1, "the slow one alone"
        slow.set()
        assert await cluster.result(key) == sum(range(500)) * 2


@virtual_time
async def test_a_late_failure_stops_the_fold_that_waits_for_items_elsewhere() -> None:
    """It ends the attempt of both: nobody feeds the other one any more, which says nothing by itself."""
    more, fail = asyncio.Event(), asyncio.Event()
    folds: list[list[int]] = []

    def worker() -> Worker:
        made = Worker("fed")

        @made.compute("item")
        async def item(number: int) -> int:
            if number >= 100:
                await more.wait()
            return number

        @made.reducer("total")
        async def total(contract: Any, ctx: Context) -> int:
            fold: list[int] = []
            folds.append(fold)
            is_first = len(folds) == 1
            async for index, _ in aiter(ctx.items()):
                fold.append(index)
                if is_first and len(fold) == 100:
                    await fail.wait()
                    raise OSError("again")
            return sum(fold)

        return made

    async with Cluster() as cluster:
        await cluster.register(flow(retry=RetryPolicy(initial_delay=0.1)).build())
        await cluster.add_worker(worker(), "c", slots={"compute": 4, "reducer": 0})
        for name in ("r0", "r1"):
            await cluster.add_worker(worker(), name, slots={"compute": 0, "reducer": 1})
        key = (await cluster.start("fed", list(range(200)))).key
        await until(lambda: folds and len(folds[0]) == 100)
        frozen = cluster.workers[holder(cluster)]
        frozen.freeze()
        await until(lambda: len(folds) == 2 and len(folds[1]) == 100)
        await asyncio.sleep(0.1)
        fail.set()
        await asyncio.sleep(0.1)
        frozen.thaw()
        await until(lambda: len(folds) == 3)
        await asyncio.sleep(1)
        assert holder(cluster), "one fold, and no other"
        more.set()
        assert await cluster.result(key) == sum(range(200))
        assert len(folds) == 3


@virtual_time
async def test_a_silent_worker_without_another_goes_on_with_its_fold() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work, workers=1)
        frozen = cluster.workers["r0"]
        frozen.freeze()
        await asyncio.sleep(2)
        frozen.thaw()
        await folded(cluster, work, key, folds=1)
