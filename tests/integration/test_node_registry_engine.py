"""The node registry in the engine: guests and assignments across crashes, workers that go, health that steers dispatch."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from onexflow.core.builder import workflow
from onexflow.core.errors import InternalError, InvalidTransition, UnknownNode
from onexflow.core.ids import RunKey, Token
from onexflow.engine.protocols import WorkflowNodeRegistry, WorkQueue
from onexflow.engine.run import Run
from onexflow.engine.tally import KEPT_WORKERS, Tallies, Tally
from onexflow.ports.nodes import MAX_GUESTS, NodeEntry, Registration
from onexflow.ports.registry import NodeRecord
from onexflow.ports.worker_link import AttemptResult
from onexflow.registry.memory import MemoryRegistry
from onexflow.spi import InvalidProtocolStateError, WorkflowNodeCapability, WorkflowNodeInfo, WorkTask
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single, until


def registry_of(cluster: Cluster, ttl: float = 15.0) -> WorkflowNodeRegistry:
    return WorkflowNodeRegistry(_Present(cluster), ttl_seconds=ttl)


class _Present:
    """The node registry of whichever orchestrator runs, as a client finds it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __getattr__(self, name: str) -> object:
        return getattr(self._cluster.engine.node_registry, name)


def guest(node_id: str = "g", **fields: object) -> WorkflowNodeInfo:
    return WorkflowNodeInfo(node_id=node_id, node_type="compute", **fields)


async def mirrored(cluster: Cluster) -> dict[UUID, str]:
    """What the registry shows of assignments."""
    registry = cluster._registry
    assert registry is not None
    return {item.key.instance_id: item.node_id for item in await registry.assignments()}


async def assigned(cluster: Cluster, node_id: str) -> list[RunKey]:
    return [view.key for view in await cluster.engine.node_registry.list_assignments(node_id)]


async def restart(cluster: Cluster) -> None:
    await cluster.crash_orchestrator()
    await cluster.restart_orchestrator()


# ---- assignments


@virtual_time
async def test_a_run_that_cannot_be_read_keeps_no_other_with_a_node_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script()
    script.gate("send")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        keys = [(await cluster.start("single")).key for _ in range(6)]
        for key in keys:
            await cluster.control(key, "assign", node_id="w2")
        engine = cluster.engine
        find, broken = engine._kernel.find, keys[2]

        async def unless_broken(key: RunKey) -> Run:
            if key == broken:
                raise InternalError(f"run {key} cannot be read back")
            return await find(key)

        monkeypatch.setattr(engine._kernel, "find", unless_broken)
        cluster.kill_worker("w2")
        await until(lambda: "w2" not in {record.node_id for record in engine._registry.members()})
        await asyncio.sleep(5)
        assert await assigned(cluster, "w2") == [broken]


@virtual_time
async def test_an_assignment_survives_a_crash_and_is_shown_again() -> None:
    script = Script()
    script.gate("send")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("effect", "send"))
        key = (await cluster.start("single")).key
        assert (await cluster.control(key, "assign", node_id="w1")).changed
        assert await mirrored(cluster) == {key.instance_id: "w1"}
        cluster.hub.wipe()  # what is shown elsewhere is not the truth
        await restart(cluster)
        await asyncio.sleep(1)
        assert await mirrored(cluster) == {key.instance_id: "w1"}
        assert await assigned(cluster, "w1") == [key]
        [view] = await cluster.engine.node_registry.list_assignments("w1")
        assert (view.state, view.node_id) == ("running", "w1")
        assert 0 < view.assigned_at < cluster.clock.now()
        await asyncio.sleep(60)  # its node is there
        assert await assigned(cluster, "w1") == [key]
        await cluster.control(key, "cancel")
        assert await assigned(cluster, "w1") == []
        await asyncio.sleep(0.1)
        assert await mirrored(cluster) == {}
        assert await cluster.store.list_registers(cluster.engine._kernel.shard_of(key).id, "assignment/") == []


