"""Decisions about the attempts of tasks: scheduling, results, failures, losses, timeouts and people's resolutions.

The rules, by role (docs/guarantees.md):
- A pure task (compute, reducer) may run any number of times; its `task.started` is written with its result.
- An orchestration likewise: its calls are recorded by the engine (`engine.calls`), so another run of it repeats none.
- An effect's `task.started` authorises one attempt on one worker. The next one begins only when that attempt has
  ended, was stopped, or is lost and the effect is idempotent. What is lost of a non-idempotent effect waits for input.
"""

from __future__ import annotations

from typing import Protocol

from onexflow.core.commands import (
    AuthoriseAttempt,
    CompleteItems,
    FailAttempt,
    FireTimer,
    LoseAttempt,
    ResolveItem,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.definition import MAX_SECONDS, RetryPolicy
from onexflow.core.errors import InvalidArgument, InvalidTransition, UnknownTask, WorkerLost
from onexflow.core.events import (
    INLINE,
    StateTransitioned,
    TaskCompleted,
    TaskFailed,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
)
from onexflow.core.graph import Graph
from onexflow.core.instructions import CancelAttempt, SendAuthorised
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES
from onexflow.core.mapping import MappingError, condition, map_items, passed_on, task_input
from onexflow.core.payload import NULL, Failure
from onexflow.core.retry import DEFAULT_RETRY, NO_RETRY, ORCHESTRATION_RETRY, delay, may_retry
from onexflow.core.state import COMPENSATION, ItemState, RunState
from onexflow.core.turn import SECOND, RunValues, Turn

#: An item whose worker died under it this often fails: a handler that kills its process costs no more workers.
LOST_LIMIT = 3
#: Seconds that an idempotent effect has to obey a stop before the next attempt may begin beside it.
CANCEL_GRACE = 10.0
#: Most items, and most bytes of input, of one `task.scheduled` event.
SCHEDULE_ITEMS = 1000
SCHEDULE_BYTES = 256 * 1024


# ---- scheduling


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
    turn.dispatch(task, first, count, offset)
    timeouts = turn.graph.specs[task].timeouts
    if timeouts.schedule_to_close or timeouts.schedule_to_start:
        for index in range(first, first + count):
            if timeouts.schedule_to_close:
                turn.arm(timeouts.schedule_to_close, "schedule_to_close", task, index)
            if timeouts.schedule_to_start:
                turn.arm(timeouts.schedule_to_start, "schedule_to_start", task, index, (turn.epoch, offset))


def _schedule_again(turn: Turn, task: int, index: int, kind: str = "again") -> None:
    state = turn.state.tasks[task]
    item = state.items[index]
    offset = turn.emit(
        TaskScheduled(task, attempt=item.attempt + 1, first=index, of=state.of, source=item.source, kind=kind)
    )
    turn.dispatch(task, index, 1, offset)
    timeout = turn.graph.specs[task].timeouts.schedule_to_start
    if timeout:
        turn.arm(timeout, "schedule_to_start", task, index, (turn.epoch, offset))


def take_up(turn: Turn) -> None:
    """The run is active again: schedule the retries that are due, and dispatch what was held back."""
    for task, state in enumerate(turn.state.tasks):
        for index, item in enumerate(state.items):
            if item.status == "retrying":
                if item.due_at <= turn.now:
                    _schedule_again(turn, task, index)
                else:
                    turn.arm((item.due_at - turn.now) / SECOND, "retry", task, index)
            elif item.status == "scheduled":
                turn.dispatch_held(task, index)


def has_held(turn: Turn) -> bool:
    """Does an item wait for the run's own retry?"""
    return any(item.status == "retrying" and not item.due_at for task in turn.state.tasks for item in task.items)


# ---- how attempts begin and end


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
    state, index = turn.state, at.item
    if state.status not in TERMINAL_WORKFLOW_STATES and task < len(state.tasks):
        items = state.tasks[task].items
        if index < len(items):
            item = items[index]
            status = item.status
            if (
                item.offset == at.offset
                and item.epoch == at.epoch
                and (
                    (status == "scheduled" and turn.graph.specs[task].role != "effect")
                    or status in {"running", "waiting_for_input"}
                )
            ):
                return item
    turn.superseded.append((index, at.epoch, at.offset))
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
        _retry_or_give_up(turn, task, items[0], _too_early(turn, task), "")
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
        turn.dispatch_held(task, index)


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
        _fail(turn, task, index, command.error, "")
    elif item.stopping:
        _retry_or_give_up(turn, task, index, turn.timed_out(task, item.stopping), "timeout")
    else:
        _retry_or_give_up(turn, task, index, command.error, "")


def stop(turn: Turn, command: StopAttempt) -> None:
    """An attempt has stopped without a result. If nobody told it to, its worker did (drain): not counted."""
    task, index = command.task, command.item
    item = _accepted(turn, task, command)
    if item is None or item.status == "waiting_for_input":
        return
    if item.stopping == COMPENSATION:
        _cancel(turn, task, index, "it was told to stop, and has")
    elif item.stopping:
        _retry_or_give_up(turn, task, index, turn.timed_out(task, item.stopping), "timeout")
    elif turn.graph.specs[task].role == "effect" and not item.idempotent:
        _wait_for_input(turn, task, index, f"the attempt was interrupted on {item.worker}")
    else:
        _again_uncounted(turn, task, index, "returned")


def give_back(turn: Turn, command: ReturnAttempt) -> None:
    """An attempt was never begun: dispatch it anew, uncounted. A pure one keeps its token: nothing to write."""
    item = _accepted(turn, command.task, command)
    if item is None:
        return
    if item.stopping == COMPENSATION or (item.status == "waiting_for_input" and _is_held_back(turn, command.task)):
        _cancel(turn, command.task, command.item, "it had not begun")
    elif item.status == "scheduled":
        turn.dispatch_held(command.task, command.item)
    elif item.status == "waiting_for_input":
        _schedule_again(turn, command.task, command.item, "returned")
    elif item.stopping:
        _retry_or_give_up(turn, command.task, command.item, turn.timed_out(command.task, item.stopping), "timeout")
    else:
        _again_uncounted(turn, command.task, command.item, "returned")


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
        _again_uncounted(turn, task, index, "lost", worker)


def _is_held_back(turn: Turn, task: int) -> bool:
    """Is this a task of the definition whose run is being undone?"""
    return turn.state.status == "compensating" and not turn.graph.is_undo(task)


def _cancel(turn: Turn, task: int, index: int, reason: str) -> None:
    """The effect of a run that is being undone has not happened."""
    status = turn.state.tasks[task].items[index].status
    turn.emit(StateTransitioned("task.cancelled", status, "cancelled", [task], index, reason))


def _wait_for_input(turn: Turn, task: int, index: int, reason: str) -> None:
    turn.emit(StateTransitioned("task.waiting_for_input", "running", "waiting_for_input", [task], index, reason))


def _again_uncounted(turn: Turn, task: int, index: int, kind: str, worker: str = "") -> None:
    item = turn.state.tasks[task].items[index]
    turn.emit(TaskRetry(task, index, item.attempt + 1, turn.now, item.error, kind, worker or item.worker))
    if turn.is_active(task):
        _schedule_again(turn, task, index)


# ---- failing


def _policy(turn: Turn, task: int, item: ItemState) -> RetryPolicy:
    spec = turn.graph.specs[task]
    if spec.retry is not None:
        return spec.retry
    if spec.role == "orchestrator":
        return ORCHESTRATION_RETRY
    return NO_RETRY if spec.role == "effect" and not item.idempotent else DEFAULT_RETRY


def _retry_or_give_up(turn: Turn, task: int, index: int, error: Failure, kind: str) -> None:
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
        _schedule_again(turn, task, index)
        return
    due_at = turn.now + int(seconds * SECOND)
    turn.emit(TaskRetry(task, index, item.attempt + 1, due_at, error, kind, item.worker))
    if due_at > turn.now:
        turn.arm(seconds, "retry", task, index)
    elif turn.is_active(task):
        _schedule_again(turn, task, index)


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
        and kind in {"", "timeout", "lost"}
        and state.status in {"running", "paused", "retrying"}
        and items[index].status in {"running", "scheduled"}
    ):
        turn.emit(TaskRetry(task, index, items[index].attempt + 1, 0, error, "run", items[index].worker))
        if state.status == "running":
            retry_run(turn)
        return
    _fail(turn, task, index, error, kind)


