"""`WorkerRuntime`: a worker's side of its sessions with orchestrators.

One link to each orchestrator. What is asked for on a link is done; what came of it goes to whoever owns the attempt's
shard *now*. Links come and go, attempts stay. This file keeps the books (attempts by token, results by token until they
are acknowledged, the highest epoch of each shard); `lanes.py` runs the attempts, `credits.py` says who may send more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import structlog

from onexflow.codec.payload import JsonCodec
from onexflow.core.errors import InvalidConfiguration, NodeNotReady
from onexflow.core.ids import Token
from onexflow.core.payload import NULL, Failure, Payload, PayloadCodec
from onexflow.ports import orchestration
from onexflow.ports.clock import Clock
from onexflow.ports.orchestration import NodeCaller
from onexflow.ports.worker_link import (
    PROTOCOL_VERSION,
    ROLES,
    Ack,
    Assignment,
    Assignments,
    AttemptResult,
    Cancel,
    Credits,
    Demand,
    Drain,
    Fed,
    Feed,
    FromWorker,
    Goodbye,
    HandlerInfo,
    Held,
    Hello,
    Lifecycle,
    NodeState,
    OrchestratorLink,
    Ping,
    Pong,
    Recall,
    Reclaim,
    Reclaimed,
    Role,
    ShardEpoch,
    ToWorker,
    Welcome,
    WorkerDraining,
)
from onexflow.spi.exceptions import HandlerInitializationError
from onexflow.worker.handlers import Handler, Worker
from onexflow.worker.lanes import QUEUED, RUNNING, Attempt, Lane, Program
from onexflow.worker.outbox import Outbox
from onexflow.worker.programs import Programs
from onexflow.worker.progress import ProgressReports

DEFAULT_SLOTS: Final[dict[Role, int]] = {"effect": 32, "compute": 4, "reducer": 4, "orchestrator": 1000}
#: Seconds that a cancelled attempt has to end when the worker closes.
STOP_GRACE: Final = 2.0
#: Seconds to wait for the acknowledgement of the last results.
ACK_GRACE: Final = 2.0

_ROLE_OF: Final[Callable[[Assignment], Role]] = attrgetter("role")

_log = structlog.get_logger("onexflow.worker")


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is doing, at one moment."""

    links: int
    slots: dict[str, int]
    queued: dict[str, int]
    running: dict[str, int]
    credits: dict[str, int]  #: given to orchestrators and not yet used
    stopping: int  #: attempts that were cancelled and still hold their slot
    unacknowledged: int
    completed: int
    failed: int
    duplicates: int  #: assignments of tokens that were known already
    refused_stale: int  #: messages of orchestrators that no longer own the shard
    refused_uncredited: int  #: assignments beyond the credits given


class OrchestratorPeer:
    """One session. The link calls `on_message` in order and `on_close` once, both on the runtime's loop."""

    def __init__(self, runtime: WorkerRuntime, link: OrchestratorLink) -> None:
        self.link = link
        #: Of the shards that it owns, as far as we have heard: each the highest that any orchestrator has said, or it is taken
        #: away here (`WorkerRuntime._own`). So a token that is not above it is the owner's word.
        self.epochs: dict[int, int] = {}
        self.orchestrator_id = ""  #: empty until Welcome
        self.open = True
        self._runtime = runtime

    def on_message(self, message: ToWorker) -> None:
        """Take a message. What is stale or out of turn is refused and counted; nothing is raised."""
        if self.open:
            self._runtime.handle(self, message)

    def on_close(self, reason: str = "") -> None:
        """The link has ended. Attempts go on; their results wait for the shard's owner of then."""
        if self.open:
            self.open = False
            self._runtime.detach(self, reason)


