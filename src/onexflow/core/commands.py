"""Every request or observation that a run accepts. Imperative names; `decide` answers with events and instructions."""

from __future__ import annotations

from typing import Literal

import msgspec

from onexflow.core.ids import Token
from onexflow.core.payload import Failure, Payload


class Command(msgspec.Struct, frozen=True, gc=False):
    """Base of all commands to an existing run."""


class StartRun(Command, frozen=True, kw_only=True):
    """Create the run and, unless it is delayed, start it."""

    namespace: str
    instance: bytes
    input: Payload
    correlation_id: str
    causation_id: str = ""
    start_at: int = 0
    timeout_at: int = 0
    trace: str = ""
    principal: str = ""
    request_id: str = ""


class PauseRun(Command, frozen=True):
    reason: str = ""
    by: str = ""


class ResumeRun(Command, frozen=True):
    reason: str = ""


class CancelRun(Command, frozen=True):
    reason: str = ""


class AssignRun(Command, frozen=True):
    """Send the run's tasks to that node from now on, while it is there; "" takes the assignment back."""

    node: str


class SettleRun(Command, frozen=True):
    """Take the run as far as it goes without waiting. Of a sound run that is nowhere: every decision ends with it."""


class AuthoriseAttempt(Command, frozen=True):
    """A worker has a free slot for a scheduled effect: write that it may run there, before it is sent."""

    task: int
    item: int
    worker: str
    incarnation: str
    idempotent: bool


class CompleteItems(Command, frozen=True):
    """Attempts of one task, run by one worker, have ended: those with `tokens`, each with its result."""

    task: int
    tokens: list[Token]
    results: list[Payload]
    worker: str
    incarnation: str
    started_at: int = 0


class FailAttempt(Command, frozen=True):
    """An attempt has ended with an error."""

    task: int
    item: int
    epoch: int
    offset: int
    error: Failure
    worker: str = ""
    incarnation: str = ""
    started_at: int = 0


class StopAttempt(Command, frozen=True):
    """An attempt that was told to stop has stopped, or its grace is over."""

    task: int
    item: int
    epoch: int
    offset: int


class LoseAttempt(Command, frozen=True):
    """The worker of an attempt is gone: nothing is known of how it ended."""

    task: int
    item: int
    epoch: int
    offset: int
    worker: str


class ReturnAttempt(Command, frozen=True):
    """A worker gives back an attempt that it never began."""

    task: int
    item: int
    epoch: int
    offset: int


TimerKind = Literal[
    "start", "run_timeout", "run_retry", "retry", "schedule_to_start", "start_to_close", "schedule_to_close",
    "heartbeat", "cancel_grace",
]  # fmt: skip


class FireTimer(Command, frozen=True):
    """A timer that was armed is due. A stale one (the attempt has moved on) changes nothing."""

    kind: TimerKind
    task: int = -1
    item: int = 0
    epoch: int = 0
    offset: int = 0


class ResolveItem(Command, frozen=True):
    """A person decides a task that waits for input. Exactly one of retry, result and fail is given."""

    task: int
    item: int
    retry: bool = False
    result: Payload | None = None
    fail: str = ""