@virtual_time
async def test_a_parked_runs_assignment_is_found_and_given_back_when_its_node_dies() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=2)
        key = (await cluster.start("single", 5, delay=3600)).key
        await cluster.control(key, "assign", node_id="w2")
        await asyncio.sleep(60)
        assert cluster.engine._kernel.resident(key) is None, "it is parked"
        assert await assigned(cluster, "w2") == [key]
        await restart(cluster)
        cluster.kill_worker("w2")
        await asyncio.sleep(30)
        with pytest.raises(UnknownNode):
            await assigned(cluster, "w2")
        assert (await cluster.state(key)).node_id == ""
        assert await mirrored(cluster) == {}
        assert await cluster.result(key) == 5
        assert script.calls[0].worker == "w1"


@virtual_time
async def test_a_parked_run_goes_to_its_node_when_it_wakes() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=2)
        keys = [(await cluster.start("single", 5, delay=600)).key for _ in range(6)]
        for key in keys:
            await cluster.control(key, "assign", node_id="w2")
        await asyncio.sleep(60)
        await restart(cluster)
        for key in keys:
            await cluster.result(key)
        assert {call.worker for call in script.calls} == {"w2"}


@virtual_time
async def test_a_cut_stream_takes_no_assignment_away_and_an_ended_lease_does() -> None:
    script = Script()
    script.gate("send")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("effect", "send"))
        key = (await cluster.start("single")).key
        await cluster.control(key, "assign", node_id="w1")
        cluster.cut("w1")
        await asyncio.sleep(60)
        assert await assigned(cluster, "w1") == [key]
        cluster.reconnect("w1")
        await asyncio.sleep(60)
        assert await assigned(cluster, "w1") == [key]
        cluster.kill_worker("w1")
        await asyncio.sleep(10)
        assert (await cluster.state(key)).node_id == ""
        await cluster.control(key, "cancel")


@virtual_time
async def test_a_node_that_died_while_no_orchestrator_saw_it_loses_its_runs() -> None:
    script = Script()
    script.gate("send")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        key = (await cluster.start("single")).key
        await cluster.control(key, "assign", node_id="w1")
        await cluster.crash_orchestrator()
        cluster.kill_worker("w1")
        await cluster.clock.sleep(30)
        await cluster.restart_orchestrator()
        assert (await cluster.state(key)).node_id == "w1", "it may come back"
        await asyncio.sleep(30)
        assert (await cluster.state(key)).node_id == ""
        await cluster.control(key, "cancel")


@virtual_time
async def test_what_waits_for_any_worker_waits_for_the_node_once_it_is_assigned() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster(seed=1) as cluster:
        await cluster.register(single("effect", "send").build())
        await cluster.register(single("compute", "calc", name="calc").build())
        for name in ("w1", "w2"):
            await cluster.add_worker(script.worker(name), name, slots={"effect": 1, "compute": 1})
        busy = [(await cluster.start("single", n)).key for n in range(2)]
        await script.called("send", 2)
        waiting = [(await cluster.start("single", n)).key for n in range(3)]
        for key in waiting:
            await cluster.control(key, "assign", node_id="w1")
        gate.set()
        for key in (*busy, *waiting):
            await cluster.result(key)
        assert [call.worker for call in script.calls[2:]] == ["w1"] * 3


# ---- health


