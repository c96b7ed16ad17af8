"""The attempts that are here, and the results that nobody has acknowledged: a worker's books.

What comes in is queued in the lane of its role, or answered at once when it cannot be done here; what came of it goes to
the outbox. Links come and go, attempts stay: they know their link only as far as items are fed on it. `peers.py` says
which messages lead here, `lanes.py` runs the attempts, `outbox.py` sends the results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, Protocol

import structlog

from onexflow.core.ids import Token
from onexflow.core.payload import NULL, Failure, Payload
from onexflow.ports.clock import Clock
from onexflow.ports.worker_link import (
    Assignment,
    AttemptResult,
    Credits,
    Fed,
    Feed,
    FromWorker,
    OrchestratorLink,
    Recall,
    Reclaim,
    Role,
)
from onexflow.worker.lanes import QUEUED, RUNNING, Attempt, Lane
from onexflow.worker.outbox import Outbox
from onexflow.worker.progress import ProgressReports
from onexflow.worker.served import ServedHandlers

_ROLE_OF: Final[Callable[[Assignment], Role]] = attrgetter("info.role")

_log = structlog.get_logger("onexflow.worker")


class Peer(Protocol):
    """What is needed of an orchestrator's session."""

    @property
    def link(self) -> OrchestratorLink: ...
    @property
    def epochs(self) -> dict[int, int]:
        """Of the shards that it owns: a token that is not above it is the owner's word."""


