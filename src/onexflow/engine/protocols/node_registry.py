"""ProtocolWorkflowNodeRegistry over `ports.nodes.NodeRegistryService`, and the base registry that it stands on.

In process it is given the engine's `orchestrator.node_registry`, over gRPC `RemoteService.node_registry`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import msgspec
import structlog

from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.engine.protocols import checked, node_infos
from onexflow.engine.protocols.base_nodes import NodeRegistry
from onexflow.ports.nodes import DEFAULT_TTL, HEALTHY, NodeRegistryService, Registration
from onexflow.spi.exceptions import InvalidProtocolStateError, SPIError
from onexflow.spi.literals import LiteralHealthStatus
from onexflow.spi.types import (
    NodeMetrics,
    Percentiles,
    WorkflowAssignment,
    WorkflowNodeCapability,
    WorkflowNodeInfo,
)

log = structlog.get_logger("onexflow.nodes")

#: Heartbeats within the time that a registration lasts without one.
_BEATS: Final = 3
#: Seconds until a heartbeat that could not be told is told again.
_AGAIN: Final = 0.5
#: What unregistering may take at the end.
_CLOSE_SECONDS: Final = 2.0


class _Kept:
    """A guest that this object registered."""

    __slots__ = ("beating", "registration")

    def __init__(self, registration: Registration) -> None:
        self.registration = registration
        self.beating: asyncio.Task[None] | None = None


class WorkflowNodeRegistry:
    """The specification's node registry.

    Workers register themselves. What `register_node` registers is a guest, and this object keeps it registered by
    heartbeats until `unregister_node` or `close`: when the process that registered it ends, so does the guest, within
    `ttl_seconds`. Registering an id again replaces the registration before, which is fenced: its heartbeats, health
    updates and its unregistering raise InvalidProtocolStateError, and its heartbeats stop. Unknown nodes raise RegistryError.
    """

    def __init__(
        self,
        service: NodeRegistryService,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        ttl_seconds: float = DEFAULT_TTL,
        environment: str = "",
    ) -> None:
        """`namespace`: of the runs that are assigned. `environment`: of nodes registered without one."""
        self._service = service
        self._namespace = namespace
        self._ttl = ttl_seconds
        self._environment = environment
        self._kept: dict[str, _Kept] = {}
        self._base = NodeRegistry(self)

    @property
    def base_registry(self) -> NodeRegistry:
        """The registry of nodes of any kind that this one stands on."""
        return self._base

    @property
    def environment(self) -> str:
        return self._environment

    @property
    def service(self) -> NodeRegistryService:
        """What answers."""
        return self._service

    @property
    def config(self) -> dict[str, Any]:
        """What this object was made with."""
        return {"namespace": self._namespace, "ttl_seconds": self._ttl, "environment": self._environment}

    # ---- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the heartbeats and watches of this object, and unregister what it has registered, as far as that can be said
        within two seconds: else it ends by itself. Idempotent; the object can be used again."""
        await self._base.close()
        kept, self._kept = self._kept, {}
        for one in kept.values():
            await self._stop(one)
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                for node_id, one in kept.items():
                    await self._leave(node_id, one)
        except TimeoutError:
            log.info("guests.left", nodes=len(kept))

    async def _leave(self, node_id: str, kept: _Kept) -> None:
        try:
            await self._service.unregister_node(node_id, kept.registration.incarnation)
        except SPIError as error:  # it is somebody else's by now, or nobody answers
            log.info("guest.left", node=node_id, error=str(error))

    # ---- the members

    async def register_node(self, node_info: WorkflowNodeInfo, capabilities: list[WorkflowNodeCapability]) -> str:
        """Register a node with these capabilities and those that it has itself; returns its id. Raises
        InvalidProtocolStateError when that is the id of a live worker or orchestrator."""
        await self.register(node_info, capabilities, self._ttl, beat=True)
        return str(node_info.node_id)

    async def unregister_node(self, node_id: str) -> bool:
        """End a registration; False when there is none. A worker's own is not to be ended: InvalidProtocolStateError."""
        kept = self._kept.get(_name(node_id))
        ended = await self._service.unregister_node(node_id, self._incarnation(node_id))
        if kept is not None and self._kept.get(node_id) is kept:
            del self._kept[node_id]
            await self._stop(kept)
        return ended

    async def discover_nodes(self, capability: str | None = None, healthy_only: bool = True) -> list[WorkflowNodeInfo]:
        """The nodes with a capability, or all. A worker's capabilities are its handlers and what its label `capabilities`
        lists. `healthy_only`: those that are healthy or available; the others, degraded and warning among them, come
        with False."""
        found = await self._service.find_nodes("", _name(capability, "capability") if capability is not None else "")
        return [node_infos.info_of(node) for node in found if not healthy_only or node.health in HEALTHY]

    async def get_node_capabilities(self, node_id: str) -> list[WorkflowNodeCapability]:
        found = await self._service.find_nodes(_name(node_id))
        if not found:
            raise node_infos.unknown(node_id)
        return [node_infos.capability_of(capability) for capability in found[0].capabilities]

    async def update_node_health(self, node_id: str, health_status: LiteralHealthStatus) -> bool:
        """Say how a node is; every client of the cluster sees it. False when that was known. A worker that is unhealthy,
        critical, unreachable, unavailable, disposing or in error is given no new tasks until something better is said."""
        return await self._service.report_health(
            _name(node_id), _name(health_status, "health_status"), self._incarnation(node_id)
        )

    async def get_node_metrics(self, node_id: str) -> NodeMetrics:
        """What the node has done in its present life, as the orchestrator counted it: a worker's attempts, and the tasks
        of work queues that it has taken itself."""
        figures = await self._service.measure_node(_name(node_id))
        most = figures.max_concurrent_tasks
        return NodeMetrics(
            node_id=figures.node_id,
            health_status=node_infos.health_of(figures.health),
            current_task_count=figures.current_tasks,
            max_concurrent_tasks=most,
            completed=figures.completed,
            failed=figures.failed,
            mean_duration_seconds=figures.mean,
            duration=Percentiles(mean=figures.mean, p50=figures.p50, p95=figures.p95, p99=figures.p99),
            resource_utilization={
                "slots": most,
                "slots_in_use": figures.current_tasks,
                "share": figures.current_tasks / most if most else 0.0,
            },
            last_heartbeat=node_infos.time_of(figures.last_heartbeat),
        )

    async def assign_workflow_to_node(self, workflow_type: str, instance_id: UUID, node_id: str) -> bool:
        """Assign an open run to a node: its tasks go there while the node is connected and fit, and to any other while it
        is not. Durable; given back when the node's registration ends. False when it was so. Raises RegistryError for an
        unknown run or node, InvalidProtocolStateError for a run that has ended."""
        key = checked.run_key(self._namespace, workflow_type, instance_id)
        return await self._service.assign_run(key, _name(node_id))

    async def get_workflow_assignments(self, node_id: str) -> list[WorkflowAssignment]:
        """The open runs of this object's namespace that are assigned to the node."""
        found = await self._service.list_assignments(_name(node_id))
        return [node_infos.assignment_of(view) for view in found if view.key.namespace == self._namespace]

    # ---- registrations, for both registries

    async def register(
        self,
        node_info: Any,
        capabilities: Sequence[Any],
        ttl: float,
        *,
        beat: bool,
    ) -> None:
        """Register a guest; `beat`: keep it registered."""
        node = node_infos.node_of(node_info, capabilities, self._environment)
        registration = await self._service.register_node(Registration(node=node, ttl=_seconds(ttl)))
        before = self._kept.get(node.node_id)
        kept = self._kept[node.node_id] = _Kept(registration)
        if before is not None:
            await self._stop(before)
        if beat:
            kept.beating = asyncio.get_running_loop().create_task(self._beat(kept), name=f"guest {node.node_id}")

    async def renew(self, node_id: str, metadata: dict[str, Any] | None = None) -> bool:
        """A heartbeat; False when this object has not registered that node. `metadata` is added to the node's own."""
        kept = self._kept.get(_name(node_id))
        if kept is None:
            return False
        registration = kept.registration
        if metadata:
            node = node_infos.with_metadata(registration.node, metadata)
            registration = msgspec.structs.replace(registration, node=node)
        kept.registration = await self._service.register_node(registration)
        return True

    def _incarnation(self, node_id: str) -> str:
        """Of the registration that this object holds; "" speaks of whichever there is."""
        kept = self._kept.get(node_id)
        return kept.registration.incarnation if kept is not None else ""

    async def _beat(self, kept: _Kept) -> None:
        seconds = kept.registration.ttl / _BEATS
        pause = seconds
        node_id = kept.registration.node.node_id
        while True:
            await asyncio.sleep(pause)
            pause = seconds
            try:
                kept.registration = await self._service.register_node(kept.registration)
            except InvalidProtocolStateError as error:  # what this object says of it from now on is refused, too
                log.warning("guest.fenced", node=node_id, error=str(error))
                return
            except SPIError as error:
                log.warning("heartbeat.failed", node=node_id, error=str(error))
                pause = min(_AGAIN, seconds)

    @staticmethod
    async def _stop(kept: _Kept) -> None:
        task, kept.beating = kept.beating, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _name(text: Any, field: str = "node_id") -> str:
    return checked.name(text, field)


def _seconds(ttl: Any) -> float:
    if not isinstance(ttl, int | float) or not ttl > 0:
        raise InvalidArgument(f"ttl_seconds: a number of seconds is needed, not {ttl!r:.100}", field="ttl_seconds")
    return float(ttl)
