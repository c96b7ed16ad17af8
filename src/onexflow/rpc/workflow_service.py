# ruff: noqa: N802 - the methods have the names of the wire
"""WorkflowService over ports.client_link.OrchestratorService: translation only, no decisions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from onexflow.codec.wire import common
from onexflow.codec.wire import workflow as wire
from onexflow.core.definition import MAX_TEXT
from onexflow.core.errors import InvalidArgument, Overloaded
from onexflow.core.identity import CALLER
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from onexflow.engine import asking
from onexflow.ports.client_link import EventView, OrchestratorService
from onexflow.rpc.client_session import ClientStream
from onexflow.rpc.status import judged
from onexflow.rpc.stream import Context, abort, mark
from onexflow.rpc.unary import traceparent, unary
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import workflow_pb2 as pb

#: Events that may wait for a slow follower before it is sent away, to come back from where it was.
MAX_FOLLOWED: Final = 10_000


class WorkflowEndpoint:
    """The handlers of onexflow.v1.WorkflowService."""

    def __init__(self, service: OrchestratorService, streams: set[ClientStream]) -> None:
        self._service = service
        self._streams = streams

    @unary
    async def StartWorkflow(self, request: pb.StartWorkflowRequest, context: Context) -> pb.StartWorkflowResponse:
        started = await asking.start(
            self._service, wire.start(request, trace=traceparent(context), principal=CALLER.get().name)
        )
        response = pb.StartWorkflowResponse(start=wire.start_outcome_to_pb(started))
        if request.wait:
            response.outcome.CopyFrom(wire.run_outcome_to_pb(await asking.end_of(self._service, started.key)))
        return response

    @unary
    async def GetResult(self, request: pb.GetResultRequest, context: Context) -> pb.GetResultResponse:
        key = wire.key(request)
        if not request.wait:
            state = (await self._service.describe_run(key)).state
            if state not in TERMINAL_WORKFLOW_STATES:
                return pb.GetResultResponse(state=state)
        outcome = await asking.end_of(self._service, key)
        return pb.GetResultResponse(outcome=wire.run_outcome_to_pb(outcome), state=outcome.state)

    @unary
    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:
        outcome = await self._service.control(wire.control(request, "pause", CALLER.get().name))
        return pb.PauseRunResponse(outcome=wire.control_outcome_to_pb(outcome))

    @unary
    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        outcome = await self._service.control(wire.control(request, "resume", CALLER.get().name))
        return pb.ResumeRunResponse(outcome=wire.control_outcome_to_pb(outcome))

    @unary
    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        outcome = await self._service.control(wire.control(request, "cancel", CALLER.get().name))
        return pb.CancelRunResponse(outcome=wire.control_outcome_to_pb(outcome))

    @unary
    async def ResolveTask(self, request: pb.ResolveTaskRequest, context: Context) -> pb.ResolveTaskResponse:
        outcome = await self._service.control(wire.resolve(request, CALLER.get().name))
        return pb.ResolveTaskResponse(outcome=wire.control_outcome_to_pb(outcome))

    @unary
    async def AssignRun(self, request: pb.AssignRunRequest, context: Context) -> pb.AssignRunResponse:
        outcome = await self._service.control(wire.assign(request, CALLER.get().name))
        return pb.AssignRunResponse(outcome=wire.control_outcome_to_pb(outcome))

    @unary
    async def DescribeRun(self, request: pb.DescribeRunRequest, context: Context) -> pb.DescribeRunResponse:
        view = await self._service.describe_run(wire.key(request))
        return pb.DescribeRunResponse(run=wire.fit_run_view(wire.run_view_to_pb(view)))

    @unary
    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        limit = wire.page_size(request.page_size, wire.MAX_PAGE)
        events = await self._service.read_history(wire.key(request), max(request.from_sequence, 1), limit)
        return pb.GetHistoryResponse(events=_fitting([wire.event_view_to_pb(event) for event in events]))

    @unary
    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        runs, cursor = await self._service.list_runs(
            wire.namespace(request.namespace),
            common.optional_name(request.workflow_type, "workflow_type"),
            [common.name(state, "states") for state in request.states],
            request.page_token,
            wire.page_size(request.page_size, 100),
        )
        return pb.ListRunsResponse(runs=[wire.run_summary_to_pb(run) for run in runs], next_page_token=cursor)

    @unary
    async def GetWorkflowMetrics(
        self, request: pb.GetWorkflowMetricsRequest, context: Context
    ) -> pb.GetWorkflowMetricsResponse:
        metrics = await self._service.measure_runs(
            wire.namespace(request.namespace), common.optional_name(request.workflow_type, "workflow_type")
        )
        return pb.GetWorkflowMetricsResponse(metrics=wire.run_metrics_to_pb(metrics))

    @unary
    async def RegisterDefinition(
        self, request: pb.RegisterDefinitionRequest, context: Context
    ) -> pb.RegisterDefinitionResponse:
        size = len(request.definition)
        if not 0 < size <= MAX_TEXT:
            raise InvalidArgument(f"The definition has {size} bytes; it must have 1 to {MAX_TEXT}.", field="definition")
        common.optional_name(request.request_id, "request_id")
        info = await self._service.register_definition(wire.namespace(request.namespace), request.definition)
        return pb.RegisterDefinitionResponse(info=wire.definition_info_to_pb(info))

    @unary
    async def GetDefinition(self, request: pb.GetDefinitionRequest, context: Context) -> pb.GetDefinitionResponse:
        info, definition = await self._service.get_definition(
            wire.namespace(request.namespace), common.name(request.workflow_type, "workflow_type"), request.version
        )
        return pb.GetDefinitionResponse(info=wire.definition_info_to_pb(info), definition=definition)

    @unary
    async def ListDefinitions(self, request: pb.ListDefinitionsRequest, context: Context) -> pb.ListDefinitionsResponse:
        start = wire.page_start(request.page_token)
        size = wire.page_size(request.page_size, wire.MAX_PAGE)
        found = await self._service.list_definitions(wire.namespace(request.namespace))
        return pb.ListDefinitionsResponse(
            definitions=[wire.definition_info_to_pb(info) for info in found[start : start + size]],
            next_page_token=str(start + size) if start + size < len(found) else "",
        )

    async def FollowRun(self, request: pb.FollowRunRequest, context: Context) -> None:
        mark(context)
        try:
            follower = _Follower()
            stop = self._service.follow_run(wire.key(request), max(request.from_sequence, 1), follower.take)
        except Exception as error:  # noqa: BLE001 - every error is told
            await abort(context, judged(error, "FollowRun"))
            return
        try:
            await follower.write_to(context)
        finally:
            stop()

    async def Connect(self, requests: object, context: Context) -> None:
        stream = ClientStream(context, self._service)
        self._streams.add(stream)
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)


class _Follower:
    """Events between the engine, which does not wait, and a stream, which may be slow."""

    def __init__(self) -> None:
        self._events: deque[EventView] = deque()
        self._end: SPIError | None = None
        self._is_over = False
        self._wake = asyncio.Event()

    def take(self, events: Sequence[EventView] | SPIError | None) -> None:
        if self._is_over:
            return
        if events is None or isinstance(events, SPIError):
            self._is_over, self._end = True, events
        else:
            self._events.extend(events)
            if len(self._events) > MAX_FOLLOWED:
                self._is_over = True
                self._end = Overloaded("The events came faster than they were read; follow on from the last one seen.")
        self._wake.set()

    async def write_to(self, context: Context) -> None:
        while True:
            while self._events:
                count = min(len(self._events), common.MAX_BATCH)
                events = [wire.event_view_to_pb(self._events.popleft()) for _ in range(count)]
                for part in common.cut(events, list(map(wire.event_size, events))):
                    await context.write(pb.FollowRunResponse(events=part))
            if self._is_over:
                if self._end is not None:
                    await abort(context, self._end)
                return
            self._wake.clear()
            await self._wake.wait()


def _fitting(events: list[pb.EventView]) -> list[pb.EventView]:
    """As many of the events, from the first, as fit into a message; the caller asks on from the last."""
    room = common.MAX_MESSAGE * 3 // 4
    for position, event in enumerate(events):
        room -= wire.event_size(event)
        if room < 0 and position > 0:
            return events[:position]
    return events
