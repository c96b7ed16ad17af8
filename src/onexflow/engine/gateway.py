"""Any orchestrator answers any call: what is not owned here is asked of its owner (`engine.routing`), or of all; what the
store knows is answered here. What changes something carries a request id, so that asking twice changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec

from onexflow.core.errors import Unavailable, UnknownWorkflowType
from onexflow.core.identity import CALLER, Identity
from onexflow.core.ids import RunKey
from onexflow.engine.callbacks import Callbacks
from onexflow.engine.events.cluster import ClusterEvents
from onexflow.engine.routing import FORWARDED, Local, Peer, Peers, Router
from onexflow.ports.client_link import (
    BlockedRun,
    ControlOutcome,
    ControlRequest,
    DefinitionInfo,
    EventView,
    Health,
    NodeView,
    RunMetrics,
    RunOutcome,
    RunSummary,
    RunView,
    ShardMap,
    StartOutcome,
    StartRequest,
)
from onexflow.ports.clock import IdSource
from onexflow.ports.events import EventService
from onexflow.ports.nodes import NodeRegistryService
from onexflow.ports.persistence import PersistenceService
from onexflow.ports.queue import Answer, AnyCall
from onexflow.ports.worker_link import WorkerLink, WorkerPeer
from onexflow.spi.exceptions import SPIError

T = TypeVar("T")

#: Seconds that others are given to learn of a new definition.
TELL_SECONDS: Final = 1.0
#: Seconds that an owner has for saying what its runs wait for.
EXPLAIN_SECONDS: Final = 1.0


class _Routed:
    """All coroutine methods of one service of the orchestrator, each asked of who owns what it is about."""

    def __init__(self, router: Router, local: object, pick: Callable[[Peer], object]) -> None:
        self._router = router
        self._service = local
        self._pick = pick

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def routed(*arguments: Any, **named: Any) -> Any:
            return await self._router.ask(lambda peer: getattr(self._pick(peer), name)(*arguments, **named))

        return routed


class Gateway:
    """Implements `OrchestratorService` for a cluster of orchestrators."""

    def __init__(
        self,
        local: Local,
        peers: Peers,
        ids: IdSource,
        *,
        is_forwarded: Callable[[], bool] = FORWARDED.get,
        caller: Callable[[], Identity | None] = CALLER.get,
    ) -> None:
        self.local = local
        self.orchestrator_id = local.orchestrator_id
        self._ids = ids
        self._peers = peers
        self._router = Router(local, peers, is_forwarded, caller)
        self._callbacks = Callbacks(local, self._router, ids)
        self._events: ClusterEvents | None = None

    async def close(self, error: SPIError) -> None:
        """Pass nothing on any more. Consumers are told the error."""
        if self._events is not None:
            self._events.stop(error)
            await self._events.close()
        await self._callbacks.close()

    @property
    def events(self) -> EventService:
        if self._events is None:
            self._events = ClusterEvents(
                self.local.events, _EventOwners(self), lambda: self.local.whereabouts.shard_count
            )
        return self._events

    def others(self) -> dict[str, Peer]:
        """The other orchestrators that are there and can be asked, by their addresses."""
        found = {}
        for address in self.local.whereabouts.other_addresses():
            try:
                found[address] = self._peers(address)
            except Unavailable:  # it has just gone
                continue
        return found

    @property
    def router(self) -> Router:
        return self._router

    @property
    def records(self) -> PersistenceService:
        return cast("PersistenceService", _Routed(self._router, self.local.records, lambda peer: peer.records))

    @property
    def node_registry(self) -> NodeRegistryService:
        return self.local.node_registry

    def accept_worker(self, link: WorkerLink) -> WorkerPeer:
        return self.local.accept_worker(link)

    # ---- calls answered by callback

    def start_run(self, request: StartRequest, reply: Callable[[StartOutcome | SPIError], None]) -> None:
        self._callbacks.start_run(request, reply)

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome | SPIError], None]) -> Callable[[], None]:
        return self._callbacks.wait_run(key, reply)

    def follow_run(
        self, key: RunKey, from_sequence: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> Callable[[], None]:
        return self._callbacks.follow_run(key, from_sequence, listener)

    # ---- calls about one run or queue

    async def control(self, request: ControlRequest) -> ControlOutcome:
        if not request.request_id:
            request = msgspec.structs.replace(request, request_id=str(self._ids.uuid()))
        return await self._router.ask(lambda peer: peer.control(request))

    async def queue_call(self, call: AnyCall) -> Answer:
        if not call.request_id:
            call = msgspec.structs.replace(call, request_id=str(self._ids.uuid()))
        return await self._router.ask(lambda peer: peer.queue_call(call))

    async def describe_run(self, key: RunKey) -> RunView:
        return await self._router.ask(lambda peer: peer.describe_run(key))

    async def read_history(self, key: RunKey, from_sequence: int = 1, limit: int = 1000) -> Sequence[EventView]:
        return await self._router.ask(lambda peer: peer.read_history(key, from_sequence, limit))

    async def explain_runs(self, keys: Sequence[RunKey]) -> Sequence[BlockedRun]:
        """Each owner is asked for its own; one that does not answer soon has shards that are about to move."""
        found = {run.key: run for run in await self.local.explain_runs(keys)}
        if self._router.is_forwarded():
            return list(found.values())
        elsewhere: dict[str, list[RunKey]] = {}
        for run in found.values():
            if run.blocked.kind == "moving" and (address := self.local.whereabouts.address_of(run.blocked.owner)):
                elsewhere.setdefault(address, []).append(run.key)
        answers = await asyncio.gather(*(self._explained(address, theirs) for address, theirs in elsewhere.items()))
        for theirs, answer in zip(elsewhere.values(), answers, strict=True):
            if answer is None:
                continue
            said = {run.key: run for run in answer}
            for key in theirs:  # what its owner leaves out has ended
                found.pop(key)
                if key in said:
                    found[key] = said[key]
        return list(found.values())

    async def _explained(self, address: str, keys: Sequence[RunKey]) -> Sequence[BlockedRun] | None:
        """The owner's answer; None when there is none in time."""
        try:
            async with asyncio.timeout(EXPLAIN_SECONDS):
                return await self._peers(address).explain_runs(keys)
        except (SPIError, TimeoutError):
            return None

    # ---- calls about all: the store knows

    async def list_runs(
        self, namespace: str, workflow_type: str = "", states: Sequence[str] = (), cursor: str = "", limit: int = 100
    ) -> tuple[Sequence[RunSummary], str]:
        return await self.local.list_runs(namespace, workflow_type, states, cursor, limit)

    async def measure_runs(self, namespace: str, workflow_type: str = "") -> RunMetrics:
        return await self._informed(lambda: self.local.measure_runs(namespace, workflow_type))

    async def register_definition(self, namespace: str, definition: bytes) -> DefinitionInfo:
        """The others that answer know it, too, when this returns."""
        info = await self.local.register_definition(namespace, definition)
        if not self._router.is_forwarded():
            caller = self._router.caller()
            others = [
                self._router.ask_peer(
                    lambda peer: peer.get_definition(namespace, info.workflow_type, info.version), address, caller
                )
                for address in self.others()
            ]
            try:
                async with asyncio.timeout(TELL_SECONDS):
                    answers = await asyncio.gather(*others, return_exceptions=True)
            except TimeoutError:  # one that is frozen reads all definitions before it has a shard again
                return info
            for answer in answers:
                if isinstance(answer, BaseException) and not isinstance(answer, SPIError):
                    raise answer
        return info

    async def get_definition(
        self, namespace: str, workflow_type: str, version: int = 0
    ) -> tuple[DefinitionInfo, bytes]:
        if not version:
            await self.local.refresh_definitions()
        return await self.local.get_definition(namespace, workflow_type, version)

    async def list_definitions(self, namespace: str) -> Sequence[DefinitionInfo]:
        await self.local.refresh_definitions()
        return await self.local.list_definitions(namespace)

    async def _informed(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except UnknownWorkflowType:  # it may have been registered through another orchestrator
            await self.local.refresh_definitions()
            return await call()

    async def list_nodes(self) -> Sequence[NodeView]:
        return await self.local.list_nodes()

    async def drain_node(self, node_id: str) -> bool:
        """A worker has a stream to each orchestrator: all are told to give it nothing new."""
        if self._router.is_forwarded():
            return await self.local.drain_node(node_id)
        caller = self._router.caller()
        others = [
            self._router.ask_peer(lambda peer: peer.drain_node(node_id), address, caller)
            for address in self.local.whereabouts.other_addresses()
        ]
        answers = await asyncio.gather(self.local.drain_node(node_id), *others, return_exceptions=True)
        changed = [answer for answer in answers if isinstance(answer, bool)]
        if changed:
            return any(changed)
        raise next(answer for answer in answers if isinstance(answer, BaseException))

    def health(self) -> Health:
        return self.local.health()

    def refusal(self, waited: float, behind: int) -> SPIError | None:
        return self.local.refusal(waited, behind)

    def shard_map(self) -> ShardMap:
        return self.local.shard_map()


class _EventOwners:
    """Implements `engine.events.cluster.Owners`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def is_forwarded(self) -> bool:
        return self._gateway.router.is_forwarded()

    def caller(self) -> Identity | None:
        return self._gateway.router.caller()

    async def ask(self, call: Callable[[EventService], Awaitable[T]]) -> T:
        return await self._gateway.router.ask(lambda peer: call(peer.events))

    def others(self) -> dict[str, EventService]:
        return {address: peer.events for address, peer in self._gateway.others().items()}


def gateways(local: Local, peers: Peers | None, ids: IdSource) -> tuple[Gateway, ...]:
    """Of an orchestrator that has peers: the one for its clients, and the one for what it asks itself, which was passed
    on by nobody and is for nobody else."""
    if peers is None:
        return ()
    return Gateway(local, peers, ids), Gateway(local, peers, ids, is_forwarded=lambda: False, caller=lambda: None)
