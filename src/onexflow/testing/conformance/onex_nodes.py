"""What nodes on the caller's side must do. Subclass `NodeConformance`, give it a `service`.

class TestMine(NodeConformance):
    @pytest.fixture
    async def service(self) -> AsyncIterator[RunService]:
        ...  # with `worker()` connected
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from onexflow.core.ids import RunKey
from onexflow.engine.protocols import ComputeNode, EffectNode, ReducerNode, find_node
from onexflow.ports.client_link import RunService
from onexflow.spi import (
    InvalidProtocolStateError,
    ProtocolComputeNode,
    ProtocolEffectNode,
    ProtocolHandlerError,
    ProtocolReducerNode,
    RegistryError,
    SPIError,
)
from onexflow.worker.handlers import Worker


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


def worker() -> Worker:
    """A worker with a node of each role, and one name in two roles."""
    made = Worker("nodes")
    for node in (ApiCall(), Transform(), Aggregation()):
        made.add_node(node)

    async def both(contract: Any) -> Any:
        return contract

    made.effect("both")(both)
    made.reducer("both")(both)
    return made


class NodeConformance:
    """The contract, case by case."""

    async def test_each_satisfies_the_protocol_of_its_role(self, service: RunService) -> None:
        found = [await find_node(service, node.node_id) for node in (ApiCall, Transform, Aggregation)]
        assert [type(node) for node in found] == [EffectNode, ComputeNode, ReducerNode]
        assert [node.node_type for node in found] == ["effect", "compute", "reducer"]
        assert [node.node_id for node in found] == [ApiCall.node_id, Transform.node_id, Aggregation.node_id]
        protocols = (ProtocolEffectNode, ProtocolComputeNode, ProtocolReducerNode)
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
