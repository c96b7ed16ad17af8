"""A run without a shell: commands in, events out, with what the log would hold, so that tests can fold it again."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from onexflow.codec.payload import JsonCodec, decode_value, encode_value
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.commands import (
    AuthoriseAttempt,
    Command,
    CompleteItems,
    FailAttempt,
    FireTimer,
    StartRun,
)
from onexflow.core.compiler import compile_graph
from onexflow.core.decide import decide, start
from onexflow.core.events import Event, WorkflowCreated
from onexflow.core.evolve import create, evolve
from onexflow.core.graph import Graph
from onexflow.core.ids import Token
from onexflow.core.instructions import ArmTimer, Dispatch, Instruction
from onexflow.core.payload import Failure, Payload
from onexflow.core.state import ItemState, RunState, TaskState
from onexflow.core.turn import SECOND, Context, Turn

BEGIN = 1_700_000_000 * SECOND
INSTANCE = UUID("0192d3a0-0000-7000-8000-000000000000")
BOOM = Failure("Boom", "it broke")


class Stored(NamedTuple):
    """An event with its place and time."""

    event: Event
    epoch: int
    offset: int
    at: int


def graph_of(flow: WorkflowBuilder, **output: Any) -> Graph:
    return compile_graph(flow.build(**output))


def one_task(role: str = "compute", **options: Any) -> Graph:
    """A workflow of the single task `a`."""
    flow = workflow("single")
    getattr(flow, role)("a", **options)
    return graph_of(flow)


class Model:
    """One run. Every decision's events are kept; time moves only by `later`."""

    def __init__(self, graph: Graph, input: Any = None, *, jitter: float = 0.0, **fields: Any) -> None:
        self.graph = graph
        self.now = BEGIN
        self.jitter = jitter
        self.epoch = 1
        self.log: list[Stored] = []
        self.turn: Turn = start(graph, self._start_command(input, fields), self._context())
        self.state: RunState = self.turn.state
        self._keep(self.turn)

    @staticmethod
    def _start_command(input: Any, fields: dict[str, Any]) -> StartRun:
        fields = {"correlation_id": "c", **fields}
        return StartRun(namespace="default", instance=INSTANCE.bytes, input=encode_value(input), **fields)

    def _context(self) -> Context:
        return Context(self.now, self.epoch, self.head, JsonCodec(), lambda: self.jitter)

    @property
    def head(self) -> int:
        return self.log[-1].offset + 1 if self.log else 1

    def _keep(self, turn: Turn) -> None:
        head = self.head
        self.log.extend(Stored(event, self.epoch, head + n, self.now) for n, event in enumerate(turn.events))

    def do(self, command: Command) -> Turn:
        """Decide, and keep what was decided."""
        self.turn = decide(self.graph, self.state, command, self._context())
        self._keep(self.turn)
        return self.turn

    def later(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    # ---- short ways to say things

    def task(self, name: str = "a") -> TaskState:
        return self.state.tasks[self.graph.index[name]]

    def item(self, name: str = "a", item: int = 0) -> ItemState:
        return self.task(name).items[item]

    def authorise(self, name: str = "a", item: int = 0, *, worker: str = "w1", idempotent: bool = True) -> Turn:
        return self.do(AuthoriseAttempt(self.graph.index[name], item, worker, f"{worker}.1", idempotent))

    def complete(self, name: str = "a", *items: int, result: Any = None, worker: str = "w1") -> Turn:
        """Results of the current attempts of these items (of the first, when none is named)."""
        state = self.task(name)
        tokens = [Token(0, state.items[i].epoch, state.items[i].offset, i) for i in items or (0,)]
        results = [encode_value(result) for _ in tokens]
        return self.do(CompleteItems(self.graph.index[name], tokens, results, worker, f"{worker}.1", self.now))

    def fail(self, name: str = "a", item: int = 0, *, error: Failure = BOOM, worker: str = "w1") -> Turn:
        return self.on_attempt(FailAttempt, name, item, error=error, worker=worker, started_at=self.now)

    def on_attempt(self, command: Any, name: str = "a", item: int = 0, **fields: Any) -> Turn:
        """A command about the current attempt of an item."""
        at = self.item(name, item)
        return self.do(command(self.graph.index[name], item, at.epoch, at.offset, **fields))

    def fire(self, kind: str, name: str = "a", item: int = 0) -> Turn:
        """A timer of the run, or of the current attempt of an item."""
        if kind in {"start", "run_timeout", "run_retry"}:
            return self.do(FireTimer(kind))
        at = self.item(name, item)
        return self.do(FireTimer(kind, self.graph.index[name], item, at.epoch, at.offset))

    def types(self, since: int = 0) -> list[str]:
        """What happened, as `type` or `type/kind`."""
        return [
            f"{stored.event.type}/{kind}" if (kind := getattr(stored.event, "kind", "")) else stored.event.type
            for stored in self.log[since:]
        ]

    def timers(self) -> list[tuple[str, float]]:
        """(kind, seconds from now) of the timers that the last decision armed."""
        return [(i.kind, (i.due_at - self.now) / SECOND) for i in self.instructions(ArmTimer)]

    def dispatched(self) -> list[tuple[str, int, int]]:
        """(task, first, count) that the last decision dispatched."""
        return [(self.graph.names[i.task], i.first, i.count) for i in self.instructions(Dispatch)]

    def instructions(self, kind: type[Instruction]) -> list[Any]:
        return [instruction for instruction in self.turn.instructions if isinstance(instruction, kind)]

    # ---- rebuilding

    def fold(self, state: RunState | None = None) -> RunState:
        """The state that the log gives, from the beginning or from a state on."""
        return fold(self.graph, self.log, state)


def fold(graph: Graph, log: list[Stored], state: RunState | None = None) -> RunState:
    for event, epoch, offset, at in log[state.seq if state is not None else 0 :]:
        if state is None:
            assert isinstance(event, WorkflowCreated)
            state = create(graph, event, at)
        else:
            state = evolve(graph, state, event, epoch, offset, at)
    assert state is not None
    return state


def same(one: RunState, other: RunState) -> bool:
    """Equal as stored, in every field."""
    return msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other)


def value(payload: Payload | None) -> Any:
    return None if payload is None else decode_value(payload)
