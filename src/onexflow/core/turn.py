"""One decision under way: events are folded as they are emitted, so each step sees what the one before did."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from onexflow.core.commands import TimerKind
from onexflow.core.errors import TaskTimedOut
from onexflow.core.events import Event, WorkflowCreated
from onexflow.core.evolve import FOLDS, create
from onexflow.core.graph import Graph
from onexflow.core.instructions import ArmTimer, Dispatch, Instruction
from onexflow.core.payload import Failure, Payload, PayloadCodec
from onexflow.core.state import RunState

SECOND = 1_000_000_000


class Context(msgspec.Struct, frozen=True, gc=False):
    """What a decision needs from outside: the store's time, its place in the shard, and two pure helpers."""

    now: int  #: store time in ns, never below the run's last event
    epoch: int
    offset: int  #: where the first event of this decision will stand
    codec: PayloadCodec
    jitter: Callable[[], float]  #: a number in [0, 1)


class Turn(msgspec.Struct, gc=False, eq=False):
    """The decision in the making. `events` stand at `offset`, `offset + 1`, … of the shard.

    The state counts them when the decision is made (`core.decide`): once a decision, not once an event."""

    graph: Graph
    state: RunState
    context: Context
    #: Of the context, at hand for each event.
    now: int
    epoch: int
    offset: int
    events: list[Event] = []
    instructions: list[Instruction] = []
    #: Results that came too late or from an attempt that the log does not know, as (item, epoch, offset).
    superseded: list[tuple[int, int, int]] = []

    @classmethod
    def first(cls, graph: Graph, event: WorkflowCreated, context: Context) -> Turn:
        """The turn that creates a run."""
        now = context.now
        return cls(graph, create(graph, event, now), context, now, context.epoch, context.offset, [event])

    def emit(self, event: Event) -> int:
        """Decide that `event` happens, and fold it as `evolve` does. Returns its offset."""
        events = self.events
        offset = self.offset + len(events)
        events.append(event)
        FOLDS[type(event)](self.graph, self.state, event, self.epoch, offset, self.now)
        return offset

    def is_active(self, task: int) -> bool:
        """May attempts of this task leave now?"""
        return self.state.status in self.graph.active[task]

    def dispatch(self, task: int, index: int) -> None:
        """Ask for a scheduled item to be sent, if the task's window reaches it. Held back while the run is not active."""
        state = self.state.tasks[task]
        if index < state.window and self.is_active(task):
            item = state.items[index]
            self.instructions.append(Dispatch(task, index, 1, item.epoch, item.offset))

    def arm(
        self, seconds: float, kind: TimerKind, task: int = -1, item: int = 0, token: tuple[int, int] = (0, 0)
    ) -> None:
        """Ask for FireTimer in `seconds` from now."""
        self.instructions.append(ArmTimer(self.now + int(seconds * SECOND), kind, task, item, *token))

    def timed_out(self, task: int, timeout: str) -> Failure:
        """The failure of a task that passed one of its timeouts."""
        limit = getattr(self.graph.specs[task].timeouts, timeout)
        return Failure(
            "TaskTimedOut",
            f"task {self.graph.names[task]} passed its {timeout} timeout of {limit:g} s",
            code=TaskTimedOut.code,
            context={"timeout": timeout, "seconds": limit},
        )


class RunValues:
    """What mappings and conditions may read of a run."""

    __slots__ = ("_state",)

    def __init__(self, state: RunState) -> None:
        self._state = state

    @property
    def input(self) -> Payload:
        return self._state.input

    def result(self, task: int) -> Payload | None:
        return self._state.tasks[task].result

    @property
    def run(self) -> dict[str, str]:
        key = self._state.key
        return {
            "namespace": key.namespace,
            "workflow_type": key.workflow_type,
            "instance_id": str(key.instance_id),
            "correlation_id": self._state.correlation_id,
        }
