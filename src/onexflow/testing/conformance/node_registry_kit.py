"""What the parts of the node registry's suite share: the scene, its workers and workflows, and guests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, WorkflowDefinition
from onexflow.engine.protocols import WorkflowNodeRegistry, WorkflowOrchestrator
from onexflow.ports.client_link import RunService
from onexflow.spi import WorkflowNodeCapability, WorkflowNodeInfo
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


class NodeRegistrySuite:
    """Two registries and an orchestrator on the `scene` that is tested."""

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
