"""What nodes on the caller's side must do. Subclass `NodeConformance`, give it a `service` and a way to add workers.

class TestMine(NodeConformance):
    @pytest.fixture
    async def service(self) -> AsyncIterator[RunService]:
        ...  # with `worker()` connected

    @pytest.fixture
    def serve(self, service) -> Serve:
        ...  # serve(worker, worker_id): a context, entered when its nodes are initialised, left when it has shut down
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias
from uuid import UUID

import pytest

from onexflow.codec.definitions import dump_definition
from onexflow.core.builder import workflow
from onexflow.core.ids import RunKey
from onexflow.engine.protocols import ComputeNode, EffectNode, OrchestratorNode, ReducerNode, find_node
from onexflow.ports.client_link import RunService
from onexflow.spi import (
    InvalidProtocolStateError,
    ProtocolComputeNode,
    ProtocolEffectNode,
    ProtocolHandlerError,
    ProtocolOrchestratorNode,
    ProtocolReducerNode,
    RegistryError,
    SPIError,
)
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker

Serve: TypeAlias = Callable[[Worker, str], AbstractAsyncContextManager[None]]


class ApiCall:
    """An effect node as the specification writes them, with a set-up of its own."""

    node_id = "effect-api-call-1"
    node_type = "EFFECT"

    def __init__(self) -> None:
        self.client = ""

    async def initialize(self) -> None:
        self.client = "open"

    async def execute_effect(self, contract: Any) -> Any:
        if self.client != "open":
            raise InvalidProtocolStateError("not open", {"current_state": "new", "required_state": "initialized"})
        if contract.url == "slow":
            await asyncio.Event().wait()
        if contract.url == "closed":
            raise InvalidProtocolStateError("closed", {"current_state": "closed", "required_state": "initialized"})
        if contract["url"] != "http://ok":
            raise ConnectionError(f"no route to {contract.url}")
        return {"status": 200, "sent": contract.payload.lines[1].sku}


class Transform:
    """A compute node."""

    node_id = "compute-transform-1"
    node_type = "compute:fast"

    async def execute_compute(self, contract: Any) -> Any:
        return [value * 2 for value in contract.input_data]


class Aggregation:
    """A reducer node, of a name that cannot be a workflow's."""

    node_id = "reducer/aggregation:1"
    node_type = "reducer"

    async def execute_reduction(self, contract: Any) -> Any:
        return sum(contract)


class Conductor:
    """An orchestrator node that has the others work."""

    node_id = "orchestrator-workflow-1"
    node_type = "ORCHESTRATOR"

    async def execute_orchestration(self, contract: Any, ctx: Context) -> Any:
        transform = await ctx.node(Transform.node_id, "compute")
        if contract.get("fail"):
            await (await ctx.node(ApiCall.node_id)).execute_effect({"url": "http://gone"})
        parts = await asyncio.gather(*(transform.execute_compute({"input_data": [n]}) for n in contract.numbers))
        total = await (await ctx.node(Aggregation.node_id)).execute_reduction([part[0] for part in parts])
        return {"total": total, "child": await ctx.run("nodes-child", {"input_data": [total]})}


class Living:
    """An effect node whose life the test decides."""

    node_id = "living-1"
    node_type = "effect"

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = asyncio.Event()

    async def initialize(self) -> None:
        self.begun.set()
        await self.go.wait()

    async def execute_effect(self, contract: Any) -> Any:
        return contract


def child() -> bytes:
    """The workflow that the conductor runs."""
    flow = workflow("nodes-child")
    flow.compute("transform", Transform.node_id)
    return dump_definition(flow.build())


def worker() -> Worker:
    """A worker with a node of each role, and one name in two roles."""
    made = Worker("nodes")
    for node in (ApiCall(), Transform(), Aggregation(), Conductor()):
        made.add_node(node)

    async def both(contract: Any) -> Any:
        return contract

    made.effect("both")(both)
    made.reducer("both")(both)
    return made


