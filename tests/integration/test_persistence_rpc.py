"""PersistenceService over gRPC: by nothing but generated stubs, and what a client makes of a store that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import onexflow
from onexflow.app.system import SystemClock
from onexflow.client.remote import RemoteService
from onexflow.core.errors import StoreFull, StoreUnavailable, Unavailable
from onexflow.engine.protocols import WorkflowPersistence
from onexflow.onex import create_workflow_event
from onexflow.rpc.server import GrpcServer
from onexflow.spi import HandlerInitializationError, ProtocolHandlerError, WorkflowState
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, Fault, FaultyStore
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from onexflow.v1 import common_pb2, events_pb2, persistence_pb2, persistence_pb2_grpc, workflow_pb2, workflow_pb2_grpc


@asynccontextmanager
async def served(script: Script | None = None) -> AsyncIterator[tuple[Cluster, FaultyStore, str, GrpcServer]]:
    """A cluster on a store that can be made to fail, and the address that it is served at."""
    clock = SystemClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        for definition in definitions():
            await cluster.register(definition)
        await cluster.add_worker((script or Script()).worker())
        server = GrpcServer(cluster.engine, "127.0.0.1:0")
        address = await server.start()
        try:
            yield cluster, store, address, server
        finally:
            store.heal()
            await server.stop(0.2)


def key(instance: UUID, workflow_type: str = "elsewhere") -> common_pb2.RunKey:
    return common_pb2.RunKey(workflow_type=workflow_type, instance_id=str(instance))


def facts(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The context in the details of a status."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            status_pb2.Status.FromString(value).details[0].Unpack(info)
            return {"code": info.reason, **json.loads(info.metadata["context"] or "{}")}
    raise AssertionError("no details")


async def ended(channel: grpc.aio.Channel) -> common_pb2.RunKey:
    """An order that is completed."""
    workflows: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
    given = common_pb2.Payload(data=b'{"order": 1}')
    started = await workflows.StartWorkflow(
        workflow_pb2.StartWorkflowRequest(workflow_type="order-processing", input=given, wait=True)
    )
    assert started.outcome.state == "completed"
    run: common_pb2.RunKey = started.start.key
    return run


async def test_every_call_by_plain_stubs() -> None:
    async with served() as (_, _, address, _), grpc.aio.insecure_channel(address) as channel:
        stub: Any = persistence_pb2_grpc.PersistenceServiceStub(channel)
        instance = uuid4()
        # An external stream: its events and its state are ours.
        empty = await stub.LoadState(persistence_pb2.LoadStateRequest(key=key(instance)))
        assert empty.WhichOneof("found") is None
        for number in (1, 2, 3):
            event = events_pb2.Event(key=key(instance), type="task.completed", sequence=number, event_id=str(uuid4()))
            for _ in range(2):
                assert (await stub.SaveEvent(persistence_pb2.SaveEventRequest(event=event))).saved
        given = persistence_pb2.SavedState(
            key=key(instance), state="running", sequence=2, data=common_pb2.Payload(data=b'{"context": {"n": 2}}')
        )
        assert (await stub.SaveState(persistence_pb2.SaveStateRequest(state=given))).saved
        given.sequence = 1
        assert not (await stub.SaveState(persistence_pb2.SaveStateRequest(state=given))).saved
        found = await stub.LoadState(persistence_pb2.LoadStateRequest(key=key(instance)))
        assert (found.state.state, found.state.sequence) == ("running", 2)
        assert json.loads(found.state.data.data) == {"context": {"n": 2}}
        assert found.state.saved_at > 0
        assert (await stub.CreateSnapshot(persistence_pb2.CreateSnapshotRequest(key=key(instance), sequence=2))).created
        cut = await stub.CutHistory(persistence_pb2.CutHistoryRequest(key=key(instance), before=9, request_id="r1"))
        assert (cut.deleted, cut.earliest) == (2, 3)
        assert await stub.CutHistory(
            persistence_pb2.CutHistoryRequest(key=key(instance), before=9, request_id="r1")
        ) == cut  # fmt: skip
        events = await stub.LoadEvents(persistence_pb2.LoadEventsRequest(key=key(instance), from_sequence=3))
        assert [event.sequence for event in events.events] == [3]
        # A run: its events and its state are the orchestrator's.
        run = await ended(channel)
        view = (await stub.LoadState(persistence_pb2.LoadStateRequest(key=run))).run
        assert view.state == "completed"
        events = await stub.LoadEvents(persistence_pb2.LoadEventsRequest(key=run, from_sequence=2, to_sequence=4))
        assert [event.sequence for event in events.events] == [2, 3, 4]
        assert (await stub.SaveEvent(persistence_pb2.SaveEventRequest(event=events.events[0]))).saved
        assert (await stub.CreateSnapshot(persistence_pb2.CreateSnapshotRequest(key=run, sequence=4))).created
        beyond = persistence_pb2.CreateSnapshotRequest(key=run, sequence=2**64 - 1)
        assert not (await stub.CreateSnapshot(beyond)).created
        snapshot = await stub.LoadSnapshot(persistence_pb2.LoadSnapshotRequest(key=run))
        assert (snapshot.run.sequence, snapshot.run.state) == (4, "running")
        assert snapshot.created_at > 0
        cut = await stub.CutHistory(persistence_pb2.CutHistoryRequest(key=run, before=2**64 - 1))
        assert (cut.deleted, cut.earliest) == (view.sequence, view.sequence + 1)


async def test_what_is_refused_by_plain_stubs() -> None:
    async with served() as (_, _, address, _), grpc.aio.insecure_channel(address) as channel:
        stub: Any = persistence_pb2_grpc.PersistenceServiceStub(channel)
        run, instance = await ended(channel), uuid4()
        await stub.CutHistory(persistence_pb2.CutHistoryRequest(key=run, before=4))
        forged = events_pb2.Event(key=run, type="workflow.failed", sequence=100, event_id=str(uuid4()))
        wrong = persistence_pb2.SavedState(key=run, state="failed", sequence=3)
        nowhere = common_pb2.RunKey(workflow_type="elsewhere", instance_id="no uuid")
        no_json = common_pb2.Payload(data=b"{")
        no_state = persistence_pb2.SavedState(key=key(instance), state="done")
        bad_data = persistence_pb2.SavedState(key=key(instance), state="running", data=no_json)
        calls = [
            (stub.LoadEvents, persistence_pb2.LoadEventsRequest(key=run), "OUT_OF_RANGE"),
            (stub.CreateSnapshot, persistence_pb2.CreateSnapshotRequest(key=run, sequence=1), "OUT_OF_RANGE"),
            (stub.SaveEvent, persistence_pb2.SaveEventRequest(event=forged), "FAILED_PRECONDITION"),
            (stub.SaveState, persistence_pb2.SaveStateRequest(state=wrong), "FAILED_PRECONDITION"),
            (stub.CutHistory, persistence_pb2.CutHistoryRequest(key=key(instance), before=1), "NOT_FOUND"),
            (stub.CreateSnapshot, persistence_pb2.CreateSnapshotRequest(key=key(instance)), "NOT_FOUND"),
            (stub.LoadState, persistence_pb2.LoadStateRequest(key=nowhere), "INVALID_ARGUMENT"),
            (stub.SaveState, persistence_pb2.SaveStateRequest(), "INVALID_ARGUMENT"),
            (stub.SaveState, persistence_pb2.SaveStateRequest(state=no_state), "INVALID_ARGUMENT"),
            (stub.SaveState, persistence_pb2.SaveStateRequest(state=bad_data), "INVALID_ARGUMENT"),
            (stub.SaveEvent, persistence_pb2.SaveEventRequest(), "INVALID_ARGUMENT"),
        ]
        for call, request, status in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(request)
            assert raised.value.code().name == status, request
            if status == "OUT_OF_RANGE":
                assert (facts(raised.value)["code"], facts(raised.value)["earliest"]) == ("OXF-4005", 4)


def state_of(instance: UUID, sequence: int) -> WorkflowState:
    return WorkflowState(
        workflow_type="elsewhere", instance_id=instance, state="running", sequence_number=sequence
    )  # fmt: skip


async def test_a_store_that_fails_is_the_same_error_as_in_process() -> None:
    async with served() as (cluster, store, address, _), await onexflow.connect(address) as client:
        persistence, instance = client.persistence(), uuid4()
        cluster.engine.records._confirm_seconds = 0.1
        assert await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 1)) is True
        store.hold()
        with pytest.raises(HandlerInitializationError) as lost:
            await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 2))
        assert isinstance(lost.value, StoreUnavailable)
        store.release()
        assert await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 3)) is True
        store.fail(Fault.FULL, times=None)
        with pytest.raises(ProtocolHandlerError) as full:
            await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 4))
        assert isinstance(full.value, StoreFull)
        assert not isinstance(full.value, HandlerInitializationError)
        store.heal()
        async with asyncio.timeout(10):
            await cluster.engine._kernel.lane.durable()
        kept = await persistence.load_workflow_state("elsewhere", instance)
        assert kept is not None
        assert kept.sequence_number in {3, 4}  # the one that found the disk full may have come to it later


async def test_a_cluster_that_is_away_is_a_connection_that_is_lost() -> None:
    async with served() as (_, _, address, server):
        client = await onexflow.connect(address, call_timeout=0.3)
        persistence, instance = WorkflowPersistence(RemoteService.of(client)), uuid4()
        assert await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 1)) is True
        await server.stop(0.0)
        with pytest.raises(HandlerInitializationError) as lost:
            await persistence.save_workflow_state("elsewhere", instance, state_of(instance, 2))
        assert isinstance(lost.value, Unavailable)
        await client.close()


async def test_a_page_of_large_events_is_cut_to_what_a_message_holds() -> None:
    async with served() as (_, _, address, _), await onexflow.connect(address) as client:
        persistence, instance = client.persistence(), uuid4()
        large = "x" * 1_500_000
        for number in range(1, 8):
            event = create_workflow_event(
                "task.completed", "elsewhere", instance, sequence_number=number, data={"text": large, "n": number}
            )
            assert await persistence.save_workflow_event(event) is True
        events = await persistence.load_workflow_events("elsewhere", instance)
        assert [event.data["n"] for event in events] == list(range(1, 8))


async def test_two_clients_that_save_at_the_same_time_keep_the_newest() -> None:
    async with (
        served() as (_, _, address, _),
        await onexflow.connect(address) as one,
        await onexflow.connect(address) as other,
    ):
        instance = uuid4()
        saves = [
            (one, other)[number % 2]
            .persistence()
            .save_workflow_state("elsewhere", instance, state_of(instance, number))
            for number in (5, 1, 9, 2, 7, 3)
        ]
        assert (await asyncio.gather(*saves))[2] is True
        kept = await one.persistence().load_workflow_state("elsewhere", instance)
        assert kept == state_of(instance, 9)
