"""`onexflow.onex`: the specification's names, and a connection that is made when it is needed."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from onexflow import Client, Unavailable, WorkflowDefinition, onex, spi, workflow
from onexflow.client.remote import RemoteService
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from support.grpc_cluster import grpc_cluster


def test_all_is_sorted_resolves_and_has_every_name_of_the_specification() -> None:
    assert onex.__all__ == sorted(onex.__all__)
    assert set(spi.__all__) < set(onex.__all__)
    for name in onex.__all__:
        assert getattr(onex, name) is not None


def test_no_getter_is_there_for_what_is_not_built() -> None:
    built = {name for name in vars(onex) if name.startswith("get_")}
    assert built == {name for name in onex.__all__ if name.startswith("get_")}


def test_the_getter_gives_one_object_and_connects_nowhere() -> None:
    assert onex.get_workflow_orchestrator() is onex.get_workflow_orchestrator()
    assert isinstance(onex.get_workflow_orchestrator(), onex.ProtocolWorkflowOrchestrator)


async def test_it_connects_when_used_again_after_a_failure_and_after_close(monkeypatch: pytest.MonkeyPatch) -> None:
    orchestrator = onex.get_workflow_orchestrator()
    await onex.close()
    async with grpc_cluster() as client:
        address = client._channels.address
        monkeypatch.setenv("ONEXFLOW_ADDRESS", "not an address")
        with pytest.raises(onex.SPIError):
            await orchestrator.get_workflow_metrics()
        monkeypatch.setenv("ONEXFLOW_ADDRESS", address)
        for _ in range(2):
            assert (await orchestrator.get_workflow_metrics()).started == 0
            await onex.close()
    await onex.close()


async def test_an_orchestrator_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with grpc_cluster() as client:
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        orchestrator = onex.get_workflow_orchestrator()
        with pytest.raises(onex.RegistryError):
            await orchestrator.get_workflow_history("order", uuid4())
        await onex.close()
    monkeypatch.setattr(onex, "connect", _refuse)
    with pytest.raises(Unavailable):
        await orchestrator.get_workflow_metrics()
    await onex.close()


async def test_close_tells_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    gate = script.gate("prepare")
    async with grpc_cluster(script.worker()) as client:
        for definition in definitions():
            await client.register(definition)
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        starting = asyncio.ensure_future(onex.get_workflow_orchestrator().start_workflow("guided", uuid4(), {}))
        async with asyncio.timeout(10):
            while (await client.metrics("guided")).by_state.get("initializing") != 1:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # it follows the run by now
        await onex.close()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await starting
        gate.set()


async def test_a_client_that_closes_tells_those_who_wait() -> None:
    async with grpc_cluster() as client:
        await client.register(_stuck())
        handle = await client.start("stuck")
        service = RemoteService.of(client)
        ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        followed: asyncio.Queue[object] = asyncio.Queue()
        service.wait_run(handle.key, ended.set_result)
        service.follow_run(handle.key, 1, followed.put_nowait)
        await followed.get()
        await client.close()
        async with asyncio.timeout(5):
            assert isinstance(await ended, onex.SPIError)
            while not isinstance(await followed.get(), onex.SPIError):
                pass
        await service.close()


def _stuck() -> WorkflowDefinition:
    flow = workflow("stuck")
    flow.effect("nobody-does-this")
    return flow.build()


async def _refuse() -> Client:
    raise Unavailable("nobody there")


def test_an_event_has_defaults_for_what_is_not_said() -> None:
    event = onex.create_workflow_event(event_type="task_started", workflow_type="order-processing", instance_id="a")
    assert isinstance(event, onex.ProtocolWorkflowEvent)
    assert event.event_type == "task.started"
    assert isinstance(event.instance_id, UUID)
    assert event.correlation_id == event.instance_id
    assert (event.sequence_number, event.data, event.payload) == (0, {}, {})
    assert event.idempotency_key == str(event.event_id)
    with pytest.raises(ValueError, match="did you mean"):
        onex.create_workflow_event("task_startd", "order", uuid4())
    with pytest.raises(TypeError):
        onex.create_workflow_event("task_started", "order", uuid4(), data={"a": 1}, payload={"a": 2})
