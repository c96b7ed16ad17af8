"""Any orchestrator answers any call: what is not owned here is asked of its owner, once (rule 24 of the protocol).

A call is tried here first. `ShardMoved` says that the shard is another's, and as far as is known whose: then that one is
asked. An owner that was asked so does not pass the call on. While a shard is on its way between owners its calls wait,
so many and so long; what changes something carries a request id, so that asking twice changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from onexflow.core.errors import Draining, Overloaded, ShardMoved, Unavailable, UnknownWorkflowType
from onexflow.core.identity import CALLER, ON_BEHALF, Identity
from onexflow.core.ids import RunKey
from onexflow.engine.events.cluster import ClusterEvents
from onexflow.ports.client_link import (
    BlockedRun,
    ControlOutcome,
    ControlRequest,
    DefinitionInfo,
    EventView,
    Health,
    NodeView,
    OrchestratorService,
    RunMetrics,
    RunOutcome,
    RunService,
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

#: Was the call that is handled now passed on by another orchestrator?
FORWARDED: ContextVar[bool] = ContextVar("onexflow-forwarded", default=False)
#: Takes the address of the orchestrator that the present call was passed on to, for who has made it.
PASSED_ON: ContextVar[list[str] | None] = ContextVar("onexflow-passed-on", default=None)
#: Seconds that a call waits for an owner.
PATIENCE: Final = 10.0
#: Seconds between looks for him: at least, at most, and as a share of the time for which there has been none. Thousands of
#: calls that look all the time would leave no time to what they wait for.
LOOK_SECONDS: Final = 0.05
LOOK_AT_MOST: Final = 1.0
LOOK_SHARE: Final = 0.2
LONG_SECONDS: Final = 1.0
#: Seconds that others are given to learn of a new definition.
TELL_SECONDS: Final = 1.0
#: Seconds that an owner has for saying what its runs wait for.
EXPLAIN_SECONDS: Final = 1.0
#: Calls that may wait for owners at a time.
MAX_WAITING: Final = 10_000


class Peer(RunService, Protocol):
    """Another orchestrator, asked for what it owns."""

    @property
    def events(self) -> EventService: ...
    @property
    def records(self) -> PersistenceService: ...
    @property
    def node_registry(self) -> NodeRegistryService: ...
    async def drain_node(self, node_id: str) -> bool: ...
    async def can_append(self) -> bool:
        """Does its store take what it writes, as far as it knows?"""


class Local(OrchestratorService, Protocol):
    """This orchestrator."""

    async def refresh_definitions(self) -> None: ...
    async def can_append(self) -> bool: ...

    def other_addresses(self) -> Sequence[str]:
        """Of the other orchestrators that are there."""

    @property
    def shard_count(self) -> int:
        """Of the store."""

    def owner_address(self, number: int) -> str:
        """Where a shard's owner serves, as far as is known now."""

    def address_of(self, owner: str) -> str:
        """Of an orchestrator that is there; else ""."""


#: The orchestrator at an address.
Peers = Callable[[str], Peer]


class Router:
    """Finds who answers. `is_forwarded` says of the present call that it must not be passed on."""

    def __init__(
        self, local: Local, peers: Peers, is_forwarded: Callable[[], bool], caller: Callable[[], Identity | None]
    ) -> None:
        """`caller` says for whom the present call is; None: this orchestrator's own."""
        self._local = local
        self._peers = peers
        self.is_forwarded = is_forwarded
        self.caller = caller
        self._waiting = 0

    async def ask(self, call: Callable[[Peer], Awaitable[T]], caller: Identity | None = None) -> T:
        """The answer of this orchestrator, or of the owner. `caller`: as it was when the call came, where this is later."""
        if self.is_forwarded():
            return await call(self._local)
        caller = caller or self.caller()
        try:
            return await call(self._local)
        except ShardMoved as error:
            moved = error.with_traceback(None)  # here and below: with it, it would hold the frame that holds it
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{self._waiting} calls wait for the owners of their shards") from moved
        self._waiting += 1
        try:
            return await self._ask_owner(call, moved, caller)
        finally:
            self._waiting -= 1

    async def ask_peer(self, call: Callable[[Peer], Awaitable[T]], address: str, caller: Identity | None) -> T:
        """The answer of another orchestrator, which is told for whom it is."""
        behalf = ON_BEHALF.set(caller)
        try:
            return await call(self._peers(address))
        finally:
            ON_BEHALF.reset(behalf)

    async def _ask_owner(self, call: Callable[[Peer], Awaitable[T]], moved: ShardMoved, caller: Identity | None) -> T:
        loop = asyncio.get_running_loop()
        since = loop.time()
        error: Unavailable = moved
        while True:
            asked_at = loop.time()
            address = str(moved.context.get("address") or "")
            if address:
                try:
                    answer = await self._ask_while_owner(call, address, moved, caller)
                    if (told := PASSED_ON.get()) is not None:
                        told[:] = [address]
                    return answer
                except Unavailable as refused:  # it has gone, or has handed the shard over
                    error = refused.with_traceback(None)
            if asked_at >= since + PATIENCE:
                raise error
            slept = min(LOOK_AT_MOST, max(LOOK_SECONDS, LOOK_SHARE * (loop.time() - since)))
            await asyncio.sleep(slept)
            try:
                return await call(self._local)  # it may have come here meanwhile
            except ShardMoved as again:
                moved = again.with_traceback(None)
            if loop.time() - asked_at - slept > LONG_SECONDS:  # somebody had it for a while: a wait goes on
                since = loop.time()

    async def _ask_while_owner(
        self, call: Callable[[Peer], Awaitable[T]], address: str, moved: ShardMoved, caller: Identity | None
    ) -> T:
        """The answer of that orchestrator, unless it has lost the shard meanwhile: one that is frozen never says so."""
        asked = asyncio.ensure_future(self.ask_peer(call, address, caller))
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=LONG_SECONDS)
                now = self._local.owner_address(int(moved.context.get("shard", -1)))
                if not asked.done() and now not in {"", address}:
                    raise ShardMoved(f"{address} has lost the shard", moved.context)
            return asked.result()
        finally:
            asked.cancel()


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


