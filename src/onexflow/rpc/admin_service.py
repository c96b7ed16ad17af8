# ruff: noqa: N802 - the methods have the names of the wire
"""AdminService and WorkerService over ports.client_link.OrchestratorService."""

from __future__ import annotations

from typing import Final

from onexflow.codec.wire import admin as wire
from onexflow.codec.wire import common
from onexflow.codec.wire.workflow import MAX_PAGE, page_size, page_start
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES, WORKFLOW_STATES
from onexflow.ports.client_link import OrchestratorService
from onexflow.rpc.stream import Context
from onexflow.rpc.unary import unary
from onexflow.rpc.worker_session import WorkerStream
from onexflow.v1 import admin_pb2 as pb

OPEN_STATES: Final = tuple(state for state in WORKFLOW_STATES if state not in TERMINAL_WORKFLOW_STATES)


class AdminEndpoint:
    """The handlers of onexflow.v1.AdminService."""

    def __init__(self, service: OrchestratorService) -> None:
        self._service = service

    @unary
    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        start, size = page_start(request.page_token), page_size(request.page_size, MAX_PAGE)
        nodes = await self._service.list_nodes()
        return pb.ListNodesResponse(
            nodes=[wire.node_view_to_pb(node) for node in nodes[start : start + size]],
            next_page_token=str(start + size) if start + size < len(nodes) else "",
        )

    @unary
    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.DrainNodeResponse:
        common.optional_name(request.request_id, "request_id")
        return pb.DrainNodeResponse(changed=await self._service.drain_node(common.name(request.node_id, "node_id")))

    @unary
    async def GetHealth(self, request: pb.GetHealthRequest, context: Context) -> pb.GetHealthResponse:
        return wire.health_to_pb(self._service.health())

    @unary
    async def ListBlocked(self, request: pb.ListBlockedRequest, context: Context) -> pb.ListBlockedResponse:
        keys, cursor = wire.keys(request, MAX_PAGE), ""
        if not keys:
            runs, cursor = await self._service.list_runs(
                common.optional_name(request.namespace, "namespace"),
                common.optional_name(request.workflow_type, "workflow_type"),
                OPEN_STATES,
                request.page_token,
                page_size(request.page_size, MAX_PAGE),
            )
            keys = [run.key for run in runs]
        found = await self._service.explain_runs(keys) if keys else ()
        return pb.ListBlockedResponse(runs=[wire.blocked_run_to_pb(run) for run in found], next_page_token=cursor)


class WorkerEndpoint:
    """The handler of onexflow.v1.WorkerService."""

    def __init__(self, service: OrchestratorService, streams: set[WorkerStream]) -> None:
        self._service = service
        self._streams = streams

    async def Session(self, requests: object, context: Context) -> None:
        stream = WorkerStream(context, self._service.accept_worker)
        self._streams.add(stream)
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)