def _fail(turn: Turn, task: int, index: int, error: Failure, kind: str) -> None:
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


# ---- timers


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
            _schedule_again(turn, task, index)
    elif command.kind == "schedule_to_start":
        if item.status == "scheduled" and current:
            give_up(turn, task, index, turn.timed_out(task, "schedule_to_start"), "timeout")
    elif command.kind == "schedule_to_close":
        # Final, also for the run's own retry: it bounds all attempts, and this one may still be running.
        _fail(turn, task, index, turn.timed_out(task, "schedule_to_close"), "timeout")
    elif command.kind == "cancel_grace":
        if item.stopping and current and item.status == "running" and item.idempotent:
            _retry_or_give_up(turn, task, index, turn.timed_out(task, item.stopping), "timeout")
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
        _retry_or_give_up(turn, task, index, turn.timed_out(task, timeout), "timeout")
        return
    turn.emit(StateTransitioned("attempt.stopping", "running", "running", [task], index, timeout))
    if item.idempotent:
        turn.arm(CANCEL_GRACE, "cancel_grace", task, index, (item.epoch, item.offset))


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
        _schedule_again(turn, task, index, "resolved")
    elif command.result is not None:
        _record(turn, task, TaskCompleted(task, [index], [command.result], kind="resolved"))
    elif command.fail:
        give_up(turn, task, index, Failure("ResolvedAsFailed", command.fail, retryable=False), "resolved")
    else:
        raise InvalidArgument("say one of retry, result and fail", field="resolution")
