"""Decisions about how attempts begin and end: authorised, with a result, failed, stopped, lost, or by a person's word.

The rules, by role (docs/guarantees.md):
- A pure task (compute, reducer) may run any number of times; its `task.started` is written with its result.
- An orchestration likewise: its calls are recorded by the engine (`engine.calls`), so another run of it repeats none.
- An effect's `task.started` authorises one attempt on one worker. The next one begins only when that attempt has
  ended, was stopped, or is lost and the effect is idempotent. What is lost of a non-idempotent effect waits for input.

Whether another attempt follows is decided in `core.scheduling`.
"""

from __future__ import annotations

from typing import Protocol

from onexflow.core.commands import (
    AuthoriseAttempt,
    CompleteItems,
    FailAttempt,
    LoseAttempt,
    ResolveItem,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.errors import InvalidArgument, InvalidTransition, UnknownTask, WorkerLost
from onexflow.core.events import StateTransitioned, TaskCompleted, TaskStarted
from onexflow.core.failing import fail_task, give_up
from onexflow.core.graph import Graph
from onexflow.core.instructions import SendAuthorised
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from onexflow.core.payload import Failure
from onexflow.core.scheduling import again_uncounted, retry_or_give_up, schedule_again
from onexflow.core.state import COMPENSATION, ItemState, RunState
from onexflow.core.turn import Turn

#: An item whose worker died under it this often fails: a handler that kills its process costs no more workers.
LOST_LIMIT = 3


class _Place(Protocol):
    """Names an attempt of a task: its token, or a command about it."""

    @property
    def item(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def offset(self) -> int: ...


def _accepted(turn: Turn, task: int, at: _Place) -> ItemState | None:
    """The item, if the log holds that very attempt and waits for its end; else None."""
    state = turn.state
    try:
        item = state.tasks[task].items[at.item]
    except IndexError:  # no such item, or its task has ended and keeps none
        pass
    else:
        if (
            item.offset == at.offset
            and item.epoch == at.epoch
            and item.status in turn.graph.ending[task]
            and state.status not in TERMINAL_WORKFLOW_STATES
        ):
            return item
    turn.superseded.append((at.item, at.epoch, at.offset))
    return None


def authorise(turn: Turn, command: AuthoriseAttempt) -> None:
    """Write that an effect may run on that worker, if it still waits for a worker."""
    task, index = command.task, command.item
    items = turn.state.tasks[task].items
    if index >= len(items) or items[index].status != "scheduled" or not turn.is_active(task):
        return
    offset = turn.emit(TaskStarted(task, [index], command.worker, command.incarnation, turn.now, command.idempotent))
    turn.instructions.append(SendAuthorised(task, index, turn.epoch, offset))
    timeouts = turn.graph.specs[task].timeouts
    token = (turn.epoch, offset)
    if timeouts.start_to_close:
        turn.arm(timeouts.start_to_close, "start_to_close", task, index, token)
    if timeouts.heartbeat:
        turn.arm(timeouts.heartbeat, "heartbeat", task, index, token)


def complete(turn: Turn, command: CompleteItems) -> None:
    """Record results, each once; those of attempts that the log does not wait for are superseded."""
    task, results = command.task, command.results
    items: list[int] = []
    running: set[int] = set()
    for token in command.tokens:
        item = _accepted(turn, task, token)
        if item is not None:
            items.append(token.item)
            if item.status != "scheduled":
                running.add(token.item)
    if not items:
        return
    if turn.superseded:
        superseded = set(turn.superseded)
        results = [
            result
            for token, result in zip(command.tokens, results, strict=True)
            if (token.item, token.epoch, token.offset) not in superseded
        ]
    begun = [one for one in items if one not in running] if running else items
    if begun:  # of a pure task: written with how it ended
        turn.emit(TaskStarted(task, begun, command.worker, command.incarnation, command.started_at))
    if turn.graph.feeding and is_early(turn.graph, turn.state, task):
        retry_or_give_up(turn, task, items[0], _too_early(turn, task), "")
        return
    _record(turn, task, TaskCompleted(task, items, results))


def is_early(graph: Graph, state: RunState, task: int) -> bool:
    """Is it a fed reducer that may have no result yet, as the task that feeds it has not completed?"""
    feeder = graph.fed_by[task]
    return feeder is not None and state.tasks[feeder].status != "completed"


def _too_early(turn: Turn, task: int) -> Failure:
    feeder = turn.graph.fed_by[task]
    assert feeder is not None, "only a fed reducer can be too early"
    return Failure(
        "ItemsLeft",
        f"reducer {turn.graph.names[task]} ended while {turn.graph.names[feeder]}, whose items it is fed, had not "
        "completed: it must take its items to the last",
        retryable=False,
    )


def _record(turn: Turn, task: int, completed: TaskCompleted) -> None:
    """Items have their results: as many that were held back for them may go."""
    if not turn.graph.specs[task].max_parallel:
        turn.emit(completed)
        return
    state = turn.state.tasks[task]
    window = state.window
    turn.emit(completed)
    for index in range(window, state.window if state.items else 0):
        turn.dispatch(task, index)


def fail(turn: Turn, command: FailAttempt) -> None:
    """Record that an attempt raised: again by policy, or for good."""
    task, index = command.task, command.item
    item = _accepted(turn, task, command)
    if item is None:
        return
    if command.error.code == WorkerLost.code:
        _lose(turn, task, index, command.worker)
        return
    if item.status == "scheduled":  # of a pure task: written with how it ended
        turn.emit(TaskStarted(task, [index], command.worker, command.incarnation, command.started_at))
    if item.stopping == COMPENSATION:
        fail_task(turn, task, index, command.error, "")
    elif item.stopping:
        retry_or_give_up(turn, task, index, turn.timed_out(task, item.stopping), "timeout")
    else:
        retry_or_give_up(turn, task, index, command.error, "")


def stop(turn: Turn, command: StopAttempt) -> None:
    """An attempt has stopped without a result. If nobody told it to, its worker did (drain): not counted."""
    task, index = command.task, command.item
    item = _accepted(turn, task, command)
    if item is None or item.status == "waiting_for_input":
        return
    if item.stopping == COMPENSATION:
        _cancel(turn, task, index, "it was told to stop, and has")
    elif item.stopping:
        retry_or_give_up(turn, task, index, turn.timed_out(task, item.stopping), "timeout")
    elif turn.graph.specs[task].role == "effect" and not item.idempotent:
        _wait_for_input(turn, task, index, f"the attempt was interrupted on {item.worker}")
    else:
        again_uncounted(turn, task, index, "returned")


def give_back(turn: Turn, command: ReturnAttempt) -> None:
    """An attempt was never begun: dispatch it anew, uncounted. A pure one keeps its token: nothing to write."""
    item = _accepted(turn, command.task, command)
    if item is None:
        return
    if item.stopping == COMPENSATION or (item.status == "waiting_for_input" and _is_held_back(turn, command.task)):
        _cancel(turn, command.task, command.item, "it had not begun")
    elif item.status == "scheduled":
        turn.dispatch(command.task, command.item)
    elif item.status == "waiting_for_input":
        schedule_again(turn, command.task, command.item, "returned")
    elif item.stopping:
        retry_or_give_up(turn, command.task, command.item, turn.timed_out(command.task, item.stopping), "timeout")
    else:
        again_uncounted(turn, command.task, command.item, "returned")


def lose(turn: Turn, command: LoseAttempt) -> None:
    """The worker of an attempt is gone."""
    item = _accepted(turn, command.task, command)
    if item is not None and item.status != "waiting_for_input":
        _lose(turn, command.task, command.item, command.worker)


def _lose(turn: Turn, task: int, index: int, worker: str) -> None:
    item = turn.state.tasks[task].items[index]
    worker = worker or item.worker
    effect = turn.graph.specs[task].role == "effect"
    if effect and not item.idempotent:
        if item.status == "running":
            _wait_for_input(turn, task, index, f"worker {worker} was lost while it ran")
        return
    if len(item.lost) + 1 >= LOST_LIMIT:
        lost = [*item.lost, worker]
        error = Failure(
            "WorkerLost",
            f"{len(lost)} workers were lost while they ran task {turn.graph.names[task]}: {', '.join(lost)}",
            code=WorkerLost.code,
            retryable=False,
            context={"workers": lost},
        )
        give_up(turn, task, index, error, "lost")
    else:
        again_uncounted(turn, task, index, "lost", worker)


def _is_held_back(turn: Turn, task: int) -> bool:
    """Is this a task of the definition whose run is being undone?"""
    return turn.state.status == "compensating" and not turn.graph.is_undo(task)


def _cancel(turn: Turn, task: int, index: int, reason: str) -> None:
    """The effect of a run that is being undone has not happened."""
    status = turn.state.tasks[task].items[index].status
    turn.emit(StateTransitioned("task.cancelled", status, "cancelled", [task], index, reason))


def _wait_for_input(turn: Turn, task: int, index: int, reason: str) -> None:
    turn.emit(StateTransitioned("task.waiting_for_input", "running", "waiting_for_input", [task], index, reason))


# ---- people


def resolve(turn: Turn, command: ResolveItem) -> None:
    """Decide a task that waits for input, by a person's word."""
    task, index = command.task, command.item
    if not 0 <= task < len(turn.state.tasks):
        raise UnknownTask(context={"run": str(turn.state.key), "task": task})
    state = turn.state.tasks[task]
    status = state.items[index].status if 0 <= index < len(state.items) else state.status
    if status != "waiting_for_input":
        raise InvalidTransition(
            f"task {turn.graph.names[task]} is {status}: only one that waits for input can be resolved",
            {"task": turn.graph.names[task], "current_state": status, "required_state": "waiting_for_input"},
        )
    if command.retry:
        schedule_again(turn, task, index, "resolved")
    elif command.result is not None:
        _record(turn, task, TaskCompleted(task, [index], [command.result], kind="resolved"))
    elif command.fail:
        give_up(turn, task, index, Failure("ResolvedAsFailed", command.fail, retryable=False), "resolved")
    else:
        raise InvalidArgument("say one of retry, result and fail", field="resolution")
