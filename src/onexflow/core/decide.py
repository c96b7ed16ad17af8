"""decide(state, command, now) → events + instructions: the one place where things are decided.

`decide` folds its events into the state as it goes (through `evolve`, and only so) and returns the finished `Turn`.
The shell must write `turn.events` before it carries out `turn.instructions`, but for the dispatch of pure tasks
(see `core.instructions`). A command that does not fit the state raises and changes nothing; one that has nothing left
to do decides nothing. What concerns tasks is decided next door: which attempts there are to be in `core.scheduling`, how
they begin and end in `core.attempts`, what a timer that is due means in `core.timers`, what has failed for good in
`core.failing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onexflow.core import attempts, compensation, failing, scheduling, timers
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
    StartRun,
    StopAttempt,
)
from onexflow.core.errors import InvalidTransition
from onexflow.core.events import (
    StateTransitioned,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowFailed,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
    WorkflowTimedOut,
)
from onexflow.core.graph import Graph
from onexflow.core.instructions import ArmTimer, CancelAll, FinishRun
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES, check_workflow_edge
from onexflow.core.mapping import MappingError, run_output
from onexflow.core.payload import Failure
from onexflow.core.state import RunState
from onexflow.core.turn import SECOND, Context, RunValues, Turn

#: Version of the meaning of events that new runs are created with.
SEMANTICS = 1


def start(graph: Graph, command: StartRun, context: Context) -> Turn:
    """Create a run of `graph` and take it as far as it goes without waiting."""
    definition = graph.definition
    timeout_at = command.timeout_at
    if not timeout_at and definition.timeout:
        timeout_at = max(context.now, command.start_at) + int(definition.timeout * SECOND)
    turn = Turn.first(
        graph,
        WorkflowCreated(
            command.namespace,
            definition.workflow_type,
            definition.version,
            graph.hash,
            command.instance,
            command.input,
            command.correlation_id,
            command.causation_id,
            command.start_at,
            timeout_at,
            command.trace,
            command.principal,
            command.request_id,
            SEMANTICS,
        ),
        context,
    )
    if timeout_at:
        turn.instructions.append(ArmTimer(timeout_at, "run_timeout"))
    if command.start_at > context.now:
        turn.instructions.append(ArmTimer(command.start_at, "start"))
    else:
        _begin(turn)
    turn.state.seq = len(turn.events)
    return turn


def decide(graph: Graph, state: RunState, command: Command, context: Context) -> Turn:
    """Decide one command. Raises InvalidTransition (with `current_state`, `required_state`) when it does not fit."""
    turn = Turn(graph, state, context, context.now, context.epoch, context.offset)
    events, kind = turn.events, type(command)
    try:
        _DECISIONS[kind](turn, command)
        if events and kind in _ABOUT_ATTEMPTS:
            settle(turn)
    finally:  # who refuses halfway has changed the state: that it counts more events shows it
        if events:
            state.seq += len(events)
            state.updated_at = turn.now
    return turn


def settle(turn: Turn) -> None:
    """Take the run as far as it goes: schedule what is ready, end what is done. Ends every decision."""
    state = turn.state
    while state.failing is None and state.status in {"running", "initializing"}:
        if state.ready:
            # In one go, as the first entry of a dictionary costs more to find the more were taken out before it: nothing
            # takes any of the others away, but for one that fails the run in its mapping.
            for task in tuple(state.ready):
                scheduling.schedule(turn, task)
                if turn.state.failing is not None:  # `state.failing` is None for mypy since the loop began
                    break
        elif state.status == "running":
            if not state.open_tasks:
                _complete(turn)
            return
        elif not state.open_setup:
            turn.emit(WorkflowStarted())
        else:
            return
    if state.status == "compensating":
        compensation.go_on(turn)
    elif state.failing is not None and state.status in {"running", "initializing", "retrying"}:
        _end(turn, WorkflowFailed(state.failing), "the run failed")


# ---- the run


def _begin(turn: Turn) -> None:
    if turn.graph.setup:
        turn.emit(StateTransitioned("run.initializing", "pending", "initializing"))
    else:
        turn.emit(WorkflowStarted())
    settle(turn)


def _complete(turn: Turn) -> None:
    try:
        result = run_output(turn.graph, RunValues(turn.state), turn.context.codec)
    except MappingError as error:
        _end(turn, WorkflowFailed(Failure("MappingError", str(error), retryable=False)), "the output mapping failed")
        return
    turn.emit(WorkflowCompleted(result))
    turn.instructions.append(FinishRun())


def _end(turn: Turn, event: WorkflowFailed | WorkflowCancelled | WorkflowTimedOut, reason: str) -> None:
    """End the run with `event`, or undo first what its effects did."""
    if compensation.is_needed(turn):
        compensation.begin(turn, event, reason)
        return
    turn.emit(event)
    turn.instructions.append(CancelAll(reason))
    turn.instructions.append(FinishRun())


def _pause(turn: Turn, command: PauseRun) -> None:
    if turn.state.status != "paused":
        check_workflow_edge(turn.state.status, "paused", str(turn.state.key))
        turn.emit(WorkflowPaused(command.reason, by=command.by))


def _resume(turn: Turn, command: ResumeRun) -> None:
    state = turn.state
    if state.status == "running":
        return
    if state.status != "paused":
        raise InvalidTransition(
            f"a run that is {state.status} cannot be resumed",
            {"run": str(state.key), "current_state": state.status, "required_state": "paused"},
        )
    was_retrying = state.retry_at > 0
    turn.emit(WorkflowResumed(command.reason))
    if not was_retrying and state.failing is None and failing.has_held(turn):
        failing.retry_run(turn)
    else:
        scheduling.take_up(turn)
    settle(turn)


def _cancel(turn: Turn, command: CancelRun) -> None:
    state = turn.state
    if state.status in {"cancelled", "compensating"} or (
        state.status == "compensated" and state.outcome == "cancelled"
    ):
        return
    check_workflow_edge(state.status, "cancelled", str(state.key))
    _end(turn, WorkflowCancelled(command.reason), command.reason or "the run was cancelled")


def _assign(turn: Turn, command: AssignRun) -> None:
    state = turn.state
    if state.status in TERMINAL_WORKFLOW_STATES:
        raise InvalidTransition(
            f"a run that is {state.status} cannot be assigned",
            {"run": str(state.key), "current_state": state.status, "required_state": "open"},
        )
    if state.node != command.node:
        turn.emit(StateTransitioned("run.assigned", state.status, state.status, node=command.node))


def _fire(turn: Turn, command: FireTimer) -> None:
    state = turn.state
    if state.status in TERMINAL_WORKFLOW_STATES:
        return
    if command.kind == "start":
        if state.status == "pending" and turn.now >= state.start_at:
            _begin(turn)
    elif command.kind == "run_timeout":
        if turn.now >= state.timeout_at > 0 and state.status != "compensating":
            _end(turn, WorkflowTimedOut("the run passed its timeout"), "the run timed out")
    elif command.kind == "run_retry":
        if state.status == "retrying" and turn.now >= state.retry_at:
            turn.emit(StateTransitioned("run.running", "retrying", "running"))
            scheduling.take_up(turn)
            settle(turn)
    else:
        timers.fire(turn, command)
        settle(turn)


def _settle(turn: Turn, _: SettleRun) -> None:
    if turn.state.status not in TERMINAL_WORKFLOW_STATES:
        settle(turn)


_DECISIONS: dict[type[Command], Callable[[Turn, Any], None]] = {
    PauseRun: _pause,
    ResumeRun: _resume,
    CancelRun: _cancel,
    AssignRun: _assign,
    SettleRun: _settle,
    FireTimer: _fire,
    AuthoriseAttempt: attempts.authorise,
    CompleteItems: attempts.complete,
    FailAttempt: attempts.fail,
    StopAttempt: attempts.stop,
    LoseAttempt: attempts.lose,
    ReturnAttempt: attempts.give_back,
    ResolveItem: attempts.resolve,
}

#: Those after which the run goes as far as it can.
_ABOUT_ATTEMPTS = frozenset({CompleteItems, FailAttempt, StopAttempt, LoseAttempt, ReturnAttempt, ResolveItem})

#: Every command that an existing run accepts (a test pairs each with every state).
COMMANDS = tuple(_DECISIONS)
