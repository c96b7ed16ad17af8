"""Fed reducers over several orchestrators: a takeover, a hand-over and a deposed owner cost a new fold, and no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow import Worker, workflow
from onexflow.ports.worker_link import Feed, ShardEpoch
from onexflow.testing import virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from onexflow.worker.context import Context
from support.engine_kit import until

COUNT = 600


class Work:
    def __init__(self) -> None:
        self.folds: list[list[int]] = []

    def worker(self) -> Worker:
        worker = Worker("fed")

        @worker.compute("item")
        async def item(number: int) -> int:
            await asyncio.sleep(0.05)
            return number * 2

        @worker.reducer("total")
        async def total(contract: Any, ctx: Context) -> int:
            fold: list[int] = []
            self.folds.append(fold)
            result = 0
            async for index, value in ctx.items():
                fold.append(index)
                result += value
            return result

        return worker


@pytest.mark.parametrize("fault", ["kill", "stop", "freeze"])
@virtual_time
async def test_the_next_owner_has_the_fold_begun_anew(fault: str) -> None:
    work = Work()
    flow = workflow("fed")
    flow.reducer("total", feed=True, depends_on=[flow.compute("item", map="input")])
    async with MultiCluster() as cluster:
        await cluster.add_orchestrator("a")
        await cluster.add_orchestrator("b")
        await cluster.register(flow.build())
        await cluster.settled()
        worker = await cluster.add_worker(work.worker(), "w")
        key = await cluster.start("fed", list(range(COUNT)))
        await until(lambda: work.folds and len(work.folds[0]) > 50)
        owner = await cluster.owner_of(cluster.number_of(key))
        assert owner is not None
        [other] = [name for name in cluster.members if name != owner.id]
        if fault == "freeze":
            cluster.freeze(owner.id)
        else:
            await (cluster.kill(owner.id) if fault == "kill" else cluster.stop(owner.id))
        assert await cluster.result(key) == sum(range(COUNT)) * 2
        assert len(work.folds) == 2
        assert sorted(work.folds[1]) == list(range(COUNT))
        assert len(work.folds[0]) < COUNT
        log = worker.streams[other].log
        epoch = next(n for n, m in enumerate(log) if isinstance(m, ShardEpoch) and m.shard == cluster.number_of(key))
        assert next(n for n, m in enumerate(log) if isinstance(m, Feed)) > epoch
        if fault == "freeze":
            cluster.thaw(owner.id)
            await asyncio.sleep(5)
            assert len(work.folds) == 2


@virtual_time
async def test_one_hears_of_a_higher_epoch_on_the_same_stream() -> None:
    """The same orchestrator claims the shard anew: what it gave before is of another epoch."""
    work = Work()
    flow = workflow("fed")
    flow.reducer("total", feed=True, depends_on=[flow.compute("item", map="input")])
    async with MultiCluster() as cluster:
        member = await cluster.add_orchestrator("a")
        await cluster.register(flow.build())
        await cluster.settled()
        await cluster.add_worker(work.worker(), "w")
        key = await cluster.start("fed", list(range(COUNT)))
        await until(lambda: work.folds and len(work.folds[0]) > 50)
        number = cluster.number_of(key)
        epoch = member.engine.shards[number].epoch
        assert await member.engine._kernel.claims.release(number)
        await cluster.settled()
        assert member.engine.shards[number].epoch > epoch
        assert await cluster.result(key) == sum(range(COUNT)) * 2
        assert len(work.folds) == 2
        assert sorted(work.folds[1]) == list(range(COUNT))


@virtual_time
async def test_a_fold_that_asks_while_its_new_owner_reads_back_is_heard_when_that_is_done() -> None:
    """Found by `scripts/simulate fan`: the owner took it for the last word of a fold of the owner before."""
    asks, began = asyncio.Event(), asyncio.Event()
    worker = Worker("fed")
    worker.compute("item")(_double)

    @worker.reducer("total")
    async def total(contract: Any, ctx: Context) -> int:
        began.set()
        await asks.wait()
        return sum([value async for _, value in ctx.items()])

    flow = workflow("fed")
    flow.reducer("total", feed=True, depends_on=[flow.compute("item", map="input")])
    async with MultiCluster() as cluster:
        await cluster.add_orchestrator("a")
        await cluster.register(flow.build())
        await cluster.settled()
        await cluster.add_worker(worker, "w")
        key = await cluster.start("fed", list(range(5)))
        await began.wait()
        b = await cluster.add_orchestrator("b")
        b.store.delay = 0.5  # reading back takes a while
        await cluster.kill("a")
        number = cluster.number_of(key)
        await until(lambda: number in b.engine.shards)
        await asyncio.sleep(0.01)  # virtual: the worker has heard of the new epoch
        assert b.engine.shards[number].early is not None
        asks.set()
        assert await cluster.result(key) == 20


async def _double(number: int) -> int:
    return number * 2
