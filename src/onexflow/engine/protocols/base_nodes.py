"""ProtocolNodeRegistry: the registry of nodes of any kind that the workflow node registry stands on."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import structlog

from onexflow.codec.payload import encode_value
from onexflow.core.errors import InvalidArgument
from onexflow.engine.protocols import checked, node_infos
from onexflow.ports.nodes import HEALTHY, NodeEntry
from onexflow.spi.exceptions import SPIError
from onexflow.spi.literals import LiteralHealthStatus
from onexflow.spi.types import ContextValue, WorkflowNodeInfo

if TYPE_CHECKING:
    from onexflow.engine.protocols.node_registry import WorkflowNodeRegistry

log = structlog.get_logger("onexflow.nodes")

Change = Literal["added", "updated", "removed"]
#: `callback(node_info, change)`, plain or async.
Callback = Callable[..., Any | Awaitable[Any]]


class WatchHandle:
    """A watch that is under way."""

    def __init__(self, callback: Callback, node_type: str | None, group: str | None) -> None:
        self._callback = callback
        self._node_type = node_type
        self._group = group
        self._known: dict[str, NodeEntry] | None = None
        self._news: asyncio.Queue[Sequence[NodeEntry] | SPIError] = asyncio.Queue()
        self._began = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="node-watch")
        self.stop: Callable[[], None] = _nothing

    def take(self, nodes: Sequence[NodeEntry] | SPIError) -> None:
        self._news.put_nowait(nodes)

    async def began(self) -> None:
        """Return when what is there now is known: all that changes afterwards is told."""
        begun = asyncio.get_running_loop().create_task(self._began.wait())
        await asyncio.wait([begun, self._task], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        self.stop()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            nodes = await self._news.get()
            if isinstance(nodes, SPIError):
                log.warning("watch.ended", error=str(nodes))
                if not self._began.is_set():
                    raise nodes
                return
            found = {node.node_id: node for node in nodes if matches(node, self._node_type, group=self._group)}
            before, self._known = self._known, found
            if before is None:
                self._began.set()
                continue
            for node_id, node in before.items():
                if node_id not in found or found[node_id].incarnation != node.incarnation:
                    await self._tell(node, "removed")
            for node_id, node in found.items():
                if node_id not in before or before[node_id].incarnation != node.incarnation:
                    await self._tell(node, "added")
                elif _still(before[node_id]) != _still(node):
                    await self._tell(node, "updated")

    async def _tell(self, node: NodeEntry, change: Change) -> None:
        try:
            answer = self._callback(node_infos.info_of(node), change)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            log.exception("callback.failed", node=node.node_id, change=change)


class NodeRegistry:
    """The base registry. What it registers lasts `ttl_seconds` and is kept by the caller's own heartbeats."""

    def __init__(self, registry: WorkflowNodeRegistry) -> None:
        self._registry = registry
        self._watches: set[WatchHandle] = set()

    @property
    def workflow_node_registry(self) -> WorkflowNodeRegistry:
        """The registry that stands on this one."""
        return self._registry

    @property
    def environment(self) -> str:
        return self._registry.environment

    @property
    def config(self) -> Any:
        """What the registry was made with, as a dict."""
        return self._registry.config

    async def register_node(self, node_info: Any, ttl_seconds: int) -> bool:
        """Register a node until `ttl_seconds` after its last heartbeat. Raises InvalidProtocolStateError when its id is
        that of a live worker or orchestrator."""
        await self._registry.register(node_info, (), ttl_seconds, beat=False)
        return True

    async def unregister_node(self, node_id: str) -> bool:
        """As WorkflowNodeRegistry.unregister_node."""
        return await self._registry.unregister_node(node_id)

    async def update_node_health(
        self, node_id: str, health_status: LiteralHealthStatus, metadata: dict[str, ContextValue]
    ) -> bool:
        """Say how a node is. False when that was known. `metadata` is added to that of a node which this object has
        registered."""
        added = checked.mapping(metadata, "metadata")
        encode_value(added)  # refused before anything is said, if it is no JSON
        changed = await self._registry.update_node_health(node_id, health_status)
        if added:
            await self._registry.renew(node_id, added)
        return changed

    async def heartbeat(self, node_id: str) -> bool:
        """Keep a node registered that this object has registered; False for any other. Raises InvalidProtocolStateError
        when its id was registered again by somebody else."""
        return await self._registry.renew(node_id)

    async def discover_nodes(
        self,
        node_type: str | None = None,
        environment: str | None = None,
        group: str | None = None,
        health_filter: LiteralHealthStatus | None = None,
    ) -> list[WorkflowNodeInfo]:
        """The nodes that are all of what is given. `node_type` is compared without case; one without a subtype has those
        with."""
        _checked(node_type=node_type, environment=environment, group=group, health_filter=health_filter)
        return [
            node_infos.info_of(node)
            for node in await self._registry.service.find_nodes()
            if matches(node, node_type, environment, group) and health_filter in {None, node.health}
        ]

    async def get_node(self, node_id: str) -> WorkflowNodeInfo | None:
        found = await self._registry.service.find_nodes(checked.name(node_id, "node_id"))
        return node_infos.info_of(found[0]) if found else None

    async def get_nodes_by_group(self, group: str) -> list[WorkflowNodeInfo]:
        return await self.discover_nodes(group=group)

    async def get_gateway_for_group(self, group: str) -> WorkflowNodeInfo | None:
        """The first healthy node of the group whose metadata say `gateway`; None when there is none."""
        for info in await self.get_nodes_by_group(group):
            if info.metadata.get("gateway") and info.health_status in HEALTHY:
                return info
        return None

    async def watch_node_changes(
        self, callback: Callback, node_type: str | None = None, group: str | None = None
    ) -> WatchHandle:
        """Call `callback(node_info, change)` for each later change: `added`, `updated`, `removed`. It may be async; the
        next is told when it has returned. Changes in quick succession may be told as one."""
        _checked(node_type=node_type, group=group)
        if not callable(callback):
            raise InvalidArgument(f"callback: {type(callback).__name__} cannot be called", field="callback")
        handle = WatchHandle(callback, node_type, group)
        self._watches.add(handle)
        handle.stop = self._registry.service.watch_nodes(handle.take)
        try:
            await handle.began()
        except BaseException:
            await self.stop_watch(handle)
            raise
        return handle

    async def stop_watch(self, watch_handle: WatchHandle) -> None:
        """Idempotent."""
        self._watches.discard(watch_handle)
        await watch_handle.close()

    async def close(self) -> None:
        for watch in list(self._watches):
            await self.stop_watch(watch)


def _checked(**given: str | None) -> None:
    """Each is text, or was left out."""
    for field, value in given.items():
        if value is not None:
            checked.text(value, field)


def matches(
    node: NodeEntry, node_type: str | None = None, environment: str | None = None, group: str | None = None
) -> bool:
    wanted = (node_type or "").strip().lower()
    kind = node.node_type if ":" in wanted else node.node_type.partition(":")[0]
    return wanted in {"", kind} and environment in {None, node.environment} and group in {None, node.group}


def _still(node: NodeEntry) -> NodeEntry:
    """What of it does not change by its work."""
    return msgspec.structs.replace(node, current_tasks=0)


def _nothing() -> None:
    """Until the watch has begun."""
