"""What every ProtocolWorkflowNodeRegistry of ours must do. Subclass `NodeRegistryConformance`, give it a `scene`.

class TestMine(NodeRegistryConformance):
    @pytest.fixture
    async def scene(self) -> AsyncIterator[Scene]:
        ...  # a cluster with worker("one") and worker("two") connected, and `definitions()` registered
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

import pytest

from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, WorkflowDefinition
from onexflow.engine.protocols import WorkflowNodeRegistry, WorkflowOrchestrator, WorkQueue
from onexflow.ports.client_link import RunService
from onexflow.spi import (
    InvalidProtocolStateError,
    ProtocolNodeRegistry,
    ProtocolWorkflowNodeRegistry,
    RegistryError,
    SPIError,
    WorkflowNodeCapability,
    WorkflowNodeInfo,
    WorkTask,
)
from onexflow.worker.handlers import Worker


class Scene(NamedTuple):
    """A cluster: `registry(ttl_seconds)` makes another program's registry on it."""

    registry: Callable[[float], WorkflowNodeRegistry]
    service: RunService
    orchestrator_id: str
    workers: tuple[str, str]


def worker(name: str) -> Worker:
    """One of the two workers."""
    made = Worker("nodes")

    async def where(_contract: Any) -> str:
        return name

    async def hold(_contract: Any) -> str:
        await asyncio.Event().wait()
        return name

    async def fail(_contract: Any) -> str:
        raise ValueError("it does not work")

    made.compute("where")(where)
    made.compute(name)(where)
    made.effect("hold", idempotent=True)(hold)
    made.compute("fail")(fail)
    return made


def definitions() -> list[WorkflowDefinition]:
    once = RetryPolicy(policy="none", max_attempts=1)
    where, hold, fail = (workflow(name) for name in ("where", "hold", "fail"))
    where.compute("where", retry=once)
    hold.effect("hold", retry=once)
    first = fail.compute("where", retry=once)
    fail.compute("fail", depends_on=[first], retry=once)
    return [flow.build() for flow in (where, hold, fail)]


def guest(node_id: str = "worker-node-1", **fields: Any) -> WorkflowNodeInfo:
    return WorkflowNodeInfo(**{"node_id": node_id, "node_type": "compute", **fields})


def capability(name: str, **fields: Any) -> WorkflowNodeCapability:
    return WorkflowNodeCapability(capability_name=name, **fields)


