"""What an open run or task waits for, as data: a closed list of kinds, each with its facts and with what ends it.

Whatever is open has exactly one of these at any moment (`engine.blocking` says which). When the engine will look again by
itself is `next_wake_at`; where it does not, somebody else must act, and `ended_by` says who. docs/blocked.md is made from
this table.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

SECOND: Final = 1_000_000_000


class Kind(NamedTuple):
    """One thing to wait for."""

    name: str
    meaning: str
    #: What ends it.
    ended_by: str
    #: What somebody who sees it for too long should do.
    action: str
    #: The fields of `Blocked` that are set, beside `next_wake_at`.
    facts: tuple[str, ...]


#: Those that say most about what is wrong come first: a run with several open tasks shows the first of this order.
KINDS: Final = (
    Kind("stalled", "nothing is known that it could wait for: a fault of ours",
         "the watchdog, which looks at it again and repairs it", "It is repaired within two seconds, logged as "
         "`stall.repaired` and counted. Report it with that line.", ("reason",)),
    Kind("unreadable", "its events cannot be read back by this release",
         "a release that can read them", "The log says why (`run.unreadable`). Was the release set back?", ("reason",)),
    Kind("unknown_outcome", "the worker was lost while it ran an effect that must not run twice",
         "the late result of that very attempt, or a person's `run resolve`", "Look at what the effect has done, then "
         "`onexflow run resolve`.", ("worker", "attempt", "since")),
    Kind("no_worker", "no worker that takes work has the handler",
         "a worker with that handler that connects, or takes work again", "Start a worker with that handler; "
         "`onexflow node list` shows those that are there.", ("role", "handler", "reason", "since")),
    Kind("paused", "somebody paused the run, or the queue",
         "a resume", "`onexflow run resume`, when it is meant to go on.", ("reason", "by")),
    Kind("out_of_sight", "the worker that runs it has no stream to this orchestrator",
         "the worker's return, proof that its process is dead, or the end of its lease", "It decides itself within the "
         "lease. Look at the worker and the network if it comes again and again.", ("worker", "attempt", "since")),
    Kind("moving", "its shard has no orchestrator that answers: it is on the way to another one",
         "the next owner, which claims the shard and reads it back", "It takes as long as a lease at most. If it lasts: "
         "is an orchestrator running, and does the store answer?", ("owner", "shard", "since")),
    Kind("recovering", "its shard was just claimed, and is read back",
         "the end of the recovery, or the workers' word of what they still run", "It takes a second. If it lasts, the "
         "store is slow.", ("owner", "shard")),
    Kind("store", "what was decided is not durable yet",
         "the store, which is asked again until it answers", "Look at the store: the orchestrator's health answer names "
         "its error.", ("since", "reason")),
    Kind("no_slot", "the workers that have the handler are all busy",
         "a slot that becomes free", "Add workers or slots, or wait.", ("role", "handler", "node", "since")),
    Kind("stopping", "the attempt was told to stop and has not answered yet",
         "the worker's answer, its loss, or the end of the grace", "A handler that does not heed its cancel keeps its "
         "slot: look at the handler.", ("worker", "attempt", "reason")),
    Kind("running", "an attempt runs on a worker",
         "the end of the attempt, the loss of its worker, or a timeout", "Nothing, unless it takes too long: give the "
         "task a timeout.", ("worker", "attempt", "since")),
    Kind("leased", "somebody who took it from the queue works on it",
         "its completion or failure under the lease, or the end of the lease", "Nothing.", ("worker", "names", "attempt", "since", "until")),
    Kind("called_run", "an orchestration waits for the runs that it has called",
         "the end of one of those runs, or the loss of the worker that its code is on", "Look at those runs.",
         ("names", "worker", "attempt", "since")),
    Kind("retry", "the last attempt failed: the next one waits for its delay", "its timer", "The error is shown beside it.",
         ("attempt", "until")),
    Kind("run_retry", "it failed, and waits for the run's own retry", "its timer", "The error is shown beside it.", ("until",)),
    Kind("delayed", "it was asked to begin later", "its timer", "Nothing.", ("until",)),
    Kind("dependencies", "other tasks come first", "the end of these tasks", "Look at these tasks.", ("names",)),
    Kind("run", "the run does not take up tasks in its present state", "the run's next state", "Look at the run.", ("reason",)),
    Kind("unclaimed", "it is ready, and waits in its queue", "somebody who takes it from the queue",
         "Is there a worker for this queue?", ("since", "reason")),
)  # fmt: skip
BY_NAME: Final = {kind.name: kind for kind in KINDS}
RANK: Final = {kind.name: rank for rank, kind in enumerate(KINDS)}


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """Why something open does not go on by itself this very moment. Times are UTC ns of the store's clock, 0: none."""

    kind: str
    #: Of a run: the task that it is about, when it is about one.
    task: str = ""
    worker: str = ""
    attempt: int = 0
    since: int = 0
    until: int = 0
    role: str = ""
    handler: str = ""
    node: str = ""
    #: Tasks, or runs, that come first.
    names: tuple[str, ...] = ()
    by: str = ""
    reason: str = ""
    owner: str = ""
    shard: int = -1
    #: When the engine looks again by itself; 0: when what is named in `ended_by` has happened.
    next_wake_at: int = 0

    @property
    def ended_by(self) -> str:
        kind = BY_NAME.get(self.kind)
        return kind.ended_by if kind is not None else ""

    @property
    def is_valid(self) -> bool:
        """Is this a reason at all?"""
        return self.kind != "stalled"


