"""Laws of the core, tried on random graphs and random interleavings of what can happen to a run."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from onexflow.codec.payload import encode_value
from onexflow.codec.rows import decode_row, decode_snapshot, encode_row, encode_snapshot
from onexflow.core.commands import (
    AuthoriseAttempt,
    CancelRun,
    CompleteItems,
    FailAttempt,
    FireTimer,
    ItemResult,
    LoseAttempt,
    PauseRun,
    ResolveItem,
    ResumeRun,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.errors import InvalidTransition
from onexflow.core.events import (
    TaskCompleted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTimedOut,
)
from onexflow.core.graph import Graph
from onexflow.core.instructions import ArmTimer, Dispatch, FinishRun, SendAuthorised
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES
from onexflow.core.payload import Failure
from onexflow.core.turn import SECOND
from support.core_driver import BEGIN, Model, fold, same
from support.random_graphs import INPUT, graphs

_TERMINAL_EVENTS = (WorkflowCompleted, WorkflowFailed, WorkflowCancelled, WorkflowTimedOut)


class Shell:
    """A shell that obeys: it does with a run what its instructions allow, in an order that chance decides."""

    def __init__(self, graph: Graph, chance: random.Random) -> None:
        self.chance = chance
        self.model = Model(graph, INPUT, start_at=chance.choice((0, 0, BEGIN + 50 * SECOND)))
        self.running: dict[tuple[int, int, int, int], str] = {}
        self.waiting: dict[tuple[int, int, int, int], None] = {}
        self.timers: list[ArmTimer] = []
        self.past: list[tuple[int, int, int, int]] = []
        self.finished = 0
        self.obey()

    def obey(self) -> None:
        for instruction in self.model.turn.instructions:
            match instruction:
                case Dispatch(task, first, count, epoch, offset):
                    for item in range(first, first + count):
                        self.waiting[task, item, epoch, offset] = None
                case SendAuthorised(task, item, epoch, offset):
                    self.running[task, item, epoch, offset] = "w1"
                case ArmTimer():
                    self.timers.append(instruction)
                case FinishRun():
                    self.finished += 1

    def do(self, command: Any) -> None:
        note(repr(command))
        try:
            self.model.do(command)
        except InvalidTransition:
            assert isinstance(command, PauseRun | ResumeRun | CancelRun | ResolveItem), "workers and timers never err"
            return
        self.obey()

    def step(self) -> None:
        kind = self.chance.choice(
            ("dispatch",) * 4
            + ("end",) * 6
            + ("timer",) * 2
            + ("person", "stray", "stray", "stray", "resolve", "takeover")
        )
        getattr(self, f"_{kind}")()

    def _dispatch(self) -> None:
        if not self.waiting:
            return
        place = self.chance.choice(list(self.waiting))
        del self.waiting[place]
        task, item, _, _ = place
        if self.model.graph.specs[task].role == "effect":
            self.do(AuthoriseAttempt(task, item, "w1", "w1.1", self.chance.choice((True, False))))
        else:
            self.running[place] = "w1"

    def _end(self) -> None:
        if self.running:
            place = self.chance.choice(list(self.running))
            del self.running[place]
            self.past.append(place)
            self.do(self._ending(place))

    def _stray(self) -> None:
        """Something late, or of an attempt that nobody knows."""
        task, item, epoch, offset = self.chance.choice(self.past[-3:]) if self.past else (0, 0, 9, 9)
        self.do(self._ending((task, item, epoch, offset + self.chance.choice((0, 0, 1)))))

    def _ending(self, place: tuple[int, int, int, int]) -> Any:
        task, item, epoch, offset = place
        chosen = self.chance.choice(("complete",) * 5 + ("fail", "fatal", "crash", "stop", "lose", "return"))
        match chosen:
            case "complete":
                value = encode_value(self.chance.randrange(100))
                return CompleteItems(task, [ItemResult(item, epoch, offset, value)], "w1", "w1.1", self.model.now)
            case "fail":
                return FailAttempt(task, item, epoch, offset, Failure("Boom", "it broke"), "w1", "w1.1")
            case "fatal":
                return FailAttempt(task, item, epoch, offset, Failure("Boom", "for good", retryable=False), "w1")
            case "crash":
                return FailAttempt(task, item, epoch, offset, Failure("WorkerLost", "", code="OXF-4003"), "w1")
            case "stop":
                return StopAttempt(task, item, epoch, offset)
            case "lose":
                return LoseAttempt(task, item, epoch, offset, "w1")
        return ReturnAttempt(task, item, epoch, offset)

    def _timer(self) -> None:
        if self.timers:
            timer = self.timers.pop(self.chance.randrange(len(self.timers)))
            self.model.now = max(self.model.now, min(timer.due_at, self.model.now + 100 * SECOND))
            self.do(FireTimer(timer.kind, timer.task, timer.item, timer.epoch, timer.offset))

    def _person(self) -> None:
        command = self.chance.choice((PauseRun, ResumeRun, ResumeRun, CancelRun))
        if command is not CancelRun or self.chance.random() < 0.1:
            self.do(command("because"))

    def _takeover(self) -> None:
        """Another owner decides from now on."""
        self.model.epoch += 1

    def _resolve(self) -> None:
        for task, state in enumerate(self.model.state.tasks):
            for index, item in enumerate(state.items):
                if item.status == "waiting_for_input":
                    answers: list[dict[str, Any]] = [{"retry": True}, {"result": encode_value(1)}, {"fail": "no"}]
                    self.do(ResolveItem(task, index, **self.chance.choice(answers)))
                    return


@given(graphs(), st.integers(0, 2**32), st.integers(0, 80))
def test_rebuild_equals_live_and_outcomes_are_single(graph: Graph, seed: int, steps: int) -> None:
    shell = Shell(graph, random.Random(seed))
    for _ in range(steps):
        shell.model.later(shell.chance.choice((0, 0, 0.5)))
        shell.step()
        check(shell)


def check(shell: Shell) -> None:
    model, state = shell.model, shell.model.state
    assert state.seq == len(model.log)
    assert same(model.fold(), state)
    ends = [stored.event for stored in model.log if isinstance(stored.event, _TERMINAL_EVENTS)]
    assert len(ends) == (state.status in TERMINAL_WORKFLOW_STATES) == shell.finished
    assert not ends or model.log[-1].event is ends[0], "nothing happens after the end"
    results = [(e.task, i) for e, *_ in model.log if isinstance(e, TaskCompleted) for i in e.items]
    assert len(results) == len(set(results)), "a result is recorded once"
    assert state.open_tasks == sum(t.status not in TERMINAL_TASK_STATES for t in state.tasks)
    assert sorted(state.ready) == [n for n, t in enumerate(state.tasks) if t.status == "pending"] or ends
    for task in state.tasks:
        assert task.done == sum(i.status == "completed" for i in task.items) or task.status == "completed"


@given(graphs(), st.integers(0, 2**32))
def test_every_prefix_continues_from_its_snapshot_and_from_its_rows(graph: Graph, seed: int) -> None:
    shell = Shell(graph, random.Random(seed))
    for _ in range(40):
        shell.step()
    log = shell.model.log
    for cut in range(1, len(log) + 1):
        snapshot = decode_snapshot(encode_snapshot(fold(graph, log[:cut])))
        assert snapshot is not None
        assert same(fold(graph, log, snapshot), shell.model.state)
    for stored in log:
        assert decode_row(encode_row(stored.at, [stored.event])) == (stored.at, [stored.event], {})


@given(graphs(), st.integers(0, 2**32))
def test_an_obeyed_run_always_ends(graph: Graph, seed: int) -> None:
    """Whatever happened before: once people resume and resolve, and workers answer, the run comes to its end."""
    shell = Shell(graph, random.Random(seed))
    for _ in range(30):
        shell.step()
    for _ in range(2000):
        if shell.finished:
            return
        model = shell.model
        if model.state.status == "paused":
            shell.do(ResumeRun())
        elif shell.waiting:
            shell._dispatch()
        elif shell.running:
            place = next(iter(shell.running))
            del shell.running[place]
            task, item, epoch, offset = place
            shell.do(CompleteItems(task, [ItemResult(item, epoch, offset, encode_value(1))], "w1", "w1.1"))
        elif any(i.status == "waiting_for_input" for t in model.state.tasks for i in t.items):
            shell._resolve()
        elif shell.timers:
            timer = min(shell.timers, key=lambda t: t.due_at)
            shell.timers.remove(timer)
            model.now = max(model.now, timer.due_at)
            shell.do(FireTimer(timer.kind, timer.task, timer.item, timer.epoch, timer.offset))
        else:
            break
    statuses = [(shell.model.graph.names[n], t.status) for n, t in enumerate(shell.model.state.tasks)]
    pytest.fail(f"the run is {shell.model.state.status} and waits for nothing: {statuses}")
