"""The watchdog finds what nothing accounts for, and repairs it within two seconds. Each test breaks one thing by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import onexflow.core.decide
from onexflow.core.blocked import BY_NAME
from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, Timeouts
from onexflow.core.errors import StoreUnavailable
from onexflow.core.ids import RunKey
from onexflow.core.queue_state import STREAMS, queue_key
from onexflow.engine.placing import Placing
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.engine.run import Attempt, Run
from onexflow.engine.shard import Shard
from onexflow.ports.worker_link import Credits
from onexflow.spi import WorkTask
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster
from onexflow.testing.clock import VirtualClock, virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from support.engine_kit import Script, ready, single, until

WITHIN = 2.0


@asynccontextmanager
async def broken(script: Script, *flows: Any, workers: int = 1, **options: Any) -> AsyncIterator[Cluster]:
    async with Cluster(**options) as cluster:
        cluster.expects_stalls = True
        await ready(cluster, script, *flows, workers=workers)
        yield cluster


def run_of(cluster: Cluster, key: RunKey) -> Run:
    run = cluster.engine._kernel.resident(key)
    assert run is not None
    return run


def attempt_of(cluster: Cluster, key: RunKey) -> Attempt:
    [attempt] = run_of(cluster, key).attempts.values()
    return attempt


async def repaired(cluster: Cluster, times: int = 1) -> None:
    """Return when the watchdog has repaired so many, within the two seconds; it has, and has said what."""
    async with asyncio.timeout(WITHIN):
        while cluster.engine.watchdog.repaired < times:
            await cluster.clock.sleep(0.01)
    assert cluster.engine.watchdog.repaired == times
    assert cluster.engine.watchdog.last
    assert "repaired" in cluster.engine.health().details["watchdog"]


async def settle(cluster: Cluster) -> None:
    await cluster.clock.sleep(1.0)
    assert cluster.engine.watchdog.repaired == 0


@virtual_time
async def test_an_attempt_that_no_queue_has_any_more() -> None:
    script = Script()
    async with broken(script, single("compute", "calc"), workers=0) as cluster:
        key = (await cluster.start("single", 7)).key
        await settle(cluster)
        assert (await cluster.state(key)).blocked.kind == "no_worker"
        cluster.engine._book.dispatcher.queue("compute", "calc").pop()
        [seen] = await cluster.engine.explain_runs([key])
        assert (seen.blocked.kind, seen.blocked.task) == ("stalled", "a")
        await repaired(cluster)
        [seen] = await cluster.engine.explain_runs([key])
        assert seen.blocked.kind == "no_worker"
        await cluster.add_worker(script.worker("w1"), "w1")
        assert await cluster.result(key) == 7


@virtual_time
async def test_an_attempt_that_is_known_nowhere() -> None:
    script = Script()
    async with broken(script, single("compute", "calc"), workers=0) as cluster:
        key = (await cluster.start("single", 7)).key
        await settle(cluster)
        cluster.engine._book._placing.forget(attempt_of(cluster, key))
        await repaired(cluster)
        await cluster.add_worker(script.worker("w1"), "w1")
        assert await cluster.result(key) == 7


@virtual_time
async def test_an_attempt_that_waits_beside_a_free_slot() -> None:
    script = Script()
    async with broken(script, single("compute", "calc")) as cluster:
        await until(lambda: "w1" in cluster.engine._sessions.by_worker)
        session = cluster.engine._sessions.by_worker["w1"]
        credits, session.credits = session.credits, {}
        key = (await cluster.start("single", 7)).key
        await settle(cluster)
        session.credits = credits  # and nobody is told
        await repaired(cluster)
        assert await cluster.result(key) == 7


@virtual_time
async def test_an_effect_on_a_stream_that_has_gone() -> None:
    script = Script()
    gate = script.gate("send")
    async with broken(script, single("effect", "send")) as cluster:
        key = (await cluster.start("single", 7)).key
        await script.called("send")
        await settle(cluster)
        attempt = attempt_of(cluster, key)
        assert attempt.session is not None
        attempt.session.inflight.clear()
        attempt.session = None  # nobody watches its worker
        await repaired(cluster)
        assert (await cluster.task(key, "a")).blocked.kind == "running"
        gate.set()
        assert await cluster.result(key) == 7
        assert script.count("send") == 1  # the worker was asked: it is the very same attempt


@virtual_time
async def test_an_effect_that_nobody_waits_for() -> None:
    script = Script()
    gate = script.gate("charge")
    async with broken(script, single("effect", "charge")) as cluster:
        key = (await cluster.start("single", 7)).key
        await script.called("charge")
        await settle(cluster)
        cluster.engine._book._placing.forget(attempt_of(cluster, key))
        await repaired(cluster)
        gate.set()
        assert await cluster.result(key) == 7
        assert script.count("charge") == 1


@virtual_time
async def test_a_compute_task_on_a_stream_that_has_gone() -> None:
    script = Script()
    gate = script.gate("calc")
    async with broken(script, single("compute", "calc")) as cluster:
        key = (await cluster.start("single", 7)).key
        await script.called("calc")
        await settle(cluster)
        attempt_of(cluster, key).session = None
        await repaired(cluster)
        gate.set()
        assert await cluster.result(key) == 7


@virtual_time
async def test_a_timer_that_was_lost() -> None:
    script = Script()
    async with broken(script, single("effect", "send")) as cluster:
        key = (await cluster.start("single", 7, delay=3.0)).key
        await settle(cluster)
        assert (await cluster.state(key)).blocked.kind == "delayed"
        cluster.engine._book.timers.stop()
        await cluster.clock.sleep(2.0)
        await repaired(cluster)
        assert await cluster.result(key) == 7


@virtual_time
async def test_a_loop_timer_that_was_lost() -> None:
    script = Script()
    script.errors["send"] = [OSError("again")]
    async with broken(
        script, single("effect", "send", retry=RetryPolicy(policy="fixed", initial_delay=3.0))
    ) as cluster:
        key = (await cluster.start("single", 7)).key
        await settle(cluster)
        assert (await cluster.task(key, "a")).blocked.kind == "retry"
        handle = cluster.engine._book.timers._handle
        assert handle is not None
        handle.cancel()
        await cluster.clock.sleep(2.0)
        await repaired(cluster)
        assert await cluster.result(key) == 7


@virtual_time
async def test_a_run_whose_tasks_have_all_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    async with broken(script, single("compute", "calc")) as cluster:
        with monkeypatch.context() as patch:
            patch.setattr(onexflow.core.decide, "_complete", lambda turn: None)
            key = (await cluster.start("single", 7)).key
            await script.called("calc")
            await cluster.clock.sleep(0.1)
        assert (await cluster.state(key)).blocked.kind == "stalled"
        await repaired(cluster)
        assert await cluster.result(key) == 7


@virtual_time
async def test_a_task_that_is_ready_and_was_not_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    flow = workflow("chain")
    flow.compute("b", handler="work", after=flow.compute("a", handler="calc"))
    async with broken(script, flow) as cluster:
        gate = script.gate("calc")
        key = (await cluster.start("chain", 7)).key
        await script.called("calc")
        with monkeypatch.context() as patch:
            patch.setattr(onexflow.core.decide, "settle", lambda turn: None)
            gate.set()
            await cluster.clock.sleep(0.1)
        assert (await cluster.task(key, "b")).blocked.kind == "stalled"
        await repaired(cluster)
        assert await cluster.result(key) is not None


@virtual_time
async def test_a_write_that_the_lane_was_not_told_of() -> None:
    script = Script()
    gate = script.gate("send")
    async with broken(script, single("effect", "send")) as cluster:
        key = (await cluster.start("single", 7)).key
        await script.called("send")
        await settle(cluster)
        run = run_of(cluster, key)
        run.is_broken = True  # as when a decision has failed, and nobody reads it back
        await repaired(cluster)
        gate.set()
        assert await cluster.result(key) == 7


@virtual_time
async def test_a_lease_of_a_queue_that_nobody_holds() -> None:
    script = Script()
    gate = script.gate("send")
    async with broken(script) as cluster:
        queue = WorkQueue(cluster.engine, name="jobs")
        await queue.enqueue_task(WorkTask(task_id="t", task_name="send", payload=1))
        await script.called("send")
        await settle(cluster)
        held = cluster.engine._bridge._held
        assert held
        next(iter(held.values())).give_up()
        held.clear()
        await repaired(cluster)
        gate.set()
        known = cluster.engine._kernel.known_queue(queue_key("default", "jobs"))
        assert known is not None
        await until(lambda: not known.index.held.get(STREAMS))
        assert script.count("send") == 1


@virtual_time
async def test_a_lease_that_nobody_ends() -> None:
    script = Script()
    async with broken(script) as cluster:
        queue = WorkQueue(cluster.engine, name="jobs")
        await queue.enqueue_task(WorkTask(task_id="t", task_name="nobody", payload=1, timeout_seconds=3))
        assert await queue.dequeue_task("me")
        await settle(cluster)
        for timer in cluster.engine._queues._timers.values():
            timer.cancel()
        cluster.engine._queues._timers.clear()
        await repaired(cluster)
        known = cluster.engine._kernel.known_queue(queue_key("default", "jobs"))
        assert known is not None
        await until(lambda: known.state.tasks[1].status != "running")


@virtual_time
async def test_a_slot_that_comes_free_while_a_run_waits_to_be_read_back_is_not_lost() -> None:
    """Nothing may be decided about the run then, so its effect is placed when it is back."""
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"))
        await until(lambda: "w1" in cluster.engine._sessions.by_worker)
        session = cluster.engine._sessions.by_worker["w1"]
        credits, session.credits = session.credits, {}
        key = (await cluster.start("single", 7)).key
        await cluster.engine._kernel.lane.durable()
        run = run_of(cluster, key)
        cluster.engine._kernel.lane.mark()  # so that it is not read back at once
        cluster.engine._kernel.read_anew(run)
        assert run.is_broken
        session.credits = {}
        session.on_message(Credits(credits))
        assert session.credits == credits
        assert await cluster.result(key) == 7
        assert cluster.engine.watchdog.repaired == 0


@virtual_time
async def test_a_run_that_could_not_be_read_back_at_first_is_read_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was in no memory and paged out nowhere: nothing would have looked for it again."""
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"))
        key = (await cluster.start("single", 7)).key
        await script.called("send")
        await cluster.engine._kernel.lane.durable()
        with monkeypatch.context() as patch:
            patch.setattr(cluster.store, "load_snapshot", _unavailable)
            cluster.engine._kernel.read_anew(run_of(cluster, key))
            await cluster.clock.sleep(1.0)
            assert cluster.engine._kernel.resident(key) is None
            [seen] = await cluster.engine.explain_runs([key])
            assert seen.blocked.kind == "recovering"
        await cluster.clock.sleep(0.5)
        gate.set()
        assert await cluster.result(key) == 7


