"""Every failure that the specification's error-handling section shows (docs/spec, lines 896 to 1233), in process and over
gRPC: the same class, with the same facts in its context.

`Stage.lose` takes the cluster away: in process its store fails for good, over gRPC no connection is taken any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

import onexflow
from onexflow import Worker, onex
from onexflow.app.system import SystemClock
from onexflow.client.remote import RemoteService
from onexflow.core.errors import Coded
from onexflow.engine.protocols import find_node
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from onexflow.testing.faults.relay import Relay
from onexflow.testing.faults.store import Fault, FaultyStore
from support.grpc_cluster import grpc_cluster

ORDER: onex.Context = {"order_id": "ORD-12345", "amount": 99.99}


class ApiCall:
    """An effect node that can be in any of its states."""

    node_id = "effect-api-call-1"
    node_type = "effect"

    async def execute_effect(self, contract: Any) -> Any:
        if contract == "slow":
            await asyncio.Event().wait()
        if contract == "closed":
            raise onex.InvalidProtocolStateError("closed", {"current_state": "closed", "required_state": "initialized"})
        raise ConnectionError("no route to the host")


@dataclass
class Stage:
    """A cluster with the suite's workflows and one node."""

    service: Any
    script: Script
    lose: Callable[[], Awaitable[None]]

    @property
    def orchestrator(self) -> onex.WorkflowOrchestrator:
        return onex.WorkflowOrchestrator(self.service)


def worker(script: Script) -> Worker:
    made = script.worker()
    made.add_node(ApiCall())
    return made


async def in_process() -> AsyncIterator[Stage]:
    script, clock = Script(), SystemClock()
    store = FaultyStore(MemoryStore(clock))
    cluster = Cluster(store=store, clock=clock)
    async with cluster:
        for definition in definitions():
            await cluster.register(definition)
        await cluster.add_worker(worker(script))

        async def lose() -> None:
            store.fail(Fault.FATAL, None)
            with pytest.raises(onex.SPIError):
                await onex.WorkQueue(cluster.engine).pause_queue("any")
            assert cluster.fatal is not None

        yield Stage(cluster.engine, script, lose)


async def over_grpc() -> AsyncIterator[Stage]:
    script = Script()
    async with grpc_cluster(worker(script)) as near:
        for definition in definitions():
            await near.register(definition)
        async with Relay(near._channels.address) as relay:
            far = await onexflow.connect(relay.address, call_timeout=0.5, patience=0.5)
            remote = RemoteService.of(far)
            try:
                yield Stage(remote, script, relay.refuse)
            finally:
                await remote.close()
                await far.close()


