"""The node registry over gRPC and a real etcd: two clients of two orchestrators; and with nothing but generated stubs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple
from uuid import uuid4

import grpc
import pytest

import onexflow
from etcd_support import EtcdHarness, etcd, etcd_harness  # noqa: F401 - a fixture
from onexflow.app.system import SystemClock, SystemIds
from onexflow.client.remote import RemoteService
from onexflow.codec.payload import JsonCodec
from onexflow.engine.orchestrator import Orchestrator
from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.ports.registry import NodeRecord
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.rpc.server import GrpcServer
from onexflow.spi import InvalidProtocolStateError
from onexflow.storage.memory import MemoryStore
from onexflow.testing.conformance.node_registry_kit import capability, definitions, guest, ids, until
from onexflow.v1 import common_pb2, nodes_pb2, nodes_pb2_grpc, workflow_pb2, workflow_pb2_grpc
from support.grpc_cluster import grpc_cluster


class Side(NamedTuple):
    """An orchestrator with a store of its own, and a client of it."""

    client: onexflow.Client
    registry: EtcdRegistry
    stack: AsyncExitStack


async def side(harness: EtcdHarness, name: str) -> Side:
    stack = AsyncExitStack()
    clock = SystemClock()
    registry = await harness.started()
    engine = Orchestrator(
        MemoryStore(clock), registry, clock=clock, ids=SystemIds(), codec=JsonCodec(), orchestrator_id=name,
        incarnation=f"{name}-{uuid4()}",
    )  # fmt: skip
    await engine.start()
    stack.push_async_callback(engine.stop)
    server = GrpcServer(engine, "127.0.0.1:0")
    address = await server.start()
    stack.push_async_callback(server.stop, 0.2)
    await engine.announce(address)
    return Side(await stack.enter_async_context(await onexflow.connect(address)), registry, stack)


@pytest.fixture
async def harness(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdHarness]:  # noqa: F811 - the fixture by its name
    async with etcd_harness(etcd.endpoint) as harness:
        yield harness


@pytest.fixture
async def sides(harness: EtcdHarness) -> AsyncIterator[tuple[Side, Side]]:
    one, two = await side(harness, "o1"), await side(harness, "o2")
    yield one, two
    await one.stack.aclose()
    await two.stack.aclose()


async def stored(harness: EtcdHarness) -> dict[str, Any]:
    """What etcd holds of this cluster."""
    client = EtcdClient(harness.settings)
    prefix = harness.settings.prefix
    found = {
        kv.key.decode().removeprefix(prefix): kv.value for kv in (await client.range(prefix.encode())).kvs
    }  # fmt: skip
    await client.close()
    return {key: json.loads(value) for key, value in found.items() if value.startswith(b"{")}


async def test_two_clients_see_the_same_registry(harness: EtcdHarness, sides: tuple[Side, Side]) -> None:
    one, two = (each.client.node_registry() for each in sides)
    await one.register_node(guest(host="192.168.1.100", port=8080), [capability("payment_processing")])
    await until(lambda: _has(two, "worker-node-1"))
    [node] = await two.discover_nodes("payment_processing")
    assert (node.host, node.port) == ("192.168.1.100", 8080)
    record = (await stored(harness))["nodes/guest/worker-node-1"]
    assert record["handlers"] == ["payment_processing"]
    assert record["details"]["node"]["port"] == 8080

    assert await two.update_node_health("worker-node-1", "degraded") is True
    await until(lambda: _healthless(one))
    assert (await one.get_node_metrics("worker-node-1")).health_status == "degraded"
    assert (await stored(harness))["health/worker-node-1"]["health"] == "degraded"

    # A worker of the cluster, as its own process registers it.
    process = await harness.started()
    await process.register(NodeRecord(kind="compute", node_id="w1", incarnation="i", handlers=("where",), slots=2))
    for registry in (one, two):
        await until(lambda: _has(registry, "w1"))  # noqa: B023 - until is over before the next
    assert await ids(one) == await ids(two) == ["w1", "worker-node-1"]
    with pytest.raises(InvalidProtocolStateError):
        await two.register_node(guest("w1"), [])

    assert await two.unregister_node("worker-node-1") is True  # through the one that does not keep it
    await until(lambda: _gone(one, "worker-node-1"))
    await until(lambda: _gone(two, "worker-node-1"))
    with pytest.raises(InvalidProtocolStateError):
        await one.base_registry.heartbeat("worker-node-1")
    content = await stored(harness)
    assert [key for key in content if "worker-node-1" in key] == []
    for client in (sides[0].client, sides[1].client):
        views = await client.nodes()
        assert {(view.node_id, view.kind) for view in views} == {
            ("o1", "orchestrator"),
            ("o2", "orchestrator"),
            ("w1", "compute"),
        }


async def test_a_registration_on_the_other_side_replaces_and_fences(sides: tuple[Side, Side]) -> None:
    one, two = (each.client.node_registry() for each in sides)
    await one.register_node(guest(host="old"), [])
    await until(lambda: _has(two, "worker-node-1"))
    await two.register_node(guest(host="new"), [])
    with pytest.raises(InvalidProtocolStateError):
        await _until_refused(one.base_registry.heartbeat)
    with pytest.raises(InvalidProtocolStateError):
        await one.unregister_node("worker-node-1")
    for registry in (one, two):
        [node] = await registry.discover_nodes()
        assert node.host == "new"


async def test_a_guest_moves_to_the_other_orchestrator_when_its_own_dies(
    harness: EtcdHarness, sides: tuple[Side, Side]
) -> None:
    one, two = sides
    client = await onexflow.connect([one.client._channels.address, two.client._channels.address])
    watcher = two.client.node_registry()
    told: list[tuple[str, str]] = []
    async with client:
        registry = client.node_registry(ttl_seconds=1.5)
        await registry.register_node(guest(), [capability("x")])
        await until(lambda: _has(watcher, "worker-node-1"))
        await watcher.base_registry.watch_node_changes(lambda node, change: told.append((node.node_id, change)))
        before = (await stored(harness))["nodes/guest/worker-node-1"]
        await one.registry.crash()
        await one.stack.aclose()
        await until(lambda: _kept_by_another(harness, before["keeper"]))
        after = (await stored(harness))["nodes/guest/worker-node-1"]
        assert after["incarnation"] == before["incarnation"]
        assert await _has(watcher, "worker-node-1")
        assert await registry.update_node_health("worker-node-1", "warning") is True
    await until(lambda: _gone(watcher, "worker-node-1"))
    await until(lambda: _true(told[-1:] == [("worker-node-1", "removed")]))


async def test_an_assignment_is_in_etcd_while_its_node_lives(harness: EtcdHarness, sides: tuple[Side, Side]) -> None:
    one, _ = sides
    registry = one.client.node_registry()
    remote = RemoteService.of(one.client)
    orchestrator = WorkflowOrchestrator(remote)
    for definition in definitions():
        await one.client.register(definition)
    instance = uuid4()
    await orchestrator.start_workflow("hold", instance, {})
    await registry.register_node(guest(), [])
    assert await registry.assign_workflow_to_node("hold", instance, "worker-node-1") is True
    key = f"assignments/default/hold/{instance}"
    assert (await stored(harness))[key]["node_id"] == "worker-node-1"
    assert (await stored(harness))[key]["epoch"] > 0
    await registry.unregister_node("worker-node-1")

    async def taken_back() -> bool:
        return key not in await stored(harness)

    await until(taken_back)
    await remote.close()


async def test_plain_stubs() -> None:
    async with grpc_cluster() as client:
        for definition in definitions():
            await client.register(definition)
        channel = client._channels._channel()
        stub: Any = nodes_pb2_grpc.NodeRegistryServiceStub(channel)
        workflows: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
        watch = stub.WatchNodes(nodes_pb2.WatchNodesRequest())
        assert list((await watch.read()).nodes) == []
        node = nodes_pb2.NodeEntry(
            node_id="n", node_type="effect", host="h", port=1, details=b'{"metadata":{"a":1}}',
            capabilities=[nodes_pb2.NodeCapability(name="paint", max_concurrent_tasks=3)],
        )  # fmt: skip
        first = await stub.RegisterNode(nodes_pb2.RegisterNodeRequest(node=node))
        assert first.incarnation
        assert [each.node_id for each in (await watch.read()).nodes] == ["n"]
        beat = nodes_pb2.RegisterNodeRequest(node=node, incarnation=first.incarnation, started_at=first.started_at)
        assert await stub.RegisterNode(beat) == first
        [found] = (await stub.FindNodes(nodes_pb2.FindNodesRequest(capability="paint"))).nodes
        assert (found.host, found.port, found.health, found.guest) == ("h", 1, "healthy", True)
        assert json.loads(found.details) == {"metadata": {"a": 1}}
        report = nodes_pb2.ReportNodeHealthRequest(node_id="n", health="warning")
        assert (await stub.ReportNodeHealth(report)).changed
        assert not (await stub.ReportNodeHealth(report)).changed
        assert [each.health for each in (await watch.read()).nodes] == ["warning"]
        metrics = await stub.GetNodeMetrics(nodes_pb2.GetNodeMetricsRequest(node_id="n"))
        assert (metrics.health, metrics.completed, metrics.last_heartbeat > 0) == ("warning", 0, True)
        started = await workflows.StartWorkflow(
            workflow_pb2.StartWorkflowRequest(workflow_type="hold", input=common_pb2.Payload(data=b"{}"))
        )
        assigned = workflow_pb2.AssignRunRequest(key=started.start.key, node_id="n")
        assert (await workflows.AssignRun(assigned)).outcome.changed
        [assignment] = (await stub.ListAssignments(nodes_pb2.ListAssignmentsRequest(node_id="n"))).assignments
        assert (assignment.key, assignment.state, assignment.node_id) == (started.start.key, "running", "n")
        second = await stub.RegisterNode(nodes_pb2.RegisterNodeRequest(node=node))
        assert second.started_at > first.started_at
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RegisterNode(beat)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        gone = nodes_pb2.UnregisterNodeRequest(node_id="n", incarnation=second.incarnation)
        assert (await stub.UnregisterNode(gone)).changed
        assert not (await stub.UnregisterNode(gone)).changed
        while (await watch.read()).nodes:
            pass
        watch.cancel()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("details", b"[1]"),
        ("details", b"\xff"),
        ("details", b"[" * 60_000),
        ("details", b'{"a":"' + b"x" * 70_000 + b'"}'),
        ("node_id", ""),
        ("node_type", ""),
        ("port", 4_000_000_000),
        ("health", "fine"),
        ("capabilities", [nodes_pb2.NodeCapability()]),
        ("capabilities", [nodes_pb2.NodeCapability(name=f"c{n}") for n in range(1001)]),
        ("capabilities", [nodes_pb2.NodeCapability(name="c", details=b"null")]),
        ("workflow_types", ["\n"]),
    ],
)
async def test_what_makes_no_sense_is_an_invalid_argument(field: str, wrong: Any) -> None:
    async with grpc_cluster() as client:
        stub: Any = nodes_pb2_grpc.NodeRegistryServiceStub(client._channels._channel())
        fields = {"node_id": "n", "node_type": "effect", field: wrong}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RegisterNode(nodes_pb2.RegisterNodeRequest(node=nodes_pb2.NodeEntry(**fields)))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert list((await stub.FindNodes(nodes_pb2.FindNodesRequest())).nodes) == []


async def test_many_nodes_come_in_pages_and_parts() -> None:
    async with grpc_cluster() as client:
        registry = client.node_registry()
        heavy = {"x": "y" * 50_000}
        for number in range(45):
            await registry.register_node(guest(f"n{number:02}", metadata=heavy), [])
        assert await ids(registry) == [f"n{number:02}" for number in range(45)]
        told: list[str] = []
        await registry.base_registry.watch_node_changes(lambda node, _: told.append(node.node_id))
        await registry.update_node_health("n44", "warning")
        await until(lambda: _true(told == ["n44"]))


async def _has(registry: Any, node_id: str) -> bool:
    return node_id in await ids(registry)


async def _gone(registry: Any, node_id: str) -> bool:
    return not await _has(registry, node_id)


async def _healthless(registry: Any) -> bool:
    found: list[Any] = await registry.discover_nodes("payment_processing")
    return not found


async def _true(condition: bool) -> bool:
    return condition


async def _kept_by_another(harness: EtcdHarness, keeper: str) -> bool:
    record = (await stored(harness)).get("nodes/guest/worker-node-1")
    return record is not None and bool(record["keeper"] != keeper)


async def _until_refused(heartbeat: Any) -> None:
    async with asyncio.timeout(10):
        while await heartbeat("worker-node-1"):
            await asyncio.sleep(0.01)
