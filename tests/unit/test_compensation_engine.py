"""Runs that are undone, in a whole cluster: killed workers, crashed orchestrators, late results, and what people see."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidTransition
from onexflow.core.ids import RunKey
from onexflow.testing import Cluster, virtual_time
from onexflow.worker import Fatal
from support.engine_kit import Script, ready, types, until

ONCE = RetryPolicy(policy="none")


def saga(undo: str = "send") -> WorkflowBuilder:
    """book, then pay, both by the effect `charge` and undone by `undo`; then the compute `work`."""
    flow = workflow("saga")
    book = flow.effect("book", handler="charge", compensation=undo, input="`1`")
    pay = flow.effect("pay", handler="charge", compensation=undo, depends_on=[book], input="`2`")
    flow.compute("rest", handler="work", depends_on=[pay], retry=ONCE)
    return flow


async def at_rest(cluster: Cluster, script: Script, undo: str = "send") -> RunKey:
    """A run whose effects are done, and which works on the rest."""
    script.gate("work")
    await ready(cluster, script, saga(undo))
    key = (await cluster.start("saga")).key
    await script.called("work")
    return key


def called(script: Script) -> list[str]:
    """Names of the tasks whose handlers were called, in order, without the rest."""
    return [call.task for call in script.calls if call.task != "rest"]


DONE = ["book", "pay"]
UNDONE = ["pay.undo", "book.undo"]


@virtual_time
async def test_a_cancelled_run_is_undone_and_says_so() -> None:
    script = Script()
    async with Cluster() as cluster:
        key = await at_rest(cluster, script)
        gate = script.gate("send")
        assert (await cluster.control(key, "cancel", reason="enough")).changed
        await script.called("send")
        view = await cluster.state(key)
        assert (view.state, view.outcome, view.reason) == ("compensating", "cancelled", "enough")
        states = {task.name: task.state for task in view.tasks}
        assert states == {
            "book": "completed", "pay": "completed", "rest": "cancelled", "book.undo": "blocked", "pay.undo": "running",
        }  # fmt: skip
        assert view.blocked_because == "pay.undo: running on w1"
        assert (await cluster.task(key, "book.undo")).blocked_because == "waits for pay.undo"
        assert not (await cluster.control(key, "cancel", reason="again")).changed
        for action in ("pause", "resume"):
            with pytest.raises(InvalidTransition):
                await cluster.control(key, action)
        gate.set()
        outcome = await cluster.wait(key)
        assert (outcome.state, outcome.result) == ("compensated", None)
        assert outcome.error is not None
        assert outcome.error.context == {"outcome": "cancelled"}
        assert called(script) == DONE + UNDONE
        assert [call.contract for call in script.calls if call.handler == "send"] == [
            {"input": 2, "result": 2}, {"input": 1, "result": 1},
        ]  # fmt: skip
        view = await cluster.state(key)
        assert (view.state, view.outcome, view.blocked_because) == ("compensated", "cancelled", "")
        assert view.error is not None
        assert view.error.type == "Cancelled"
        history = types(await cluster.history(key))
        begun = history.index("workflow.cancelled/compensating")
        assert history[begun + 1] == "compensation.started/cancelled"
        assert history[-1] == "compensation.completed/cancelled"


@virtual_time
async def test_a_run_that_fails_is_undone_and_its_error_is_told() -> None:
    script = Script()
    script.errors["work"].append(Fatal("no more"))
    async with Cluster() as cluster:
        await ready(cluster, script, saga())
        key = (await cluster.start("saga")).key
        outcome = await cluster.wait(key)
        assert outcome.state == "compensated"
        assert outcome.error is not None
        assert outcome.error.context is not None
        assert outcome.error.message == "no more"
        assert outcome.error.context["outcome"] == "failed"
        assert called(script) == DONE + UNDONE


@virtual_time
async def test_a_run_that_times_out_is_undone() -> None:
    script = Script()
    async with Cluster() as cluster:
        script.gate("work")
        await ready(cluster, script, saga())
        key = (await cluster.start("saga", timeout=20.0)).key
        outcome = await cluster.wait(key)
        assert (outcome.state, called(script)) == ("compensated", DONE + UNDONE)
        assert (await cluster.state(key)).outcome == "timeout"


@virtual_time
async def test_nothing_to_undo_is_cancelled() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.register(saga().build())
        key = (await cluster.start("saga")).key
        await cluster.control(key, "cancel", reason="enough")
        assert (await cluster.wait(key)).state == "cancelled"
        assert (await cluster.state(key)).outcome == ""
        assert [task.name for task in (await cluster.state(key)).tasks] == ["book", "pay", "rest"]
        assert called(script) == []


@virtual_time
async def test_an_undoing_that_fails_for_good_fails_the_run_with_both_errors() -> None:
    script = Script()
    script.errors["send"] += [ValueError("not now"), Fatal("it is gone")]
    async with Cluster() as cluster:
        key = await at_rest(cluster, script)
        await cluster.control(key, "cancel", reason="enough")
        outcome = await cluster.wait(key)
        assert outcome.state == "failed"
        assert outcome.error is not None
        assert outcome.error.type == "CompensationFailed"
        assert "pay could not be undone: " in outcome.error.message
        assert "it is gone" in outcome.error.message
        assert "cancelled (enough)" in outcome.error.message
        assert called(script) == [*DONE, "pay.undo", "pay.undo"], "tried again first, as any effect"
        assert (await cluster.state(key)).outcome == "cancelled"


@pytest.mark.parametrize("stubborn", [True, False])
def test_a_running_effect_is_told_to_stop_and_its_late_result_is_undone(stubborn: bool) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate("charge")
        async with Cluster() as cluster:
            await ready(cluster, script, saga())
            key = (await cluster.start("saga")).key
            await script.called("charge")
            if stubborn:
                script.stubborn.add("charge")
            await cluster.control(key, "cancel")
            await until(lambda: script.cancelled["charge"])
            if stubborn:
                await asyncio.sleep(60)
                view = await cluster.state(key)
                assert view.state == "compensating"
                assert view.blocked_because == "book: told to stop (compensation) on w1"
                assert script.count("send") == 0
                gate.set()
            assert (await cluster.wait(key)).state == "compensated"
            assert called(script) == (["book", "book.undo"] if stubborn else ["book"])
            assert (await cluster.task(key, "book")).state == ("completed" if stubborn else "cancelled")

    scenario()


@virtual_time
async def test_an_effect_that_was_authorised_and_has_not_left_never_leaves() -> None:
    script = Script()
    async with Cluster() as cluster:
        await cluster.register(saga().build())
        key = (await cluster.start("saga")).key
        adding = asyncio.create_task(cluster.add_worker(script.worker("w1"), "w1"))
        run = cluster.engine._kernel.resident(key)
        assert run is not None
        while run.state.tasks[0].status != "running":
            await asyncio.sleep(0)
        assert run.durable_seq < run.state.seq, "it is authorised, and that is not durable"
        await cluster.control(key, "cancel")
        await adding
        assert (await cluster.wait(key)).state == "compensated"
        assert called(script) == []


@virtual_time
async def test_a_worker_killed_while_it_undoes_costs_another_attempt() -> None:
    script = Script()
    async with Cluster() as cluster:
        key = await at_rest(cluster, script)
        gate = script.gate("send")
        await cluster.control(key, "cancel")
        await script.called("send")
        await cluster.add_worker(script.worker("w2"), "w2")
        cluster.kill_worker("w1")
        await script.called("send", 2)
        gate.set()
        assert (await cluster.wait(key)).state == "compensated"
        assert called(script) == [*DONE, "pay.undo", *UNDONE]


@pytest.mark.parametrize("answer", ["result", "fail"])
def test_an_undoing_of_unknown_outcome_asks_a_person(answer: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        async with Cluster() as cluster:
            key = await at_rest(cluster, script, undo="charge")
            script.gate("charge")
            await cluster.control(key, "cancel")
            await script.called("charge", 3)
            await cluster.add_worker(script.worker("w2"), "w2")
            cluster.kill_worker("w1")
            await asyncio.sleep(3600)
            view = await cluster.state(key)
            assert view.state == "compensating"
            assert "resolve it" in view.blocked_because
            script.gates.clear()
            given = {"result": "by hand"} if answer == "result" else {"fail": "lost"}
            await cluster.control(key, "resolve", task="pay.undo", **given)
            outcome = await cluster.wait(key)
            assert outcome.state == ("compensated" if answer == "result" else "failed")

    scenario()


@virtual_time
async def test_a_lost_effect_is_brought_to_its_end_before_it_is_undone() -> None:
    flow = workflow("one")
    flow.effect("a", handler="send", compensation="charge")
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("one", 5)).key
        await script.called("send")
        script.stubborn.add("send")
        await cluster.control(key, "cancel")
        cluster.kill_worker("w1")
        await asyncio.sleep(60)
        assert (await cluster.state(key)).state == "compensating"
        gate.set()
        await cluster.add_worker(script.worker("w2"), "w2")
        assert (await cluster.wait(key)).state == "compensated"
        assert called(script) == ["a", "a", "a.undo"]


@pytest.mark.parametrize("phase", ["asked", "stopping", "undoing", "between", "parked"])
def test_an_orchestrator_that_dies_while_a_run_is_undone_goes_on_with_it(phase: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        async with Cluster() as cluster:
            if phase == "stopping":
                script.stubborn.add("charge")
                script.gate("charge")
                await ready(cluster, script, saga())
                key = (await cluster.start("saga")).key
                await script.called("charge")
            else:
                key = await at_rest(cluster, script)
            if phase in {"undoing", "between"}:
                script.gate("send")
            if phase == "parked":
                await cluster.stop_worker("w1")
            await cluster.control(key, "cancel", reason="enough")
            if phase in {"undoing", "between"}:
                await script.called("send")
            if phase == "between":
                script.gate("send").set()
            if phase == "parked":
                await asyncio.sleep(3600)
            await cluster.crash_orchestrator()
            await asyncio.sleep(1)
            await cluster.restart_orchestrator()
            for gate in script.gates.values():
                gate.set()
            if phase == "parked":
                await cluster.add_worker(script.worker("w2"), "w2")
            assert (await cluster.wait(key)).state == "compensated"
            view = await cluster.state(key)
            assert (view.outcome, view.reason) == ("cancelled", "enough")
            assert called(script) == (["book", "book.undo"] if phase == "stopping" else DONE + UNDONE)

    scenario()


@pytest.mark.parametrize("offset", range(20))
def test_a_crash_at_any_moment_of_the_undoing_runs_nothing_twice(offset: int) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        async with Cluster() as cluster:
            key = await at_rest(cluster, script)
            asking = asyncio.create_task(cluster.control(key, "cancel", reason="enough"))
            for _ in range(3 * offset):
                await asyncio.sleep(0)
            await cluster.crash_orchestrator()
            await asyncio.gather(asking, return_exceptions=True)
            await cluster.restart_orchestrator()
            if (await cluster.state(key)).state != "compensated":
                await cluster.control(key, "cancel", reason="enough")
            assert (await cluster.wait(key)).state == "compensated"
            assert called(script) == DONE + UNDONE

    scenario()
