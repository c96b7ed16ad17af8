"""The tables of states, every pair of state and command, and a real path to each state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.builder import workflow
from onexflow.core.commands import (
    AssignRun,
    AuthoriseAttempt,
    CancelRun,
    Command,
    CompleteItems,
    FailAttempt,
    FireTimer,
    LoseAttempt,
    PauseRun,
    ResolveItem,
    ResumeRun,
    ReturnAttempt,
    SettleRun,
    StopAttempt,
)
from onexflow.core.decide import COMMANDS
from onexflow.core.definition import RetryPolicy, RunRetry, Timeouts
from onexflow.core.errors import InvalidTransition
from onexflow.core.ids import Token
from onexflow.core.machine import (
    TASK_EDGES,
    TASK_STATES,
    TASK_TRANSITIONS,
    TERMINAL_TASK_STATES,
    TERMINAL_WORKFLOW_STATES,
    WORKFLOW_EDGES,
    WORKFLOW_STATES,
    WORKFLOW_TRANSITIONS,
    check_task_edge,
    check_workflow_edge,
)
from onexflow.core.payload import Failure
from onexflow.spi import LiteralTaskState, LiteralWorkflowState
from support.core_driver import BEGIN, BOOM, Model, graph_of, one_task

#: Its feature comes later: child runs.
NOT_REACHED = {"waiting_for_dependency"}

NEVER = RetryPolicy(policy="none")
LATER = BEGIN + 10**12


def _setup() -> Model:
    flow = workflow("w")
    flow.compute("s", setup=True)
    flow.compute("a")
    return Model(graph_of(flow))


def _chain(**options: Any) -> Model:
    flow = workflow("w")
    flow.compute("b", depends_on=[flow.compute("a", **options)])
    return Model(graph_of(flow), {"no": False})


def _retrying() -> Model:
    flow = workflow("w", retry=RunRetry(max_attempts=2, delay=5))
    flow.compute("a", retry=NEVER)
    return after(Model(graph_of(flow)), lambda m: m.fail())


def _effect(*steps: Callable[[Model], Any], idempotent: bool = False, **options: Any) -> Model:
    return after(Model(one_task("effect", **options)), lambda m: m.authorise(idempotent=idempotent), *steps)


def _compensating() -> Model:
    """`a` may have happened; the end of its attempt is waited for."""
    return _effect(lambda m: m.do(CancelRun()), compensation="undo-a")


def _undoing(*steps: Callable[[Model], Any]) -> Model:
    """`a` is done, and being undone."""
    return after(_compensating(), lambda m: m.complete(), *steps)


def after(model: Model, *steps: Callable[[Model], Any]) -> Model:
    for step in steps:
        step(model)
    return model


#: A real path to each state of a run.
RUNS: dict[str, Callable[[], Model]] = {
    "pending": lambda: Model(one_task(), start_at=LATER),
    "initializing": _setup,
    "running": lambda: Model(one_task()),
    "paused": lambda: after(Model(one_task()), lambda m: m.do(PauseRun())),
    "completed": lambda: after(Model(one_task()), lambda m: m.complete()),
    "failed": lambda: after(Model(one_task(retry=NEVER)), lambda m: m.fail()),
    "cancelled": lambda: after(Model(one_task()), lambda m: m.do(CancelRun())),
    "timeout": lambda: after(
        Model(one_task(), timeout_at=BEGIN + 1), lambda m: m.later(1), lambda m: m.fire("run_timeout")
    ),
    "retrying": _retrying,
    "compensating": lambda: after(_compensating()),
    "compensated": lambda: after(
        _compensating(), lambda m: m.complete(), lambda m: m.authorise("a.undo"), lambda m: m.complete("a.undo")
    ),
}

#: A real path to each state of task `a`.
TASKS: dict[str, Callable[[], Model]] = {
    "blocked": _setup,
    "pending": lambda: after(_pending()),
    "scheduled": lambda: Model(one_task()),
    "running": _effect,
    "completed": lambda: after(_chain(), lambda m: m.complete()),
    "failed": lambda: after(_chain(retry=NEVER, allow_failure=True), lambda m: m.fail()),
    "cancelled": lambda: after(Model(one_task()), lambda m: m.do(CancelRun())),
    "timeout": lambda: after(
        Model(one_task(timeouts=Timeouts(schedule_to_start=1))), lambda m: m.fire("schedule_to_start")
    ),
    "retrying": lambda: after(Model(one_task()), lambda m: m.fail()),
    "skipped": lambda: _chain(when="input.no"),
    "waiting_for_input": lambda: _effect(lambda m: m.on_attempt(LoseAttempt, worker="w1")),
}


def _pending() -> Model:
    """`a` became ready while the run was paused."""
    flow = workflow("w")
    flow.compute("a", depends_on=[flow.compute("first")])
    return after(Model(graph_of(flow)), lambda m: m.do(PauseRun()), lambda m: m.complete("first"))


def test_the_states_are_the_specifications() -> None:
    assert get_args(LiteralWorkflowState) == WORKFLOW_STATES
    assert get_args(LiteralTaskState) == TASK_STATES
    assert set(WORKFLOW_TRANSITIONS) == set(WORKFLOW_STATES)
    assert set(TASK_TRANSITIONS) == set(TASK_STATES)
    assert {"completed", "failed", "cancelled", "timeout", "compensated"} == TERMINAL_WORKFLOW_STATES
    assert {"completed", "failed", "cancelled", "timeout", "skipped"} == TERMINAL_TASK_STATES


def test_every_pair_of_states_is_an_edge_or_raises() -> None:
    for a in WORKFLOW_STATES:
        for b in WORKFLOW_STATES:
            if (a, b) in WORKFLOW_EDGES:
                check_workflow_edge(a, b, "run")
            else:
                with pytest.raises(InvalidTransition) as raised:
                    check_workflow_edge(a, b, "run")
                assert raised.value.context["current_state"] == a
    for a in TASK_STATES:
        for b in TASK_STATES:
            if (a, b) in TASK_EDGES:
                check_task_edge(a, b, "run", "task")
            else:
                with pytest.raises(InvalidTransition):
                    check_task_edge(a, b, "run", "task")


def test_every_run_state_but_those_named_has_a_path() -> None:
    assert set(RUNS) == set(WORKFLOW_STATES) - NOT_REACHED
    for status, path in RUNS.items():
        assert path().state.status == status


def test_every_task_state_has_a_path() -> None:
    assert set(TASKS) == set(TASK_STATES)
    for status, path in TASKS.items():
        assert path().task().status == status, status


def commands(model: Model) -> Iterator[Command]:
    """Every command, each in its forms, about task `a` (or the one that undoes it) under its current token."""
    name = "a.undo" if any(task.items for task in model.state.tasks[len(model.graph) :]) else "a"
    a = model.graph.index[name]
    items = model.task(name).items
    epoch, offset = (items[0].epoch, items[0].offset) if items else (1, 1)
    yield from (PauseRun(), ResumeRun(), CancelRun(), AssignRun("w9"), SettleRun())
    yield AuthoriseAttempt(a, 0, "w9", "w9.1", True)
    yield CompleteItems(a, [Token(0, epoch, offset, 0)], [encode_value(1)], "w1", "w1.1")
    yield FailAttempt(a, 0, epoch, offset, BOOM)
    yield FailAttempt(a, 0, epoch, offset, Failure("WorkerLost", "", code="OXF-4003"))
    yield StopAttempt(a, 0, epoch, offset)
    yield LoseAttempt(a, 0, epoch, offset, "w1")
    yield ReturnAttempt(a, 0, epoch, offset)
    yield from (ResolveItem(a, 0, retry=True), ResolveItem(a, 0, result=encode_value(1)), ResolveItem(a, 0, fail="no"))
    for kind in ("start", "run_timeout", "run_retry"):
        yield FireTimer(kind)
    for kind in ("retry", "schedule_to_start", "start_to_close", "schedule_to_close", "heartbeat", "cancel_grace"):
        yield FireTimer(kind, a, 0, epoch, offset)


def test_the_commands_are_all_tried() -> None:
    assert {type(command) for command in commands(Model(one_task()))} == set(COMMANDS)


#: States of a task whose run is compensated.
UNDOING: dict[str, Callable[[], Model]] = {
    "awaited": _compensating,
    "unknown": lambda: after(_compensating(), lambda m: m.on_attempt(LoseAttempt, worker="w1")),
    "undoing scheduled": _undoing,
    "undoing": lambda: _undoing(lambda m: m.authorise("a.undo")),
    "again": lambda: after(
        _effect(idempotent=True, compensation="undo-a"),
        lambda m: m.on_attempt(LoseAttempt, worker="w1"),
        lambda m: m.do(CancelRun()),
    ),
}


@pytest.mark.parametrize("path", [*RUNS.items(), *TASKS.items(), *UNDOING.items()], ids=lambda path: path[0])
def test_every_pair_of_state_and_command_transits_legally_or_is_refused_without_a_trace(
    path: tuple[str, Callable[[], Model]],
) -> None:
    for number in range(len(list(commands(path[1]())))):
        model = path[1]()
        model.later(100)
        command = list(commands(model))[number]
        before = copy.deepcopy(model.state)
        people = isinstance(command, PauseRun | ResumeRun | CancelRun | ResolveItem | AssignRun)
        try:
            model.do(command)
        except InvalidTransition as error:
            refused = error.context
            assert people, f"{command} is refused: only people's commands may be"
            assert {"current_state", "required_state"} <= set(refused)
            assert msgspec.msgpack.encode(model.state) == msgspec.msgpack.encode(before)
            continue
        for was, now in zip(before.tasks, model.state.tasks, strict=True):
            if was.status in TERMINAL_TASK_STATES:
                assert now.status == was.status, "terminal is final"
        if before.status in TERMINAL_WORKFLOW_STATES:
            assert not model.turn.events, f"{command} after the end"
        assert msgspec.msgpack.encode(model.fold()) == msgspec.msgpack.encode(model.state)
