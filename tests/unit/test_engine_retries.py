"""Retries and timeouts of attempts and runs, in the whole engine, in virtual time."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, RunRetry, Timeouts
from onexflow.core.errors import RunFailed
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.errors import Fatal, Retry
from support.engine_kit import Script, ready, single, types


def now() -> float:
    return asyncio.get_running_loop().time()


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
