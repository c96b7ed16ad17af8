"""Whatever is given to a member of the specification's protocols, in whichever place: an answer, or an error that says which
field is wrong. Never an AttributeError or a TypeError from somewhere inside, and never a fault of the engine."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import pytest

from onexflow import onex
from onexflow.core.errors import InternalError
from onexflow.spi.exceptions import SPIError
from onexflow.testing import Cluster

BAD: Final[tuple[Any, ...]] = (
    *(None, -1, 10**30, 1.5, float("nan"), True, "", "\ud800", "x\x00", "y" * 5000, b"x", object()),
    *([], {}, ["a", None], {"a": object()}),
)
#: What an example of each parameter is; another parameter is a name.
INSTANCE: Final = uuid4()
EVENT: Final = onex.create_workflow_event("task.completed", "stream", INSTANCE)
GOOD: Final[dict[str, Any]] = {
    "instance_id": INSTANCE,
    "event": EVENT,
    "initial_data": {},
    "task": onex.WorkTask(task_id="t", task_name="n"),
    "node_info": onex.WorkflowNodeInfo(node_id="n1", node_type="compute", host="h", port=1),
    "capabilities": [],
    "health_status": "healthy",
    "event_types": ["task.completed"],
    "handler": print,
    "callback": print,
    "from_sequence": 1,
    "sequence_number": 1,
    "before_sequence": 1,
    "partition_count": 1,
    "ttl_seconds": 5,
    "state": onex.WorkflowState(workflow_type="stream", instance_id=INSTANCE, state="running", sequence_number=1),
    "input_state": {"action": "health"},
    "workflow_events": [EVENT],
    "strategy": "round_robin",
    "progress_percent": 0.5,
    "metadata": {},
}


def _members() -> Iterator[tuple[str, str, str]]:
    """(class, member, parameter) of all that the protocols declare and that can be called."""
    for kind in (
        onex.ProtocolWorkflowOrchestrator,
        onex.ProtocolWorkQueue,
        onex.ProtocolWorkflowEventBus,
        onex.ProtocolWorkflowPersistence,
        onex.ProtocolWorkflowNodeRegistry,
        onex.ProtocolNodeRegistry,
        onex.ProtocolWorkflowEventCoordinator,
    ):
        for name in sorted(vars(kind)):
            member = vars(kind)[name]
            if name.startswith("_") or not inspect.isfunction(member):
                continue
            for parameter in list(inspect.signature(member).parameters)[1:]:
                yield kind.__name__.removeprefix("Protocol"), name, parameter


#: A watch handle and what is set are objects of others; they are asked when they are used.
OBJECTS: Final = {"watch_handle", "registry", "event_bus"}
MEMBERS: Final = [member for member in _members() if member[2] not in OBJECTS]


def _made(cluster: Cluster) -> dict[str, Any]:
    engine = cluster.engine
    bus, registry = onex.WorkflowEventBus(engine.events), onex.WorkflowNodeRegistry(engine.node_registry)
    return {
        "WorkflowOrchestrator": onex.WorkflowOrchestrator(engine),
        "WorkQueue": onex.WorkQueue(engine),
        "WorkflowEventBus": bus,
        "WorkflowPersistence": onex.WorkflowPersistence(engine),
        "WorkflowNodeRegistry": registry,
        "NodeRegistry": registry.base_registry,
        "WorkflowEventCoordinator": onex.WorkflowEventCoordinator(engine.events, bus, registry),
    }


def test_there_are_members_of_all_of_them() -> None:
    assert len({member[:2] for member in MEMBERS}) > 50


@pytest.mark.parametrize("kind", sorted({member[0] for member in MEMBERS}))
async def test_no_bad_input_is_a_traceback(kind: str) -> None:
    wrong = []
    async with Cluster() as cluster:
        made = _made(cluster)
        for name, parameter in [member[1:] for member in MEMBERS if member[0] == kind]:
            member = getattr(made[kind], name)
            needed = {
                other.name: GOOD.get(other.name, "x")
                for other in inspect.signature(member).parameters.values()
                if other.default is other.empty
            }
            for bad in BAD:
                try:
                    answer = member(**{**needed, parameter: bad})
                    if inspect.isawaitable(answer):
                        async with asyncio.timeout(30):
                            await answer
                except InternalError as error:
                    wrong.append(f"{name}({parameter}={bad!r:.40}): {error}")
                except SPIError:
                    pass  # it says what is wrong
                except Exception as error:  # noqa: BLE001 - all of them are collected
                    wrong.append(f"{name}({parameter}={bad!r:.40}): {type(error).__name__}: {error}")
        await made["WorkflowEventBus"].close()
        await made["WorkflowNodeRegistry"].close()
    assert wrong == []
