"""The life of class nodes: calls before they are ready and after they were shut down are refused, and say so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow import onex
from onexflow.core.builder import workflow
from onexflow.core.errors import HandlerFailed, NodeNotReady
from onexflow.engine.protocols import ComputeNode, EffectNode, find_node
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.handlers import Worker
from support.engine_kit import until


class Slow:
    """A node whose initialize() waits for the test's word."""

    node_id = "slow"
    node_type = "effect"

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.calls: list[str] = []

    async def initialize(self) -> None:
        self.calls.append("initialize")
        await self.go.wait()
        if self.error is not None:
            raise self.error

    async def execute_effect(self, contract: Any) -> Any:
        self.calls.append("execute")
        if contract == "wait":
            await asyncio.Event().wait()
        return contract

    async def shutdown(self) -> None:
        self.calls.append("shutdown")


class Other:
    node_id = "other"
    node_type = "compute"

    def __init__(self) -> None:
        self.is_shut_down = False

    async def execute_compute(self, contract: Any) -> Any:
        return contract

    async def shutdown(self) -> None:
        self.is_shut_down = True


def worker(*nodes: Any) -> Worker:
    made = Worker("w")
    for node in nodes:
        made.add_node(node)
    return made


async def refused(node: EffectNode) -> tuple[Any, Any, Any]:
    """The states that a refused call tells."""
    with pytest.raises(onex.InvalidProtocolStateError) as raised:
        await node.execute_effect(1)
    context = raised.value.context
    assert (context["node_id"], context["node_type"]) == ("slow", "effect")
    return type(raised.value), context["current_state"], context["required_state"]


def state(cluster: Cluster) -> str:
    """Why the orchestrator takes no call to the node."""
    return cluster.engine._sessions.lifecycle.state_of("effect", "slow")


@virtual_time
async def test_a_call_before_the_end_of_initialize_is_refused_and_one_after_it_is_done() -> None:
    slow = Slow()
    async with Cluster() as cluster:
        adding = asyncio.ensure_future(cluster.add_worker(worker(Other(), slow), "w"))
        await until(lambda: slow.calls == ["initialize"])
        node = await find_node(cluster.engine, "slow")
        assert isinstance(node, EffectNode)
        assert await refused(node) == (NodeNotReady, "initializing", "ready")
        other = await find_node(cluster.engine, "other")  # was initialised before
        assert isinstance(other, ComputeNode)
        assert await other.execute_compute(2) == 2
        slow.go.set()
        await adding
        assert await node.execute_effect(3) == 3
        assert slow.calls == ["initialize", "execute"]


@virtual_time
async def test_tasks_of_workflows_wait_until_it_is_initialised() -> None:
    slow, flow = Slow(), workflow("flow")
    flow.effect("slow")
    async with Cluster() as cluster:
        await cluster.register(flow.build())
        adding = asyncio.ensure_future(cluster.add_worker(worker(slow), "w"))
        await until(lambda: slow.calls == ["initialize"])
        key = (await cluster.start("flow", 5)).key
        assert (await cluster.task(key, "slow")).blocked_because == "no worker with effect handler slow"
        slow.go.set()
        await adding
        assert await cluster.result(key) == 5


@virtual_time
async def test_a_call_after_the_shutdown_is_refused_until_another_worker_serves_it() -> None:
    slow = Slow()
    slow.go.set()
    async with Cluster() as cluster:
        await cluster.add_worker(worker(slow), "w")
        node = await find_node(cluster.engine, "slow")
        assert isinstance(node, EffectNode)
        await cluster.stop_worker("w")
        assert slow.calls == ["initialize", "shutdown"]
        assert await refused(node) == (NodeNotReady, "shutdown", "ready")
        again = await find_node(cluster.engine, "slow")
        assert isinstance(again, EffectNode)
        assert await refused(again) == (NodeNotReady, "shutdown", "ready")
        (view,) = [view for view in await cluster.engine.list_nodes() if view.node_id == "w"]
        assert (view.status, view.connected, view.registered) == ("shutdown", False, False)
        await cluster.add_worker(worker(slow), "w2")
        await until(lambda: not state(cluster))
        assert await node.execute_effect(7) == 7
        assert [view.node_id for view in await cluster.engine.list_nodes() if view.kind == "effect"] == ["w2"]