def moment(at: int) -> str:
    """A time in ns as RFC 3339, for sentences."""
    return datetime.fromtimestamp(at / SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sentence(it: Blocked) -> str:
    """It in words, for people."""
    say = _SENTENCES.get(it.kind)
    return say(it) if say is not None else it.kind


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _paused(it: Blocked) -> str:
    return f"paused{f' by {it.by}' if it.by else ''}{_because(it.reason)}"


def _no_slot(it: Blocked) -> str:
    return f"waits for a free slot{f' on {it.node}' if it.node else ''}"


def _leased(it: Blocked) -> str:
    if it.names:
        return f"done by run {it.names[0]}"
    return f"leased by {it.worker}{f' until {moment(it.until)}' if it.until else ''}"


def _moving(it: Blocked) -> str:
    where = f"; {it.owner} had it" if it.owner else ""
    return f"shard {it.shard} is on its way to another orchestrator{where}"


_SENTENCES: Final[dict[str, Callable[[Blocked], str]]] = {
    "stalled": lambda it: f"stalled{_because(it.reason)}: the watchdog repairs it",
    "unreadable": lambda it: f"cannot be read back{_because(it.reason)}",
    "unknown_outcome": lambda it: f"the outcome on {it.worker} is unknown: resolve it, or its own late result will",
    "no_worker": lambda it: f"no worker with {it.role} handler {it.handler}{f' ({it.reason})' if it.reason else ''}",
    "paused": _paused,
    "out_of_sight": lambda it: (
        f"worker {it.worker} is out of sight: waits for its return, its lease's end or proof of death"
    ),
    "moving": _moving,
    "recovering": lambda it: f"shard {it.shard} was claimed by {it.owner} and is read back",
    "store": lambda it: f"waits for the store to confirm a write{_because(it.reason)}",
    "no_slot": _no_slot,
    "stopping": lambda it: f"told to stop ({it.reason}) on {it.worker}",
    "running": lambda it: f"running on {it.worker}",
    "leased": _leased,
    "called_run": lambda it: f"waits for {', '.join(it.names)} (its code is on {it.worker})",
    "retry": lambda it: f"attempt {it.attempt} at {moment(it.until)}",
    "run_retry": lambda it: (
        f"the run is retried at {moment(it.until)}" if it.until else "waits for the run's own retry"
    ),
    "delayed": lambda it: f"starts at {moment(it.until)}",
    "dependencies": lambda it: f"waits for {', '.join(it.names) or 'the setup tasks'}",
    "run": lambda it: f"the run is {it.reason}",
    "unclaimed": lambda it: f"waits to be taken from its queue{f' ({it.reason})' if it.reason else ''}",
}
