"""Compensation: when a run is cancelled, fails or times out, what its effects did is undone before it ends.

The run goes to `compensating`. First the end of every effect that may have happened is waited for (its attempt is told
to stop; a result that comes all the same is recorded). Then what completed is undone one by one, the last first, by
tasks of their own (`Graph.undo`): effects with all that effects have, tokens, retries, timeouts, unknown outcomes.
When all is undone the run is `compensated`, and keeps how it would have ended as its `outcome`. If something cannot be
undone, the run is `failed`, with both errors.
"""

from __future__ import annotations

from typing import Final

from onexflow.core import failing, scheduling
from onexflow.core.events import (
    INLINE,
    CompensationCompleted,
    CompensationStarted,
    TaskScheduled,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowStarted,
    WorkflowTimedOut,
)
from onexflow.core.instructions import CancelAll, FinishRun
from onexflow.core.machine import TERMINAL_TASK_STATES
from onexflow.core.mapping import MappingError, undo_input
from onexflow.core.payload import NULL, Failure
from onexflow.core.turn import RunValues, Turn

_KIND: Final = "compensating"


def is_needed(turn: Turn) -> bool:
    """Has an effect that can be undone completed, or may one have happened?"""
    state = turn.state
    return bool(turn.graph.undo) and bool(
        state.undoable
        or any(
            item.is_unknown
            for task in turn.graph.undone
            if state.tasks[task].status not in TERMINAL_TASK_STATES
            for item in state.tasks[task].items
        )
    )


def begin(turn: Turn, event: WorkflowFailed | WorkflowCancelled | WorkflowTimedOut, reason: str) -> None:
    """Go to `compensating` instead of ending with `event`."""
    if turn.state.status == "initializing":  # the way there leads through `running`
        turn.emit(WorkflowStarted())
    match event:
        case WorkflowCancelled():
            turn.emit(WorkflowCancelled(event.reason, _KIND))
            turn.emit(CompensationStarted("cancelled", reason=event.reason))
        case WorkflowFailed():
            turn.emit(CompensationStarted("failed", error=event.error))
        case _:
            turn.emit(CompensationStarted("timeout", reason=event.reason))
    turn.instructions.append(CancelAll(reason))
    scheduling.take_up(turn)  # what must be run again for its end to be known
    go_on(turn)


def go_on(turn: Turn) -> None:
    """Undo the next task if nothing is waited for; end the run when all is undone, or something cannot be."""
    state = turn.state
    if state.failing is None and not state.awaited:
        if not state.undoable:
            turn.emit(CompensationCompleted(state.outcome))
            turn.instructions.append(FinishRun())
            return
        task = turn.graph.undo[state.undoable[-1]]
        if state.tasks[task].status == "blocked":
            _schedule(turn, task)
    if state.failing is not None:
        turn.emit(WorkflowFailed(_failure(turn, state.failing)))
        turn.instructions.append(CancelAll("the run could not be undone"))
        turn.instructions.append(FinishRun())


def _schedule(turn: Turn, task: int) -> None:
    graph, state = turn.graph, turn.state
    undone = state.undoable[-1]
    try:
        payload = undo_input(graph, task, undone, state, RunValues(state), turn.context.codec)
    except MappingError as error:
        turn.emit(TaskScheduled(task, source=INLINE, inputs=(NULL,)))
        failing.give_up(turn, task, 0, Failure("MappingError", str(error), retryable=False), "mapping")
        return
    offset = turn.emit(TaskScheduled(task, source=INLINE, inputs=(payload,)))
    scheduling.dispatch_new(turn, task, 0, 1, offset)


def _failure(turn: Turn, failure: Failure) -> Failure:
    """Both errors: why the run was to be undone, and why it could not be."""
    state, names = turn.state, turn.graph.names
    left = [names[task] for task in reversed(state.undoable)]
    cause = f"{state.error.type}: {state.error.message}" if state.error is not None else state.reason
    return Failure(
        "CompensationFailed",
        f"{left[0]} could not be undone: {failure.type}: {failure.message}; "
        f"the run was to be undone as {state.outcome}{f' ({cause})' if cause else ''}",
        failure.traceback,
        failure.code,
        retryable=False,
        context={
            **(failure.context or {}),
            "outcome": state.outcome,
            "cause": cause,
            "not_undone": left[:100],
            "error_type": failure.type,
        },
    )