@virtual_time
async def test_a_call_to_a_worker_that_drains_is_refused_unless_another_serves_the_node() -> None:
    slow = Slow()
    slow.go.set()
    async with Cluster() as cluster:
        await cluster.add_worker(worker(slow), "w1")
        node = await find_node(cluster.engine, "slow")
        assert isinstance(node, EffectNode)
        held = asyncio.ensure_future(node.execute_effect("wait"))
        await until(lambda: "execute" in slow.calls)
        await cluster.engine.drain_node("w1")
        assert await refused(node) == (NodeNotReady, "draining", "ready")
        await cluster.add_worker(worker(slow), "w2")
        await until(lambda: not state(cluster))
        assert await node.execute_effect(1) == 1
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


@virtual_time
async def test_a_worker_that_was_lost_is_waited_for() -> None:
    slow = Slow()
    slow.go.set()
    async with Cluster() as cluster:
        await cluster.add_worker(worker(slow), "w1")
        node = await find_node(cluster.engine, "slow")
        assert isinstance(node, EffectNode)
        cluster.kill_worker("w1")
        calling = asyncio.ensure_future(node.execute_effect(9))
        await asyncio.sleep(60)
        assert not calling.done()
        await cluster.add_worker(worker(slow), "w2")
        assert await calling == 9


@virtual_time
async def test_a_handler_without_a_life_is_waited_for_after_its_worker_has_ended() -> None:
    made = Worker("w")

    @made.effect("plain")
    async def plain(contract: Any) -> Any:
        return contract

    async with Cluster() as cluster:
        await cluster.add_worker(made, "w1")
        node = await find_node(cluster.engine, "plain")
        assert isinstance(node, EffectNode)
        await cluster.stop_worker("w1")
        with pytest.raises(onex.RegistryError):
            await find_node(cluster.engine, "plain")
        calling = asyncio.ensure_future(node.execute_effect(9))
        await asyncio.sleep(60)
        await cluster.add_worker(made, "w2")
        assert await calling == 9


@virtual_time
async def test_one_whose_initialize_fails_ends_its_worker_and_is_refused() -> None:
    slow, other = Slow(), Other()
    slow.error = OSError("no database")
    async with Cluster() as cluster:
        adding = asyncio.ensure_future(cluster.add_worker(worker(other, slow), "w"))
        await until(lambda: slow.calls == ["initialize"])
        node = await find_node(cluster.engine, "slow")
        assert isinstance(node, EffectNode)
        slow.go.set()
        with pytest.raises(onex.HandlerInitializationError, match=r"'slow' failed: no database"):
            await adding
        assert other.is_shut_down
        await until(lambda: state(cluster) == "failed")
        assert await refused(node) == (NodeNotReady, "failed", "ready")


@virtual_time
async def test_what_the_node_raises_itself_is_told_apart() -> None:
    class Closed(Other):
        async def execute_compute(self, contract: Any) -> Any:
            if contract:
                raise ValueError("no")
            raise onex.InvalidProtocolStateError("shut", {"current_state": "shut", "required_state": "open"})

    async with Cluster() as cluster:
        await cluster.add_worker(worker(Closed()), "w")
        node = await find_node(cluster.engine, "other")
        assert isinstance(node, ComputeNode)
        with pytest.raises(HandlerFailed):
            await node.execute_compute(1)
        with pytest.raises(onex.InvalidProtocolStateError) as raised:
            await node.execute_compute(0)
        assert raised.value.context["current_state"] == "shut"
        assert "run" in raised.value.context