async def until(condition: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


async def ids(registry: WorkflowNodeRegistry, capability: str | None = None, *, healthy: bool = False) -> list[str]:
    return [node.node_id for node in await registry.discover_nodes(capability, healthy)]


class NodeRegistryConformance:
    """The contract, member by member."""

    @pytest.fixture
    def registry(self, scene: Scene) -> WorkflowNodeRegistry:
        return scene.registry(15.0)

    @pytest.fixture
    def other(self, scene: Scene) -> WorkflowNodeRegistry:
        return scene.registry(15.0)

    @pytest.fixture
    def orchestrator(self, scene: Scene) -> WorkflowOrchestrator:
        return WorkflowOrchestrator(scene.service)

    async def result(self, orchestrator: WorkflowOrchestrator, kind: str, instance: UUID) -> Any:
        """What the run's task gave, once it has ended."""

        async def ended() -> bool:
            state = await orchestrator.get_workflow_state(kind, instance)
            return state.current_state in {"completed", "failed"}

        await until(ended)
        return (await orchestrator.get_workflow_state(kind, instance)).context.get("result")

    # ---- shape

    def test_it_is_one(self, registry: WorkflowNodeRegistry) -> None:
        assert isinstance(registry, ProtocolWorkflowNodeRegistry)
        assert isinstance(registry.base_registry, ProtocolNodeRegistry)
        assert registry.base_registry.environment == ""
        assert registry.base_registry.config["ttl_seconds"] == 15.0

    # ---- registering

    async def test_a_registered_node_is_seen_by_all_with_all_it_said(
        self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry
    ) -> None:
        given = guest(
            node_type="COMPUTE:gpu",
            host="192.168.1.100",
            port=8080,
            node_name="the one",
            environment="test",
            group="g",
            version="1.2",
            metadata={"zone": "ä", "n": [1, {"x": None}]},
            supported_workflow_types=["order-processing"],
            scheduling_preferences={"spread": True},
            max_concurrent_tasks=60,
        )
        capabilities = [
            capability("payment_processing", max_concurrent_tasks=10, resource_requirements={"cpu": 1.5}),
            capability("email_notification", max_concurrent_tasks=50, capability_id="c2", capability_version="3"),
        ]
        assert await registry.register_node(node_info=given, capabilities=capabilities) == "worker-node-1"
        [node] = await other.discover_nodes(capability="payment_processing", healthy_only=True)
        assert (node.node_id, node.node_type, node.host, node.port) == (
            "worker-node-1",
            "compute:gpu",
            "192.168.1.100",
            8080,
        )
        assert node.endpoint == "192.168.1.100:8080"
        assert (node.node_name, node.environment, node.group, node.version) == ("the one", "test", "g", "1.2")
        assert (node.metadata["zone"], node.metadata["n"]) == ("ä", [1, {"x": None}])
        assert (node.metadata["kind"], bool(node.metadata["incarnation"])) == ("guest", True)
        assert (node.supported_workflow_types, node.scheduling_preferences) == (["order-processing"], {"spread": True})
        assert (node.health_status, node.max_concurrent_tasks, node.current_task_count) == ("healthy", 60, 0)
        assert await other.get_node_capabilities("worker-node-1") == capabilities == node.workflow_capabilities

    async def test_unregistering(self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry) -> None:
        await registry.register_node(guest(), [capability("x")])
        assert await registry.unregister_node("worker-node-1") is True
        assert await registry.unregister_node("worker-node-1") is False
        assert await other.discover_nodes("x") == []
        await registry.register_node(guest(), [capability("y")])
        assert await ids(other, "y") == ["worker-node-1"]
        assert await other.unregister_node("worker-node-1") is True  # anyone may, as an operator would
        with pytest.raises(InvalidProtocolStateError):
            await registry.base_registry.heartbeat("worker-node-1")  # it does not come back by itself

    async def test_wrong_registrations_are_refused(self, registry: WorkflowNodeRegistry) -> None:
        for wrong in (
            guest(""),
            guest("$streams"),
            guest("a\nb"),
            guest("x" * 300),
            guest(node_type="robot"),
            guest(port=70_000),
            guest(port=-1),
            guest(max_concurrent_tasks=-1),
            guest(health_status="fine"),
            guest(metadata={"x": "y" * 100_000}),
            guest(metadata={"x": object()}),
        ):
            with pytest.raises(SPIError):
                await registry.register_node(wrong, [])
        with pytest.raises(SPIError):
            await registry.register_node(guest(), [capability("")])
        assert "worker-node-1" not in await ids(registry)

    async def test_what_makes_no_sense_is_refused(self, registry: WorkflowNodeRegistry) -> None:
        nonsense: list[Any] = [None, 5, "", "\ud800", "\x00"]
        for bad in nonsense:
            for asked in (
                registry.unregister_node(bad),
                registry.get_node_capabilities(bad),
                registry.get_node_metrics(bad),
                registry.get_workflow_assignments(bad),
                registry.update_node_health(bad, "healthy"),
                registry.update_node_health("n", bad),
                registry.assign_workflow_to_node("hold", uuid4(), bad),
                registry.assign_workflow_to_node(bad, uuid4(), "n"),
                registry.register_node(guest(bad), []),
                registry.register_node(guest(host=bad, node_type=bad or "x"), [cast("Any", bad)]),
            ):
                with pytest.raises(SPIError):
                    await asked
        wrong_times: list[Any] = [0, -1, 1e9, float("nan"), float("inf"), None, "x", []]
        for ttl in wrong_times:
            with pytest.raises(SPIError):
                await registry.base_registry.register_node(guest(), ttl)
        with pytest.raises(SPIError):
            await registry.discover_nodes(cast("Any", 5))

    async def test_the_id_of_a_worker_or_an_orchestrator_is_taken(
        self, scene: Scene, registry: WorkflowNodeRegistry
    ) -> None:
        for taken in (scene.workers[0], scene.orchestrator_id):
            with pytest.raises(InvalidProtocolStateError) as refused:
                await registry.register_node(guest(taken), [])
            assert refused.value.context["required_state"] == "not registered"
            with pytest.raises(InvalidProtocolStateError):
                await registry.unregister_node(taken)
        # A node may be of type orchestrator; that does not make it an orchestrator of this cluster.
        await registry.register_node(guest("conductor", node_type="orchestrator"), [])
        [node] = [node for node in await registry.discover_nodes() if node.node_id == "conductor"]
        assert node.node_type == "orchestrator"

    async def test_a_new_registration_replaces_the_old_and_fences_it(
        self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry
    ) -> None:
        await registry.register_node(guest(host="old"), [capability("x")])
        assert await other.register_node(guest(host="new"), [capability("x")]) == "worker-node-1"
        [node] = await registry.discover_nodes("x")
        assert node.host == "new"
        for refused in (
            registry.base_registry.heartbeat("worker-node-1"),
            registry.update_node_health("worker-node-1", "critical"),
            registry.unregister_node("worker-node-1"),
        ):
            with pytest.raises(InvalidProtocolStateError) as error:
                await refused
            assert error.value.context["current_state"] == "replaced"
        [node] = await other.discover_nodes("x")
        assert (node.host, node.health_status) == ("new", "healthy")
        assert await other.update_node_health("worker-node-1", "degraded") is True
        assert await other.unregister_node("worker-node-1") is True
        with pytest.raises(InvalidProtocolStateError):  # nor does it come back when the newer one has gone
            await registry.base_registry.heartbeat("worker-node-1")

    async def test_the_same_object_may_register_a_node_again(self, registry: WorkflowNodeRegistry) -> None:
        await registry.register_node(guest(host="old"), [])
        await registry.register_node(guest(host="new"), [])
        assert await registry.update_node_health("worker-node-1", "warning") is True
        assert await registry.unregister_node("worker-node-1") is True

    async def test_it_is_kept_registered_until_it_is_closed(self, scene: Scene, other: WorkflowNodeRegistry) -> None:
        registry = scene.registry(1.0)
        await registry.register_node(guest("kept"), [])
        await registry.base_registry.register_node(guest("not kept"), 1)
        await until(lambda: _is_gone(other, "not kept"))
        assert "kept" in await ids(other)
        await registry.base_registry.register_node(guest("not kept"), 1)
        assert await registry.base_registry.heartbeat("not kept") is True
        assert await registry.base_registry.heartbeat("nobody's") is False
        await until(lambda: _is_gone(other, "not kept"))
        await registry.close()
        assert "kept" not in await ids(other)

    # ---- who can do what

    async def test_workers_are_nodes(self, scene: Scene, registry: WorkflowNodeRegistry) -> None:
        one, two = scene.workers
        assert await ids(registry, "where", healthy=True) == [one, two]
        assert await ids(registry, "two") == [two]
        assert await ids(registry, "no such thing") == []
        assert scene.orchestrator_id not in await ids(registry)
        [node] = await registry.discover_nodes("one")
        assert (node.node_type, node.metadata["kind"], node.metadata["roles"]) == (
            "effect",
            "worker",
            ["effect", "compute"],
        )
        assert node.max_concurrent_tasks > 0
        names = {capability.capability_name for capability in await registry.get_node_capabilities(one)}
        assert names == {"where", "hold", "fail", "one"}

    async def test_unknown_nodes(self, registry: WorkflowNodeRegistry) -> None:
        for asked in (
            registry.get_node_capabilities("nobody"),
            registry.update_node_health("nobody", "healthy"),
            registry.get_node_metrics("nobody"),
            registry.get_workflow_assignments("nobody"),
        ):
            with pytest.raises(RegistryError):
                await asked
        assert await registry.unregister_node("nobody") is False
        assert await registry.base_registry.get_node("nobody") is None

    # ---- health

    async def test_health_decides_who_is_found(
        self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry
    ) -> None:
        await registry.register_node(guest(), [capability("x")])
        found = {}
        for health in ("available", "degraded", "warning", "unhealthy", "unknown", "initializing", "error", "healthy"):
            assert await other.update_node_health("worker-node-1", cast("Any", health)) is True
            assert await registry.update_node_health("worker-node-1", cast("Any", health)) is False
            [node] = await registry.discover_nodes("x", healthy_only=False)
            assert node.health_status == health
            assert (await other.get_node_metrics("worker-node-1")).health_status == health
            found[health] = bool(await registry.discover_nodes("x"))
        assert {health for health, is_found in found.items() if is_found} == {"available", "healthy"}
        with pytest.raises(SPIError):
            await registry.update_node_health("worker-node-1", cast("Any", "fine"))

    async def test_an_unhealthy_worker_gets_no_new_tasks_until_it_is_healthy_again(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        one, two = scene.workers
        assert await registry.update_node_health(one, "unhealthy") is True
        assert await ids(registry, "where", healthy=True) == [two]
        places = set()
        for _ in range(20):
            instance = uuid4()
            await orchestrator.start_workflow("where", instance, {})
            places.add(await self.result(orchestrator, "where", instance))
        assert places == {"two"}
        assert await registry.update_node_health(two, "critical") is True
        instance = uuid4()
        await orchestrator.start_workflow("where", instance, {})
        assert (await orchestrator.get_workflow_state("where", instance)).current_state == "running"
        assert await registry.update_node_health(one, "warning") is True
        assert await self.result(orchestrator, "where", instance) == "one"

    # ---- figures

    async def test_figures_are_of_what_was_done(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        for kind in ("where", "where", "fail", "hold"):
            instance = uuid4()
            await orchestrator.start_workflow(kind, instance, {})
            if kind != "hold":
                await self.result(orchestrator, kind, instance)

        async def holds() -> bool:
            return sum([(await registry.get_node_metrics(name)).current_task_count for name in scene.workers]) == 1

        await until(holds)
        both = [await registry.get_node_metrics(name) for name in scene.workers]
        assert sum(metrics.completed for metrics in both) == 3
        assert sum(metrics.failed for metrics in both) == 1
        for metrics in both:
            assert metrics.health_status == "healthy"
            assert metrics.max_concurrent_tasks > 0
            assert metrics.resource_utilization["slots"] == metrics.max_concurrent_tasks
            assert metrics.resource_utilization["slots_in_use"] == metrics.current_task_count
            assert metrics.last_heartbeat is not None
            if metrics.completed:
                assert 0 <= metrics.duration.p50 <= metrics.duration.p99
                assert metrics.mean_duration_seconds >= 0

    async def test_a_guest_works_on_the_work_queue(self, scene: Scene) -> None:
        registry, queue = scene.registry(1.0), WorkQueue(scene.service)
        await registry.register_node(guest("agent"), [capability("paint")])
        for name in ("a", "b", "c"):
            await queue.enqueue_task(WorkTask(task_id=name, required_capability="paint", max_retries=0))
        assert await queue.dequeue_task("nobody") == []
        first, second = await queue.dequeue_task("agent", max_tasks=2)
        await queue.complete_task(first.task_id)
        metrics = await registry.get_node_metrics("agent")
        done = (metrics.current_task_count, metrics.completed, metrics.failed)
        assert done == (1, 1, 0)
        [node] = await registry.discover_nodes("paint")
        assert node.current_task_count == 1
        await registry.close()

        async def comes_back() -> bool:
            return (await queue.get_task_status(second.task_id)).state == "scheduled"

        await until(comes_back)
        assert await queue.complete_task(second.task_id) is False

    # ---- assignments

    async def test_an_assigned_run_is_known_and_ends_its_assignment(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        one, two = scene.workers
        first, second = uuid4(), uuid4()
        for instance in (first, second):
            await orchestrator.start_workflow("hold", instance, {})
            assert await registry.assign_workflow_to_node("hold", instance, one) is True
        assert await registry.assign_workflow_to_node("hold", first, one) is False
        assignments = await registry.get_workflow_assignments(one)
        assert {assignment.instance_id for assignment in assignments} == {first, second}
        for assignment in assignments:
            assert (assignment.workflow_type, assignment.node_id, assignment.state) == ("hold", one, "running")
            assert assignment.assigned_at is not None
            assert assignment.epoch > 0
        assert await registry.assign_workflow_to_node("hold", first, two) is True
        assert [one.instance_id for one in await registry.get_workflow_assignments(one)] == [second]
        assert [one.instance_id for one in await registry.get_workflow_assignments(two)] == [first]
        await orchestrator.cancel_workflow("hold", second)
        assert await registry.get_workflow_assignments(one) == []
        with pytest.raises(InvalidProtocolStateError) as refused:
            await registry.assign_workflow_to_node("hold", second, one)
        assert refused.value.context["current_state"] == "cancelled"

    async def test_dispatch_honours_it(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        for node, name in zip(scene.workers * 2, ("one", "two") * 2, strict=True):
            for each in scene.workers:
                assert await registry.update_node_health(each, "unavailable") is True
            instances = [uuid4() for _ in range(3)]
            for instance in instances:
                await orchestrator.start_workflow("where", instance, {})
                await orchestrator.pause_workflow("where", instance)
                assert await registry.assign_workflow_to_node("where", instance, node) is True
            for each in scene.workers:
                assert await registry.update_node_health(each, "healthy") is True
            for instance in instances:
                await orchestrator.resume_workflow("where", instance)
            assert [await self.result(orchestrator, "where", instance) for instance in instances] == [name] * 3

    async def test_runs_and_nodes_that_there_are_not(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        instance = uuid4()
        await orchestrator.start_workflow("hold", instance, {})
        for asked in (
            registry.assign_workflow_to_node("hold", instance, "nobody"),
            registry.assign_workflow_to_node("hold", uuid4(), scene.workers[0]),
            registry.assign_workflow_to_node("no-such-type", instance, scene.workers[0]),
        ):
            with pytest.raises(RegistryError):
                await asked

    async def test_an_assignment_is_given_back_when_its_node_goes(
        self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        instance = uuid4()
        await orchestrator.start_workflow("hold", instance, {})
        await registry.register_node(guest(), [])
        assert await other.assign_workflow_to_node("hold", instance, "worker-node-1") is True
        assert len(await registry.get_workflow_assignments("worker-node-1")) == 1
        await registry.unregister_node("worker-node-1")

        async def given_back() -> bool:
            events = await orchestrator.get_workflow_history("hold", instance)
            moves = [(event.data or {}).get("node") for event in events if event.event_type == "state.transitioned"]
            return "worker-node-1" in moves and moves[-1] in {"", None}

        await until(given_back)
        await registry.register_node(guest(), [])
        assert await registry.get_workflow_assignments("worker-node-1") == []

    # ---- the base registry

    async def test_the_base_registry_finds_by_type_environment_group_and_health(
        self, registry: WorkflowNodeRegistry
    ) -> None:
        base = registry.base_registry
        assert await base.register_node(guest("a", environment="test", group="x"), 15) is True
        assert await base.register_node(guest("b", node_type="compute:gpu", group="x", metadata={"gateway": True}), 15)
        assert await base.register_node(guest("c", node_type="effect", environment="test", group="y"), 15)
        assert [node.node_id for node in await base.discover_nodes("compute", group="x")] == ["a", "b"]
        assert [node.node_id for node in await base.discover_nodes("COMPUTE:gpu")] == ["b"]
        assert [node.node_id for node in await base.discover_nodes(environment="test")] == ["a", "c"]
        assert [node.node_id for node in await base.get_nodes_by_group("x")] == ["a", "b"]
        gateway = await base.get_gateway_for_group("x")
        assert gateway is not None
        assert gateway.node_id == "b"
        assert await base.get_gateway_for_group("y") is None
        assert await base.update_node_health("b", "degraded", {"why": "slow"}) is True
        assert await base.get_gateway_for_group("x") is None
        assert [node.node_id for node in await base.discover_nodes(health_filter="degraded")] == ["b"]
        node = await base.get_node("b")
        assert node is not None
        assert (node.metadata["why"], node.metadata["gateway"], node.health_status) == ("slow", True, "degraded")

    async def test_changes_are_told(self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry) -> None:
        told: list[tuple[str, str]] = []
        slow: list[str] = []

        async def changed(node: WorkflowNodeInfo, _change: str) -> None:
            slow.append(node.node_id)
            if len(slow) == 1:
                raise ValueError("a callback's bug ends no watch")

        await registry.register_node(guest("before"), [])
        handle = await other.base_registry.watch_node_changes(
            lambda node, change: told.append((node.node_id, change)), node_type="compute", group="x"
        )
        everything = await other.base_registry.watch_node_changes(changed)
        await registry.register_node(guest("elsewhere", group="y"), [])
        await registry.register_node(guest("a", group="x"), [])
        await until(lambda: _holds(told == [("a", "added")]))
        await registry.update_node_health("a", "warning")
        await until(lambda: _holds(told[1:] == [("a", "updated")]))
        await registry.unregister_node("a")
        await until(lambda: _holds(told[2:] == [("a", "removed")]))
        await until(lambda: _holds(slow[-1:] == ["a"] and len(slow) == 4))
        await other.base_registry.stop_watch(handle)
        await other.base_registry.stop_watch(handle)
        await registry.register_node(guest("b", group="x"), [])
        await until(lambda: _holds(slow[-1:] == ["b"]))
        assert len(told) == 3
        await other.base_registry.stop_watch(everything)


async def _holds(condition: bool) -> bool:
    return condition


async def _is_gone(registry: WorkflowNodeRegistry, node_id: str) -> bool:
    return node_id not in await ids(registry)
