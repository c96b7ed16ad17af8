"""The bases of class nodes: either path, either method, and a life that the worker leads."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow import nodes, onex
from onexflow.core.builder import workflow
from onexflow.engine.protocols import find_node
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker


class ApiCall(nodes.BaseEffectNode):
    """By the specification's method, with an id of its own."""

    node_id = "effect-api-call-1"
    version = "2.1.0"

    def __init__(self) -> None:  # without the base's: what a node needs of it must work all the same
        self.life: list[str] = []

    async def initialize(self) -> None:
        self.life.append("initialize")

    async def shutdown(self, timeout_seconds: float = 30.0) -> None:
        self.life.append(f"shutdown {timeout_seconds:g}")

    async def execute_effect(self, contract: Any) -> Any:
        return ["sent", contract]


class Transform(nodes.BaseComputeNode):
    """By the published package's."""

    async def execute(self, input_data: Any) -> Any:
        return input_data * 2


class Total(nodes.BaseReducerNode):
    async def execute_reduction(self, contract: Any) -> Any:
        return sum(contract)


class Lead(nodes.BaseOrchestratorNode):
    async def execute_orchestration(self, contract: Any, ctx: Context | None = None) -> Any:
        assert ctx is not None
        doubled = [await (await ctx.node("transform", "compute")).execute_compute(n) for n in contract]
        return await (await ctx.node("total", "reducer")).execute_reduction(doubled)


def test_both_paths_give_the_same_objects() -> None:
    assert nodes.__all__ == sorted(nodes.__all__)
    for name in nodes.__all__:
        assert getattr(nodes, name) is getattr(onex, name)


@pytest.mark.parametrize(
    ("node", "role", "protocol", "method"),
    [
        (ApiCall(), "effect", onex.ProtocolEffectNode, "execute_effect"),
        (Transform(), "compute", onex.ProtocolComputeNode, "execute_compute"),
        (Total(), "reducer", onex.ProtocolReducerNode, "execute_reduction"),
        (Lead("lead-1", version="3"), "orchestrator", onex.ProtocolOrchestratorNode, "execute_orchestration"),
    ],
)
def test_a_base_has_what_both_apis_want(node: nodes.Node, role: str, protocol: type, method: str) -> None:
    assert isinstance(node, protocol)
    assert node.node_type == role
    for member in ("execute", "initialize", "shutdown", method):
        assert callable(getattr(node, member))
    assert isinstance(node.node_id, str)
    assert isinstance(node.version, str)


def test_ids_and_versions_are_said_or_made_of_the_class() -> None:
    assert (ApiCall().node_id, ApiCall().version) == ("effect-api-call-1", "2.1.0")
    assert (Transform().node_id, Transform().version) == ("transform", "1.0.0")
    assert (Lead("lead-1", version="3").node_id, Lead("lead-1", version="3").version) == ("lead-1", "3")
    assert nodes.BaseEffectNode().node_id == "base-effect-node"
    assert Transform().is_deterministic


async def test_either_method_does_what_the_other_says() -> None:
    assert await ApiCall().execute(1) == await ApiCall().execute_effect(1) == ["sent", 1]
    assert await Transform().execute(2) == await Transform().execute_compute(2) == 4
    for role in (nodes.BaseEffectNode, nodes.BaseComputeNode, nodes.BaseReducerNode, nodes.BaseOrchestratorNode):
        with pytest.raises(NotImplementedError, match="neither `execute` nor `execute_"):
            await role().execute(None)
    with pytest.raises(NotImplementedError):
        await nodes.Node().execute(None)


@virtual_time
async def test_workers_serve_them_and_lead_their_lives() -> None:
    api, made = ApiCall(), Worker("w")
    for node in (api, Transform(), Total(), Lead()):
        made.add_node(node)
    flow = workflow("flow")
    flow.orchestrator("lead")
    async with Cluster() as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(made)
        assert api.life == ["initialize"]
        effect = await find_node(cluster.engine, "effect-api-call-1")
        assert isinstance(effect, onex.EffectNode)
        assert await effect.execute_effect("x") == ["sent", "x"]
        assert await cluster.run("flow", [1, 2, 3]) == 12
    assert api.life == ["initialize", "shutdown 30"]
