"""Graphs in the engine: conditions, skips, soft parents, set-up, maps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import RunFailed
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, types, until

NEVER = RetryPolicy(policy="none")


async def states(cluster: Cluster, key) -> dict[str, str]:
    return {task.name: task.state for task in (await cluster.state(key)).tasks}


@virtual_time
async def test_a_false_condition_skips_the_task_and_all_behind_it_but_not_what_comes_after() -> None:
    script = Script()
    flow = workflow("w")
    a = flow.compute("a", handler="calc", when="input.yes", input="input")
    b = flow.compute("b", handler="work", depends_on=[a])
    flow.compute("c", handler="work", depends_on=[b])
    flow.reducer("d", handler="sum", after=[b], input={"b": b})
    async with Cluster() as cluster:
        await cluster.register(flow.build(output="tasks.d"))
        await cluster.add_worker(script.worker())
        key = (await cluster.start("w", {"yes": False})).key
        assert await cluster.result(key) == {"b": None}
        assert await states(cluster, key) == {"a": "skipped", "b": "skipped", "c": "skipped", "d": "completed"}
        assert types(await cluster.history(key)).count("state.transitioned/task.skipped") == 1, "the rest is derived"
        assert await cluster.run("w", {"yes": True}) == {"b": {"yes": True}}


@virtual_time
async def test_an_allowed_failure_skips_what_depends_on_it_and_the_run_goes_on() -> None:
    script = Script()
    script.errors["calc"] = [ValueError("no")]
    flow = workflow("w")
    a = flow.compute("a", handler="calc", allow_failure=True, retry=NEVER, input="input")
    flow.compute("b", handler="work", depends_on=[a])
    flow.compute("c", handler="work", after=[a], input="input")
    async with Cluster() as cluster:
        await cluster.register(flow.build(output="tasks.c"))
        await cluster.add_worker(script.worker())
        key = (await cluster.start("w", 5)).key
        assert await cluster.result(key) == 5
        assert await states(cluster, key) == {"a": "failed", "b": "skipped", "c": "completed"}


@virtual_time
async def test_a_failure_ends_the_run_and_cancels_what_runs_beside_it() -> None:
    script = Script()
    script.gate("send")
    script.errors["calc"] = [ValueError("no")]
    flow = workflow("w")
    flow.effect("a", handler="send")
    flow.compute("b", handler="calc", retry=NEVER, input="input")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("w", 5)).key
        with pytest.raises(RunFailed, match="no"):
            await cluster.result(key)
        assert await states(cluster, key) == {"a": "cancelled", "b": "failed"}
        await asyncio.sleep(1)
        assert script.cancelled["send"] == script.count("send")


@virtual_time
async def test_setup_runs_first_while_the_run_is_initializing() -> None:
    script = Script()
    gate = script.gate("calc")
    flow = workflow("w")
    flow.compute("prepare", handler="calc", setup=True, input="input")
    flow.compute("main", handler="work", input="input")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("w", 5)).key
        await script.called("calc")
        assert (await cluster.state(key)).state == "initializing"
        assert await states(cluster, key) == {"prepare": "running", "main": "blocked"}
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        gate.set()
        await cluster.wait(key)
        history = types(await cluster.history(key))
        assert history[:2] == ["workflow.created", "state.transitioned/run.initializing"]
        assert history.index("workflow.started") > history.index("task.completed")
        assert await states(cluster, key) == {"prepare": "completed", "main": "completed"}


@virtual_time
async def test_a_failing_setup_fails_the_run_before_anything_else_began() -> None:
    script = Script()
    script.errors["calc"] = [ValueError("no")]
    flow = workflow("w")
    flow.compute("prepare", handler="calc", setup=True, retry=NEVER, input="input")
    flow.compute("main", handler="work", input="input")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("w", 5)).key
        assert (await cluster.wait(key)).state == "failed"
        assert script.count("work") == 0
        assert "workflow.started" not in types(await cluster.history(key))


@pytest.mark.parametrize("expression", ["input.items.x[0].y", "input.text"])
def test_a_mapping_that_fails_fails_its_task_with_the_place(expression: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        flow = workflow("w")
        flow.compute("a", handler="calc", map=expression)
        async with Cluster() as cluster:
            await ready(cluster, script, flow)
            with pytest.raises(RunFailed, match=r"tasks\[0\]\.map") as raised:
                await cluster.start("w", {"text": "no list"})
            assert raised.value.context["error"] == "MappingError"
            assert raised.value.context["task"] == "a"

    scenario()


@virtual_time
async def test_maps_over_nothing_one_and_some() -> None:
    script = Script()
    flow = workflow("w")
    a = flow.compute("a", handler="calc", map="input")
    flow.reducer("b", handler="sum", depends_on=[a])
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        for items in ([], [1], [3, 1, 2]):
            assert await cluster.run("w", items) == items


@virtual_time
async def test_ten_thousand_items_stay_under_two_thousand_events() -> None:
    script = Script()
    flow = workflow("w")
    a = flow.compute("a", handler="calc", map="input")
    flow.reducer("b", handler="sum", depends_on=[a])
    script.answers["sum"] = sum
    async with Cluster() as cluster:
        await cluster.register(flow.build())
        for number in (1, 2):
            await cluster.add_worker(script.worker(f"w{number}"), f"w{number}", slots={"compute": 64, "reducer": 1})
        key = (await cluster.start("w", list(range(10_000)))).key
        assert await cluster.result(key) == sum(range(10_000))
        assert script.count("calc") == 10_000
        history = await cluster.history(key)
        assert len(history) < 2_000
        assert [e.sequence for e in history] == list(range(1, len(history) + 1))


@pytest.mark.parametrize(("role", "handler"), [("compute", "calc"), ("effect", "send")])
def test_max_parallel_bounds_what_is_in_flight(role: str, handler: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        flow = workflow("w")
        getattr(flow, role)("a", handler=handler, map="input", max_parallel=3)
        async with Cluster() as cluster:
            await ready(cluster, script, flow, workers=2)
            key = (await cluster.start("w", list(range(20)))).key
            await script.called(handler, 3)
            await asyncio.sleep(5)
            assert script.count(handler) == 3
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
            await asyncio.sleep(5)
            assert script.count(handler) == 3
            gate.set()
            assert await cluster.result(key) == list(range(20))
            assert script.peak[handler] == 3
            assert script.count(handler) == 20

    scenario()


@virtual_time
async def test_items_are_retried_one_by_one_and_one_that_fails_for_good_stops_the_others() -> None:
    script = Script()
    flow = workflow("w")
    flow.compute("a", handler="calc", map="input", retry=RetryPolicy(policy="fixed", initial_delay=1, max_attempts=2))
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        script.errors["calc"] = [ValueError("once")]
        assert await cluster.run("w", [1, 2, 3]) == [1, 2, 3]
        assert script.count("calc") == 4
        script.errors["calc"] = [ValueError("always")] * 100
        key = (await cluster.start("w", [1, 2, 3])).key
        outcome = await cluster.wait(key)
        assert outcome.state == "failed"
        assert "item" in (outcome.error.context or {})


@virtual_time
async def test_a_long_history_is_read_back_from_its_snapshot_and_tail() -> None:
    script = Script()
    flow = workflow("w")
    before = flow.effect("t0", handler="send", input="input")
    for number in range(1, 400):
        before = flow.effect(f"t{number}", handler="send", depends_on=[before])
    async with Cluster() as cluster:
        await ready(cluster, script, flow)

        def answer(value: Any) -> Any:
            if script.count("send") == 300:
                script.gate("send")
            return value

        script.answers["send"] = answer
        key = (await cluster.start("w", 5)).key
        await script.called("send", 301)
        gate = script.gates["send"]
        await asyncio.sleep(1)
        kernel = cluster.engine._kernel
        run = kernel.resident(key)
        assert run is not None
        snapshot = await cluster.store.load_snapshot(run.shard.id, run.iid)
        assert snapshot is not None
        assert 0 < snapshot.seq < run.state.seq
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        gate.set()
        assert await cluster.result(key) == 5
        assert script.count("send") == 400


@virtual_time
async def test_following_hears_every_event_once_from_anywhere() -> None:
    script = Script()
    gate = script.gate("calc")
    flow = workflow("w")
    flow.compute("a", handler="calc", input="input")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("w", 5)).key

        async def heard(start: int) -> list[int]:
            return [event.sequence async for event in cluster.follow(key, start)]

        followers = [asyncio.create_task(heard(start)) for start in (1, 2, 6)]
        await script.called("calc")
        await asyncio.sleep(1)
        gate.set()
        await cluster.result(key)
        assert [await follower for follower in followers] == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [6]]
        assert await heard(3) == [3, 4, 5, 6]
        await until(lambda: not cluster.engine._queries._wakes)
