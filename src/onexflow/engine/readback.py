"""What a run that was read back needs again: its open items and its timers. Pure; nothing of it is ever stored."""

from __future__ import annotations

from collections.abc import Iterator

from onexflow.core.instructions import ArmTimer
from onexflow.core.machine import TERMINAL_TASK_STATES
from onexflow.core.state import ItemState
from onexflow.core.timers import CANCEL_GRACE, is_void
from onexflow.core.turn import SECOND
from onexflow.engine.run import Run


def open_items(run: Run) -> Iterator[tuple[int, int, ItemState]]:
    """(task, item, state) of every item that has not ended."""
    for task, state in enumerate(run.state.tasks):
        if state.status not in TERMINAL_TASK_STATES:
            for index, item in enumerate(state.items):
                if item.status not in TERMINAL_TASK_STATES:
                    yield task, index, item


def timers_of(run: Run) -> Iterator[ArmTimer]:
    """The timers that the run's state implies: the same that its decisions armed."""
    state = run.state
    if run.is_over:
        return
    if state.status == "pending":
        yield ArmTimer(state.start_at, "start")
    if state.timeout_at and state.status != "compensating":
        yield ArmTimer(state.timeout_at, "run_timeout")
    if state.status == "retrying":
        yield ArmTimer(state.retry_at, "run_retry")
    for task, index, item in open_items(run):
        for timer in item_timers(run, task, index, item):
            if not is_void(run.graph, state, task, item, timer.kind):
                yield timer


def item_timers(run: Run, task: int, index: int, item: ItemState) -> Iterator[ArmTimer]:
    """Those of one item, void ones too."""
    state = run.state
    timeouts = run.graph.specs[task].timeouts
    token = (item.epoch, item.offset)
    if timeouts.schedule_to_close:
        due = item.first_scheduled_at + int(timeouts.schedule_to_close * SECOND)
        yield ArmTimer(due, "schedule_to_close", task, index)
    if item.status == "retrying" and item.due_at:
        yield ArmTimer(item.due_at, "retry", task, index)
    elif item.status == "scheduled" and timeouts.schedule_to_start:
        due = item.scheduled_at + int(timeouts.schedule_to_start * SECOND)
        yield ArmTimer(due, "schedule_to_start", task, index, *token)
    elif item.status == "running":
        if item.stopping and item.idempotent:
            yield ArmTimer(state.updated_at + int(CANCEL_GRACE * SECOND), "cancel_grace", task, index, *token)
        elif timeouts.start_to_close:
            due = item.started_at + int(timeouts.start_to_close * SECOND)
            yield ArmTimer(due, "start_to_close", task, index, *token)
        if timeouts.heartbeat and not item.stopping:
            due = state.updated_at + int(timeouts.heartbeat * SECOND)
            yield ArmTimer(due, "heartbeat", task, index, *token)


def next_wake(run: Run) -> int:
    """Store time of the earliest timer; 0 when there is none."""
    return min((timer.due_at for timer in timers_of(run)), default=0)
