"""Rule 5: pure tasks may leave before what they were scheduled by is durable, effects never; and it can be switched off."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.ids import RunKey
from onexflow.ports.worker_link import Assignment, Assignments
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, until
from support.slow_store import STEPS, waited

COMMIT = 0.01


@virtual_time
async def test_a_chain_of_pure_tasks_waits_for_one_commit() -> None:
    assert (await waited("compute", COMMIT, speculation=True)).commits == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("role", "speculation"), [("compute", False), ("effect", True), ("effect", False)])
def test_without_speculation_as_for_effects_every_step_waits_for_its_commit(role: str, speculation: bool) -> None:
    @virtual_time
    async def run() -> float:
        return (await waited(role, COMMIT, speculation=speculation)).commits

    assert run() == pytest.approx(STEPS + 1, abs=0.3)


def sent(cluster: Cluster) -> list[Assignment]:
    """What has left for the worker, delivered or not."""
    stream = cluster.workers["w1"].stream
    assert stream is not None
    messages = [*stream.log, *stream.pending_down(Assignments)]
    return [one for message in messages if isinstance(message, Assignments) for one in message.assignments]


def mixed() -> WorkflowBuilder:
    """Computes before, beside and behind an effect, and a reducer."""
    flow = workflow("mixed")
    first = flow.compute("first", handler="calc", input="input")
    second = flow.compute("second", handler="calc", input="input", depends_on=[first])
    effect = flow.effect("effect", handler="charge", input="input", depends_on=[first])
    flow.reducer("last", handler="sum", depends_on=[second, effect])
    return flow


@pytest.mark.parametrize(("speculation", "ahead"), [(True, {"first", "second"}), (False, set[str]())])
def test_while_a_commit_is_held_no_effect_leaves(speculation: bool, ahead: set[str]) -> None:
    @virtual_time
    async def run() -> None:
        clock = VirtualClock()
        store = FaultyStore(MemoryStore(clock))
        async with Cluster(store=store, clock=clock, speculation=speculation) as cluster:
            await ready(cluster, Script(), mixed())
            instance = cluster.ids.uuid()
            key = RunKey("default", "mixed", instance)
            store.hold()
            start = asyncio.ensure_future(cluster.start("mixed", 5, instance_id=instance))
            await asyncio.sleep(1)
            assert {one.info.name for one in sent(cluster)} == ahead
            store.release()
            await start
            await until(lambda: "last" in {one.info.name for one in sent(cluster)})
            await cluster.result(key)

    run()


@virtual_time
async def test_what_was_sent_ahead_of_a_commit_that_never_comes_leaves_no_trace() -> None:
    """Power is cut before the commit: the pure task has run, and the run was never acknowledged."""
    clock = VirtualClock()
    memory = MemoryStore(clock)
    store = FaultyStore(memory)
    async with Cluster(store=store, clock=clock) as cluster:
        script = Script()
        await ready(cluster, script, mixed())
        store.hold()
        start = asyncio.ensure_future(cluster.start("mixed", 5))
        await script.called("calc", 2)
        store.cut_power()
        await cluster.crash_orchestrator()
        await asyncio.gather(start, return_exceptions=True)
        cluster.store = FaultyStore(memory)
        await cluster.restart_orchestrator()
        await asyncio.sleep(5)
        runs, _ = await cluster.engine.list_runs("default")
        assert not runs
        assert script.count("charge") == 0
