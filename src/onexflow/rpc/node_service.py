# ruff: noqa: N802 - the methods have the names of the wire
"""NodeRegistryService over ports.nodes.NodeRegistryService: translation only, no decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from onexflow.codec.wire import common
from onexflow.codec.wire import nodes as wire
from onexflow.codec.wire.workflow import MAX_PAGE, page_start
from onexflow.core.errors import Draining
from onexflow.ports.client_link import OrchestratorService
from onexflow.ports.nodes import NodeEntry, NodeRegistryService
from onexflow.rpc.status import judged
from onexflow.rpc.stream import Context, abort
from onexflow.rpc.unary import unary
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import nodes_pb2 as pb


class NodeEndpoint:
    """The handlers of onexflow.v1.NodeRegistryService."""

    def __init__(self, orchestrator: OrchestratorService) -> None:
        self._orchestrator = orchestrator
        self._watchers: set[_Watcher] = set()

    @property
    def _service(self) -> NodeRegistryService:
        return self._orchestrator.node_registry

    def drain(self, reason: str) -> None:
        """End the streams: who watches asks another orchestrator."""
        for watcher in self._watchers:
            watcher.take(Draining(reason))

    @unary
    async def RegisterNode(self, request: pb.RegisterNodeRequest, context: Context) -> pb.RegisterNodeResponse:
        registration = await self._service.register_node(wire.registration(request))
        return pb.RegisterNodeResponse(incarnation=registration.incarnation, started_at=registration.started_at)

    @unary
    async def UnregisterNode(self, request: pb.UnregisterNodeRequest, context: Context) -> pb.UnregisterNodeResponse:
        node_id = common.name(request.node_id, "node_id")
        incarnation = common.optional_name(request.incarnation, "incarnation")
        return pb.UnregisterNodeResponse(changed=await self._service.unregister_node(node_id, incarnation))

    @unary
    async def FindNodes(self, request: pb.FindNodesRequest, context: Context) -> pb.FindNodesResponse:
        node_id = common.optional_name(request.node_id, "node_id")
        capability = common.optional_name(request.capability, "capability")
        start = page_start(request.page_token)
        found = await self._service.find_nodes(node_id, capability)
        nodes = next(wire.parts(found[start:]))
        after = start + len(nodes)
        return pb.FindNodesResponse(nodes=nodes, next_page_token=str(after) if after < len(found) else "")

    @unary
    async def ReportNodeHealth(
        self, request: pb.ReportNodeHealthRequest, context: Context
    ) -> pb.ReportNodeHealthResponse:
        changed = await self._service.report_health(
            common.name(request.node_id, "node_id"),
            common.name(request.health, "health_status"),
            common.optional_name(request.incarnation, "incarnation"),
        )
        return pb.ReportNodeHealthResponse(changed=changed)

    @unary
    async def GetNodeMetrics(self, request: pb.GetNodeMetricsRequest, context: Context) -> pb.GetNodeMetricsResponse:
        return wire.figures_to_pb(await self._service.measure_node(common.name(request.node_id, "node_id")))

    @unary
    async def ListAssignments(self, request: pb.ListAssignmentsRequest, context: Context) -> pb.ListAssignmentsResponse:
        start = page_start(request.page_token)
        found = await self._service.list_assignments(common.name(request.node_id, "node_id"))
        page = [wire.assignment_to_pb(one) for one in found[start : start + MAX_PAGE]]
        after = start + len(page)
        return pb.ListAssignmentsResponse(
            assignments=page, next_page_token=str(after) if after < len(found) else ""
        )  # fmt: skip

    async def WatchNodes(self, request: pb.WatchNodesRequest, context: Context) -> None:
        watcher = _Watcher()
        stop = self._service.watch_nodes(watcher.take)
        self._watchers.add(watcher)
        try:
            await watcher.write_to(context)
        except SPIError as error:
            await abort(context, judged(error, "WatchNodes"))
        finally:
            self._watchers.discard(watcher)
            stop()


class _Watcher:
    """What is to be told on one stream: all nodes, the newest list only. A slow reader misses lists, never the last."""

    def __init__(self) -> None:
        self._newest: Sequence[NodeEntry] | SPIError | None = None
        self._wake = asyncio.Event()

    def take(self, nodes: Sequence[NodeEntry] | SPIError) -> None:
        if not isinstance(self._newest, SPIError):
            self._newest = nodes
        self._wake.set()

    async def write_to(self, context: Context) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            newest, self._newest = self._newest, None
            if isinstance(newest, SPIError):
                raise newest
            before: list[pb.NodeEntry] | None = None
            for part in wire.parts(newest or ()):
                if before is not None:
                    await context.write(pb.WatchNodesResponse(nodes=before, more=True))
                before = part
            await context.write(pb.WatchNodesResponse(nodes=before))
