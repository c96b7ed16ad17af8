"""The orchestrator: one process's engine, as its clients and workers see it (`ports.client_link.OrchestratorService`).

How a result becomes the next task (the hot path): `ResultIntake.on_results` (a message of results) → `Kernel.decide` for
each run (core.decide) → `Shard.record` (offsets) → instructions: pure tasks leave with the flush at the end of this loop
turn, everything else when `CommitLane` says that it is durable. No task of the event loop, no log line, no JSON for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

import msgspec
import structlog

from onexflow.core.commands import AssignRun, CancelRun, Command, PauseRun, ResolveItem, ResumeRun
from onexflow.core.errors import (
    Coded,
    Draining,
    InvalidArgument,
    Overloaded,
    StoreFull,
    StoreUnavailable,
    Unavailable,
    UnknownNode,
    UnknownTask,
    UnknownWorkflowType,
)
from onexflow.core.ids import RunKey
from onexflow.core.instructions import FinishRun
from onexflow.core.payload import PayloadCodec
from onexflow.core.state import RunState
from onexflow.core.turn import Turn
from onexflow.engine import views
from onexflow.engine.answers import Answers
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.blocking import Blocking
from onexflow.engine.calls import CallBook
from onexflow.engine.events.book import EventBook
from onexflow.engine.fitness import Fitness
from onexflow.engine.gateway import gateways
from onexflow.engine.housekeeping import Housekeeping
from onexflow.engine.kernel import Kernel
from onexflow.engine.measures import measure
from onexflow.engine.node_book import NodeBook
from onexflow.engine.nodes import node_views, with_health
from onexflow.engine.observed import Observed
from onexflow.engine.outcomes import Outcomes, WaitReply
from onexflow.engine.ownership import Ownership
from onexflow.engine.pins import Pins
from onexflow.engine.queries import FollowListener, Queries
from onexflow.engine.queue_book import QueueBook
from onexflow.engine.queue_bridge import QueueBridge
from onexflow.engine.records import RecordBook
from onexflow.engine.routing import Peer, Peers
from onexflow.engine.run import Attempt, Run
from onexflow.engine.sessions import Sessions, WorkerSession
from onexflow.engine.shard import Entity, Shard
from onexflow.engine.starts import StartReply, Starts
from onexflow.engine.tally_store import TallyStore
from onexflow.engine.watchdog import Watchdog
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
    RunSummary,
    RunView,
    ShardMap,
    StartRequest,
)
from onexflow.ports.clock import Clock, IdSource
from onexflow.ports.event_store import EventStore
from onexflow.ports.queue import Answer, AnyCall, Enqueue
from onexflow.ports.registry import NodeRecord, Prober, Registry
from onexflow.ports.worker_link import WorkerLink, WorkerPeer
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.orchestrator")

PAYLOAD_LIMIT = 2 * 1024 * 1024
#: Decided events that may wait for the store before new runs are refused.
UNDURABLE_EVENTS = 100_000


class Orchestrator:
    """Implements `OrchestratorService`. `start` claims and recovers; `stop` commits what is decided and lets go."""

    def __init__(
        self,
        store: EventStore,
        registry: Registry,
        *,
        clock: Clock,
        ids: IdSource,
        codec: PayloadCodec,
        orchestrator_id: str,
        incarnation: str,
        prober: Prober | None = None,
        lease_ttl: float = 5.0,
        payload_limit: int = PAYLOAD_LIMIT,
        speculation: bool = True,
        on_fatal: Callable[[Coded], None] | None = None,
        shared: bool = False,
        peers: Peers | None = None,
    ) -> None:
        """`shared`: several orchestrators own shards of this store; `peers` finds the others, for calls about theirs.
        `speculation`: pure tasks leave before what they were scheduled by is durable (rule 5 of the protocol)."""
        self.orchestrator_id = orchestrator_id
        self.incarnation = incarnation
        self._clock = clock
        self._ids = ids
        self._registry = registry
        self._on_fatal = on_fatal
        self._is_full = False
        self._kernel = Kernel(store, codec, ids.random, on_full=self._on_full, on_lost=self._on_lost, shared=shared)
        self._book = AttemptBook(self._kernel, self._watch, speculation=speculation)
        self._book.others = self.other_addresses
        self._sessions = Sessions(
            self._book,
            orchestrator_id=orchestrator_id,
            registry=registry,
            prober=prober,
            lease_ttl=lease_ttl,
            on_told=lambda shard: self._ownership.on_told(shard),  # noqa: PLW0108 - made below
        )
        self._blocking = Blocking(self._kernel, self._book, self._sessions, orchestrator_id, self._has_no_space)
        self._queries = Queries(self._kernel, self._blocking, orchestrator_id)
        self._answers = Answers(store)
        self._housekeeping = Housekeeping(self._kernel, self._book, self._blocking, registry)
        self._gateways = gateways(self, peers, ids)
        #: What clients are served by: calls about shards of other orchestrators are passed on to these.
        self.gateway: OrchestratorService = self._gateways[0] if self._gateways else self
        #: The same for what this orchestrator asks itself.
        self._cluster: OrchestratorService = self._gateways[1] if self._gateways else self
        self._bridge = QueueBridge(self._kernel, self._book.dispatcher, self._cluster, self._is_able)
        self._queues = QueueBook(self._kernel, registry, self._bridge, payload_limit)
        self._book.on_room = self._bridge.on_room
        self._calls = CallBook(self._kernel, self._cluster.control)
        self._queries.called = self._calls.open_calls
        self._pins = Pins(self._kernel, registry)
        #: What `ports.nodes` asks.
        self.node_registry = self._nodes()
        self._kernel.carry_out = self._carry_out
        self._kernel.on_loaded = lambda run: self._book.take_back(run, self._liveness_of)
        self.events = EventBook(self._kernel, ids, payload_limit, self._refuse_if_unable, lambda: self._cluster.events)
        #: What `ports.persistence` asks.
        self.records = RecordBook(
            self._kernel,
            self._queries,
            self.events,
            owner=orchestrator_id,
            refuse=self._refuse_if_unable,
            payload_limit=payload_limit,
        )
        self._kernel.on_durable = self._on_durable
        self._ownership: Ownership = self._owns(prober, lease_ttl)
        self._blocking.free_since = self._ownership.free_since
        self._fitness = self._fits(peers)
        self.watchdog = Watchdog(self._blocking, self._queues, self._bridge, self._ownership)
        self._observed = Observed(self._kernel, self._book, self._sessions, self.watchdog, self._fitness)
        self._outcomes = Outcomes(self._kernel, self._queries, self._in_background)
        self._starts = self._begins(payload_limit)
        self._background: set[asyncio.Task[None]] = set()
        self._lost: Coded | None = None
        self._draining = False
        self._record: NodeRecord | None = None

    def _nodes(self) -> NodeBook:
        return NodeBook(
            self._registry,
            self._sessions,
            self._book,
            self._queues,
            self._pins,
            TallyStore(self._kernel, self._book.tallies),
            self.control,
            clock=self._clock,
            ids=self._ids,
            orchestrator_id=self.orchestrator_id,
            incarnation=self.incarnation,
        )

    def _begins(self, payload_limit: int) -> Starts:
        return Starts(
            self._kernel,
            self._queries,
            self._calls,
            self._sessions.lifecycle,
            self._observed,
            self._outcomes,
            self._cluster,
            ids=self._ids,
            payload_limit=payload_limit,
            admission=self._book.admission,
            refuse=self._refuse_if_unable,
            carry_out=self._carry_out,
            in_background=self._in_background,
        )

    def _owns(self, prober: Prober | None, lease_ttl: float) -> Ownership:
        self._kernel.claims.on_claimed = self._on_claimed
        self._kernel.claims.on_left = self._on_left
        return Ownership(
            self._kernel,
            self._book,
            self._sessions,
            self._registry,
            prober,
            clock=self._clock,
            orchestrator_id=self.orchestrator_id,
            incarnation=self.incarnation,
            lease_ttl=lease_ttl,
            duties=(self.events.claimed, self._calls.close_ended_of, self._pins.mirror_all_of),
        )

    def _fits(self, peers: Peers | None) -> Fitness:
        return Fitness(
            self._kernel,
            owner=self.orchestrator_id,
            is_full=self._has_no_space,
            others=self.other_addresses if peers is not None else tuple,
            peers=peers or _nobody,
            withdraw=self._ownership.withdraw,
            rejoin=self._ownership.rejoin,
            believe=self._ownership.believe_announcements,
        )

    # ---- life

    async def start(self, *, version: str = "") -> None:
        """Open the store, claim its shards, read back what was at work, register. Workers are accepted afterwards."""
        await self._kernel.open(self.orchestrator_id)
        self._queues.start()
        await self.events.start()
        recovered = await self._ownership.begin()
        self._bridge.start()
        await self.node_registry.load()
        self.node_registry.start()
        self._spawn(self._calls.close_ended())
        log.info("orchestrator.started", shards=len(self._kernel.shards), recovered=recovered)
        self._housekeeping.start()
        self.watchdog.start()
        self._fitness.start()
        self._record = NodeRecord(
            kind="orchestrator",
            node_id=self.orchestrator_id,
            incarnation=self.incarnation,
            version=version,
            started_at=self._clock.now(),
        )

    async def announce(self, address: str, liveness: str = "") -> None:
        """Tell the registry where this orchestrator serves and which shards it owns."""
        assert self._record is not None, "announce comes after start"
        record = msgspec.structs.replace(self._record, address=address, liveness=liveness)
        self._record = record
        self._book.address = address
        await self._ownership.register(record)
        self._spawn(self._pins.mirror_all())

    async def hand_over(self) -> None:
        """Give all shards to the other orchestrators, if there may be some; part of a stop in good order. Calls and
        workers are sent to the new owners."""
        self._draining = True
        await self._ownership.hand_over()

    @property
    def shards(self) -> Mapping[int, Shard]:
        """The shards that are owned now."""
        return self._kernel.shards

    def drain(self) -> None:
        """Take no new starts from now on; what is under way goes on."""
        self._draining = True

    async def stop(self, reason: str = "the orchestrator is stopping") -> None:
        """Close the streams, commit what is decided, let go of the store. Idempotent.

        A store that takes nothing for STOP_SECONDS (full, away) is left as by a kill: what is not durable was told to
        nobody."""
        if self._lost is None:
            await self.hand_over()
        self._draining = True
        await self._ownership.stop()
        for gateway in self._gateways:
            await gateway.close(Draining(reason))
        self._queues.stop(Draining(reason))
        self.events.stop(Draining(reason))
        await self.events.close()
        await self._bridge.stop()
        await self.node_registry.stop(Draining(reason))
        await self._fitness.stop()
        await self.watchdog.stop()
        await self._housekeeping.stop()
        await self._sessions.stop(reason)
        self._book.stop()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._queries.stop()
        await self._kernel.close()

    async def abandon(self) -> None:
        """End at once, as a kill would: what is decided and not durable is given up, those who wait get an error."""
        self._lost = self._lost or StoreUnavailable("the orchestrator was ended")
        await self._kernel.abandon()
        await self.stop("the orchestrator was ended")

    def _on_durable(self, entities: Sequence[tuple[Entity, int]]) -> None:
        self._queries.on_durable(entities)
        self.events.on_durable(entities)
        self._book.feeding.stored(entities)

    def _on_claimed(self, shard: Shard) -> None:
        self._book.claimed(shard)
        self._queues.claimed()

    def _on_left(self, shard: Shard) -> None:
        """Nothing more is decided for the shard here: forget it, and send away who waits for it."""
        assert shard.moved is not None, "it has left"
        self._ownership.left(shard)
        self._queues.left(shard)
        self._queries.look_again()
        self.events.left(shard)
        self._outcomes.left(shard, shard.moved)

    def _on_full(self, full: bool) -> None:
        self._is_full = full
        if full:
            log.error("store.full")
        else:
            log.info("store.freed")

    def _on_lost(self, error: Coded) -> None:
        self._lost = error
        log.critical("store.lost", code=error.code, error=str(error))
        self._outcomes.fail(error)
        self._queues.stop(error)
        self._queries.fail(error)
        self.events.stop(error)
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _watch(self, incarnation: str, worker: str, liveness: str, attempts: Iterable[Attempt]) -> None:
        self._sessions.watch(incarnation, worker, liveness, attempts)

    def _liveness_of(self, incarnation: str) -> str:
        return next((m.liveness for m in self._registry.members() if m.incarnation == incarnation and m.liveness), "")

    # ---- workers

    def accept_worker(self, link: WorkerLink) -> WorkerPeer:
        return self._sessions.accept(link)

    def _carry_out(self, run: Run, turn: Turn) -> None:
        state, instructions = run.state, turn.instructions
        if run.pinned != state.node or (run.pinned and run.is_over):
            self._pins.follow(run)
            if not run.is_over:
                self._book.place_anew(run)
        if run.arrivals:
            self._book.feeding.decided(run, turn)
        if not instructions:
            return
        self._book.carry_out(run, turn)
        if type(instructions[-1]) is FinishRun and run.is_over:
            outcome = views.outcome_of(run.key, state)
            calls = run.graph.calls
            self._kernel.lane.when_durable(lambda error: self._finish(state, outcome, calls, error), run.shard)

    def _finish(self, state: RunState, outcome: RunOutcome, calls: bool, error: Coded | None) -> None:
        if error is not None:
            return
        self._book.admission.ended(state.created_at)
        self._observed.ended(state, outcome)
        self._outcomes.ended(outcome)
        if state.node:
            self._spawn(self._pins.mirror(outcome.key))
        if calls:
            self._spawn(self._calls.close(outcome.key))

    # ---- starts and waits

    def start_run(self, request: StartRequest, reply: StartReply) -> None:
        self._starts.start(request, reply)

    def wait_run(self, key: RunKey, reply: WaitReply) -> Callable[[], None]:
        if self._lost is not None:
            reply(self._lost)
            return lambda: None
        return self._outcomes.wait(key, reply)

    def _refuse_if_unable(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self._draining:
            raise Draining
        if self._is_full:
            raise StoreFull
        if self._kernel.undurable > UNDURABLE_EVENTS:
            raise Overloaded(
                f"{self._kernel.undurable:,} events wait for the store: new runs are refused until it has caught up"
            )

    def refusal(self, waited: float, behind: int) -> SPIError | None:
        return self._book.admission.refusal(asyncio.get_running_loop().time(), waited, behind)

    def _has_no_space(self) -> bool:
        return self._is_full

    def _is_able(self) -> bool:
        return not self._draining and not self._is_full and self._lost is None

    def _in_background(self, work: Awaitable[None], reply: Callable[[SPIError], None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except SPIError as error:
                reply(error)

        self._spawn(guarded())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # ---- control

    async def control(self, request: ControlRequest) -> ControlOutcome:
        if self._lost is not None:
            raise self._lost
        shard = self._kernel.shard_of(request.key)
        before = self._answers.recent(request) or await self._answers.stored(shard, request)
        run = await self._kernel.find(request.key)  # nothing is awaited from here to the decision
        self._book.gatherer.let_go(run)  # its results came before
        before = before or self._answers.recent(request)
        if before is not None:
            await self._queries.durable(request.key)
            return before
        command = self._command(run, request)
        meta = {"principal": request.principal} if request.principal else None
        turn = self._kernel.decide(run, command, meta)
        state = run.state
        outcome = ControlOutcome(changed=bool(turn.events), state=state.status, sequence=state.seq)
        if self._answers.keep(run.shard, request, outcome):
            self._kernel.lane.mark()
        await self._kernel.lane.durable(run.shard)
        if request.action == "assign" and outcome.changed:
            await self._pins.mirror(request.key)
        return outcome

    def _command(self, run: Run, request: ControlRequest) -> Command:
        match request.action:
            case "pause":
                return PauseRun(request.reason, request.principal)
            case "resume":
                return ResumeRun(request.reason)
            case "cancel":
                return CancelRun(request.reason)
            case "assign":
                if request.node_id:
                    self.node_registry.check_known(request.node_id)
                return AssignRun(request.node_id)
            case "resolve":
                task = run.graph.index.get(request.task)
                if task is None:
                    raise UnknownTask(
                        f"workflow {run.key.workflow_type} has no task {request.task!r}",
                        {"task": request.task, "known": list(run.graph.names[:20])},
                    )
                if sum((request.retry, request.result is not None, bool(request.fail))) != 1:
                    raise InvalidArgument("say one of retry, result and fail", field="resolution")
                return ResolveItem(task, request.item, request.retry, request.result, request.fail)

    async def queue_call(self, call: AnyCall) -> Answer:
        if isinstance(call, Enqueue):
            self._refuse_if_unable()
        return await self._queues.call(call)

    # ---- queries

    async def describe_run(self, key: RunKey) -> RunView:
        return await self._queries.describe(key)

    async def read_history(self, key: RunKey, from_sequence: int = 1, limit: int = 1000) -> Sequence[EventView]:
        return await self._queries.history(key, from_sequence, limit)

    def follow_run(self, key: RunKey, from_sequence: int, listener: FollowListener) -> Callable[[], None]:
        return self._queries.follow(key, from_sequence, listener)

    async def list_runs(
        self, namespace: str, workflow_type: str = "", states: Sequence[str] = (), cursor: str = "", limit: int = 100
    ) -> tuple[Sequence[RunSummary], str]:
        return await self._queries.list_runs(namespace, workflow_type, states, cursor, limit)

    async def explain_runs(self, keys: Sequence[RunKey]) -> Sequence[BlockedRun]:
        return await self._queries.explain(keys)

    async def measure_runs(self, namespace: str, workflow_type: str = "") -> RunMetrics:
        return await measure(self._kernel, namespace, workflow_type)

    async def register_definition(self, namespace: str, definition: bytes) -> DefinitionInfo:
        return await self._kernel.catalog.register(namespace, definition)

    async def get_definition(
        self, namespace: str, workflow_type: str, version: int = 0
    ) -> tuple[DefinitionInfo, bytes]:
        try:
            record = self._kernel.catalog.record(namespace, workflow_type, version)
        except UnknownWorkflowType:
            if not self._kernel.is_shared:
                raise
            await self._kernel.catalog.load()  # it may have been registered through another orchestrator
            record = self._kernel.catalog.record(namespace, workflow_type, version)
        return self._kernel.catalog.info(record), record.data

    def other_addresses(self) -> Sequence[str]:
        """Of the other orchestrators that are there."""
        others = (one for one in self._registry.members("orchestrator") if one.node_id != self.orchestrator_id)
        return [one.address for one in others if one.address]

    @property
    def shard_count(self) -> int:
        """Of the store."""
        return self._kernel.store.shards

    def owner_address(self, number: int) -> str:
        """Where a shard's owner serves, as far as is known now."""
        if number not in self._kernel.shards:
            return self._kernel.claims.locate(number)[1]
        return self._record.address if self._record is not None else ""

    def shard_map(self) -> ShardMap:
        if not self._kernel.is_shared:
            return ShardMap()
        own = self._record.address if self._record is not None else ""
        owners = {number: self.owner_address(number) for number in range(self.shard_count)}
        addresses = (*([own] if own and not self._draining else []), *self.other_addresses())
        return ShardMap(addresses, self.shard_count, {number: at for number, at in owners.items() if at})

    def address_of(self, owner: str) -> str:
        """Of an orchestrator that is there; else ""."""
        return next((one.address for one in self._registry.members("orchestrator") if one.node_id == owner), "")

    async def refresh_definitions(self) -> None:
        """Know what was registered through other orchestrators."""
        await self._kernel.catalog.load()

    async def list_definitions(self, namespace: str) -> Sequence[DefinitionInfo]:
        return self._kernel.catalog.list(namespace)

    async def list_nodes(self) -> Sequence[NodeView]:
        views = node_views(self._registry.members(), self._sessions.by_worker.values(), self._record)
        views = with_health(views, await self.node_registry.find_nodes())
        return [*views, *self._sessions.lifecycle.views()]

    async def drain_node(self, node_id: str) -> bool:
        session: WorkerSession | None = self._sessions.by_worker.get(node_id)
        if session is None:
            raise UnknownNode(f"no worker {node_id} is connected", {"node": node_id})
        if session.is_draining:
            return False
        session.is_draining = True
        self.node_registry.on_drain(session)
        return True

    def health(self) -> Health:
        details: dict[str, str] = {}
        registry = self._registry.health()
        if not registry.connected:
            details["registry"] = registry.detail or "not connected"
        details |= self._fitness.details()
        if self._is_full:
            details["store"] = "full: new runs are refused"
        if self._lost is not None:
            details["store"] = f"lost: {self._lost}"
        if self._draining:
            details["orchestrator"] = "draining"
        details |= self.watchdog.details()
        return Health(
            serving=self._lost is None and not self._draining, details=details, can_append=self._fitness.can_append()
        )

    async def can_append(self) -> bool:
        """Does the store take what this orchestrator writes, as far as it knows?"""
        return self._lost is None and self._fitness.can_append()


def _nobody(address: str) -> Peer:
    raise Unavailable(f"there is no way to {address}")
