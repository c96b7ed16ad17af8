"""A run's life in the engine, in virtual time: starts, retries, timeouts, people, parking."""

from __future__ import annotations

import asyncio
import itertools
from uuid import UUID

import pytest

from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, RunRetry, Timeouts
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    RunExists,
    RunFailed,
    UnknownRun,
    UnknownTask,
    UnknownWorkflowType,
)
from onexflow.core.ids import RunKey
from onexflow.engine import housekeeping, kernel
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.errors import Fatal, Retry
from support.engine_kit import Script, ready, single, types, until

ID = UUID("0192d3a0-0000-7000-8000-000000000001")


def now() -> float:
    return asyncio.get_running_loop().time()


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


# ---- retries and timeouts


@virtual_time
async def test_retries_wait_as_their_policy_says() -> None:
    script = Script()
    policies = {
        "fixed": (RetryPolicy(policy="fixed", initial_delay=2, jitter=0, max_attempts=4), [2, 2, 2]),
        "linear": (RetryPolicy(policy="linear", initial_delay=2, jitter=0, max_attempts=4), [2, 4, 6]),
        "exponential": (RetryPolicy(initial_delay=2, jitter=0, multiplier=3, max_delay=10, max_attempts=4), [2, 6, 10]),
    }
    async with Cluster() as cluster:
        await ready(
            cluster, script, *(single("compute", "calc", name, retry=policy) for name, (policy, _) in policies.items())
        )
        for name, (_, waits) in policies.items():
            script.calls.clear()
            script.errors["calc"] = [ValueError("no")] * 3
            assert await cluster.run(name, 5) == 5
            times = [call.at for call in script.calls]
            assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx(waits, abs=0.01)


@virtual_time
async def test_jitter_stays_within_its_bounds() -> None:
    script = Script()
    policy = RetryPolicy(policy="fixed", initial_delay=10, jitter=0.5, max_attempts=20)
    async with Cluster(seed=7) as cluster:
        await ready(cluster, script, single("compute", "calc", retry=policy))
        script.errors["calc"] = [ValueError("no")] * 19
        await cluster.run("single", 5)
        times = [call.at for call in script.calls]
        waits = [b - a for a, b in itertools.pairwise(times)]
        assert all(4.99 < wait < 10.01 for wait in waits)
        assert max(waits) - min(waits) > 1


@virtual_time
async def test_what_is_not_to_be_retried_fails_at_once() -> None:
    script = Script()
    policy = RetryPolicy(non_retryable=("KeyError",))
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc", retry=policy))
        for error in (KeyError("x"), Fatal("no use")):
            script.calls.clear()
            script.errors["calc"] = [error]
            with pytest.raises(RunFailed) as raised:
                await cluster.run("single", 5)
            assert raised.value.context["error"] == type(error).__name__
            assert script.count("calc") == 1


@virtual_time
async def test_a_handler_may_say_when_to_try_again() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        script.errors["calc"] = [Retry("busy", after=77)]
        await cluster.run("single", 5)
        assert script.calls[1].at - script.calls[0].at == pytest.approx(77, abs=0.01)


@virtual_time
async def test_schedule_to_start_times_out_without_a_worker() -> None:
    async with Cluster() as cluster:
        await cluster.register(single("compute", "calc", timeouts=Timeouts(schedule_to_start=30)).build())
        key = (await cluster.start("single", 5)).key
        assert "no worker with compute handler calc" in (await cluster.task(key, "a")).blocked_because
        assert (await cluster.wait(key)).state == "failed"
        assert (await cluster.task(key, "a")).state == "timeout"
        assert now() == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize(("role", "handler"), [("compute", "calc"), ("effect", "send"), ("effect", "charge")])