@virtual_time
async def test_what_waits_for_an_unfit_or_draining_node_goes_to_the_others() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster(seed=1) as cluster:
        await cluster.register(single("effect", "send").build())
        for name in ("w1", "w2", "w3"):
            await cluster.add_worker(script.worker(name), name, slots={"effect": 1, "compute": 1})
        busy = [(await cluster.start("single", n)).key for n in range(3)]
        await script.called("send", 3)
        waiting = [(await cluster.start("single", n)).key for n in range(2)]
        for key, node in zip(waiting, ("w1", "w2"), strict=True):
            await cluster.control(key, "assign", node_id=node)
        await cluster.engine.node_registry.report_health("w1", "error")
        await cluster.engine.drain_node("w2")
        gate.set()
        for key in (*busy, *waiting):
            await cluster.result(key)
        assert [call.worker for call in script.calls[3:]] == ["w3", "w3"]
        nodes = await cluster.engine.node_registry.find_nodes()
        assert {node.node_id: node.health for node in nodes} == {"w1": "error", "w2": "unavailable", "w3": "healthy"}
        views = {view.node_id: view.health for view in await cluster.engine.list_nodes()}
        assert views == {"orchestrator-1": "", "w1": "error", "w2": "unavailable", "w3": "healthy"}


@virtual_time
async def test_a_report_survives_the_orchestrator_and_ends_with_the_workers_life() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        await cluster.engine.node_registry.report_health("w1", "critical")
        await restart(cluster)
        key = (await cluster.start("single", 5)).key
        await asyncio.sleep(30)
        assert script.calls == []
        assert (await cluster.state(key)).tasks[0].blocked_because
        cluster.kill_worker("w1")
        await cluster.add_worker(script.worker("w1"), "w1")
        assert await cluster.result(key) == 5


# ---- guests


@virtual_time
async def test_a_guest_its_assignment_and_its_tasks_survive_a_restarted_orchestrator() -> None:
    script = Script()
    script.gate("send")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("effect", "send"))
        registry, queue = registry_of(cluster), WorkQueue(cluster.engine)
        await registry.register_node(guest(), [WorkflowNodeCapability(capability_name="paint")])
        await registry.update_node_health("g", "warning")
        key = (await cluster.start("single")).key
        await registry.assign_workflow_to_node("single", key.instance_id, "g")
        await queue.enqueue_task(WorkTask(task_id="t", required_capability="paint", timeout_seconds=3600))
        [task] = await queue.dequeue_task("g")
        for _ in range(3):
            await restart(cluster)
            await asyncio.sleep(40)
            [node] = await registry.discover_nodes("paint", healthy_only=False)
            assert node.node_id == "g"
            assert [view.instance_id for view in await registry.get_workflow_assignments("g")] == [key.instance_id]
        queue = WorkQueue(cluster.engine)
        assert await queue.complete_task(task.task_id) is True
        await registry.close()
        await cluster.control(key, "cancel")


@virtual_time
async def test_a_guest_whose_heartbeats_end_is_gone_and_what_it_had_comes_back() -> None:
    script = Script()
    script.gate("send")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("effect", "send"))
        registry, queue = registry_of(cluster), WorkQueue(cluster.engine)
        base = registry.base_registry
        await base.register_node(guest(), 15)
        key = (await cluster.start("single")).key
        await registry.assign_workflow_to_node("single", key.instance_id, "g")
        await queue.enqueue_task(WorkTask(task_id="t", timeout_seconds=3600))
        await queue.dequeue_task("g")
        for _ in range(4):
            await asyncio.sleep(14)
            assert await base.heartbeat("g") is True
        assert (await cluster.state(key)).node_id == "g"
        await asyncio.sleep(20)
        assert await base.get_node("g") is None
        assert (await cluster.state(key)).node_id == ""
        assert (await queue.get_task_status("t")).state == "scheduled"
        assert await base.heartbeat("g") is True, "it was late, and is the same"
        assert await base.get_node("g") is not None
        await cluster.control(key, "cancel")


@virtual_time
async def test_an_older_registration_does_not_come_back_over_a_newer_one_after_a_crash() -> None:
    async with Cluster(seed=1) as cluster:
        old, new = registry_of(cluster), registry_of(cluster)
        await old.base_registry.register_node(guest(host="old"), 60)
        await asyncio.sleep(1)
        await new.base_registry.register_node(guest(host="new"), 60)
        await restart(cluster)
        await cluster.clock.sleep(10)  # the record of the orchestrator that died is gone
        assert await old.base_registry.heartbeat("g") is True, "nobody knows better yet"
        assert await new.base_registry.heartbeat("g") is True
        with pytest.raises(InvalidProtocolStateError):
            await old.base_registry.heartbeat("g")
        node = await new.base_registry.get_node("g")
        assert node is not None
        assert node.host == "new"


