"""Workers that die, vanish and come back, and orchestrators that do: what runs again, what is adopted, what waits."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.builder import workflow
from onexflow.core.errors import RunFailed
from onexflow.engine.suspects import RETURN_SECONDS
from onexflow.ports.worker_link import Assignments, Cancel
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single, types, until


@virtual_time
async def test_a_pure_task_of_a_killed_worker_runs_again_at_once() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        killed_at = asyncio.get_running_loop().time()
        cluster.kill_worker("w1")
        await script.called("calc", 2)
        assert script.calls[1].worker == "w2"
        assert script.calls[1].at - killed_at < RETURN_SECONDS, "it is proven dead, and nobody waits for its return"
        gate.set()
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_pure_task_of_a_killed_worker_whose_port_answered_once_more_runs_again_within_300_ms() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        killed_at = asyncio.get_running_loop().time()
        dying = cluster.workers["w1"]
        cluster.kill_worker("w1")
        dying.liveness = "alive"
        await asyncio.sleep(RETURN_SECONDS / 2)
        dying.liveness = "refused"
        await script.called("calc", 2)
        assert script.calls[1].at - killed_at < 0.3
        gate.set()
        assert await cluster.result(key) == 5


@virtual_time
async def test_an_idempotent_effect_of_a_killed_worker_runs_again_under_a_new_token() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"))
        key = (await cluster.start("single", 5)).key
        await script.called("send")
        await cluster.add_worker(script.worker("w2"), "w2")
        cluster.kill_worker("w1")
        await script.called("send", 2)
        first, second = script.calls
        assert (second.worker, second.attempt) == ("w2", 2)
        assert first.token != second.token
        gate.set()
        assert await cluster.result(key) == 5
        assert "task.retry/lost" in types(await cluster.history(key))


@pytest.mark.parametrize("answer", ["retry", "result", "fail"])
def test_a_non_idempotent_effect_of_a_killed_worker_waits_for_a_word(answer: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate("charge")
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", "charge"), workers=2)
            key = (await cluster.start("single", 5)).key
            await script.called("charge")
            cluster.kill_worker(script.calls[0].worker)
            await asyncio.sleep(60)
            task = await cluster.task(key, "a")
            assert task.state == "waiting_for_input"
            assert "resolve" in task.blocked_because
            assert script.count("charge") == 1
            gate.set()
            given = {"retry": {"retry": True}, "result": {"result": 9}, "fail": {"fail": "no"}}[answer]
            assert (await cluster.control(key, "resolve", task="a", **given)).changed
            outcome = await cluster.wait(key)
            expected = {"retry": ("completed", 2), "result": ("completed", 1), "fail": ("failed", 1)}[answer]
            assert (outcome.state, script.count("charge")) == expected

    scenario()


@virtual_time
async def test_three_killed_workers_end_the_task_with_their_names() -> None:
    script = Script()
    script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        for number in (1, 2, 3):
            await script.called("calc", number)
            cluster.kill_worker(f"w{number}")
            await cluster.add_worker(script.worker(f"w{number + 1}"), f"w{number + 1}")
        with pytest.raises(RunFailed, match="w1, w2, w3") as raised:
            await cluster.result(key)
        assert raised.value.context["error"] == "WorkerLost"
        assert script.count("calc") == 3


@virtual_time
async def test_pure_tasks_stay_with_a_worker_that_is_back_in_a_moment_however_often() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        for _ in range(20):
            cluster.cut("w1")
            await asyncio.sleep(0.8 * RETURN_SECONDS)
            cluster.reconnect("w1")
            await asyncio.sleep(0.1 * RETURN_SECONDS)  # the grace of each cut is its own
        await asyncio.sleep(1)
        assert script.count("calc") == 1
        gate.set()
        assert await cluster.result(key) == 5
        assert script.count("calc") == 1
        assert not [event for event in types(await cluster.history(key)) if event.startswith("task.retry")]


@virtual_time
async def test_a_pure_task_out_of_sight_says_whose_it_is_though_the_log_does_not() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        cluster.cut("w1")
        await until(lambda: "w1" not in cluster.engine._sessions.by_worker)
        (run,) = await cluster.engine.explain_runs([key])
        assert (run.blocked.kind, run.blocked.worker) == ("out_of_sight", "w1")
        cluster.reconnect("w1")
        gate.set()
        await cluster.result(key)


@virtual_time
async def test_the_result_of_a_pure_task_that_ended_while_its_worker_was_away_for_a_moment_counts() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        cluster.cut("w1")
        gate.set()
        await asyncio.sleep(RETURN_SECONDS / 2)
        cluster.reconnect("w1")
        assert await cluster.result(key) == 5
        await asyncio.sleep(1)
        assert script.count("calc") == 1


@virtual_time
async def test_a_cut_stream_runs_pure_tasks_elsewhere_soon_and_the_first_result_wins() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.add_worker(script.worker("w2"), "w2")
        cut_at = asyncio.get_running_loop().time()
        cluster.cut("w1")
        await script.called("calc", 2)
        assert script.calls[1].at - cut_at < 0.3
        cluster.reconnect("w1")
        await asyncio.sleep(1)
        gate.set()
        assert await cluster.result(key) == 5
        await asyncio.sleep(1)
        assert script.count("calc") == 2, "what came back is not a reason to run it a third time"
        history = types(await cluster.history(key))
        assert history.count("task.completed") == 1
        assert "task.retry/returned" not in history


@pytest.mark.parametrize("handler", ["send", "charge"])
def test_a_cut_stream_leaves_effects_with_their_worker(handler: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", handler), workers=2)
            key = (await cluster.start("single", 5)).key
            await script.called(handler)
            worker = script.calls[0].worker
            cluster.cut(worker)
            await asyncio.sleep(30)
            assert "out of sight" in (await cluster.task(key, "a")).blocked_because
            cluster.reconnect(worker)
            await asyncio.sleep(1)
            gate.set()
            assert await cluster.result(key) == 5
            assert script.peak[handler] == script.count(handler) == 1

    scenario()


@virtual_time
async def test_a_result_made_while_the_stream_was_cut_arrives_with_the_next() -> None:
    script = Script()
    gate = script.gate("charge")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        key = (await cluster.start("single", 5)).key
        await script.called("charge")
        cluster.cut("w1")
        gate.set()
        await asyncio.sleep(1)
        cluster.reconnect("w1")
        assert await cluster.result(key) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_a_worker_that_is_silent_and_unregistered_is_given_up_with_its_lease() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        await cluster.start("single", 5)
        await script.called("send")
        lost = cluster.workers[script.calls[0].worker]
        lost.liveness = "silent"
        await lost.registry.crash()
        silent_at = asyncio.get_running_loop().time()
        await asyncio.sleep(2.5)
        lost.cut()
        await script.called("send", 2)
        assert 3.0 < script.calls[1].at - silent_at < 6.0  # its lease, and not another one from when its stream broke
        gate.set()


@virtual_time
async def test_a_worker_that_is_stopped_with_its_stream_open_is_given_up_with_its_lease() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        await cluster.start("single", 5)
        await script.called("send")
        stopped = cluster.workers[script.calls[0].worker]
        stopped.freeze()
        await stopped.registry.crash()
        stopped_at = asyncio.get_running_loop().time()
        await script.called("send", 2)
        assert script.calls[1].worker != stopped.id
        assert 3.0 < script.calls[1].at - stopped_at < 6.0
        gate.set()


@virtual_time
async def test_a_worker_that_answers_keeps_its_stream_when_its_lease_ends() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        key = (await cluster.start("single", 5)).key
        await script.called("send")
        apart = cluster.workers[script.calls[0].worker]
        await apart.registry.crash()
        await asyncio.sleep(60)
        gate.set()
        assert await cluster.result(key) == 5
        assert script.count("send") == 1


@virtual_time
async def test_a_worker_that_answers_keeps_its_effect_without_a_lease_too() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        key = (await cluster.start("single", 5)).key
        await script.called("send")
        apart = cluster.workers[script.calls[0].worker]
        apart.liveness = "alive"
        await apart.registry.crash()
        apart.cut()
        await asyncio.sleep(60)
        gate.set()
        cluster.reconnect(script.calls[0].worker)
        assert await cluster.result(key) == 5
        assert script.count("send") == 1


@virtual_time
async def test_the_late_result_of_a_lost_effect_resolves_its_wait() -> None:
    script = Script()
    gate = script.gate("charge")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        key = (await cluster.start("single", 5)).key
        await script.called("charge")
        worker = cluster.workers["w1"]
        worker.liveness = "refused"  # taken for dead, wrongly
        cluster.cut("w1")
        await until(lambda: _waits(cluster, key))
        worker.liveness = "alive"
        stream = cluster.reconnect("w1")
        await asyncio.sleep(1)
        assert not [m for m in stream.log if isinstance(m, Cancel)], "the awaited attempt is left alone"
        gate.set()
        assert await cluster.result(key) == 5
        assert script.count("charge") == 1


def _waits(cluster: Cluster, key) -> bool:
    run = cluster.engine._kernel.resident(key)
    return run is not None and run.state.tasks[0].status == "waiting_for_input"


@virtual_time
async def test_a_drained_worker_gives_back_what_it_has_not_begun_and_nothing_counts() -> None:
    script = Script()
    gate = script.gate("send")
    flow = workflow("fan")
    flow.effect("a", handler="send", map="input")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("fan", list(range(40)))).key
        await script.called("send", 32)
        await cluster.add_worker(script.worker("w2"), "w2")
        draining = asyncio.create_task(cluster.workers["w1"].runtime.drain(5))
        gate.set()
        await draining
        assert await cluster.result(key) == list(range(40))


# ---- restarts of the orchestrator


@pytest.mark.parametrize(("role", "handler"), [("effect", "send"), ("effect", "charge"), ("compute", "calc")])
def test_what_runs_while_the_orchestrator_restarts_is_adopted(role: str, handler: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        async with Cluster() as cluster:
            await ready(cluster, script, single(role, handler), workers=2)
            key = (await cluster.start("single", 5)).key
            await script.called(handler)
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
            await asyncio.sleep(30)
            gate.set()
            assert await cluster.result(key) == 5
            assert script.count(handler) == 1

    scenario()


@pytest.mark.parametrize(("role", "handler"), [("effect", "charge"), ("compute", "calc")])
def test_a_result_made_while_the_orchestrator_was_away_is_accepted(role: str, handler: str) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        async with Cluster() as cluster:
            await ready(cluster, script, single(role, handler))
            key = (await cluster.start("single", 5)).key
            await script.called(handler)
            await cluster.crash_orchestrator()
            gate.set()
            await asyncio.sleep(5)
            await cluster.restart_orchestrator()
            assert await cluster.result(key) == 5
            assert script.count(handler) == 1

    scenario()


@virtual_time
async def test_an_effect_that_was_authorised_and_never_arrived_is_sent_after_a_restart() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        stream = cluster.workers["w1"].stream
        assert stream is not None
        await asyncio.sleep(1)
        stream.held = True
        key = (await cluster.start("single", 5)).key
        await until(lambda: stream.pending_down(Assignments))
        await cluster.crash_orchestrator()
        assert script.count("charge") == 0
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 5
        assert script.count("charge") == 1


@virtual_time
async def test_a_worker_that_died_with_the_orchestrator_is_noticed_after_the_restart() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        key = (await cluster.start("single", 5)).key
        await script.called("send")
        await cluster.crash_orchestrator()
        cluster.kill_worker(script.calls[0].worker)
        await cluster.restart_orchestrator()
        await script.called("send", 2)
        gate.set()
        assert await cluster.result(key) == 5


@virtual_time
async def test_twenty_crashes_under_load_lose_nothing_and_run_no_effect_twice() -> None:
    script = Script()
    flow = workflow("chain")
    before = flow.effect("t0", handler="charge", input="input")
    for number in range(1, 6):
        before = flow.effect(f"t{number}", handler="charge", depends_on=[before])
    async with Cluster() as cluster:
        await ready(cluster, script, flow, workers=2)
        keys = [(await cluster.start("chain", number)).key for number in range(40)]
        for number in range(20):
            await asyncio.sleep(0.0003 * number)
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
        assert [await cluster.result(key) for key in keys] == list(range(40))
        assert script.count("charge") == 40 * 6
        for key in keys:
            events = await cluster.history(key)
            assert [e.sequence for e in events] == list(range(1, len(events) + 1))
