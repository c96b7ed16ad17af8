"""Decisions about what has failed for good: an item, its task with it, or all of the run for another round."""

from __future__ import annotations

from onexflow.core.events import StateTransitioned, TaskFailed, TaskRetry
from onexflow.core.instructions import CancelAttempt
from onexflow.core.payload import Failure
from onexflow.core.turn import SECOND, Turn


def give_up(turn: Turn, task: int, index: int, error: Failure, kind: str) -> None:
    """The item has failed for good: with the run's own retry it is held for that, else its task has failed."""
    graph, state = turn.graph, turn.state
    items = state.tasks[task].items
    retry = graph.definition.retry
    # Tasks that fail while a round is already waited for are held for that one.
    is_opened = state.status == "retrying" or state.retry_at > 0
    if (
        retry is not None
        and state.retries + (not is_opened) < retry.max_attempts
        and not graph.specs[task].allow_failure
        and kind
        in {"", "timeout", "lost"}  # not "mapping": `settle` schedules on, and the run is to stay active for that
        and state.status in {"running", "paused", "retrying"}
        and items[index].status in {"running", "scheduled"}
    ):
        turn.emit(TaskRetry(task, index, items[index].attempt + 1, 0, error, "run", items[index].worker))
        if state.status == "running":
            retry_run(turn)
        return
    fail_task(turn, task, index, error, kind)


def fail_task(turn: Turn, task: int, index: int, error: Failure, kind: str) -> None:
    """The item has failed, and so has its task: its other items are stopped."""
    graph, items = turn.graph, turn.state.tasks[task].items
    for fed in graph.feeds[task]:
        for other, item in enumerate(turn.state.tasks[fed].items):
            if item.status in {"scheduled", "running"}:
                reason = f"{graph.names[task]}, whose items it is fed, has failed"
                turn.instructions.append(CancelAttempt(fed, other, item.epoch, item.offset, reason))
    for other, item in enumerate(items):
        if item.status in {"scheduled", "running"} and (other != index or kind == "timeout"):
            turn.instructions.append(CancelAttempt(task, other, item.epoch, item.offset, "its task has failed"))
    named = Failure(
        error.type, error.message, error.traceback, error.code, error.retryable,
        {**(error.context or {}), "task": graph.names[task], **({"item": index} if len(items) > 1 else {})},
    )  # fmt: skip
    turn.emit(TaskFailed(task, index, named, kind))


def retry_run(turn: Turn) -> None:
    """Take the run to `retrying`, until its own retry is due."""
    retry = turn.graph.definition.retry
    seconds = retry.delay if retry is not None else 0.0
    due_at = turn.now + int(seconds * SECOND)
    turn.emit(StateTransitioned("run.retrying", "running", "retrying", due_at=due_at))
    turn.arm(seconds, "run_retry")


def has_held(turn: Turn) -> bool:
    """Does an item wait for the run's own retry?"""
    return any(item.status == "retrying" and not item.due_at for task in turn.state.tasks for item in task.items)