class WorkerRuntime:
    """Runs a worker's handlers for the orchestrators that it is linked to.

    `async with WorkerRuntime(...) as runtime:` starts it (class nodes' `initialize()`) and closes it. `attach` links
    while it runs. All methods belong to one event loop.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        worker_id: str,
        incarnation: str,
        clock: Clock,
        slots: Mapping[Role, int] | Mapping[str, int] | None = None,
        codec: PayloadCodec | None = None,
        liveness: str = "",
        build_id: str = "",
        labels: dict[str, str] | None = None,
        caller: NodeCaller | None = None,
    ) -> None:
        """`caller`: how orchestrations call nodes and workflows. It is closed with the runtime."""
        self.worker = worker
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.liveness = liveness  #: may be set until the first `attach`
        #: Addresses of orchestrators, as the last Welcome gave them.
        self.orchestrators: tuple[str, ...] = ()
        self.idle = asyncio.Event()
        self.idle.set()
        self._clock = clock
        self._build_id = build_id
        self._labels = labels or {}
        self._caller = caller
        self._programs = Programs(
            clock=clock, codec=codec or JsonCodec(), report=self._report, say_fed=self._say_fed, caller=caller
        )
        self._progress = ProgressReports(clock, self._send_to_owner)
        self._lanes = self._lanes_for(slots or {})
        self._ready: dict[tuple[Role, str], tuple[Handler, Program]] = {}
        self._peers: list[OrchestratorPeer] = []
        self._epochs: dict[int, int] = {}
        self._owners: dict[int, OrchestratorPeer] = {}
        self._attempts: dict[Token, Attempt] = {}
        self._outbox = Outbox(self._owners.get, self._tell_credits)
        self._initialized: list[Any] = []
        #: Of the class nodes: where they are in their life.
        self._states: dict[tuple[Role, str], NodeState] = {}
        self._verbose = False  #: one line an attempt is wanted
        self._started = self._draining = self._wound_down = self._closed = False
        self._completed = self._failed = self._duplicates = self._stale = self._uncredited = 0

    # ---- life

    async def start(self) -> None:
        """`open`, then `initialize`."""
        self.open()
        await self.initialize()

    def open(self) -> None:
        """Make the handlers ready but the class nodes: these are told as `initializing`, and are sent nothing, until
        `initialize` is done. Raises InvalidConfiguration when a handler cannot be run."""
        if self._started:
            return
        for handler in self.worker.handlers:
            if handler.role in self._lanes:
                self._ready[handler.role, handler.name] = (handler, self._programs.program(handler))
                if handler.node is not None:
                    self._states[handler.role, handler.name] = "initializing"
        if "orchestrator" in self._lanes:
            orchestration.watch_tasks()
        self._verbose = logging.getLogger("onexflow.worker").isEnabledFor(logging.DEBUG)
        self._started = True

    async def initialize(self) -> None:
        """Initialise the class nodes, one after the other; links may be attached meanwhile. Raises
        HandlerInitializationError naming the one that failed, after the others were shut down."""
        try:
            for handler in self.worker.handlers:
                if handler.node is not None and handler.node not in self._initialized:
                    await self._initialize(handler)
                    self._tell(handler.node, "ready")
        except HandlerInitializationError:
            await self._shutdown_nodes()
            raise

    async def drain(self, timeout: float) -> None:
        """Stop in good order: take nothing new, give back what has not begun, and orchestrations, which another worker
        goes on with; let the rest run for `timeout` seconds, cancel what is left then, wait briefly for the
        acknowledgements, say Goodbye and close."""
        if self._closed:
            return
        self._take_nothing_new()
        self._broadcast(WorkerDraining())
        for attempt in list(self._attempts.values()):
            if attempt.assignment.role == "orchestrator":
                self._stop(attempt, "the worker is stopping")
        await self._until(lambda: not self._attempts, self.idle, timeout)
        # Links may still come back here, so that what ends now is not left without one to go out on.
        await self._wind_down()
        await self.close()

    async def close(self) -> None:
        """As `drain`, without waiting for running attempts: they are cancelled and reported as `stopped`."""
        if self._closed:
            return
        self._closed = True
        self._take_nothing_new()
        await self._wind_down()
        if not self._attempts:  # else it would be a lie: a thread that does not obey still runs
            self._broadcast(Goodbye())
        for peer in list(self._peers):
            peer.link.close()
            peer.on_close("closed by the worker")
        self._progress.close()
        for lane in self._lanes.values():
            await lane.close()
        await self._programs.close()
        if self._caller is not None:
            await self._caller.close()
        await self._shutdown_nodes()

    def _take_nothing_new(self) -> None:
        self._draining = True
        for lane in self._lanes.values():
            lane.ledger.closed = True
        self._give_back([attempt for attempt in self._attempts.values() if attempt.state == QUEUED])

    async def _wind_down(self) -> None:
        """Stop what runs, and wait for the acknowledgement of all results; both only so long."""
        if self._wound_down:
            return
        for attempt in list(self._attempts.values()):
            self._stop(attempt, "the worker is stopping")
        await self._until(lambda: not self._attempts, self.idle, STOP_GRACE)
        self._outbox.flush()
        if self._peers or not self._closed:
            await self._until(lambda: not self._outbox.waiting, self._outbox.empty, ACK_GRACE)
        self._wound_down = True

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def attach(self, link: OrchestratorLink) -> OrchestratorPeer:
        """A link to an orchestrator is open: says Hello on it, and returns what the link calls."""
        if not self._started or self._closed:
            raise InvalidConfiguration("a worker runtime takes links while it runs: between start() and close()")
        peer = OrchestratorPeer(self, link)
        self._peers.append(peer)
        link.send(self._hello())
        return peer

    def statistics(self) -> Statistics:
        """A snapshot for people, health answers and tests."""
        lanes = self._lanes.items()
        return Statistics(
            links=len(self._peers),
            slots={role: lane.ledger.slots for role, lane in lanes},
            queued={role: lane.ledger.queued for role, lane in lanes},
            running={role: lane.ledger.running for role, lane in lanes},
            credits={role: lane.ledger.granted for role, lane in lanes},
            stopping=sum(attempt.cancelling for attempt in self._attempts.values()),
            unacknowledged=len(self._outbox.waiting),
            completed=self._completed,
            failed=self._failed,
            duplicates=self._duplicates,
            refused_stale=self._stale,
            refused_uncredited=self._uncredited,
        )

    # ---- messages (called by OrchestratorPeer)

    def handle(self, peer: OrchestratorPeer, message: ToWorker) -> None:
        """Do what a message asks."""
        match message:
            case Assignments():
                if message.ack is not None:  # it was said first, and what was given back may come again under its token
                    self._acknowledge(peer, message.ack)
                self._assign(peer, message.assignments)
            case Feed():
                self._feed(peer, message)
            case Ack():
                self._acknowledge(peer, message)
            case Demand():
                for role, lane in self._lanes.items():
                    lane.ledger.demand(peer, message.waiting.get(role, 0))
                self._outbox.schedule()
            case Ping():
                peer.link.send(Pong(message.nonce))
            case Cancel():
                self._cancel(peer, message)
            case ShardEpoch():
                self._own(peer, {message.shard: message.epoch})
            case Welcome():
                self._welcome(peer, message)
            case Recall():
                if (recalled := self._lanes.get(message.role)) is not None:
                    owns = self._owners.get
                    self._give_back(recalled.newest(lambda token: owns(token.shard) is peer, message.count))
            case Reclaimed():
                for role, lane in self._lanes.items():
                    lane.ledger.give_back(peer, message.returned.get(role, 0))
                self._outbox.schedule()
            case Drain():
                for lane in self._lanes.values():
                    lane.ledger.detach(peer)

    def detach(self, peer: OrchestratorPeer, reason: str) -> None:
        """A link has ended."""
        self._peers.remove(peer)
        for lane in self._lanes.values():
            lane.ledger.detach(peer)
        for shard in [shard for shard, owner in self._owners.items() if owner is peer]:
            del self._owners[shard]
        self._drop_fed(lambda attempt: attempt.fed_by is peer)
        if not self._closed:
            _log.info("link.closed", orchestrator=peer.orchestrator_id, reason=reason)
            self._outbox.schedule()

    def _welcome(self, peer: OrchestratorPeer, message: Welcome) -> None:
        if message.protocol_version != PROTOCOL_VERSION:
            _log.error("protocol.refused", ours=PROTOCOL_VERSION, theirs=message.protocol_version,
                       orchestrator=message.orchestrator_id)  # fmt: skip
            peer.link.close()
            return
        peer.orchestrator_id = message.orchestrator_id
        self.orchestrators = message.orchestrators or self.orchestrators
        self._own(peer, message.epochs)
        if not self._draining:
            for lane in self._lanes.values():
                lane.ledger.attach(peer)
            self._tell_credits()
        else:
            peer.link.send(WorkerDraining())

    def _own(self, peer: OrchestratorPeer, epochs: dict[int, int]) -> None:
        """Epoch barrier: keep the highest epoch, send what is unacknowledged, then say what runs here."""
        told = set()
        anew = set()
        for shard, epoch in epochs.items():
            if epoch < self._epochs.get(shard, 0):
                self._stale += 1
                continue
            if epoch > self._epochs.get(shard, 0):
                for other in self._peers:
                    other.epochs.pop(shard, None)
                anew.add(shard)
            elif self._owners.get(shard) is not peer:
                anew.add(shard)
            self._epochs[shard] = peer.epochs[shard] = epoch
            self._owners[shard] = peer
            told.add(shard)
        if anew:
            self._drop_fed(lambda attempt: attempt.fed_by is not None and attempt.assignment.token.shard in anew)
        # Results first: the owner takes what is in neither of the two for something that never began here.
        self._outbox.send_again(told)
        held: dict[int, list[Token]] = {shard: [] for shard in told}
        for token in self._attempts:
            if token.shard in told:
                held[token.shard].append(token)
        for shard, running in held.items():
            peer.link.send(Held(shard, self._epochs[shard], running))
        for attempt in self._attempts.values():
            if attempt.items is not None and attempt.items.has_begun and attempt.fed_by is None:
                self._say_fed(attempt, 0)  # there was nobody to say it to

    def _current(self, peer: OrchestratorPeer, tokens: Sequence[Token]) -> list[Token]:
        """Of these attempts those that `peer` may speak about: it owns their shards, as far as we have heard."""
        epochs = peer.epochs
        current = [token for token in tokens if token.epoch <= epochs.get(token.shard, -1)]
        self._stale += len(tokens) - len(current)
        return current

    def _assign(self, peer: OrchestratorPeer, assignments: list[Assignment]) -> None:
        for role, group in groupby(assignments, _ROLE_OF):
            self._take(peer, self._lanes.get(role), list(group))
        self._outbox.schedule()

    def _take(self, peer: OrchestratorPeer, lane: Lane | None, assignments: list[Assignment]) -> None:
        """Queue what has come for one lane; what cannot be done here, or not now, is answered at once."""
        epochs, attempts, outbox, ready = peer.epochs, self._attempts, self._outbox, self._ready
        credited = 0 if lane is None else lane.ledger.spend(peer, len(assignments))
        taken: list[Attempt] = []
        answers: list[AttemptResult] = []
        for number, assignment in enumerate(assignments):
            token = assignment.token
            if token.epoch > epochs.get(token.shard, -1):
                self._stale += 1
                continue
            if token in attempts or token in outbox.waiting:
                self._duplicates += 1
                outbox.repeat(token)
                continue
            known = ready.get((assignment.role, assignment.handler))
            if lane is None or known is None or (self._states and not self._is_ready(assignment)):
                answers.append(self._unknown(assignment))
            elif number >= credited or self._draining:
                self._uncredited += not self._draining
                answers.append(AttemptResult(token, "returned"))
            else:
                attempts[token] = attempt = Attempt(assignment, known[1])
                taken.append(attempt)
        if taken and lane is not None:
            self.idle.clear()
            lane.add(taken)
        for answer in answers:  # now, as they may fill a message, and credits are given with it
            outbox.add(answer)

    def _acknowledge(self, peer: OrchestratorPeer, message: Ack) -> None:
        self._outbox.forget(self._current(peer, message.tokens))
        if not message.discarded:
            return
        discarded = self._current(peer, message.discarded)
        self._outbox.forget(discarded)
        for token in discarded:
            if (attempt := self._attempts.get(token)) is not None:
                attempt.discard = True
                self._stop(attempt, "its result is not wanted any more")

    def _cancel(self, peer: OrchestratorPeer, message: Cancel) -> None:
        for token in self._current(peer, message.tokens):
            attempt = self._attempts.get(token)
            if attempt is not None:
                self._stop(attempt, message.reason)
            elif token in self._outbox.waiting:
                self._outbox.repeat(token)
            else:
                self._outbox.add(AttemptResult(token, "returned"))

    # ---- attempts

    def _stop(self, attempt: Attempt, reason: str) -> None:
        if attempt.state == QUEUED:
            self._give_back([attempt])
        elif attempt.state == RUNNING and not attempt.cancelling:
            attempt.cancelling = True
            attempt.cancel_reason = reason
            # By the loop, since we may be inside that very attempt's runner, called through an in-process link.
            asyncio.get_running_loop().call_soon(self._lanes[attempt.assignment.role].interrupt, attempt)

    def _give_back(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self._lanes[attempt.assignment.role].drop(attempt)
            self._ended(attempt, AttemptResult(attempt.assignment.token, "returned"))

    # ---- fed attempts

    def _say_fed(self, attempt: Attempt, count: int) -> None:
        owner = self._owners.get(attempt.assignment.token.shard)
        if owner is not None and not attempt.discard:
            attempt.fed_by = owner
            owner.link.send(Fed(attempt.assignment.token, count))

    def _feed(self, peer: OrchestratorPeer, message: Feed) -> None:
        attempt = self._attempts.get(message.token)
        if self._current(peer, [message.token]) and attempt is not None and attempt.fed_by is peer and attempt.items:
            attempt.items.put(message)

    def _drop_fed(self, is_cut_off: Callable[[Attempt], bool]) -> None:
        """What a fold lacks was to come on a link that has ended, or from an owner that is none any more: stop it, and
        know nothing more of it. One that has all its items goes on."""
        for token, attempt in list(self._attempts.items()):
            if attempt.items is not None and not attempt.items.has_last and is_cut_off(attempt):
                self._stop(attempt, "its items come no more: it begins anew")
                attempt.discard = True
                attempt.items.close()
                self._forget(token)

    def _forget(self, token: Token) -> None:
        del self._attempts[token]
        self._progress.forget(token)
        if not self._attempts:
            self.idle.set()

    def _finished(self, attempt: Attempt, result: AttemptResult) -> None:
        """A runner has brought an attempt to its end."""
        if result.status == "completed":
            self._completed += 1
        elif result.status == "failed":
            self._failed += 1
            self._log_failure(attempt.assignment, result.error)
        if self._verbose:
            told = attempt.assignment
            _log.debug("attempt.ended", task=told.task, workflow_type=told.workflow_type, instance_id=told.instance_id,
                       attempt=told.attempt, status=result.status,
                       seconds=(result.finished_at - result.started_at) / 1e9)  # fmt: skip
        self._ended(attempt, result)

    def _ended(self, attempt: Attempt, result: AttemptResult) -> None:
        if not attempt.discard:
            self._forget(result.token)
            self._outbox.add(result)
            return
        if self._attempts.get(result.token) is attempt:  # else it was dropped, and may be here again
            self._forget(result.token)
        self._outbox.schedule()

    def _report(self, attempt: Attempt, details: Payload) -> None:
        if attempt.state == RUNNING and not attempt.discard:
            self._progress.report(attempt.assignment, details)

    def _is_ready(self, assignment: Assignment) -> bool:
        return self._states.get((assignment.role, assignment.handler), "ready") == "ready"

    def _unknown(self, assignment: Assignment) -> AttemptResult:
        told, state = (
            f"{assignment.role} {assignment.handler!r}",
            self._states.get((assignment.role, assignment.handler)),
        )
        error = Failure(
            "UnknownHandler", f"worker {self.worker_id} serves no {told}", context={"worker": self.worker_id}
        )
        if state is not None:  # an orchestrator that does not know of states
            error = Failure(
                NodeNotReady.__name__,
                f"{told} of worker {self.worker_id} is {state}",
                code=NodeNotReady.code,
                context={"worker": self.worker_id, "current_state": state, "required_state": "ready"},
            )
        return AttemptResult(assignment.token, "failed", NULL, error)

    def _log_failure(self, assignment: Assignment, error: Failure | None) -> None:
        if error is not None:
            _log.warning("attempt.failed", task=assignment.task, workflow_type=assignment.workflow_type,
                         instance_id=assignment.instance_id, attempt=assignment.attempt, handler=assignment.handler,
                         error=error.type, message=error.message[:500])  # fmt: skip

    # ---- what goes out

    def _hello(self) -> Hello:
        return Hello(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            handlers=tuple(self._info(*key) for key in self._ready),
            slots={role: lane.ledger.slots for role, lane in self._lanes.items()},
            liveness=self.liveness,
            build_id=self._build_id,
            labels=self._labels,
        )

    def _tell_credits(self) -> None:
        """Called after each batch of results: what is free now is given out, what lies idle elsewhere is asked back."""
        told: dict[OrchestratorPeer, dict[str, int]] = {}
        for role, lane in self._lanes.items():
            for peer, count in lane.ledger.grants().items():
                told.setdefault(peer, {})[role] = count
        for peer, granted in told.items():
            peer.link.send(Credits(granted))
        asked: dict[OrchestratorPeer, dict[str, int]] = {}
        for role, lane in self._lanes.items():
            for peer, count in lane.ledger.recalls().items():
                asked.setdefault(peer, {})[role] = count
        for peer, wanted in asked.items():
            peer.link.send(Reclaim(wanted))

    def _send_to_owner(self, shard: int, message: FromWorker) -> None:
        if (owner := self._owners.get(shard)) is not None:
            owner.link.send(message)

    def _broadcast(self, message: FromWorker) -> None:
        for peer in list(self._peers):
            peer.link.send(message)

    # ---- helpers

    def _lanes_for(self, slots: Mapping[Role, int] | Mapping[str, int]) -> dict[Role, Lane]:
        if unknown := set(slots) - set(ROLES):
            raise InvalidConfiguration(f"slots of {', '.join(sorted(unknown))}: the roles are {', '.join(ROLES)}")
        served = {handler.role for handler in self.worker.handlers}
        lanes: dict[Role, Lane] = {}
        for role in ROLES:
            count = slots.get(role, DEFAULT_SLOTS[role])
            if count < 0:
                raise InvalidConfiguration(f"slots of {role}: {count} is no number of slots")
            if role in served and count:
                lanes[role] = Lane(role, count, clock=self._clock, finish=self._finished)
        return lanes

    async def _initialize(self, handler: Handler) -> None:
        initialize = getattr(handler.node, "initialize", None)
        try:
            if callable(initialize):
                answer = initialize()
                if asyncio.iscoroutine(answer):
                    await answer
        except Exception as error:
            self._tell(handler.node, "failed")
            raise HandlerInitializationError(
                f"initialize() of node {handler.name!r} failed: {error}",
                {"handler": handler.name, "role": handler.role},
            ) from error
        self._initialized.append(handler.node)

    def _tell(self, node: Any, state: NodeState) -> None:
        """Say that a class node has come to that state."""
        served = [(h.role, h.name) for h in self.worker.handlers if h.node is node and (h.role, h.name) in self._states]
        for key in served:
            self._states[key] = state
        self._broadcast(Lifecycle(tuple(self._info(*key) for key in served)))

    def _info(self, role: Role, name: str) -> HandlerInfo:
        handler, _ = self._ready[role, name]
        return msgspec.structs.replace(handler.info, state=self._states.get((role, name), ""))

    async def _shutdown_nodes(self) -> None:
        while self._initialized:
            node = self._initialized.pop()
            self._tell(node, "shutdown")
            try:
                shutdown = getattr(node, "shutdown", None)
                answer = shutdown() if callable(shutdown) else None
                if asyncio.iscoroutine(answer):
                    await answer
            except Exception as error:  # noqa: BLE001 — the other nodes are to be shut down all the same
                _log.warning("shutdown.failed", node=str(getattr(node, "node_id", "?")), error=str(error))

    async def _until(self, done: Callable[[], bool], event: asyncio.Event, seconds: float) -> None:
        """Wait for `event`, at most so long."""
        if done() or seconds <= 0:
            return
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
