"""Decisions about which attempts there are to be: the first of each item, and whether and when there is another.

How they end is decided in `core.attempts`; an item that gets no other has failed (`core.failing`).
"""

from __future__ import annotations

from onexflow.core.definition import MAX_SECONDS, RetryPolicy
from onexflow.core.events import INLINE, StateTransitioned, TaskCompleted, TaskRetry, TaskScheduled, TaskStarted
from onexflow.core.failing import give_up
from onexflow.core.instructions import Dispatch
from onexflow.core.mapping import MappingError, condition, map_items, passed_on, task_input
from onexflow.core.payload import NULL, Failure
from onexflow.core.retry import DEFAULT_RETRY, NO_RETRY, ORCHESTRATION_RETRY, delay, may_retry
from onexflow.core.state import ItemState
from onexflow.core.turn import SECOND, RunValues, Turn

#: Most items, and most bytes of input, of one `task.scheduled` event.
SCHEDULE_ITEMS = 1000
SCHEDULE_BYTES = 256 * 1024


def schedule(turn: Turn, task: int) -> None:
    """Decide what becomes of a task that waits for nothing any more: skipped, scheduled, or failed in its mapping."""
    graph = turn.graph
    if (passed := passed_on(graph, task, turn.state)) is not None:
        dispatch_new(turn, task, 0, 1, turn.emit(TaskScheduled(task, source=passed)))
        return
    spec, values, codec = graph.specs[task], RunValues(turn.state), turn.context.codec
    try:
        if spec.when and not condition(graph, task, values, codec):
            turn.emit(StateTransitioned("task.skipped", "pending", "skipped", [task], reason=spec.when))
            return
        inputs = map_items(graph, task, values, codec) if spec.map else []
        source, payload = (INLINE, None) if spec.map else task_input(graph, task, values, codec)
    except MappingError as error:
        turn.emit(TaskScheduled(task, source=INLINE, inputs=(NULL,)))
        give_up(turn, task, 0, Failure("MappingError", str(error), retryable=False), "mapping")
        return
    if not spec.map:
        offset = turn.emit(TaskScheduled(task, source=source, inputs=() if payload is None else (payload,)))
        dispatch_new(turn, task, 0, 1, offset)
        return
    if not inputs:
        turn.emit(TaskScheduled(task, count=0, of=0, source=INLINE))
        turn.emit(TaskStarted(task, [], "", ""))
        turn.emit(TaskCompleted(task, [], [], kind="empty"))
        return
    first = 0
    while first < len(inputs):
        count = size = 0
        while first + count < len(inputs) and count < SCHEDULE_ITEMS and (not count or size < SCHEDULE_BYTES):
            size += len(inputs[first + count].data)
            count += 1
        chunk = tuple(inputs[first : first + count])
        offset = turn.emit(TaskScheduled(task, first=first, count=count, of=len(inputs), source=INLINE, inputs=chunk))
        dispatch_new(turn, task, first, count, offset)
        first += count


def dispatch_new(turn: Turn, task: int, first: int, count: int, offset: int) -> None:
    """Ask for items to be sent that have just been scheduled at `offset`, as far as the task's window reaches, and arm the
    timeouts that count from there. A task is begun only while its run is active for it: nothing is held back."""
    reach = turn.state.tasks[task].window - first
    if reach > 0:
        turn.instructions.append(Dispatch(task, first, min(count, reach), turn.epoch, offset))
    if task in turn.graph.timed:
        timeouts = turn.graph.specs[task].timeouts
        for index in range(first, first + count):
            if timeouts.schedule_to_close:
                turn.arm(timeouts.schedule_to_close, "schedule_to_close", task, index)
            if timeouts.schedule_to_start:
                turn.arm(timeouts.schedule_to_start, "schedule_to_start", task, index, (turn.epoch, offset))


def schedule_again(turn: Turn, task: int, index: int, kind: str = "again") -> None:
    """Schedule the item's next attempt, now."""
    state = turn.state.tasks[task]
    item = state.items[index]
    offset = turn.emit(
        TaskScheduled(task, attempt=item.attempt + 1, first=index, of=state.of, source=item.source, kind=kind)
    )
    turn.dispatch(task, index)
    timeout = turn.graph.specs[task].timeouts.schedule_to_start
    if timeout:
        turn.arm(timeout, "schedule_to_start", task, index, (turn.epoch, offset))


def take_up(turn: Turn) -> None:
    """The run is active again: schedule the retries that are due, and dispatch what was held back."""
    for task, state in enumerate(turn.state.tasks):
        for index, item in enumerate(state.items):
            if item.status == "retrying":
                if item.due_at <= turn.now:
                    schedule_again(turn, task, index)
                else:
                    turn.arm((item.due_at - turn.now) / SECOND, "retry", task, index)
            elif item.status == "scheduled":
                turn.dispatch(task, index)


def retry_or_give_up(turn: Turn, task: int, index: int, error: Failure, kind: str) -> None:
    """An attempt failed with `error`: the next one, after its delay, if the task's policy has one left; else it is given up."""
    item = turn.state.tasks[task].items[index]
    policy = _policy(turn, task, item)
    if not may_retry(policy, error, item.counted):
        give_up(turn, task, index, error, kind)
        return
    asked = (error.context or {}).get("retry_after")
    if isinstance(asked, int | float) and 0 <= asked <= MAX_SECONDS:
        seconds = float(asked)
    else:
        seconds = delay(policy, item.counted, turn.context.jitter())
    if item.status == "waiting_for_input":
        schedule_again(turn, task, index)
        return
    due_at = turn.now + int(seconds * SECOND)
    turn.emit(TaskRetry(task, index, item.attempt + 1, due_at, error, kind, item.worker))
    if due_at > turn.now:
        turn.arm(seconds, "retry", task, index)
    elif turn.is_active(task):
        schedule_again(turn, task, index)


def again_uncounted(turn: Turn, task: int, index: int, kind: str, worker: str = "") -> None:
    """Another attempt at once: the one before ended by no fault of its own, and its policy does not count it."""
    item = turn.state.tasks[task].items[index]
    turn.emit(TaskRetry(task, index, item.attempt + 1, turn.now, item.error, kind, worker or item.worker))
    if turn.is_active(task):
        schedule_again(turn, task, index)


def _policy(turn: Turn, task: int, item: ItemState) -> RetryPolicy:
    spec = turn.graph.specs[task]
    if spec.retry is not None:
        return spec.retry
    if spec.role == "orchestrator":
        return ORCHESTRATION_RETRY
    return NO_RETRY if spec.role == "effect" and not item.idempotent else DEFAULT_RETRY
