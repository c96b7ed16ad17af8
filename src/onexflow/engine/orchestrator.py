"""The orchestrator: one process's engine, as its clients and workers see it (`ports.client_link.OrchestratorService`).

How a result becomes the next task (the hot path): `ResultIntake.on_results` (a message of results) → `Kernel.decide` for
each run (core.decide) → `Shard.record` (offsets) → instructions: pure tasks leave with the flush at the end of this loop
turn, everything else when `CommitLane` says that it is durable. No task of the event loop, no log line, no JSON for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from onexflow.core.errors import (
    Coded,
    Draining,
    StoreUnavailable,
    Unavailable,
)
from onexflow.core.ids import RunKey
from onexflow.core.payload import PayloadCodec
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.background import Background
from onexflow.engine.blocking import Blocking
from onexflow.engine.calls import CallBook
from onexflow.engine.consequences import Consequences
from onexflow.engine.controls import Controls
from onexflow.engine.events.book import EventBook
from onexflow.engine.fitness import Fitness
from onexflow.engine.gateway import gateways
from onexflow.engine.housekeeping import Housekeeping
from onexflow.engine.kernel import Kernel
from onexflow.engine.measures import measure
from onexflow.engine.node_book import NodeBook
from onexflow.engine.nodes import Nodes
from onexflow.engine.observed import Observed
from onexflow.engine.outcomes import Outcomes, WaitReply
from onexflow.engine.ownership import Ownership
from onexflow.engine.pins import Pins
from onexflow.engine.placing import loop_time
from onexflow.engine.queries import FollowListener, Queries
from onexflow.engine.queue_book import QueueBook
from onexflow.engine.queue_bridge import QueueBridge
from onexflow.engine.readiness import Readiness
from onexflow.engine.records import RecordBook
from onexflow.engine.routing import Peer, Peers
from onexflow.engine.sessions import Sessions
from onexflow.engine.shard import Shard
from onexflow.engine.starts import StartReply, Starts
from onexflow.engine.tally_store import TallyStore
from onexflow.engine.watchdog import Watchdog
from onexflow.engine.whereabouts import Whereabouts
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
        self._kernel = Kernel(store, codec, ids.random, shared=shared)
        self._readiness = Readiness(self._kernel)
        self._background = Background()
        #: Where the others are, and the shards.
        self.whereabouts = Whereabouts(self._kernel, registry, self._readiness, orchestrator_id)
        self._book = AttemptBook(
            self._kernel,
            lambda *suspect: self._sessions.suspects.watch(*suspect),  # noqa: PLW0108 - made below
            speculation=speculation,
        )
        self._book.others = self.whereabouts.other_addresses
        self._sessions = Sessions(
            self._book,
            orchestrator_id=orchestrator_id,
            registry=registry,
            prober=prober,
            lease_ttl=lease_ttl,
            on_told=lambda shard: self._ownership.on_told(shard),  # noqa: PLW0108 - made below
        )
        self._blocking = Blocking(self._kernel, self._book, self._sessions, orchestrator_id, self._readiness.is_full)
        self._queries = Queries(self._kernel, self._blocking, orchestrator_id)
        self._housekeeping = Housekeeping(self._kernel, self._book, self._blocking, registry)
        self._gateways = gateways(self, peers, ids)
        #: What clients are served by: calls about shards of other orchestrators are passed on to these.
        self.gateway: OrchestratorService = self._gateways[0] if self._gateways else self
        #: The same for what this orchestrator asks itself.
        self._cluster: OrchestratorService = self._gateways[1] if self._gateways else self
        self._bridge = QueueBridge(self._kernel, self._book.dispatcher, self._cluster, self._readiness.is_able)
        self._queues = QueueBook(self._kernel, registry, self._bridge, payload_limit)
        self._book.on_room = self._bridge.on_room
        self._calls = CallBook(self._kernel, self._cluster.control)
        self._queries.called = self._calls.open_calls
        self._pins = Pins(self._kernel, registry)
        #: What `ports.nodes` asks.
        self.node_registry = self._registers()
        self._nodes = Nodes(registry, self._sessions, self.node_registry, self.whereabouts)
        self.events = EventBook(
            self._kernel, ids, payload_limit, self._readiness.refuse_if_unable, lambda: self._cluster.events
        )
        #: What `ports.persistence` asks.
        self.records = self._keeps(payload_limit)
        self._ownership: Ownership = self._owns(prober, lease_ttl)
        self._blocking.free_since = self._ownership.free_since
        self._fitness = self._fits(peers)
        self.watchdog = Watchdog(self._blocking, self._queues, self._bridge, self._ownership)
        self._observed = Observed(self._kernel, self._book, self._sessions, self.watchdog, self._fitness)
        self._outcomes = Outcomes(self._kernel, self._queries, self._background.answer)
        self._consequences = self._follows(on_fatal)
        self._starts = self._begins(payload_limit)
        self._controls = Controls(
            self._kernel, self._readiness, self._queries, self._book.gatherer, self._pins, self.node_registry
        )

    def _registers(self) -> NodeBook:
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

    def _keeps(self, payload_limit: int) -> RecordBook:
        return RecordBook(
            self._kernel,
            self._queries,
            self.events,
            owner=self.orchestrator_id,
            refuse=self._readiness.refuse_if_unable,
            payload_limit=payload_limit,
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
            refuse=self._readiness.refuse_if_unable,
            carry_out=self._consequences.carry_out,
            in_background=self._background.answer,
        )

    def _owns(self, prober: Prober | None, lease_ttl: float) -> Ownership:
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
            is_full=self._readiness.is_full,
            others=self.whereabouts.other_addresses if peers is not None else tuple,
            peers=peers or _nobody,
            withdraw=self._ownership.withdraw,
            rejoin=self._ownership.rejoin,
            believe=self._ownership.believe_announcements,
        )

    def _follows(self, on_fatal: Callable[[Coded], None] | None) -> Consequences:
        return Consequences(
            self._kernel,
            self._registry,
            book=self._book,
            calls=self._calls,
            events=self.events,
            observed=self._observed,
            outcomes=self._outcomes,
            ownership=self._ownership,
            pins=self._pins,
            queries=self._queries,
            queues=self._queues,
            readiness=self._readiness,
            background=self._background,
            on_fatal=on_fatal,
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
        self._background.spawn(self._calls.close_ended())
        log.info("orchestrator.started", shards=len(self._kernel.shards), recovered=recovered)
        self._housekeeping.start()
        self.watchdog.start()
        self._fitness.start()
        self.whereabouts.record = NodeRecord(
            kind="orchestrator",
            node_id=self.orchestrator_id,
            incarnation=self.incarnation,
            version=version,
            started_at=self._clock.now(),
        )

    async def announce(self, address: str, liveness: str = "") -> None:
        """Tell the registry where this orchestrator serves and which shards it owns."""
        assert self.whereabouts.record is not None, "announce comes after start"
        record = msgspec.structs.replace(self.whereabouts.record, address=address, liveness=liveness)
        self.whereabouts.record = record
        self._book.address = address
        await self._ownership.register(record)
        self._background.spawn(self._pins.mirror_all())

    async def hand_over(self) -> None:
        """Give all shards to the other orchestrators, if there may be some; part of a stop in good order. Calls and
        workers are sent to the new owners."""
        self._readiness.is_draining = True
        await self._ownership.hand_over()

    @property
    def shards(self) -> Mapping[int, Shard]:
        """The shards that are owned now."""
        return self._kernel.shards

    def drain(self) -> None:
        """Take no new starts from now on; what is under way goes on."""
        self._readiness.is_draining = True

    async def stop(self, reason: str = "the orchestrator is stopping") -> None:
        """Close the streams, commit what is decided, let go of the store. Idempotent.

        A store that takes nothing for STOP_SECONDS (full, away) is left as by a kill: what is not durable was told to
        nobody."""
        if self._readiness.lost is None:
            await self.hand_over()
        self._readiness.is_draining = True
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
        await self._background.stop()
        await self._queries.stop()
        await self._kernel.close()

    async def abandon(self) -> None:
        """End at once, as a kill would: what is decided and not durable is given up, those who wait get an error."""
        self._readiness.lost = self._readiness.lost or StoreUnavailable("the orchestrator was ended")
        await self._kernel.abandon()
        await self.stop("the orchestrator was ended")

    # ---- workers

    def accept_worker(self, link: WorkerLink) -> WorkerPeer:
        return self._sessions.accept(link)

    # ---- starts and waits

    def start_run(self, request: StartRequest, reply: StartReply) -> None:
        self._starts.start(request, reply)

    def wait_run(self, key: RunKey, reply: WaitReply) -> Callable[[], None]:
        if self._readiness.lost is not None:
            reply(self._readiness.lost)
            return lambda: None
        return self._outcomes.wait(key, reply)

    def refusal(self, waited: float, behind: int) -> SPIError | None:
        admission = self._book.admission
        return None if admission.has_room(behind) else admission.refusal(loop_time(), waited, behind)

    # ---- control

    async def control(self, request: ControlRequest) -> ControlOutcome:
        return await self._controls.control(request)

    async def queue_call(self, call: AnyCall) -> Answer:
        if isinstance(call, Enqueue):
            self._readiness.refuse_if_unable()
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
        record = await self._kernel.catalog.find(namespace, workflow_type, version, shared=self._kernel.is_shared)
        return self._kernel.catalog.info(record), record.data

    def shard_map(self) -> ShardMap:
        return self.whereabouts.shard_map()

    async def refresh_definitions(self) -> None:
        """Know what was registered through other orchestrators."""
        await self._kernel.catalog.load()

    async def list_definitions(self, namespace: str) -> Sequence[DefinitionInfo]:
        return self._kernel.catalog.list(namespace)

    async def list_nodes(self) -> Sequence[NodeView]:
        return await self._nodes.list()

    async def drain_node(self, node_id: str) -> bool:
        return self._nodes.drain(node_id)

    def health(self) -> Health:
        details: dict[str, str] = {}
        registry = self._registry.health()
        if not registry.connected:
            details["registry"] = registry.detail or "not connected"
        details |= self._fitness.details()
        details |= self._readiness.details()
        details |= self.watchdog.details()
        return Health(
            serving=self._readiness.lost is None and not self._readiness.is_draining,
            details=details,
            can_append=self._fitness.can_append(),
        )

    async def can_append(self) -> bool:
        """Does the store take what this orchestrator writes, as far as it knows?"""
        return self._readiness.lost is None and self._fitness.can_append()


def _nobody(address: str) -> Peer:
    raise Unavailable(f"there is no way to {address}")