class Attempts:
    """Attempts by token, from their assignment to their end, and their results until they are acknowledged."""

    def __init__(
        self,
        handlers: ServedHandlers,
        *,
        clock: Clock,
        slots: Mapping[Role, int],
        owner_of: Callable[[int], Peer | None],
    ) -> None:
        """`owner_of` says who owns a shard now, as far as we have heard."""
        #: Queued or running here.
        self.here: dict[Token, Attempt] = {}
        #: Set while no attempt is here.
        self.idle = asyncio.Event()
        self.idle.set()
        self.lanes = {role: Lane(role, count, clock=clock, finish=self._finished) for role, count in slots.items()}
        self.outbox = Outbox(owner_of, self.tell_credits)
        self.draining = False  #: nothing new is taken
        self.verbose = False  #: one line an attempt is wanted
        # Counted for `Statistics`, which says what they mean.
        self.completed = self.failed = self.duplicates = self.refused_stale = self.refused_uncredited = 0
        self._handlers = handlers
        self._owner_of = owner_of
        self._progress = ProgressReports(clock, self._send_to_owner)

    def take_nothing_new(self) -> None:
        """From now on; and give back what has not begun."""
        self.draining = True
        for lane in self.lanes.values():
            lane.ledger.closed = True
        self._give_back([attempt for attempt in self.here.values() if attempt.state == QUEUED])

    async def close(self) -> None:
        """End the runners, and report nothing more."""
        self._progress.close()
        for lane in self.lanes.values():
            await lane.close()

    # ---- what orchestrators ask for

    def assign(self, peer: Peer, assignments: list[Assignment]) -> None:
        """Attempts to run."""
        for role, group in groupby(assignments, _ROLE_OF):
            self._take(peer, self.lanes.get(role), list(group))
        self.outbox.schedule()

    def _take(self, peer: Peer, lane: Lane | None, assignments: list[Assignment]) -> None:
        """Queue what has come for one lane; what cannot be done here, or not now, is answered at once."""
        epochs, here, outbox, handlers = peer.epochs, self.here, self.outbox, self._handlers
        credited = 0 if lane is None else lane.ledger.spend(peer, len(assignments))
        taken: list[Attempt] = []
        answers: list[AttemptResult] = []
        for number, assignment in enumerate(assignments):
            token, info = assignment.token, assignment.info
            if token.epoch > epochs.get(token.shard, -1):
                self.refused_stale += 1
                continue
            if token in here or token in outbox.waiting:
                self.duplicates += 1
                outbox.repeat(token)
                continue
            known = handlers.ready.get((info.role, info.handler))
            if lane is None or known is None or (handlers.states and not handlers.is_ready(info)):
                answers.append(AttemptResult(token, "failed", NULL, handlers.refusal(info)))
            elif number >= credited or self.draining:
                self.refused_uncredited += not self.draining
                answers.append(AttemptResult(token, "returned"))
            else:
                here[token] = attempt = Attempt(assignment, known[1])
                taken.append(attempt)
        if taken and lane is not None:
            self.idle.clear()
            lane.add(taken)
        for answer in answers:  # now, as they may fill a message, and credits are given with it
            outbox.add(answer)

    def cancel(self, tokens: Iterable[Token], reason: str) -> None:
        """They are to stop, and to be answered in any case: one that is not here is given back."""
        for token in tokens:
            attempt = self.here.get(token)
            if attempt is not None:
                self.stop(attempt, reason)
            elif token in self.outbox.waiting:
                self.outbox.repeat(token)
            else:
                self.outbox.add(AttemptResult(token, "returned"))

    def discard(self, tokens: Sequence[Token]) -> None:
        """Their results are not wanted, whether they are there already or not."""
        self.outbox.forget(tokens)
        for token in tokens:
            if (attempt := self.here.get(token)) is not None:
                attempt.discard = True
                self.stop(attempt, "its result is not wanted any more")

    def recall(self, peer: Peer, message: Recall) -> None:
        """Give back attempts of its shards that have not begun."""
        if (lane := self.lanes.get(message.role)) is not None:
            owner_of = self._owner_of
            self._give_back(lane.newest(lambda token: owner_of(token.shard) is peer, message.count))

    def held(self, shards: Collection[int]) -> dict[int, list[Token]]:
        """What is here of each of these shards."""
        held: dict[int, list[Token]] = {shard: [] for shard in shards}
        for token in self.here:
            if token.shard in held:
                held[token.shard].append(token)
        return held

    def tell_credits(self) -> None:
        """Called after each batch of results: what is free now is given out, what lies idle elsewhere is asked back."""
        told: dict[Peer, dict[str, int]] = {}
        for role, lane in self.lanes.items():
            for peer, count in lane.ledger.grants().items():
                told.setdefault(peer, {})[role] = count
        for peer, granted in told.items():
            peer.link.send(Credits(granted))
        asked: dict[Peer, dict[str, int]] = {}
        for role, lane in self.lanes.items():
            for peer, count in lane.ledger.recalls().items():
                asked.setdefault(peer, {})[role] = count
        for peer, wanted in asked.items():
            peer.link.send(Reclaim(wanted))

    # ---- fed attempts

    def say_fed(self, attempt: Attempt, count: int) -> None:
        """An attempt has taken so many items; 0: it waits for the first."""
        owner = self._owner_of(attempt.assignment.token.shard)
        if owner is not None and not attempt.discard:
            attempt.fed_by = owner
            owner.link.send(Fed(attempt.assignment.token, count))

    def ask_for_items(self) -> None:
        """For the attempts that began to wait for theirs when there was nobody to say it to."""
        for attempt in self.here.values():
            if attempt.items is not None and attempt.items.has_begun and attempt.fed_by is None:
                self.say_fed(attempt, 0)

    def feed(self, peer: Peer, message: Feed) -> None:
        """Items have come."""
        attempt = self.here.get(message.token)
        if attempt is not None and attempt.fed_by is peer and attempt.items:
            attempt.items.put(message)

    def drop_fed(self, is_cut_off: Callable[[Attempt], bool]) -> None:
        """What a fold lacks was to come on a link that has ended, or from an owner that is none any more: stop it, and
        know nothing more of it. One that has all its items goes on."""
        for token, attempt in list(self.here.items()):
            if attempt.items is not None and not attempt.items.has_last and is_cut_off(attempt):
                self.stop(attempt, "its items come no more: it begins anew")
                attempt.discard = True
                attempt.items.close()
                self._forget(token)

    # ---- how attempts go on, and end

    def report(self, attempt: Attempt, details: Payload) -> None:
        """A handler says how far it is."""
        if attempt.state == RUNNING and not attempt.discard:
            self._progress.report(attempt.assignment, details)

    def stop(self, attempt: Attempt, reason: str) -> None:
        """Give it back if it has not begun, else ask it to stop; its end comes by the way of all others."""
        if attempt.state == QUEUED:
            self._give_back([attempt])
        elif attempt.state == RUNNING and not attempt.cancelling:
            attempt.cancelling = True
            attempt.cancel_reason = reason
            # By the loop, since we may be inside that very attempt's runner, called through an in-process link.
            asyncio.get_running_loop().call_soon(self.lanes[attempt.assignment.info.role].interrupt, attempt)

    def _give_back(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self.lanes[attempt.assignment.info.role].drop(attempt)
            self._ended(attempt, AttemptResult(attempt.assignment.token, "returned"))

    def _finished(self, attempt: Attempt, result: AttemptResult) -> None:
        """A runner has brought an attempt to its end."""
        if result.status == "completed":
            self.completed += 1
        elif result.status == "failed":
            self.failed += 1
            _log_failure(attempt.assignment, result.error)
        if self.verbose:
            told = attempt.assignment
            _log.debug("attempt.ended", task=told.info.name, workflow_type=told.info.workflow_type, instance_id=told.instance_id,
                       attempt=told.attempt, status=result.status,
                       seconds=(result.finished_at - result.started_at) / 1e9)  # fmt: skip
        self._ended(attempt, result)

    def _ended(self, attempt: Attempt, result: AttemptResult) -> None:
        if not attempt.discard:
            self._forget(result.token)
            self.outbox.add(result)
            return
        if self.here.get(result.token) is attempt:  # else it was dropped, and may be here again
            self._forget(result.token)
        self.outbox.schedule()

    def _forget(self, token: Token) -> None:
        del self.here[token]
        self._progress.forget(token)
        if not self.here:
            self.idle.set()

    def _send_to_owner(self, shard: int, message: FromWorker) -> None:
        if (owner := self._owner_of(shard)) is not None:
            owner.link.send(message)


def _log_failure(assignment: Assignment, error: Failure | None) -> None:
    if error is not None:
        _log.warning("attempt.failed", task=assignment.info.name, workflow_type=assignment.info.workflow_type,
                     instance_id=assignment.instance_id, attempt=assignment.attempt, handler=assignment.info.handler,
                     error=error.type, message=error.message[:500])  # fmt: skip
