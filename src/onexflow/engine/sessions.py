"""The orchestrator's end of worker streams: who is connected, what each runs, and what their messages mean.

What a worker says goes on to whoever it is for; what it had when its stream ends goes back to be dispatched anew, or,
where it may still run there, to be watched over (`engine.suspects`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from onexflow.core.errors import ProtocolViolation, Unavailable
from onexflow.core.ids import Token
from onexflow.engine.lifecycle import Lifecycles
from onexflow.engine.run import Attempt
from onexflow.engine.shard import Shard
from onexflow.engine.suspects import Fates, Suspects
from onexflow.engine.tally import Tally
from onexflow.ports.nodes import UNFIT
from onexflow.ports.registry import Prober, Registry
from onexflow.ports.worker_link import (
    PROTOCOL_VERSION,
    Ack,
    Assignment,
    Assignments,
    AttemptResult,
    Cancel,
    Credits,
    Fed,
    FromWorker,
    Goodbye,
    HandlerInfo,
    Held,
    Hello,
    Lifecycle,
    Pong,
    Progress,
    Reclaim,
    Reclaimed,
    Results,
    ToWorker,
    Welcome,
    WorkerDraining,
    WorkerLink,
)

if TYPE_CHECKING:
    from onexflow.engine.feeding import Cursor

log = structlog.get_logger("onexflow.sessions")


class Attempts(Fates, Protocol):
    """What the sessions need of the orchestrator: the fate of attempts."""

    attempts: dict[Token, Attempt]

    def join(self, session: WorkerSession) -> None: ...
    def leave(self, session: WorkerSession) -> None: ...
    def on_results(self, session: WorkerSession, results: Sequence[AttemptResult]) -> None: ...
    def on_progress(self, token: Token, message: Progress) -> None: ...
    def on_fed(self, session: WorkerSession, message: Fed) -> None: ...
    def take_away(self, attempt: Attempt) -> None: ...
    def on_adopted(self, session: WorkerSession, attempt: Attempt) -> None: ...
    def on_unknown(self, session: WorkerSession, tokens: Sequence[Token]) -> None: ...
    def epochs(self) -> dict[int, int]: ...
    def addresses(self) -> tuple[str, ...]: ...


class WorkerSession:
    """One worker's stream. Made by `Sessions.accept`; `hello` is set once it has introduced itself."""

    def __init__(self, sessions: Sessions, link: WorkerLink) -> None:
        self._sessions = sessions
        self._suspects = sessions.suspects
        self._link = link
        self.hello: Hello | None = None
        #: As it introduced itself.
        self.worker_id = self.incarnation = ""
        #: What it serves, by role and name, with the states of now.
        self.infos: dict[tuple[str, str], HandlerInfo] = {}
        self.credits: dict[str, int] = {}
        self.inflight: dict[Token, Attempt] = {}
        #: Of the fed attempts that have begun there: what they were given.
        self.fed: dict[Token, Cursor] = {}
        self.outbox: list[Assignment] = []
        self.cancels: list[Token] = []
        #: Shards of which this worker has said what it holds.
        self.told: set[int] = set()
        #: Shards whose newest epoch it was told of on this stream, and has not answered.
        self.asked: set[int] = set()
        self.is_draining = False
        #: Its health is that of a worker which is given no new tasks (ports.nodes.UNFIT).
        self.is_unfit = False
        #: It gave no sign of life: it is given nothing until it says something.
        self.is_silent = False
        self.is_open = True
        #: Loop time at which it was heard last, and what it has done.
        self.heard_at = 0.0
        self.tally = Tally("")
        self.said_goodbye = False

    @property
    def takes_work(self) -> bool:
        return self.is_open and not (self.is_draining or self.is_unfit or self.is_silent)

    @property
    def handler_keys(self) -> list[tuple[str, str]]:
        """What may be sent to it: the handlers that are ready."""
        return [key for key, info in self.infos.items() if info.state in {"", "ready"}]

    def is_idempotent(self, role: str, handler: str) -> bool:
        """What the worker declared for that handler."""
        handlers = self.hello.handlers if self.hello else ()
        return any(info.role == role and info.name == handler and info.idempotent for info in handlers)

    def has(self, capability: str) -> bool:
        """Has the worker that capability: a handler of it, or one that its label names? All have "", the absence."""
        if not capability or self.hello is None:
            return not capability
        return capability in self.hello.labels.get("capabilities", "").split(",") or any(
            info.name == capability for info in self.hello.handlers
        )

    def send(self, message: ToWorker) -> None:
        if self.is_open:
            self._link.send(message)

    def close(self, reason: str) -> None:
        self._link.close(reason)

    def flush(self) -> None:
        """Send the assignments and cancels that were collected. The link cuts them into messages of bounded size."""
        self._suspects.pulse.begin()
        if self.outbox:
            outbox, self.outbox = self.outbox, []
            self.send(Assignments(outbox))
        if self.cancels:
            cancels, self.cancels = self.cancels, []
            self.send(Cancel(cancels))

    def acknowledge(self, tokens: list[Token], discarded: list[Token], offsets: dict[int, int]) -> None:
        self.send(Ack(tokens, discarded, offsets))

    # ---- WorkerPeer

    def on_message(self, message: FromWorker) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        if self.hello is None:
            if not isinstance(message, Hello):
                raise ProtocolViolation(f"the first message must be Hello, not {type(message).__name__}")
            self._sessions.welcome(self, message)
            return
        if self.is_silent:
            self._suspects.on_heard(self)
        match message:
            case Results():
                self._sessions.hub.on_results(self, message.results)
                if message.granted:
                    self._on_credits(message.granted)
            case Credits():
                self._on_credits(message.granted)
            case Progress():
                self._sessions.hub.on_progress(message.token, message)
            case Fed():
                self._sessions.hub.on_fed(self, message)
            case Held():
                self._sessions.on_held(self, message)
            case Reclaim():
                self._give_back_credits(message.wanted)
            case Lifecycle():
                self._sessions.on_lifecycle(self, message)
            case WorkerDraining():
                self.is_draining = True
                self._sessions.hub.pass_over(self)
            case Goodbye():
                self.said_goodbye = True
            case Pong():
                pass
            case Hello():
                raise ProtocolViolation("Hello may be said once a stream")

    def _give_back_credits(self, wanted: dict[str, int]) -> None:
        returned = {role: min(count, self.credits.get(role, 0)) for role, count in wanted.items()}
        for role, count in returned.items():
            self.credits[role] = self.credits.get(role, 0) - count
        self.send(Reclaimed(returned))

    def _on_credits(self, granted: dict[str, int]) -> None:
        for role, count in granted.items():
            self.credits[role] = self.credits.get(role, 0) + count
            if self.credits[role] < 0 or self.credits[role] > 1_000_000:
                raise ProtocolViolation(f"credits of role {role} would be {self.credits[role]}")
        self._sessions.hub.on_credits(self)

    def on_close(self, planned: bool) -> None:
        if self.is_open:
            self.is_open = False
            self._sessions.on_close(self, planned=planned or self.said_goodbye)


