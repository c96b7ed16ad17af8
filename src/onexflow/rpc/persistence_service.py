# ruff: noqa: N802 - the methods have the names of the wire
"""PersistenceService over ports.persistence.PersistenceService: translation only, no decisions."""

from __future__ import annotations

from typing import Final

from onexflow.codec.wire import common
from onexflow.codec.wire import events as wire_events
from onexflow.codec.wire import persistence as wire
from onexflow.ports.client_link import OrchestratorService
from onexflow.rpc.events_service import fitting
from onexflow.rpc.stream import Context
from onexflow.rpc.unary import unary
from onexflow.v1 import events_pb2
from onexflow.v1 import persistence_pb2 as pb

MAX_EVENTS: Final = 1000
#: What no history comes to, and every integer of the engine holds.
_MOST: Final = (1 << 63) - 1


class PersistenceEndpoint:
    """The handlers of onexflow.v1.PersistenceService."""

    def __init__(self, service: OrchestratorService) -> None:
        self._service = service

    @unary
    async def SaveState(self, request: pb.SaveStateRequest, context: Context) -> pb.SaveStateResponse:
        return pb.SaveStateResponse(saved=await self._service.records.save_state(wire.save_state(request)))

    @unary
    async def LoadState(self, request: pb.LoadStateRequest, context: Context) -> pb.LoadStateResponse:
        return wire.loaded_to_pb(await self._service.records.load_state(common.key(request.key)))

    @unary
    async def SaveEvent(self, request: pb.SaveEventRequest, context: Context) -> pb.SaveEventResponse:
        event = request.event if request.HasField("event") else None
        publish = wire_events.publish(events_pb2.PublishEventRequest(event=event))
        return pb.SaveEventResponse(saved=await self._service.records.save_event(publish.event))

    @unary
    async def LoadEvents(self, request: pb.LoadEventsRequest, context: Context) -> pb.LoadEventsResponse:
        last = min(request.to_sequence, _MOST) if request.HasField("to_sequence") else None
        limit = wire_events.limit(request.limit, MAX_EVENTS)
        first = min(request.from_sequence, _MOST)
        events = await self._service.records.load_events(common.key(request.key), first, last, limit)
        found = [wire_events.event_to_pb(event) for event in fitting(events, wire_events.event_size)]
        return pb.LoadEventsResponse(events=found)

    @unary
    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        key, sequence = common.key(request.key), min(request.sequence, _MOST)
        return pb.CreateSnapshotResponse(created=await self._service.records.create_snapshot(key, sequence))

    @unary
    async def LoadSnapshot(self, request: pb.LoadSnapshotRequest, context: Context) -> pb.LoadSnapshotResponse:
        return wire.snapshot_to_pb(await self._service.records.load_snapshot(common.key(request.key)))

    @unary
    async def CutHistory(self, request: pb.CutHistoryRequest, context: Context) -> pb.CutHistoryResponse:
        request_id = common.optional_name(request.request_id, "request_id")
        cut = await self._service.records.cut_history(common.key(request.key), min(request.before, _MOST), request_id)
        return wire.cut_to_pb(cut)
