"""Wide fan-outs: how long their histories become, and that no item's outcome is missing in them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from onexflow import Worker, workflow
from onexflow.core.builder import WorkflowBuilder
from onexflow.core.definition import RetryPolicy, Timeouts
from onexflow.core.errors import RunFailed
from onexflow.engine.gathering import HOLD_AT_MOST, HOLD_SECONDS
from onexflow.ports.client_link import EventView
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import until


def fan(**options: Any) -> WorkflowBuilder:
    flow = workflow("fan")
    items = flow.compute("item", map="input", **options)
    flow.reducer("total", depends_on=[items])
    return flow


class Work:
    """Handlers that take so long; items in `bad` fail, `calls` counts them."""

    def __init__(self, seconds: float, *, bad: frozenset[int] = frozenset()) -> None:
        self.worker = Worker("fan")
        self.calls = 0
        draw = random.Random(1)

        @self.worker.compute("item")
        async def item(number: int) -> int:
            self.calls += 1
            await asyncio.sleep(seconds * draw.random() * 2)
            if number in bad:
                raise ValueError(number)
            return number * 2

        @self.worker.reducer("total")
        async def total(numbers: list[int]) -> int:
            return sum(numbers)


def outcomes(history: list[EventView]) -> list[int]:
    """Which items have their result in the history, each as often as it stands there."""
    ended = [event for event in history if event.type == "task.completed" and event.task == "item"]
    return [item for event in ended for item in event.data["items"]]


async def of(cluster: Cluster, work: Work, flow: WorkflowBuilder, workers: int = 1) -> None:
    await cluster.register(flow.build())
    for number in range(workers):
        await cluster.add_worker(work.worker, f"w{number}")


@pytest.mark.parametrize(("workers", "seconds"), [(1, 0.0), (4, 0.02), (4, 0.3)])
@virtual_time
async def test_ten_thousand_items_make_less_than_two_thousand_events(workers: int, seconds: float) -> None:
    count = 10_000
    async with Cluster() as cluster:
        work = Work(seconds)
        await of(cluster, work, fan(), workers)
        key = (await cluster.start("fan", list(range(count)))).key
        assert await cluster.result(key) == sum(range(count)) * 2
        history = await cluster.history(key)
        assert len(history) < 2000
        assert sorted(outcomes(history)) == list(range(count))
        assert work.calls == count


@virtual_time
async def test_the_last_results_are_not_held_and_neither_are_those_of_narrow_tasks() -> None:
    async with Cluster() as cluster:
        await of(cluster, Work(0.0), fan())
        for count in (10, 300):
            began = asyncio.get_running_loop().time()
            await cluster.run("fan", list(range(count)))
            assert asyncio.get_running_loop().time() - began < HOLD_SECONDS


@pytest.mark.parametrize("fault", ["orchestrator", "worker", "drained"])
@virtual_time
async def test_what_is_held_is_not_lost(fault: str) -> None:
    """Whichever of the two dies: no item runs again whose result had come."""
    count = 5_000
    async with Cluster() as cluster:
        work = Work(0.3)
        await of(cluster, work, fan())
        key = (await cluster.start("fan", list(range(count)))).key
        await asyncio.sleep(HOLD_AT_MOST / 2)  # some ten have come, too few for an event
        came = work.calls
        gatherer = cluster.engine._book.gatherer
        held = sum(gatherer._held.values())
        assert held
        await cluster.add_worker(work.worker, "next")
        if fault == "orchestrator":
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
        elif fault == "worker":
            cluster.kill_worker("w0")
        else:
            await cluster.stop_worker("w0")
        await until(lambda: not gatherer._held, HOLD_SECONDS)
        assert await cluster.result(key) == sum(range(count)) * 2
        assert sorted(outcomes(await cluster.history(key))) == list(range(count))
        assert work.calls - count <= came - held
        if fault == "orchestrator":
            assert work.calls == count


@pytest.mark.parametrize("action", ["cancel", "pause"])
@virtual_time
async def test_what_came_before_a_command_is_recorded_before_it(action: Any) -> None:
    async with Cluster() as cluster:
        await of(cluster, Work(0.3), fan())
        key = (await cluster.start("fan", list(range(1000)))).key
        await asyncio.sleep(0.5)
        held = sum(cluster.engine._book.gatherer._held.values())
        await cluster.control(key, action)
        history = await cluster.history(key)
        assert 0 < held <= len(outcomes(history))
        assert history[-1].type in {"workflow.cancelled", "workflow.paused"}
        if action == "pause":
            await cluster.control(key, "resume")
            assert await cluster.result(key) == sum(range(1000)) * 2


@virtual_time
async def test_results_that_came_before_a_failure_or_a_time_limit_stand_before_it() -> None:
    async with Cluster() as cluster:
        await of(cluster, Work(0.05, bad=frozenset({500})), fan(retry=RetryPolicy(max_attempts=1)))
        key = (await cluster.start("fan", list(range(1000)))).key
        with pytest.raises(RunFailed):
            await cluster.result(key)
        failed = await cluster.history(key)
        before = next(number for number, event in enumerate(failed) if event.type == "task.failed")
        assert len(outcomes(failed[:before])) == len(outcomes(failed)) > 400


@virtual_time
async def test_a_result_that_is_held_has_come_in_time() -> None:
    async with Cluster() as cluster:
        await of(cluster, work := Work(0.9), fan(timeouts=Timeouts(start_to_close=2.0)))
        count = 3_000
        assert await cluster.run("fan", list(range(count))) == sum(range(count)) * 2
        assert work.calls == count, "none was taken for late and done again"