class Sessions:
    """All worker streams of this orchestrator."""

    def __init__(
        self,
        hub: Attempts,
        *,
        orchestrator_id: str,
        registry: Registry,
        prober: Prober | None,
        lease_ttl: float,
        on_told: Callable[[Shard], None],
    ) -> None:
        self.hub = hub
        self._orchestrator_id = orchestrator_id
        self._registry = registry
        self._on_told = on_told
        self.by_worker: dict[str, WorkerSession] = {}
        self.lifecycle = Lifecycles(self.by_worker.values)
        self._unnamed: set[WorkerSession] = set()
        self.suspects = Suspects(hub, self.by_worker, registry=registry, prober=prober, lease_ttl=lease_ttl)

    def accept(self, link: WorkerLink) -> WorkerSession:
        session = WorkerSession(self, link)
        self._unnamed.add(session)
        return session

    async def stop(self, reason: str) -> None:
        """Close all streams; the workers find another orchestrator, or this one again."""
        for session in (*self.by_worker.values(), *self._unnamed):
            session.is_open = False
            session.close(reason)
        self.by_worker.clear()
        await self.suspects.stop()

    def welcome(self, session: WorkerSession, hello: Hello) -> None:
        if hello.protocol_version != PROTOCOL_VERSION:
            raise ProtocolViolation(
                f"this orchestrator speaks protocol version {PROTOCOL_VERSION}, the worker {hello.protocol_version}"
            )
        if not hello.worker_id or not hello.incarnation:
            raise ProtocolViolation("Hello needs worker_id and incarnation")
        previous = self.by_worker.get(hello.worker_id)
        if previous is not None and previous.incarnation != hello.incarnation:
            # Another process of that name is no proof of death. A dead one's stream is closed by its host at once,
            # a silent one's by the ping: until then the newcomer tries again.
            log.warning("worker.id_taken", worker=hello.worker_id, incarnation=hello.incarnation)
            raise Unavailable(
                f"worker {hello.worker_id} is connected from another process: two workers must not have the same id",
                {"worker": hello.worker_id, "incarnation": previous.incarnation},
            )
        session.hello = hello
        session.worker_id, session.incarnation = hello.worker_id, hello.incarnation
        session.infos = {(info.role, info.name): info for info in hello.handlers}
        report = self._registry.health_of(hello.worker_id)
        session.is_unfit = report is not None and report.incarnation == hello.incarnation and report.health in UNFIT
        self._unnamed.discard(session)
        self.by_worker[hello.worker_id] = session
        if previous is not None:
            previous.close("the worker has connected anew")
            previous.on_close(planned=False)
        session.send(
            Welcome(
                orchestrator_id=self._orchestrator_id,
                epochs=self.hub.epochs(),
                orchestrators=self.hub.addresses(),
            )
        )
        log.info("worker.connected", worker=hello.worker_id, incarnation=hello.incarnation, build=hello.build_id)
        self.lifecycle.joined(session)
        self.hub.join(session)

    def on_lifecycle(self, session: WorkerSession, message: Lifecycle) -> None:
        """Nodes have become ready, or have failed: what may be sent to the worker changes."""
        for info in message.handlers:
            if (info.role, info.name) not in session.infos:
                raise ProtocolViolation(f"{info.role} {info.name!r} is none of the handlers that Hello named")
        self.hub.leave(session)
        for info in message.handlers:
            known = session.infos[info.role, info.name]
            session.infos[info.role, info.name] = msgspec.structs.replace(known, state=info.state)
        self.lifecycle.joined(session)
        self.hub.join(session)
        self.hub.on_credits(session)

    def on_held(self, session: WorkerSession, held: Held) -> None:
        """The worker's answer to an epoch: adopt what it runs, take back what never reached it."""
        shard = self.hub.owned(held.shard)
        if shard is None or held.epoch != shard.epoch or not session.is_open:
            return
        if shard.early is not None:
            shard.early.append(lambda: self.on_held(session, held))
            return
        running = set(held.running)
        unknown = []
        for token in held.running:
            attempt = self.hub.attempts.get(token)
            if attempt is None or attempt.withdrawn or (attempt.session not in (None, session) and attempt.sent):
                unknown.append(token)
                continue
            self.suspects.found(session.incarnation, token)
            if attempt.session not in (None, session):
                self.hub.take_away(attempt)
            attempt.session = session
            attempt.sent = True
            session.inflight[token] = attempt
            self.hub.on_adopted(session, attempt)
        if unknown:
            self.hub.on_unknown(session, unknown)
        self.suspects.settle(session.incarnation, held.shard, running)
        session.told.add(held.shard)
        session.asked.discard(held.shard)
        self._on_told(shard)

    def on_close(self, session: WorkerSession, *, planned: bool) -> None:
        self._unnamed.discard(session)
        if session.hello is None:
            return
        if self.by_worker.get(session.worker_id) is session:
            del self.by_worker[session.worker_id]
        self.hub.leave(session)
        self.lifecycle.left(session)
        log.info("worker.disconnected", worker=session.worker_id, planned=planned, running=len(session.inflight))
        inflight, session.inflight = session.inflight, {}
        for attempt in inflight.values():
            attempt.session = None
        sent = [] if planned else [attempt for attempt in inflight.values() if attempt.sent]
        if sent:
            self.suspects.watch(session.incarnation, session.worker_id, session.hello.liveness, sent, session.heard_at)
        for attempt in inflight.values():
            if planned or not attempt.sent:
                self.hub.give_back(attempt)
