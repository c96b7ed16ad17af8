"""A program for an environment that has `omnibase_spi`: which of its protocols our objects satisfy, as JSON.

For each protocol: `is` (isinstance says so) and `differ` (members whose parameters, defaults or async-ness are not the
same, with both signatures).
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

from onexflow import nodes
from onexflow.engine.protocols import (
    ComputeNode,
    EffectNode,
    OrchestratorNode,
    ReducerNode,
    WorkflowEventBus,
    WorkflowEventCoordinator,
    WorkflowNodeRegistry,
)
from onexflow.spi import Context, OnexResult, WorkflowEvent
from onexflow.testing import Cluster, run_virtual


class Projection:
    """As a user writes one."""

    projection_name = "totals"

    async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
        return current_state

    async def get_state(self, workflow_type: str, instance_id: UUID) -> Context:
        return {}


async def handle(event: WorkflowEvent, context: Context) -> None:
    """As a user writes one."""


@asynccontextmanager
async def _objects() -> AsyncIterator[dict[str, Any]]:
    async with Cluster(seed=1) as cluster:
        bus = WorkflowEventBus(cluster.engine.events)
        coordinator = WorkflowEventCoordinator(cluster.engine.events, bus)
        registry = WorkflowNodeRegistry(cluster.engine.node_registry)
        subscription = await bus.subscribe_to_workflow_events("order")
        event = WorkflowEvent(event_type="task.completed", workflow_type="order", instance_id=uuid4())
        await bus.publish_workflow_event(event)
        message = await anext(bus.messages(subscription))
        yield {
            "workflow_orchestration.ProtocolWorkflowEventBus": bus,
            "workflow_orchestration.ProtocolWorkflowEventMessage": message,
            "workflow_orchestration.ProtocolWorkflowEventHandler": handle,
            "workflow_orchestration.ProtocolLiteralWorkflowStateProjection": Projection(),
            "workflow_orchestration.ProtocolWorkflowEventCoordinator": coordinator,
            "onex.ProtocolOnexEffectNodeLegacy": EffectNode(cluster.engine, "n"),
            "onex.ProtocolOnexComputeNodeLegacy": ComputeNode(cluster.engine, "n"),
            "onex.ProtocolOnexReducerNodeLegacy": ReducerNode(cluster.engine, "n"),
            "onex.ProtocolOnexOrchestratorNodeLegacy": OrchestratorNode(cluster.engine, "n"),
            "nodes.ProtocolEffectNode": nodes.BaseEffectNode(),
            "nodes.ProtocolComputeNode": nodes.BaseComputeNode(),
            "nodes.ProtocolReducerNode": nodes.BaseReducerNode(),
            "nodes.ProtocolOrchestratorNode": nodes.BaseOrchestratorNode(),
            "node.ProtocolNodeRegistry": registry.base_registry,
            "event_bus.ProtocolEventBusBase": bus.base_event_bus,
            "types.ProtocolWorkflowEvent": await message.get_workflow_event(),
            "types.ProtocolResult": OnexResult(success=True),
        }
        await registry.close()
        await bus.unsubscribe_from_workflow_events(subscription)
        await bus.close()


def _published(name: str) -> type:
    """The protocol of that name in the published package."""
    home, _, name = name.partition(".")
    found: type = getattr(import_module(f"omnibase_spi.protocols.{home}"), name)
    return found


def _differences(protocol: type, given: Any) -> list[str]:
    found = []
    members = {name: member for base in reversed(protocol.__mro__) for name, member in vars(base).items()}
    for name, wanted in members.items():
        if not inspect.isfunction(wanted) or (name.startswith("_") and name != "__call__") or name == "__init__":
            continue
        ours = given if inspect.isfunction(given) else getattr(type(given), name)
        shapes = [
            [(p.name, p.default is not p.empty and p.default) for p in inspect.signature(one).parameters.values()]
            for one in (wanted, ours)
        ]
        if inspect.isfunction(given):
            shapes[0] = shapes[0][1:]  # without self
        is_async = [inspect.iscoroutinefunction(one) for one in (wanted, ours)]
        if shapes[0] != shapes[1] or is_async[0] != is_async[1]:
            found.append(f"{name}: {shapes[0]}, async {is_async[0]}; ours: {shapes[1]}, async {is_async[1]}")
    return found


async def _look() -> dict[str, dict[str, Any]]:
    async with _objects() as objects:
        return {
            name: {
                "is": isinstance(given, protocol := _published(name)),
                "differ": _differences(protocol, given),
            }
            for name, given in objects.items()
        }


if __name__ == "__main__":
    json.dump(run_virtual(_look()), sys.stdout)