class _Told:
    """A call that is answered by callback: a start, or a wait that can be given up."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.stop: Callable[[], None] | None = None
        self.is_over = False

    def give_up(self) -> None:
        stop, task = self.stop, self.task
        self.end()
        if stop is not None:
            stop()
        if task is not None:
            task.cancel()

    def end(self) -> None:
        """It has its answer, or wants none. What it knows knows of it: no cycle is to be left."""
        self.is_over = True
        self.stop = self.task = None


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
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: ClusterEvents | None = None

    async def close(self, error: SPIError) -> None:
        """Pass nothing on any more. Consumers are told the error."""
        if self._events is not None:
            self._events.stop(error)
            await self._events.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def events(self) -> EventService:
        if self._events is None:
            self._events = ClusterEvents(self.local.events, _EventOwners(self), lambda: self.local.shard_count)
        return self._events

    def others(self) -> dict[str, Peer]:
        """The other orchestrators that are there and can be asked, by their addresses."""
        found = {}
        for address in self.local.other_addresses():
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
        if self._router.is_forwarded():
            self.local.start_run(request, reply)
            return
        if request.instance_id is None and not request.request_id and request.caller is None:
            request = msgspec.structs.replace(request, instance_id=self._ids.uuid())  # asked twice, it starts one run

        caller = self._router.caller()

        def answered(outcome: StartOutcome | SPIError) -> None:
            if isinstance(outcome, ShardMoved):
                told = _Told()
                told.task = self._spawn(self._forward(told, lambda peer: _started(peer, request), reply, caller))
            else:
                reply(outcome)

        self.local.start_run(request, answered)

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome | SPIError], None]) -> Callable[[], None]:
        if self._router.is_forwarded():
            return self.local.wait_run(key, reply)
        told = _Told()
        caller = self._router.caller()

        def answered(outcome: RunOutcome | SPIError) -> None:
            if told.is_over:
                return
            if isinstance(outcome, ShardMoved):
                told.stop = None
                told.task = self._spawn(self._forward(told, lambda peer: _ended(peer, key), reply, caller))
            else:
                told.end()
                reply(outcome)

        stop = self.local.wait_run(key, answered)
        if told.task is None and not told.is_over:
            told.stop = stop
        return told.give_up

    async def _forward(
        self,
        told: _Told,
        call: Callable[[Peer], Awaitable[T]],
        reply: Callable[[T | SPIError], None],
        caller: Identity | None,
    ) -> None:
        """Ask the owner; a wait goes on for as long as there is one to be found."""
        outcome: T | SPIError
        try:
            outcome = await self._router.ask(call, caller)
        except SPIError as error:
            outcome = error.with_traceback(None)
        if not told.is_over:
            told.end()
            reply(outcome)

    def follow_run(
        self, key: RunKey, from_sequence: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> Callable[[], None]:
        if self._router.is_forwarded():
            return self.local.follow_run(key, from_sequence, listener)
        task = self._spawn(self._follow(key, max(1, from_sequence), listener))

        def stop() -> None:
            task.cancel()

        return stop

    async def _follow(
        self, key: RunKey, start: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> None:
        position = start

        async def until_end(peer: Peer) -> None:
            nonlocal position
            heard: asyncio.Queue[Sequence[EventView] | SPIError | None] = asyncio.Queue()
            stop = peer.follow_run(key, position, heard.put_nowait)
            try:
                while (events := await heard.get()) is not None:
                    if isinstance(events, SPIError):
                        raise events
                    listener(events)
                    position = events[-1].sequence + 1
            finally:
                stop()

        try:
            while True:
                before = position
                try:
                    await self._router.ask(until_end)
                except (ShardMoved, Draining):
                    if position == before:  # a while without anybody to follow
                        raise
                else:
                    break
        except SPIError as error:
            listener(error)
        else:
            listener(None)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
            if run.blocked.kind == "moving" and (address := self.local.address_of(run.blocked.owner)):
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
            for address in self.local.other_addresses()
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


async def _started(peer: Peer, request: StartRequest) -> StartOutcome:
    answer: asyncio.Future[StartOutcome | SPIError] = asyncio.get_running_loop().create_future()
    peer.start_run(request, lambda outcome: _tell(answer, outcome))
    return _value(await answer)


async def _ended(peer: Peer, key: RunKey) -> RunOutcome:
    answer: asyncio.Future[RunOutcome | SPIError] = asyncio.get_running_loop().create_future()
    give_up = peer.wait_run(key, lambda outcome: _tell(answer, outcome))
    try:
        return _value(await answer)
    finally:
        give_up()


def _tell(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _value(answer: T | SPIError) -> T:
    if not isinstance(answer, SPIError):
        return answer
    try:
        raise answer
    finally:
        del answer  # its traceback holds this frame