@virtual_time
async def test_a_new_registration_takes_the_tasks_of_the_old_away() -> None:
    async with Cluster(seed=1) as cluster:
        old, new, queue = registry_of(cluster), registry_of(cluster), WorkQueue(cluster.engine)
        await old.register_node(guest(), [])
        await queue.enqueue_task(WorkTask(task_id="t", timeout_seconds=3600))
        await queue.dequeue_task("g")
        await new.register_node(guest(), [])
        await asyncio.sleep(1)
        assert (await queue.get_task_status("t")).state == "scheduled"
        await old.close()
        await asyncio.sleep(60)
        assert len(await new.discover_nodes()) == 1
        await new.close()


@virtual_time
async def test_a_worker_that_takes_a_guests_id_replaces_it() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        registry = registry_of(cluster)
        await registry.register_node(guest("w1"), [])
        await ready(cluster, script)
        await asyncio.sleep(1)
        [node] = await registry.discover_nodes()
        assert node.metadata["kind"] == "worker"
        with pytest.raises(InvalidProtocolStateError):
            await registry.base_registry.heartbeat("w1")
        await registry.close()


@virtual_time
async def test_guests_do_not_keep_a_restarted_orchestrator_from_beginning() -> None:
    """It waits for the workers to say what they hold, at most a second; a guest has nothing to say."""
    script = Script()
    gate = script.gate("calc")
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        # Registered by another orchestrator, whose membership goes on.
        other = MemoryRegistry(cluster.hub)
        await other.start()
        await other.register(NodeRecord(kind="guest", node_id="g", incarnation="i", keeper="o2"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        began = asyncio.get_running_loop().time()
        await until(lambda: not cluster.engine._ownership._adoptions)
        assert asyncio.get_running_loop().time() - began < 0.5
        gate.set()
        assert await cluster.result(key) == 5
        await other.close()


@virtual_time
async def test_one_that_another_orchestrator_keeps_can_be_unregistered_here() -> None:
    async with Cluster(seed=1) as cluster:
        registry = registry_of(cluster)
        other = MemoryRegistry(cluster.hub)
        await other.start()
        await other.register(NodeRecord(kind="guest", node_id="g", incarnation="i", keeper="o2"))
        [node] = await registry.discover_nodes()
        assert (node.node_id, node.node_type) == ("g", "effect"), "what can be read of it"
        assert await registry.unregister_node("g") is True
        assert await registry.unregister_node("g") is False
        assert await registry.discover_nodes() == []
        report = other.health_of("g")
        assert report is not None
        assert report.retired, "its keeper takes it away"
        await other.close()


@virtual_time
async def test_a_registry_that_is_away_keeps_nobody_from_registering() -> None:
    async with Cluster(seed=1) as cluster:
        registry = registry_of(cluster)
        assert cluster._registry is not None
        await registry.register_node(guest("before"), [])
        cluster.hub.cut(cluster._registry)
        await registry.register_node(guest(), [])
        await registry.register_node(guest(host="again"), [])
        await asyncio.sleep(3)
        cluster.hub.heal(cluster._registry)
        await asyncio.sleep(30)
        assert [node.node_id for node in await registry.discover_nodes()] == ["before", "g"]
        await registry.close()


async def test_no_more_guests_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_GUESTS == 10_000
    monkeypatch.setattr("onexflow.engine.guests.MAX_GUESTS", 2)
    async with Cluster(seed=1) as cluster:
        book = cluster.engine.node_registry
        made = [
            await book.register_node(Registration(node=NodeEntry(node_id=name, node_type="compute")))
            for name in ("a", "b")
        ]
        with pytest.raises(Exception, match="keeps 2 guests"):
            await book.register_node(Registration(node=NodeEntry(node_id="c", node_type="compute")))
        assert await book.register_node(made[0]) == made[0]
        with pytest.raises(InvalidTransition):
            await book.unregister_node("a", made[1].incarnation)


# ---- figures


@pytest.fixture
def results() -> list[AttemptResult]:
    token = Token(1, 1, 1, 0)
    return [
        AttemptResult(token, "completed", started_at=1_000, finished_at=3_000),
        AttemptResult(token, "failed", started_at=1_000, finished_at=2_000),
        AttemptResult(token, "stopped", started_at=1_000, finished_at=9_000),
        AttemptResult(token, "returned"),
    ]


def test_a_tally_counts_what_has_ended(results: list[AttemptResult]) -> None:
    tally = Tally("i")
    tally.add(results)
    assert (tally.completed, tally.failed, tally.ended, tally.nanoseconds) == (1, 1, 2, 3_000)
    assert list(tally.durations) == [2_000, 1_000]


def test_a_new_life_is_counted_anew_and_old_ones_are_forgotten(results: list[AttemptResult]) -> None:
    tallies = Tallies()
    tallies.of("w", "1").add(results[:1])
    assert tallies.of("w", "1").completed == 1
    assert tallies.of("w", "2").completed == 0
    for number in range(KEPT_WORKERS):
        tallies.of(f"w{number}", "1")
    assert "w" not in tallies.by_worker
    assert len(tallies.by_worker) == KEPT_WORKERS


@virtual_time
async def test_figures_of_many_tasks_on_two_workers() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        flow = workflow("many")
        first = flow.compute("a", handler="calc")
        flow.effect("b", handler="send", depends_on=[first])
        await ready(cluster, script, flow, workers=2)
        for key in [(await cluster.start("many", n, instance_id=uuid4())).key for n in range(50)]:
            await cluster.result(key)
        figures = [await cluster.engine.node_registry.measure_node(name) for name in ("w1", "w2")]
        assert sum(one.completed for one in figures) == 100
        assert [one.failed for one in figures] == [0, 0]
        assert [one.current_tasks for one in figures] == [0, 0]
        cluster.cut("w1")
        cluster.reconnect("w1")
        again = await cluster.engine.node_registry.measure_node("w1")
        assert again.completed == figures[0].completed


@virtual_time
async def test_figures_go_on_after_a_crash_and_begin_anew_with_a_new_life() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        for number in range(7):
            await cluster.run("single", number)
        await asyncio.sleep(3)
        await restart(cluster)
        await cluster.run("single", 8)
        figures = await cluster.engine.node_registry.measure_node("w1")
        assert figures.completed == 8
        await cluster.stop_orchestrator()  # in good order: nothing is lost
        await cluster.restart_orchestrator()
        await asyncio.sleep(1)
        assert (await cluster.engine.node_registry.measure_node("w1")).completed == 8
        cluster.kill_worker("w1")
        await cluster.add_worker(script.worker("w1"), "w1")
        await cluster.run("single", 9)
        assert (await cluster.engine.node_registry.measure_node("w1")).completed == 1


@virtual_time
async def test_an_orchestrator_that_stood_still_gives_its_guests_their_time_again() -> None:
    async with Cluster(seed=1) as cluster:
        registry = registry_of(cluster)
        await registry.base_registry.register_node(guest(), 15)
        guests = cluster.engine.node_registry._guests
        now = asyncio.get_running_loop().time()
        guests._expire(guests._guests["g"], now - 5)  # it should have been told five seconds ago
        await asyncio.sleep(14)
        assert await registry.base_registry.get_node("g") is not None
        await asyncio.sleep(2)
        assert await registry.base_registry.get_node("g") is None