@virtual_time
async def test_a_checkpoint_names_the_runs_that_are_being_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an owner that died meanwhile would leave them to nobody."""
    monkeypatch.setattr("onexflow.engine.shard.CHECKPOINT_EVENTS", 1)
    script = Script()
    clock = VirtualClock()
    async with Cluster(clock=clock, store=MemoryStore(clock, shards=1)) as cluster:
        await ready(cluster, script, single("effect", "send"), single("compute", "calc", "pure"))
        key = (await cluster.start("single", 7, delay=5.0)).key
        await cluster.engine._kernel.lane.durable()
        with monkeypatch.context() as patch:
            patch.setattr(cluster.store, "load_snapshot", _unavailable)
            cluster.engine._kernel.read_anew(run_of(cluster, key))
            for number in range(3):
                assert await cluster.run("pure", number) == number
            assert cluster.engine._kernel.resident(key) is None
            await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        await cluster.clock.sleep(6.0)
        assert script.count("send") == 1


async def _unavailable(*_: object) -> None:
    raise StoreUnavailable("the store is away")


@virtual_time
async def test_healthy_runs_are_left_alone_and_counted_by_what_they_wait_for() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), single("effect", "nobody", name="alone"))
        for number in range(3):
            await cluster.start("single", number)
            await cluster.start("alone", number)
        await cluster.start("single", 1, delay=60)
        await cluster.clock.sleep(5)
        assert cluster.engine.watchdog.counts() == {}
        await cluster.clock.sleep(2)
        counts = cluster.engine.watchdog.counts()
        assert counts["no_worker"] == 3
        assert counts.get("running", 0) + counts.get("no_slot", 0) == 3
        assert set(counts) <= set(BY_NAME)
        gate.set()
        await cluster.clock.sleep(60)
        assert cluster.engine.watchdog.repaired == 0


@virtual_time
async def test_an_effect_that_does_not_heed_its_stop_is_waited_for() -> None:
    """Its timeout has passed, and that is why it was told to stop: nothing is wrong with that."""
    script = Script()
    gate = script.gate("charge")
    script.stubborn.add("charge")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge", timeouts=Timeouts(start_to_close=2.0)))
        key = (await cluster.start("single", 7)).key
        await script.called("charge")
        await cluster.clock.sleep(10)
        blocked = (await cluster.task(key, "a")).blocked
        assert blocked is not None
        assert (blocked.kind, blocked.worker, blocked.reason) == ("stopping", "w1", "start_to_close")
        assert cluster.engine.watchdog.repaired == 0
        gate.set()
        await cluster.wait(key)


@virtual_time
async def test_a_shard_that_could_not_be_read_back_for_an_unknown_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    async with MultiCluster(seed=1) as cluster:
        cluster.expects_stalls = True
        for name in ("a", "b"):
            await cluster.add_orchestrator(name)
        await cluster.register(single("effect", "send").build())
        await cluster.add_worker(script.worker("w1"), "w1")
        await cluster.settled()
        kernel = cluster.members["b"].engine._kernel
        recover, failed = kernel.claims.recover, set[int]()

        async def broken_once(shard: Shard) -> int:
            if shard.id not in failed:
                failed.add(shard.id)
                raise ValueError("a bug")
            return await recover(shard)

        monkeypatch.setattr(kernel.claims, "recover", broken_once)
        keys = [await cluster.start("single", number) for number in range(8)]
        await cluster.kill("a")
        assert [await cluster.result(key) for key in keys] == list(range(8))
        await until(lambda: all(shard.early is None for shard in kernel.shards.values()), 10)
        assert failed
        assert cluster.members["b"].engine.watchdog.repaired == len(failed)


@virtual_time
async def test_an_effect_that_nobody_sent_though_there_is_always_a_commit_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it waited for is done: that other runs wait for the store all the time explains nothing."""
    send = Placing._send_effect
    forgotten: list[Attempt] = []

    def forget_the_first(self: Placing, attempt: Attempt, *rest: Any) -> None:
        if forgotten:
            send(self, attempt, *rest)
        forgotten.append(attempt)

    async def busy(cluster: MultiCluster) -> None:
        while True:
            await cluster.start("busy", 1)

    monkeypatch.setattr(Placing, "_send_effect", forget_the_first)
    script = Script()
    async with MultiCluster(slowest=0.01) as cluster:
        cluster.expects_stalls = True
        member = await cluster.add_orchestrator("a")
        for flow in (single("effect", "send"), single("compute", "calc", "busy")):
            await cluster.register(flow.build())
        await cluster.settled()
        await cluster.add_worker(script.worker())
        others = [asyncio.ensure_future(busy(cluster)) for _ in range(8)]
        key = await cluster.start("single", 1)
        async with asyncio.timeout(2 * WITHIN):
            await cluster.result(key)
        assert member.engine.watchdog.repaired == 1
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
