"""The orchestrator's end of worker streams: who is connected, what each runs, and what becomes of it when one is gone.

A stream that breaks is a suspicion, not a death. Its worker is probed at its own liveness address: refused, or another
incarnation answering, is proof, and everything it ran is lost. Otherwise pure attempts are dispatched anew unless it is
back in a moment, and effects wait: for the worker's return (it tells what it holds), for proof, or for the end of its
lease; those that may run twice no longer than a lease's time without a word and an answer. A worker that falls silent while its stream stands is a smaller suspicion (`engine.pulse`): what may run twice is
begun elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from onexflow.core.errors import ProtocolViolation, Unavailable
from onexflow.core.ids import Token
from onexflow.engine.lifecycle import Lifecycles
from onexflow.engine.pulse import Pulse
from onexflow.engine.run import Attempt
from onexflow.engine.shard import Shard
from onexflow.engine.tally import Tally
from onexflow.ports.nodes import UNFIT
from onexflow.ports.registry import MemberEvent, Prober, Registry
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
    ShardEpoch,
    ToWorker,
    Welcome,
    WorkerDraining,
    WorkerLink,
)

if TYPE_CHECKING:
    from onexflow.engine.feeding import Cursor

log = structlog.get_logger("onexflow.sessions")

PROBE_SECONDS = 0.25
#: How long the pure attempts of a worker whose stream broke wait for its return. A worker that lives connects anew at
#: once and is back within some 50 ms: what it runs is then adopted, not run twice. Proof of death ends it before. What a
#: killed worker ran is promised to run again within 300 ms, also when its port answers a last time: this must stay well
#: below.
RETURN_SECONDS = 0.1
#: A worker that has said nothing for so long has not answered a ping.
QUIET_SECONDS = 3.0


class Attempts(Protocol):
    """What the sessions need of the orchestrator: the fate of attempts."""

    attempts: dict[Token, Attempt]

    def join(self, session: WorkerSession) -> None: ...
    def leave(self, session: WorkerSession) -> None: ...
    def pass_over(self, session: WorkerSession) -> None: ...
    def on_results(self, session: WorkerSession, results: Sequence[AttemptResult]) -> None: ...
    def on_progress(self, token: Token, message: Progress) -> None: ...
    def on_fed(self, session: WorkerSession, message: Fed) -> None: ...
    def lose(self, attempt: Attempt, worker: str) -> None: ...
    def give_back(self, attempt: Attempt) -> None: ...
    def on_credits(self, session: WorkerSession) -> None: ...
    def take_away(self, attempt: Attempt) -> None: ...
    def on_adopted(self, session: WorkerSession, attempt: Attempt) -> None: ...
    def on_unknown(self, session: WorkerSession, tokens: Sequence[Token]) -> None: ...
    def epochs(self) -> dict[int, int]: ...
    def owned(self, number: int) -> Shard | None: ...
    def addresses(self) -> tuple[str, ...]: ...


class WorkerSession:
    """One worker's stream. Made by `Sessions.accept`; `hello` is set once it has introduced itself."""

    def __init__(self, sessions: Sessions, link: WorkerLink) -> None:
        self._sessions = sessions
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
        self._sessions.pulse.begin()
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
            self._sessions.on_heard(self)
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
        self._prober = prober
        self._lease_ttl = lease_ttl
        self._on_told = on_told
        self.by_worker: dict[str, WorkerSession] = {}
        self.lifecycle = Lifecycles(self.by_worker.values)
        #: Attempts whose worker is out of sight, by its incarnation.
        self.orphans: dict[str, dict[Token, Attempt]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        #: Loop time until which those that are watched may come back to their pure attempts.
        self._return_by: dict[str, float] = {}
        #: By incarnation, and the seconds of silence after which they are judged.
        self._doubts: dict[tuple[str, float], asyncio.Task[None]] = {}
        self._unnamed: set[WorkerSession] = set()
        self.pulse = Pulse(self.by_worker.values, self._look, self.on_silent)
        self._unsubscribe = registry.subscribe(self._on_member)

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
        self._unsubscribe()
        await self.pulse.stop()
        watches = [*self._watches.values(), *self._doubts.values()]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

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
        orphans = self.orphans.get(session.incarnation, {})
        for token in held.running:
            attempt = self.hub.attempts.get(token)
            if attempt is None or attempt.withdrawn or (attempt.session not in (None, session) and attempt.sent):
                unknown.append(token)
                continue
            orphans.pop(token, None)
            if attempt.session not in (None, session):
                self.hub.take_away(attempt)
            attempt.session = session
            attempt.sent = True
            session.inflight[token] = attempt
            self.hub.on_adopted(session, attempt)
        if unknown:
            self.hub.on_unknown(session, unknown)
        for token, attempt in list(orphans.items()):
            if token.shard == held.shard and token not in running:
                del orphans[token]
                self.hub.give_back(attempt)
        if not orphans:
            self.orphans.pop(session.incarnation, None)
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
            self.watch(session.incarnation, session.worker_id, session.hello.liveness, sent, session.heard_at)
        for attempt in inflight.values():
            if planned or not attempt.sent:
                self.hub.give_back(attempt)

    # ---- silence

    async def _look(self, session: WorkerSession) -> str | None:
        """As `_answer`; a worker that has no address to look at is never suspected."""
        liveness = session.hello.liveness if session.hello is not None else ""
        return await self._answer(liveness) if self._prober is not None and liveness else ""

    def on_silent(self, session: WorkerSession) -> None:
        """What may run twice, or was never sent, is begun elsewhere; effects wait for its word, or for the end of its
        stream. It gets nothing new, and is asked what it holds: that is what it says first when it goes on."""
        session.is_silent = True
        self.hub.pass_over(session)
        moved = [attempt for attempt in session.inflight.values() if attempt.role != "effect" or not attempt.sent]
        log.warning("worker.no_answer", worker=session.worker_id, running=len(session.inflight), moved=len(moved))
        for attempt in moved:
            self.hub.give_back(attempt)
        self.ask(session, {attempt.token.shard for attempt in moved})
        self._doubt_it(session, self._lease_ttl)

    def on_heard(self, session: WorkerSession) -> None:
        """The first word of a silent one."""
        session.is_silent = False
        log.info("worker.answers", worker=session.worker_id)
        self.hub.on_credits(session)

    # ---- proof of death

    def watch(
        self, incarnation: str, worker: str, liveness: str, attempts: Iterable[Attempt], heard_at: float | None = None
    ) -> None:
        """Keep attempts of a worker that is out of sight until their fate is known. One that is in sight is asked.
        `heard_at`: the loop time at which it was heard last, if its stream to here has just broken."""
        loop = asyncio.get_running_loop()
        if incarnation not in self.orphans:  # else some are missing already, and what they were given holds for all
            self._return_by[incarnation] = loop.time() + (0.0 if heard_at is None else RETURN_SECONDS)
        orphans = self.orphans.setdefault(incarnation, {})
        orphans.update({attempt.token: attempt for attempt in attempts})
        session = self.by_worker.get(worker)
        if session is not None and session.incarnation == incarnation:
            self.ask(session, {attempt.token.shard for attempt in orphans.values()})
        if incarnation not in self._watches:
            since = loop.time() if heard_at is None else heard_at
            self._watches[incarnation] = loop.create_task(self._watch(incarnation, worker, liveness, since))

    def ask(self, session: WorkerSession, shards: Iterable[int]) -> None:
        """Have a worker say again what it holds of these shards. One that has not said it yet will, by itself."""
        for number in session.told.intersection(shards):
            shard = self.hub.owned(number)
            if shard is not None:
                session.send(ShardEpoch(number, shard.epoch))

    def whose_orphan(self, attempt: Attempt) -> str | None:
        """The incarnation of the worker that is out of sight and watched for this attempt, if there is one."""
        for incarnation, orphans in self.orphans.items():
            if orphans.get(attempt.token) is attempt and incarnation in self._watches:
                return incarnation
        return None

    def left(self, shard: Shard) -> None:
        """The shard is not owned any more: what hangs on workers out of sight is its next owner's to see to."""
        for incarnation, orphans in list(self.orphans.items()):
            for token in [token for token in orphans if token.shard == shard.id]:
                del orphans[token]
            if not orphans:
                del self.orphans[incarnation]

    def _on_member(self, event: MemberEvent) -> None:
        """The membership of a worker has ended: is it still there?"""
        record = event.record
        session = self.by_worker.get(record.node_id)
        if event.type != "down" or session is None or session.incarnation != record.incarnation:
            return
        self._doubt_it(session, QUIET_SECONDS)

    def _doubt_it(self, session: WorkerSession, seconds: float) -> None:
        """Judge a worker when it has been silent for so long."""
        key = session.incarnation, seconds
        if key not in self._doubts:
            doubt = self._doubt(session, seconds, key)
            self._doubts[key] = asyncio.get_running_loop().create_task(doubt, name="worker-doubt")

    async def _doubt(self, session: WorkerSession, seconds: float, key: tuple[str, float]) -> None:
        """It is still there if it says something or answers at its liveness port. Else its stream is given up; at once if
        it was looked for in vain before, and what it ran is lost when the next look is in vain, too."""
        loop = asyncio.get_running_loop()
        try:
            heard_at = session.heard_at
            await asyncio.sleep(max(0.0, heard_at + seconds - loop.time()))
            if session.heard_at != heard_at or not session.is_open:
                return
            liveness = session.hello.liveness if session.hello is not None else ""
            answer = None if session.is_silent else await self._answer(liveness)
            if session.heard_at == heard_at and answer != session.incarnation and session.is_open:
                log.warning("worker.silent", worker=session.worker_id, incarnation=session.incarnation)
                session.close("the worker is silent")
                session.on_close(planned=False)
        finally:
            del self._doubts[key]

    async def _watch(self, incarnation: str, worker: str, liveness: str, heard_at: float) -> None:
        try:
            await self._look_after(incarnation, worker, liveness, heard_at)
        finally:
            del self._watches[incarnation]  # in the same breath as the last look: the next orphan is watched anew
            self._return_by.pop(incarnation, None)

    async def _look_after(self, incarnation: str, worker: str, liveness: str, silent_since: float) -> None:
        loop = asyncio.get_running_loop()
        while incarnation in self.orphans:
            answer = await self._answer(liveness)
            if answer is not None and answer != incarnation:
                self.declare_dead(incarnation, worker)
                return
            if answer == incarnation:
                silent_since = loop.time()  # it lives: as good as a lease
            may_return = self._return_by.get(incarnation, 0.0) - loop.time()
            if may_return <= 0:
                self._release_pure(incarnation)
            if loop.time() - silent_since > self._lease_ttl:
                if not any(record.incarnation == incarnation for record in self._registry.members()):
                    self.declare_dead(incarnation, worker)
                    return
                if (
                    liveness and self._prober is not None
                ):  # it was looked for: a member that cannot be reached is of no use here
                    self._lose_repeatable(incarnation, worker)
            await asyncio.sleep(may_return if may_return > 0 else PROBE_SECONDS)

    async def _answer(self, liveness: str) -> str | None:
        """The incarnation that answers there, "" when the connection is refused; None: nothing is known."""
        if self._prober is None or not liveness:
            return None
        try:
            return await self._prober.probe(liveness) or ""
        except Unavailable:
            return None

    def _release_pure(self, incarnation: str) -> None:
        orphans = self.orphans.get(incarnation, {})
        for token, attempt in list(orphans.items()):
            if attempt.role != "effect":
                del orphans[token]
                self.hub.give_back(attempt)
        if not orphans:
            self.orphans.pop(incarnation, None)

    def _lose_repeatable(self, incarnation: str, worker: str) -> None:
        """What may run twice is begun elsewhere. The rest waits: the worker may still come back with its true end."""
        orphans = self.orphans.get(incarnation, {})
        for token, attempt in list(orphans.items()):
            if attempt.may_repeat:
                del orphans[token]
                self.hub.lose(attempt, worker)
        if not orphans:
            self.orphans.pop(incarnation, None)

    def declare_dead(self, incarnation: str, worker: str) -> None:
        """The process is proven dead, or its lease is over: what it ran is lost."""
        orphans = self.orphans.pop(incarnation, {})
        if orphans:
            log.warning("worker.lost", worker=worker, incarnation=incarnation, attempts=len(orphans))
        for attempt in orphans.values():
            self.hub.lose(attempt, worker)
