"""Everything that `decide` can ask of the shell. Only `Dispatch` of a pure task may be carried out before the events of
the same decision are durable; all others wait for the commit."""

from __future__ import annotations

import msgspec

from onexflow.core.commands import TimerKind


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """Items `first` … `first + count - 1` of a task may go to a worker; (epoch, offset) is their scheduling event."""

    task: int
    first: int
    count: int
    epoch: int
    offset: int


class SendAuthorised(msgspec.Struct, frozen=True, gc=False):
    """The effect's `task.started` is written: send the attempt to its worker, once that is durable."""

    task: int
    item: int
    epoch: int
    offset: int


class CancelAttempt(msgspec.Struct, frozen=True, gc=False):
    """Tell the worker to stop that attempt, or forget it if it was not sent yet."""

    task: int
    item: int
    epoch: int
    offset: int
    reason: str


class CancelAll(msgspec.Struct, frozen=True, gc=False):
    """The run has ended: nothing of it is to be sent, what runs is to be stopped."""

    reason: str


class ArmTimer(msgspec.Struct, frozen=True, gc=False):
    """Come back with FireTimer at store time `due_at` (ns)."""

    due_at: int
    kind: TimerKind
    task: int = -1
    item: int = 0
    epoch: int = 0
    offset: int = 0


class FinishRun(msgspec.Struct, frozen=True, gc=False):
    """The run is over: tell those who wait."""


Instruction = Dispatch | SendAuthorised | CancelAttempt | CancelAll | ArmTimer | FinishRun