@pytest.fixture(params=[in_process, over_grpc], ids=["in_process", "over_grpc"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async for made in request.param():
        yield made


async def raised(call: Awaitable[Any], kind: type[onex.SPIError]) -> onex.SPIError:
    """What the call raised: of that class of the specification, and one of ours with a code."""
    with pytest.raises(kind) as caught:
        await call
    assert isinstance(caught.value, kind)
    return caught.value


# ---- the workflow's life, lines 922 to 1019


async def test_an_unknown_workflow_type(stage: Stage) -> None:
    error = await raised(stage.orchestrator.start_workflow("nonsense", uuid4(), ORDER, uuid4()), onex.RegistryError)
    assert error.context["workflow_type"] == "nonsense"


async def test_an_instance_that_exists(stage: Stage) -> None:
    instance = uuid4()
    await stage.orchestrator.start_workflow("order-processing", instance, ORDER, uuid4())
    other = stage.orchestrator.start_workflow("order-processing", instance, ORDER, uuid4())
    error = await raised(other, onex.InvalidProtocolStateError)
    assert error.context["current_state"]
    assert error.context["required_state"] == "no such run"


async def test_initialisation_that_fails(stage: Stage) -> None:
    stage.script.failures["prepare"] = 1
    error = await raised(stage.orchestrator.start_workflow("guided", uuid4(), {}), onex.ProtocolHandlerError)
    assert error.context["error"] == "ValueError"


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
async def test_a_transition_that_is_impossible(stage: Stage, action: str) -> None:
    instance, orchestrator = uuid4(), stage.orchestrator
    stage.script.gate("reserve")
    await orchestrator.start_workflow("order-processing", instance, ORDER)
    await orchestrator.cancel_workflow("order-processing", instance, "User cancelled")
    call = getattr(orchestrator, f"{action}_workflow")
    if action == "cancel":
        assert await call("order-processing", instance) is False
        return
    error = await raised(call("order-processing", instance), onex.InvalidProtocolStateError)
    assert error.context["current_state"] == "cancelled"
    assert error.context["required_state"]


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
async def test_an_instance_that_nobody_started(stage: Stage, action: str) -> None:
    call = getattr(stage.orchestrator, f"{action}_workflow")
    await raised(call("order-processing", uuid4()), onex.RegistryError)


# ---- the work queue, lines 1027 to 1065


async def test_a_queue_that_cannot_be_reached(stage: Stage) -> None:
    await stage.lose()
    await raised(onex.WorkQueue(stage.service).dequeue_task("worker-1"), onex.ProtocolHandlerError)


async def test_a_task_that_fails_comes_again(stage: Stage) -> None:
    queue = onex.WorkQueue(stage.service)
    await queue.enqueue_task(onex.WorkTask(task_id="t1", task_name="charge-by-hand", max_retries=3))
    (task,) = await queue.dequeue_task("worker-1")
    assert await queue.fail_task(task.task_id, error="no", retry_count=task.retry_count + 1) is True
    assert (await queue.get_task_status("t1")).state == "retrying"
    await raised(queue.get_task_status("t2"), onex.RegistryError)


# ---- nodes, lines 1073 to 1129


async def test_a_node_in_the_wrong_state(stage: Stage) -> None:
    node = await find_node(stage.service, "effect-api-call-1")
    error = await raised(node.execute_effect("closed"), onex.InvalidProtocolStateError)
    assert (error.context["current_state"], error.context["node_id"]) == ("closed", "effect-api-call-1")


async def test_a_node_that_fails(stage: Stage) -> None:
    node = await find_node(stage.service, "effect-api-call-1")
    error = await raised(node.execute_effect("failing"), onex.ProtocolHandlerError)
    assert (error.context["node_type"], error.context["error"]) == ("effect", "ConnectionError")


async def test_a_node_that_takes_too_long(stage: Stage) -> None:
    node = await find_node(stage.service, "effect-api-call-1", timeout=0.2)
    error = await raised(node.execute_effect("slow"), onex.ProtocolHandlerError)
    assert isinstance(error.__cause__, TimeoutError)
    assert {"node_id", "node_type", "timeout"} <= set(error.context)


async def test_a_node_that_is_not_there(stage: Stage) -> None:
    await raised(find_node(stage.service, "nobody"), onex.RegistryError)


# ---- replay, lines 1136 to 1180


async def test_a_replay_of_nothing(stage: Stage) -> None:
    bus = onex.WorkflowEventBus(stage.service.events)
    try:
        await raised(bus.replay_workflow_events("order-processing", uuid4(), 0), onex.RegistryError)
    finally:
        await bus.close()


async def test_a_replay_from_a_store_that_cannot_be_reached(stage: Stage) -> None:
    instance = uuid4()
    await stage.orchestrator.start_workflow("order-processing", instance, ORDER)
    await stage.lose()
    bus = onex.WorkflowEventBus(stage.service.events)
    try:
        await raised(bus.replay_workflow_events("order-processing", instance, 0), onex.ProtocolHandlerError)
    finally:
        await bus.close()


# ---- persistence, lines 1187 to 1231


async def test_a_connection_that_is_lost(stage: Stage) -> None:
    await stage.lose()
    state = onex.WorkflowState(workflow_type="elsewhere", instance_id=uuid4(), state="running", sequence_number=1)
    save = onex.WorkflowPersistence(stage.service).save_workflow_state("elsewhere", state.instance_id, state)
    error = await raised(save, onex.HandlerInitializationError)
    assert isinstance(error, Coded)
    assert error.retryable, "the example tries again"


async def test_a_write_that_is_refused(stage: Stage) -> None:
    instance = uuid4()
    await stage.orchestrator.start_workflow("order-processing", instance, ORDER)
    state = onex.WorkflowState(
        workflow_type="order-processing", instance_id=instance, state="completed", sequence_number=99
    )
    persistence = onex.WorkflowPersistence(stage.service)
    save = persistence.save_workflow_state("order-processing", instance, state)
    error = await raised(save, onex.InvalidProtocolStateError)
    assert {"current_state", "required_state"} <= set(error.context)
