"""Decisions when a timer of a task is due: a retry, or one of its timeouts."""

from __future__ import annotations

from onexflow.core.commands import FireTimer
from onexflow.core.events import StateTransitioned
from onexflow.core.failing import fail_task, give_up
from onexflow.core.graph import Graph
from onexflow.core.instructions import CancelAttempt
from onexflow.core.machine import TERMINAL_TASK_STATES
from onexflow.core.scheduling import retry_or_give_up, schedule_again
from onexflow.core.state import COMPENSATION, ItemState, RunState
from onexflow.core.turn import Turn

#: Seconds that an idempotent effect has to obey a stop before the next attempt may begin beside it.
CANCEL_GRACE = 10.0


def fire(turn: Turn, command: FireTimer) -> None:
    """A task's timer is due. What it was armed for may have passed: then nothing is decided."""
    task, index = command.task, command.item
    items = turn.state.tasks[task].items
    if index >= len(items) or items[index].status in TERMINAL_TASK_STATES:
        return
    item = items[index]
    if is_void(turn.graph, turn.state, task, item, command.kind):
        return
    current = item.epoch == command.epoch and item.offset == command.offset
    if command.kind == "retry":
        if item.status == "retrying" and 0 < item.due_at <= turn.now and turn.is_active(task):
            schedule_again(turn, task, index)
    elif command.kind == "schedule_to_start":
        if item.status == "scheduled" and current:
            give_up(turn, task, index, turn.timed_out(task, "schedule_to_start"), "timeout")
    elif command.kind == "schedule_to_close":
        # Final, also for the run's own retry: it bounds all attempts, and this one may still be running.
        fail_task(turn, task, index, turn.timed_out(task, "schedule_to_close"), "timeout")
    elif command.kind == "cancel_grace":
        if item.stopping and current and item.status == "running" and item.idempotent:
            retry_or_give_up(turn, task, index, turn.timed_out(task, item.stopping), "timeout")
    elif current and not item.stopping and item.status in {"scheduled", "running"}:
        _stop_running(turn, task, index, command.kind)


def is_void(graph: Graph, state: RunState, task: int, item: ItemState, timer: str) -> bool:
    """Does this timer of a task mean nothing? While the run is undone, the end of what may have happened is waited for
    as long as it takes."""
    return (
        state.status == "compensating"
        and not graph.is_undo(task)
        and (item.stopping == COMPENSATION or timer in {"schedule_to_start", "schedule_to_close"})
    )


def _stop_running(turn: Turn, task: int, index: int, timeout: str) -> None:
    """An attempt passed start_to_close or heartbeat: stop it; a pure task need not wait for that."""
    item = turn.state.tasks[task].items[index]
    turn.instructions.append(CancelAttempt(task, index, item.epoch, item.offset, f"{timeout} timeout"))
    if turn.graph.specs[task].role != "effect":
        retry_or_give_up(turn, task, index, turn.timed_out(task, timeout), "timeout")
        return
    turn.emit(StateTransitioned("attempt.stopping", "running", "running", [task], index, timeout))
    if item.idempotent:
        turn.arm(CANCEL_GRACE, "cancel_grace", task, index, (item.epoch, item.offset))
