"""The node registry at the other end of a client (`ports.nodes.NodeRegistryService`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import msgspec

from onexflow.client.follow import PAUSE, ask
from onexflow.client.ids import new_request_id
from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire import nodes as wire
from onexflow.core.ids import RunKey
from onexflow.ports.nodes import AssignmentView, NodeEntry, NodeFigures, NodeListener, Registration
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import nodes_pb2 as pb
from onexflow.v1 import workflow_pb2

if TYPE_CHECKING:
    from onexflow.client.client import Client

#: Keeps what is under way; returns the way to stop it.
Keep = Callable[[Coroutine[Any, Any, None], Callable[[SPIError], None]], Callable[[], None]]


class RemoteNodes:
    """Implements `NodeRegistryService` over the client that `source` gives."""

    def __init__(self, source: Callable[[], Awaitable[Client]], keep: Keep) -> None:
        self._source = source
        self._keep = keep

    async def register_node(self, registration: Registration) -> Registration:
        answer = await self._unary("RegisterNode", wire.registration_to_pb(registration))
        return msgspec.structs.replace(registration, incarnation=answer.incarnation, started_at=answer.started_at)

    async def unregister_node(self, node_id: str, incarnation: str = "") -> bool:
        request = pb.UnregisterNodeRequest(node_id=node_id, incarnation=incarnation)
        changed: bool = (await self._unary("UnregisterNode", request)).changed
        return changed

    async def find_nodes(self, node_id: str = "", capability: str = "") -> Sequence[NodeEntry]:
        found: list[NodeEntry] = []
        request = pb.FindNodesRequest(node_id=node_id, capability=capability)
        while True:
            page = await self._unary("FindNodes", request)
            found.extend(wire.node(node) for node in page.nodes)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def report_health(self, node_id: str, health: str, incarnation: str = "") -> bool:
        request = pb.ReportNodeHealthRequest(node_id=node_id, health=health, incarnation=incarnation)
        changed: bool = (await self._unary("ReportNodeHealth", request)).changed
        return changed

    async def measure_node(self, node_id: str) -> NodeFigures:
        answer = await self._unary("GetNodeMetrics", pb.GetNodeMetricsRequest(node_id=node_id))
        return wire.figures(answer, node_id)

    async def assign_run(self, key: RunKey, node_id: str) -> bool:
        request = workflow_pb2.AssignRunRequest(
            key=wire_common.key_to_pb(key), node_id=node_id, request_id=new_request_id()
        )
        client = await self._source()
        answer = await client._unary(lambda seconds: client._channels.workflows.AssignRun(request, timeout=seconds))
        changed: bool = answer.outcome.changed
        return changed

    async def list_assignments(self, node_id: str) -> Sequence[AssignmentView]:
        found: list[AssignmentView] = []
        request = pb.ListAssignmentsRequest(node_id=node_id)
        while True:
            page = await self._unary("ListAssignments", request)
            found.extend(wire.assignment(one) for one in page.assignments)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def watch_nodes(self, listener: NodeListener) -> Callable[[], None]:
        """As the port says; across lost connections."""

        async def watch() -> None:
            try:
                await self._watch(await self._source(), listener)
            except SPIError as error:
                listener(error)

        return self._keep(watch(), listener)

    async def _watch(self, client: Client, listener: NodeListener) -> None:
        channels = client._channels
        while True:
            stream: Any = channels.nodes.WatchNodes(pb.WatchNodesRequest())
            nodes: list[NodeEntry] = []
            try:
                while (message := await stream.read()) is not grpc.aio.EOF:
                    nodes.extend(wire.node(node) for node in message.nodes)
                    if not message.more:
                        listener(nodes)
                        nodes = []
            except grpc.aio.AioRpcError as error:
                if not channels.ask_again(error):
                    raise channels.error_of(error) from error
            finally:
                stream.cancel()
            await asyncio.sleep(PAUSE)
            await channels.unary(partial(ask, channels), client._patience)

    async def _unary(self, method: str, request: Any) -> Any:
        client = await self._source()
        return await client._unary(lambda seconds: getattr(client._channels.nodes, method)(request, timeout=seconds))