@pytest.mark.parametrize("timeout", ["start_to_close", "schedule_to_close", "heartbeat"])
def test_a_running_attempt_times_out(role: str, handler: str, timeout: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        script.gate(handler)
        flow = single(role, handler, timeouts=Timeouts(**{timeout: 20}), retry=RetryPolicy(policy="none"))
        async with Cluster() as cluster:
            await ready(cluster, script, flow)
            key = (await cluster.start("single", 5)).key
            outcome = await cluster.wait(key)
            assert outcome.state == "failed"
            assert outcome.error is not None
            assert (outcome.error.type, outcome.error.code) == ("TaskTimedOut", "OXF-4004")
            assert (outcome.error.context or {})["timeout"] == timeout
            assert now() == pytest.approx(20, abs=0.1)
            assert (await cluster.task(key, "a")).state == "timeout"
            await asyncio.sleep(1)
            assert script.cancelled[handler] == 1
            assert "task.failed/timeout" in types(await cluster.history(key))

    scenario()


@pytest.mark.parametrize(("role", "handler"), [("compute", "calc"), ("effect", "send")])
def test_progress_keeps_an_attempt_alive(role: str, handler: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        script.reports[handler] = 5
        async with Cluster() as cluster:
            await ready(cluster, script, single(role, handler, timeouts=Timeouts(heartbeat=8)))
            key = (await cluster.start("single", 5)).key
            await asyncio.sleep(100)
            gate.set()
            assert await cluster.result(key) == 5
            assert script.count(handler) == 1

    scenario()


@virtual_time
async def test_an_adopted_attempt_keeps_its_timers() -> None:
    script = Script()
    script.gate("calc")
    async with Cluster() as cluster:
        retry = RetryPolicy(policy="none")
        await ready(cluster, script, single("compute", "calc", timeouts=Timeouts(start_to_close=20), retry=retry))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        async with asyncio.timeout(100):
            assert (await cluster.wait(key)).state == "failed"
        assert script.count("calc") == 1


@virtual_time
async def test_a_restart_is_no_silence_of_the_worker() -> None:
    script = Script()
    gate = script.gate("send")
    script.reports["send"] = 5
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send", timeouts=Timeouts(heartbeat=8)))
        key = (await cluster.start("single", 5)).key
        await script.called("send")
        await cluster.crash_orchestrator()
        await asyncio.sleep(60)
        await cluster.restart_orchestrator()
        await asyncio.sleep(60)
        gate.set()
        assert await cluster.result(key) == 5
        assert (script.count("send"), script.cancelled["send"]) == (1, 0)


@virtual_time
async def test_an_idempotent_effect_that_ignores_its_cancel_is_overtaken_after_the_grace() -> None:
    script = Script()
    gate = script.gate("send")
    script.stubborn.add("send")
    retry = RetryPolicy(policy="fixed", initial_delay=0, max_attempts=2)
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send", timeouts=Timeouts(start_to_close=5), retry=retry))
        key = (await cluster.start("single", 5)).key
        await script.called("send", 2)
        assert script.calls[1].at == pytest.approx(15, abs=0.5)
        gate.set()
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_run_times_out_and_its_attempts_are_cancelled() -> None:
    script = Script()
    script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send", timeout=40))
        keys = [(await cluster.start("single", 5)).key, (await cluster.start("single", 5, timeout=20)).key]
        for key, seconds in zip(reversed(keys), (20, 40), strict=True):
            outcome = await cluster.wait(key)
            assert outcome.state == "timeout"
            assert outcome.error is not None
            assert now() == pytest.approx(seconds, abs=0.1)
            assert types(await cluster.history(key))[-1] == "workflow.timeout"
        await asyncio.sleep(1)
        assert script.cancelled["send"] == 2


@virtual_time
async def test_the_runs_own_retry_goes_back_to_what_failed() -> None:
    script = Script()
    flow = workflow("pair", retry=RunRetry(max_attempts=3, delay=50))
    first = flow.effect("a", handler="send", input="input")
    flow.compute("b", handler="calc", depends_on=[first], retry=RetryPolicy(policy="none"))
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        script.errors["calc"] = [ValueError("no")] * 2
        key = (await cluster.start("pair", 5)).key
        await script.called("calc")
        await asyncio.sleep(1)
        assert (await cluster.state(key)).state == "retrying"
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 5
        assert (script.count("send"), script.count("calc")) == (1, 3)
        assert now() == pytest.approx(100, abs=1)


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


# ---- parking


@virtual_time
async def test_an_idle_run_leaves_memory_and_comes_back_with_its_timer() -> None:
    script = Script()
    policy = RetryPolicy(policy="fixed", initial_delay=600, max_delay=600, jitter=0)
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc", retry=policy))
        script.errors["calc"] = [ValueError("no")]
        key = (await cluster.start("single", 5)).key
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None
        assert (await cluster.store.statistics())["parked"] == 1
        assert await cluster.result(key) == 5
        assert script.calls[1].at == pytest.approx(600, abs=1)
        await asyncio.sleep(5)
        assert (await cluster.store.statistics())["parked"] == 0


@pytest.mark.parametrize("crash", ["while parked", "after a look"])
def test_a_parked_runs_timer_survives_a_crash(crash: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        policy = RetryPolicy(policy="fixed", initial_delay=600, max_delay=600, jitter=0)
        async with Cluster() as cluster:
            await ready(cluster, script, single("compute", "calc", retry=policy))
            script.errors["calc"] = [ValueError("no")]
            key = (await cluster.start("single", 5)).key
            await asyncio.sleep(60)
            assert cluster.engine._kernel.resident(key) is None
            if crash == "after a look":
                await cluster.state(key)
                await asyncio.sleep(1)
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
            await asyncio.sleep(1000)
            assert [call.at for call in script.calls[1:]] == pytest.approx([600], abs=1)
            assert await cluster.result(key) == 5

    scenario()


@pytest.mark.parametrize("restart", [False, True])
def test_a_late_result_finds_a_parked_run(restart: bool) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate("charge")
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", "charge"))
            key = (await cluster.start("single", 5)).key
            await script.called("charge")
            worker = cluster.workers["w1"]
            worker.liveness = "refused"
            worker.cut()
            await asyncio.sleep(60)
            assert cluster.engine._kernel.resident(key) is None, "it waits for input, parked"
            worker.liveness = "alive"
            gate.set()
            await asyncio.sleep(1)
            if restart:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
            else:
                cluster.reconnect("w1")
            assert await cluster.result(key) == 5
            assert script.count("charge") == 1

    scenario()


@virtual_time
async def test_a_call_wakes_a_parked_run() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5, delay=9000)).key
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None
        await cluster.control(key, "cancel")
        assert (await cluster.wait(key)).state == "cancelled"
        await asyncio.sleep(60)
        assert (await cluster.store.statistics())["parked"] == 0


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
