"""What every ProtocolWorkflowNodeRegistry of ours must do. Subclass `NodeRegistryConformance`, give it a `scene`.

class TestMine(NodeRegistryConformance):
    @pytest.fixture
    async def scene(self) -> AsyncIterator[Scene]:
        ...  # a cluster with worker("one") and worker("two") connected, and `definitions()` registered
"""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import pytest

from onexflow.engine.protocols import WorkflowNodeRegistry
from onexflow.spi import (
    InvalidProtocolStateError,
    ProtocolNodeRegistry,
    ProtocolWorkflowNodeRegistry,
    RegistryError,
    SPIError,
    WorkflowNodeInfo,
)
from onexflow.testing.conformance.node_registry_kit import Scene, capability, definitions, guest, ids, until, worker
from onexflow.testing.conformance.onex_node_work import NodeWorkConformance

__all__ = ["NodeRegistryConformance", "Scene", "definitions", "worker"]


class NodeRegistryConformance(NodeWorkConformance):
    """The contract, member by member."""

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
