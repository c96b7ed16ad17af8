"""A workflow with a fed reducer, its handlers, and what the tests of both ask of a run."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from onexflow import Worker, workflow
from onexflow.core.builder import WorkflowBuilder
from onexflow.ports.client_link import EventView
from onexflow.ports.worker_link import Feed
from onexflow.testing import Cluster
from onexflow.testing.cluster import ClusterWorker
from onexflow.worker.context import Context
from support.engine_kit import until


def flow(*, mapped: Any = None, **options: Any) -> WorkflowBuilder:
    """`item`, mapped over the input, and `total`, a reducer that is fed its results."""
    made = workflow("fed")
    items = made.compute("item", map="input", **(mapped or {}))
    made.reducer("total", feed=True, depends_on=[items], **options)
    return made


class Work:
    """Items are doubled, each in so many seconds; `total` sums them up and remembers what it took, attempt by attempt."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.done = 0
        #: One list of indices for each time that `total` was begun.
        self.folds: list[list[int]] = []
        #: How many items had been computed when the first one was taken.
        self.at_first = 0
        self.pace = 0.0
        self.errors: list[Exception] = []
        self.bad: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.draw = random.Random(1)

    def worker(self, *roles: str) -> Worker:
        worker = Worker("fed")
        if not roles or "compute" in roles:
            worker.compute("item")(self.item)
        if not roles or "reducer" in roles:
            worker.reducer("total")(self.total)
        return worker

    async def item(self, number: int) -> int:
        if self.seconds:
            await asyncio.sleep(self.seconds * self.draw.random() * 2)
        if number in self.bad:
            raise ValueError(number)
        self.done += 1
        return number * 2

    async def total(self, contract: Any, ctx: Context) -> int:
        assert contract is None
        fold: list[int] = []
        self.folds.append(fold)
        result = 0
        async for index, value in ctx.items():
            if not self.at_first:
                self.at_first = self.done
            if self.pace:
                await asyncio.sleep(self.pace)
            await self.gate.wait()
            fold.append(index)
            result += value
            if self.errors and len(fold) > 50:
                raise self.errors.pop()
        return result


def outcomes(history: list[EventView]) -> list[int]:
    """The items that completed, in the order of the log."""
    return [i for e in history if e.type == "task.completed" and e.task == "item" for i in e.data["items"]]


async def begun(cluster: Cluster, work: Work, count: int = 1_000, workers: int = 3, **options: Any) -> Any:
    """A run whose reducer has taken some items and not all; the computes are on `c`, reducers on `r0`, `r1`, …"""
    await cluster.register(flow(**options).build())
    await cluster.add_worker(work.worker("compute"), "c")
    for number in range(workers):
        await cluster.add_worker(work.worker("reducer"), f"r{number}")
    key = (await cluster.start("fed", list(range(count)))).key
    await until(lambda: work.folds and len(work.folds[0]) > 10)
    assert work.done < count
    return key


def feeds_of(worker: ClusterWorker) -> list[Feed]:
    """What a worker was given on its stream."""
    assert worker.stream is not None
    return [message for message in worker.stream.log if isinstance(message, Feed)]


def holder(cluster: Cluster) -> str:
    """The worker on which the reducer runs."""
    [name] = [name for name, one in cluster.workers.items() if one.runtime.statistics().running.get("reducer")]
    return name


async def folded(cluster: Cluster, work: Work, key: Any, count: int = 1_000, folds: int = 2) -> None:
    """The run ends with the right sum: the last of so many folds had every item, and each counts once."""
    assert await cluster.result(key) == sum(range(count)) * 2
    assert len(work.folds) == folds
    assert sorted(work.folds[-1]) == list(range(count))
    history = await cluster.history(key)
    assert sorted(outcomes(history)) == list(range(count))
    assert [e.type for e in history if e.task == "total"].count("task.completed") == 1
