"""A run's life in the engine, in virtual time: starts, people, and bugs of ours."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from onexflow.core.builder import workflow
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    RunExists,
    UnknownRun,
    UnknownTask,
    UnknownWorkflowType,
)
from onexflow.core.ids import RunKey
from onexflow.engine import housekeeping, kernel
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single, until

ID = UUID("0192d3a0-0000-7000-8000-000000000001")


# ---- starts


@virtual_time
async def test_a_start_is_idempotent_by_its_instance_id_also_after_its_end_and_a_restart() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        first = await cluster.start("single", 5, instance_id=ID)
        assert first.created
        assert not (await cluster.start("single", 5, instance_id=ID)).created
        with pytest.raises(RunExists) as raised:
            await cluster.start("single", 6, instance_id=ID)
        assert raised.value.context["required_state"] == "no such run"
        assert await cluster.result(first.key) == 5
        for _ in range(2):
            again = await cluster.start("single", 5, instance_id=ID)
            assert (again.created, again.state) == (False, "completed")
            with pytest.raises(RunExists):
                await cluster.start("single", 5, instance_id=ID, correlation_id="other")
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
        assert script.count("calc") == 1


@virtual_time
async def test_a_start_is_idempotent_by_its_request_id() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        first, second = await asyncio.gather(
            cluster.start("single", 5, request_id="r1"), cluster.start("single", 5, request_id="r1")
        )
        assert first.key == second.key
        assert {first.created, second.created} == {True, False}
        with pytest.raises(InvalidArgument) as raised:
            await cluster.start("single", 6, request_id="r1")
        assert raised.value.context["field"] == "request_id"
        await cluster.result(first.key)
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        third = await cluster.start("single", 5, request_id="r1")
        assert (third.key, third.created) == (first.key, False)


@pytest.mark.parametrize("field", ["delay", "timeout"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_senseless_duration_is_refused_by_name(field: str, seconds: float) -> None:
    @virtual_time
    async def scenario() -> None:
        async with Cluster() as cluster:
            await ready(cluster, Script(), single("compute", "calc"))
            with pytest.raises(InvalidArgument) as raised:
                await cluster.start("single", 5, **{field: seconds})
            assert raised.value.context["field"] == field
            assert await cluster.run("single", 5) == 5

    scenario()


@virtual_time
async def test_unknown_things_have_their_own_errors() -> None:
    async with Cluster(payload_limit=100) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        with pytest.raises(UnknownWorkflowType) as raised:
            await cluster.start("nonesuch")
        assert raised.value.context["known"] == ["single"]
        absent = RunKey("default", "single", ID)
        for call in (cluster.state, cluster.wait, cluster.history):
            with pytest.raises(UnknownRun):
                await call(absent)
        with pytest.raises(UnknownRun):
            await cluster.control(absent, "pause")
        with pytest.raises(UnknownRun):
            _ = [event async for event in cluster.follow(absent)]
        with pytest.raises(InvalidArgument, match="limit is 100"):
            await cluster.start("single", "x" * 200)
        key = (await cluster.start("single", 1)).key
        with pytest.raises(UnknownTask):
            await cluster.control(key, "resolve", task="b", retry=True)


@virtual_time
async def test_a_delayed_start_is_pending_until_its_time_also_through_a_restart() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5, delay=3600)).key
        view = await cluster.state(key)
        assert (view.state, view.blocked_because) == ("pending", "starts at 2026-01-01T01:00:00Z")
        await asyncio.sleep(600)
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 5
        assert script.calls[0].at == pytest.approx(3600, abs=1)


@virtual_time
async def test_a_pending_run_can_be_cancelled() -> None:
    async with Cluster() as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        key = (await cluster.start("single", 5, delay=60)).key
        await cluster.control(key, "cancel", reason="not needed")
        assert (await cluster.wait(key)).state == "cancelled"


# ---- people


@virtual_time
async def test_what_runs_while_paused_ends_and_is_recorded_and_nothing_new_begins() -> None:
    script = Script()
    gate = script.gate("send")
    flow = workflow("pair")
    first = flow.effect("a", handler="send", input="input")
    flow.compute("b", handler="calc", depends_on=[first])
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("pair", 5)).key
        await script.called("send")
        assert (await cluster.control(key, "pause", reason="lunch")).changed
        assert not (await cluster.control(key, "pause")).changed
        gate.set()
        await asyncio.sleep(300)
        view = await cluster.state(key)
        assert (view.state, view.blocked_because) == ("paused", "paused: lunch")
        assert [task.state for task in view.tasks] == ["completed", "pending"]
        assert script.count("calc") == 0
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert (await cluster.state(key)).state == "paused"
        assert (await cluster.control(key, "resume")).changed
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_paused_run_whose_last_task_ends_stays_paused() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.control(key, "pause")
        gate.set()
        await asyncio.sleep(10)
        assert (await cluster.state(key)).state == "paused"
        await cluster.control(key, "resume")
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_cancel_reaches_what_runs_and_is_final() -> None:
    script = Script()
    script.gate("charge")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        key = (await cluster.start("single", 5)).key
        await script.called("charge")
        assert (await cluster.control(key, "cancel", reason="stop it")).state == "cancelled"
        outcome = await cluster.wait(key)
        assert (outcome.state, outcome.error.message if outcome.error else "") == ("cancelled", "stop it")
        await asyncio.sleep(1)
        assert script.cancelled["charge"] == 1
        for action in ("pause", "resume"):
            with pytest.raises(InvalidTransition) as raised:
                await cluster.control(key, action)
            assert raised.value.context["current_state"] == "cancelled"
        assert not (await cluster.control(key, "cancel")).changed


@virtual_time
async def test_a_repeated_request_has_its_first_answer_also_after_a_restart() -> None:
    script = Script()
    script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        first = await cluster.control(key, "pause", request_id="r1")
        assert first.changed
        await cluster.control(key, "resume")
        assert await cluster.control(key, "pause", request_id="r1") == first
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert await cluster.control(key, "pause", request_id="r1") == first
        assert (await cluster.state(key)).state == "running"
        with pytest.raises(InvalidArgument):
            await cluster.control(key, "cancel", request_id="r1")


# ---- bugs of ours


@virtual_time
async def test_a_decision_that_fails_by_a_bug_hurts_only_its_run_and_is_made_again() -> None:
    script = Script()
    gates = script.gate("charge"), script.gate("calc")
    real = kernel.decide  # type: ignore[attr-defined]  # patched below
    broken = {"charge": 2, "calc": 2}

    def decide(graph, state, command, context):
        if type(command).__name__ == "CompleteItems":
            handler = graph.specs[0].handler
            if broken[handler] and state.input.data == b"13":
                broken[handler] -= 1
                raise ZeroDivisionError("a bug")
        return real(graph, state, command, context)

    patch = pytest.MonkeyPatch()
    patch.setattr(kernel, "decide", decide)
    try:
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", "charge", "e"), single("compute", "calc", "c"))
            keys = [(await cluster.start(name, number)).key for name in ("e", "c") for number in (13, 5)]
            await script.called("charge", 2)
            await script.called("calc", 2)
            for gate in gates:
                gate.set()
            async with asyncio.timeout(100):
                assert [await cluster.result(key) for key in keys] == [13, 5, 13, 5]
            assert broken == {"charge": 0, "calc": 0}
            assert script.count("charge") == 2
            await until(lambda: not cluster.workers["w1"].runtime.statistics().unacknowledged)
    finally:
        patch.undo()


def test_the_answer_to_a_request_id_is_kept_for_so_long_and_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(housekeeping, "FORGET_SECONDS", 10.0)

    @virtual_time
    async def story() -> None:
        async with Cluster() as cluster:
            await cluster.register(single("compute", "calc").build())
            key = (await cluster.start("single", 5)).key
            first = await cluster.control(key, "pause", request_id="r1")
            await asyncio.sleep(55)
            assert await cluster.control(key, "pause", request_id="r1") == first
            assert (await cluster.store.statistics())["requests"] == 1
            await asyncio.sleep(20)
            assert (await cluster.store.statistics())["requests"] == 0

    story()
