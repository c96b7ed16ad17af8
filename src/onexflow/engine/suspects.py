"""Workers that may be dead: silent, or out of sight; and what becomes of what they had.

A stream that breaks is a suspicion, not a death. Its worker is probed at its own liveness address: refused, or another
incarnation answering, is proof, and everything it ran is lost. Otherwise pure attempts are dispatched anew unless it is
back in a moment, and effects wait: for the worker's return (it tells what it holds), for proof, or for the end of its
lease; those that may run twice no longer than a lease's time without a word and an answer. A worker that falls silent
while its stream stands is a smaller suspicion (`engine.pulse`): what may run twice is begun elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import structlog

from onexflow.core.errors import Unavailable
from onexflow.core.ids import Token
from onexflow.engine.pulse import Pulse
from onexflow.engine.run import Attempt
from onexflow.engine.shard import Shard
from onexflow.ports.registry import MemberEvent, Prober, Registry
from onexflow.ports.worker_link import ShardEpoch

if TYPE_CHECKING:
    from onexflow.engine.sessions import WorkerSession

log = structlog.get_logger("onexflow.sessions")

PROBE_SECONDS = 0.25
#: How long the pure attempts of a worker whose stream broke wait for its return. A worker that lives connects anew at
#: once and is back within some 50 ms: what it runs is then adopted, not run twice. Proof of death ends it before. What a
#: killed worker ran is promised to run again within 300 ms, also when its port answers a last time: this must stay well
#: below.
RETURN_SECONDS = 0.1
#: A worker that has said nothing for so long has not answered a ping.
QUIET_SECONDS = 3.0


class Fates(Protocol):
    """What the suspects need of the orchestrator: the fate of their attempts."""

    def pass_over(self, session: WorkerSession) -> None: ...
    def on_credits(self, session: WorkerSession) -> None: ...
    def lose(self, attempt: Attempt, worker: str) -> None: ...
    def give_back(self, attempt: Attempt) -> None: ...
    def owned(self, number: int) -> Shard | None: ...


class Suspects:
    """All workers of one orchestrator that are under suspicion. `by_worker`: the streams that stand."""

    def __init__(
        self,
        hub: Fates,
        by_worker: Mapping[str, WorkerSession],
        *,
        registry: Registry,
        prober: Prober | None,
        lease_ttl: float,
    ) -> None:
        self._hub = hub
        self._by_worker = by_worker
        self._registry = registry
        self._prober = prober
        self._lease_ttl = lease_ttl
        #: Attempts whose worker is out of sight, by its incarnation.
        self._orphans: dict[str, dict[Token, Attempt]] = {}
        #: Name of each that is watched, and what watches it.
        self._watches: dict[str, tuple[str, asyncio.Task[None]]] = {}
        #: Loop time until which those that are watched may come back to their pure attempts.
        self._return_by: dict[str, float] = {}
        #: By incarnation, and the seconds of silence after which they are judged.
        self._doubts: dict[tuple[str, float], asyncio.Task[None]] = {}
        #: Is to begin whenever a worker is given something.
        self.pulse = Pulse(by_worker.values, self._look, self._on_silent)
        self._unsubscribe = registry.subscribe(self._on_member)

    async def stop(self) -> None:
        """Suspect nobody any more. Attempts of workers out of sight are left as they are."""
        self._unsubscribe()
        await self.pulse.stop()
        tasks = [*(watch for _, watch in self._watches.values()), *self._doubts.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- out of sight

    def watch(
        self, incarnation: str, worker: str, liveness: str, attempts: Iterable[Attempt], heard_at: float | None = None
    ) -> None:
        """Keep attempts of a worker that is out of sight until their fate is known. One that is in sight is asked.
        `heard_at`: the loop time at which it was heard last, if its stream to here has just broken."""
        loop = asyncio.get_running_loop()
        if incarnation not in self._orphans:  # else some are missing already, and what they were given holds for all
            self._return_by[incarnation] = loop.time() + (0.0 if heard_at is None else RETURN_SECONDS)
        orphans = self._orphans.setdefault(incarnation, {})
        orphans.update({attempt.token: attempt for attempt in attempts})
        session = self._by_worker.get(worker)
        if session is not None and session.incarnation == incarnation:
            self._ask(session, {attempt.token.shard for attempt in orphans.values()})
        if incarnation not in self._watches:
            since = loop.time() if heard_at is None else heard_at
            watch = loop.create_task(self._watch(incarnation, worker, liveness, since))
            self._watches[incarnation] = worker, watch

    def whose_orphan(self, attempt: Attempt) -> str | None:
        """The name of the worker that is out of sight and watched for this attempt, if there is one."""
        for incarnation, orphans in self._orphans.items():
            if orphans.get(attempt.token) is attempt and incarnation in self._watches:
                return self._watches[incarnation][0]
        return None

    def found(self, incarnation: str, token: Token) -> None:
        """Its worker says that it runs it."""
        self._orphans.get(incarnation, {}).pop(token, None)

    def settle(self, incarnation: str, shard: int, running: Collection[Token]) -> None:
        """A worker has said all that it runs of a shard: what it does not run never reached it."""
        missing = self._take(incarnation, lambda attempt: attempt.token.shard == shard and attempt.token not in running)
        for attempt in missing:
            self._hub.give_back(attempt)

    def left(self, shard: Shard) -> None:
        """The shard is not owned any more: what hangs on workers out of sight is its next owner's to see to."""
        for incarnation in list(self._orphans):
            self._take(incarnation, lambda attempt: attempt.token.shard == shard.id)

    def _take(self, incarnation: str, wanted: Callable[[Attempt], bool]) -> list[Attempt]:
        """Keep those of its attempts no longer."""
        orphans = self._orphans.get(incarnation, {})
        taken = [attempt for attempt in orphans.values() if wanted(attempt)]
        for attempt in taken:
            del orphans[attempt.token]
        if not orphans:
            self._orphans.pop(incarnation, None)
        return taken

    def _ask(self, session: WorkerSession, shards: Iterable[int]) -> None:
        """Have a worker say again what it holds of these shards. One that has not said it yet will, by itself."""
        for number in session.told.intersection(shards):
            shard = self._hub.owned(number)
            if shard is not None:
                session.send(ShardEpoch(number, shard.epoch))

    # ---- proof of death

    async def _watch(self, incarnation: str, worker: str, liveness: str, heard_at: float) -> None:
        try:
            await self._look_after(incarnation, worker, liveness, heard_at)
        finally:
            del self._watches[incarnation]  # in the same breath as the last look: the next orphan is watched anew
            self._return_by.pop(incarnation, None)

    async def _look_after(self, incarnation: str, worker: str, liveness: str, silent_since: float) -> None:
        loop = asyncio.get_running_loop()
        while incarnation in self._orphans:
            answer = await self._answer(liveness)
            if answer is not None and answer != incarnation:
                self._declare_dead(incarnation, worker)
                return
            if answer == incarnation:
                silent_since = loop.time()  # it lives: as good as a lease
            may_return = self._return_by.get(incarnation, 0.0) - loop.time()
            if may_return <= 0:
                self._release_pure(incarnation)
            if loop.time() - silent_since > self._lease_ttl:
                if not any(record.incarnation == incarnation for record in self._registry.members()):
                    self._declare_dead(incarnation, worker)
                    return
                # Where it was looked for: a member that cannot be reached is of no use here.
                if liveness and self._prober is not None:
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
        for attempt in self._take(incarnation, lambda attempt: attempt.role != "effect"):
            self._hub.give_back(attempt)

    def _lose_repeatable(self, incarnation: str, worker: str) -> None:
        """What may run twice is begun elsewhere. The rest waits: the worker may still come back with its true end."""
        for attempt in self._take(incarnation, lambda attempt: attempt.may_repeat):
            self._hub.lose(attempt, worker)

    def _declare_dead(self, incarnation: str, worker: str) -> None:
        """The process is proven dead, or its lease is over: what it ran is lost."""
        orphans = self._orphans.pop(incarnation, {})
        if orphans:
            log.warning("worker.lost", worker=worker, incarnation=incarnation, attempts=len(orphans))
        for attempt in orphans.values():
            self._hub.lose(attempt, worker)

    # ---- silence

    async def _look(self, session: WorkerSession) -> str | None:
        """As `_answer`; a worker that has no address to look at is never suspected."""
        liveness = session.hello.liveness if session.hello is not None else ""
        return await self._answer(liveness) if self._prober is not None and liveness else ""

    def _on_silent(self, session: WorkerSession) -> None:
        """What may run twice, or was never sent, is begun elsewhere; effects wait for its word, or for the end of its
        stream. It gets nothing new, and is asked what it holds: that is what it says first when it goes on."""
        session.is_silent = True
        self._hub.pass_over(session)
        moved = [attempt for attempt in session.inflight.values() if attempt.role != "effect" or not attempt.sent]
        log.warning("worker.no_answer", worker=session.worker_id, running=len(session.inflight), moved=len(moved))
        for attempt in moved:
            self._hub.give_back(attempt)
        self._ask(session, {attempt.token.shard for attempt in moved})
        self._doubt_it(session, self._lease_ttl)

    def on_heard(self, session: WorkerSession) -> None:
        """The first word of a silent one."""
        session.is_silent = False
        log.info("worker.answers", worker=session.worker_id)
        self._hub.on_credits(session)

    def _on_member(self, event: MemberEvent) -> None:
        """The membership of a worker has ended: is it still there?"""
        record = event.record
        session = self._by_worker.get(record.node_id)
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