class NodeConformance:
    """The contract, case by case."""

    async def test_each_satisfies_the_protocol_of_its_role(self, service: RunService) -> None:
        nodes = (ApiCall, Transform, Aggregation, Conductor)
        found = [await find_node(service, node.node_id) for node in nodes]
        assert [type(node) for node in found] == [EffectNode, ComputeNode, ReducerNode, OrchestratorNode]
        assert [node.node_type for node in found] == ["effect", "compute", "reducer", "orchestrator"]
        assert [node.node_id for node in found] == [node.node_id for node in nodes]
        protocols = (ProtocolEffectNode, ProtocolComputeNode, ProtocolReducerNode, ProtocolOrchestratorNode)
        for node, own in zip(found, protocols, strict=True):
            assert [isinstance(node, protocol) for protocol in protocols] == [own is protocol for protocol in protocols]

    async def test_they_do_what_the_nodes_do(self, service: RunService) -> None:
        contract = {"url": "http://ok", "payload": {"lines": [{"sku": "A"}, {"sku": "B"}]}}
        assert await EffectNode(service, ApiCall.node_id).execute_effect(contract) == {"status": 200, "sent": "B"}
        assert await ComputeNode(service, Transform.node_id).execute_compute({"input_data": [1, 2]}) == [2, 4]
        assert await ReducerNode(service, Aggregation.node_id).execute_reduction([1, 2, 3]) == 6

    async def test_calls_go_side_by_side(self, service: RunService) -> None:
        node = ComputeNode(service, Transform.node_id)
        answers = await asyncio.gather(*(node.execute_compute({"input_data": [n]}) for n in range(20)))
        assert answers == [[2 * n] for n in range(20)]

    async def test_a_failure_is_a_handler_error(self, service: RunService) -> None:
        with pytest.raises(ProtocolHandlerError, match="no route to http://gone") as raised:
            await EffectNode(service, ApiCall.node_id).execute_effect({"url": "http://gone"})
        context = raised.value.context
        assert (context["node_id"], context["node_type"]) == (ApiCall.node_id, "effect")
        assert context["error"] == "ConnectionError"

    async def test_a_call_is_a_run_that_can_be_looked_at(self, service: RunService) -> None:
        with pytest.raises(ProtocolHandlerError) as raised:
            await EffectNode(service, ApiCall.node_id).execute_effect({"url": "http://gone"})
        namespace, workflow_type, instance = raised.value.context["run"].split("/")
        view = await service.describe_run(RunKey(namespace, workflow_type, UUID(instance)))
        assert (workflow_type, view.state) == (f"node.effect.{ApiCall.node_id}", "failed")

    async def test_a_node_s_own_state_error_comes_as_what_it_is(self, service: RunService) -> None:
        with pytest.raises(InvalidProtocolStateError) as raised:
            await EffectNode(service, ApiCall.node_id).execute_effect({"url": "closed"})
        assert raised.value.context["current_state"] == "closed"
        assert raised.value.context["required_state"] == "initialized"

    async def test_a_call_that_takes_too_long_is_a_handler_error_from_a_timeout(self, service: RunService) -> None:
        with pytest.raises(ProtocolHandlerError) as raised:
            await EffectNode(service, ApiCall.node_id, timeout=0.2).execute_effect({"url": "slow"})
        assert isinstance(raised.value.__cause__, TimeoutError)
        context = raised.value.context
        assert (context["node_id"], context["node_type"], context["timeout"]) == (ApiCall.node_id, "effect", 0.2)

    async def test_a_contract_without_a_json_form_is_refused(self, service: RunService) -> None:
        with pytest.raises(SPIError) as raised:
            await ComputeNode(service, Transform.node_id).execute_compute({"o": object()})
        assert raised.value.context["field"]

    async def test_a_node_that_nobody_serves_is_a_registry_error(self, service: RunService) -> None:
        with pytest.raises(RegistryError) as raised:
            await find_node(service, "no-such-node")
        assert Transform.node_id in raised.value.context["known"]
        with pytest.raises(RegistryError):
            await find_node(service, Transform.node_id, "effect")

    async def test_a_name_in_two_roles_needs_its_type(self, service: RunService) -> None:
        with pytest.raises(SPIError) as raised:
            await find_node(service, "both")
        assert raised.value.context["field"] == "node_type"
        node = await find_node(service, "both", "REDUCER:sum")
        assert isinstance(node, ReducerNode)
        assert await node.execute_reduction({"a": 1}) == {"a": 1}
        with pytest.raises(SPIError):
            await find_node(service, "both", "conductor")

    async def test_an_orchestrator_node_has_the_others_work(self, service: RunService) -> None:
        await service.register_definition("default", child())
        node = OrchestratorNode(service, Conductor.node_id)
        assert await node.execute_orchestration({"numbers": [1, 2, 3]}) == {"total": 12, "child": [24]}

    async def test_what_it_calls_fails_for_it_and_it_for_its_caller(self, service: RunService) -> None:
        with pytest.raises(ProtocolHandlerError, match="no route to http://gone") as raised:
            await OrchestratorNode(service, Conductor.node_id).execute_orchestration({"fail": True, "numbers": []})
        assert raised.value.context["node_id"] == Conductor.node_id

    async def test_a_node_of_type_orchestrator_may_be_a_workflow(self, service: RunService) -> None:
        await service.register_definition("default", child())
        node = await find_node(service, "nodes-child", "orchestrator")
        assert isinstance(node, ProtocolOrchestratorNode)
        assert (node.node_id, node.node_type) == ("nodes-child", "orchestrator")
        assert await node.execute_orchestration({"input_data": [4]}) == [8]
        with pytest.raises(ProtocolHandlerError) as raised:
            await node.execute_orchestration({})
        assert raised.value.context["run"].startswith("default/nodes-child/")
        with pytest.raises(RegistryError):
            await find_node(service, "nodes-child")
        with pytest.raises(RegistryError):
            await find_node(service, "no-such-workflow", "orchestrator")

    async def test_a_call_before_initialize_has_finished_is_refused(self, service: RunService, serve: Serve) -> None:
        living, made, leave = Living(), Worker("living"), asyncio.Event()
        made.add_node(living)

        async def live() -> None:
            async with serve(made, "living"):
                await leave.wait()

        life = asyncio.ensure_future(live())
        await living.begun.wait()
        node = EffectNode(service, Living.node_id)
        context = await _until_refused(node)
        assert (context["current_state"], context["required_state"]) == ("initializing", "ready")
        assert (context["node_id"], context["node_type"]) == (Living.node_id, "effect")
        assert isinstance(await find_node(service, Living.node_id), EffectNode)
        living.go.set()
        assert await _until_done(node, {"a": 1}) == {"a": 1}
        leave.set()
        await life

    async def test_a_call_after_the_shutdown_is_refused(self, service: RunService, serve: Serve) -> None:
        living, made = Living(), Worker("living")
        living.go.set()
        made.add_node(living)
        node = EffectNode(service, Living.node_id)
        async with serve(made, "living"):
            assert await _until_done(node, 1) == 1
        context = await _until_refused(node)
        assert (context["current_state"], context["required_state"]) == ("shutdown", "ready")
        assert isinstance(await find_node(service, Living.node_id), EffectNode)
        async with serve(made, "living-2"):
            assert await _until_done(node, 2) == 2


async def _until_refused(node: EffectNode) -> dict[str, Any]:
    """What a call is refused with, once the orchestrator has heard from the worker."""
    async with asyncio.timeout(10):
        while True:
            calling = asyncio.ensure_future(node.execute_effect(0))
            done, _ = await asyncio.wait([calling], timeout=0.2)
            if not done:  # it was not known yet: the call waits
                calling.cancel()
            try:
                await calling
            except InvalidProtocolStateError as error:
                return error.context
            except asyncio.CancelledError:
                continue


async def _until_done(node: EffectNode, contract: Any) -> Any:
    """What a call gives, once the orchestrator has heard that the node is ready."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await node.execute_effect(contract)
            except InvalidProtocolStateError:
                await asyncio.sleep(0.01)
