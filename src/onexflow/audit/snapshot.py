"""Is a snapshot what the events up to it make? Then going on from it and folding everything give the same.

What the engine counts for its own speed (`unresolved`, `ready`, `window`, …) is counted here anew from the states of the
tasks. Left out is what no decision reads: texts of errors and reasons, who paused it, and the times at which things ended.
"""

from __future__ import annotations

from collections.abc import Iterator

from onexflow.audit.rules import ITEM_TERMINAL
from onexflow.audit.run import Item, RunStory, Task
from onexflow.core.payload import Payload
from onexflow.core.state import ItemState, RunState, TaskState


def difference(story: RunStory, state: RunState) -> str:
    """What of a snapshot is not what the events make, the first thing; "" when nothing is."""
    return next(_differences(story, state), "")


def _differences(story: RunStory, state: RunState) -> Iterator[str]:
    if (state.status, state.seq) != (story.status, story.seq):
        yield f"it is {state.status} at event {state.seq}, the events make {story.status} at {story.seq}"
    if len(story.tasks) != len(state.tasks):
        yield f"it has {len(state.tasks)} tasks, the events make {len(story.tasks)}"
    if story.undoable != state.undoable:
        yield "other tasks are to be undone than the events make"
    known = _run(state)
    for name, value in story.facts().items():
        if known[name] != value:
            yield f"its {name} is {known[name]!r}, the events make it {value!r}"
    statuses = story.statuses()
    for index, (told, task) in enumerate(zip(story.tasks, state.tasks, strict=True)):
        name = story.plan.names[index]
        if task.status != statuses[index]:
            yield f"task {name} is {task.status}, the events make it {statuses[index]}"
        yield from _task(name, told, task)
        yield from _results(story, index, task)
        yield from _counted(story, statuses, index, task)
    pending = {index for index, status in enumerate(statuses) if status == "pending"}
    if set(state.ready) != pending:
        yield f"tasks {sorted(state.ready)} are ready in it, the events make {sorted(pending)} so"
    still = [index for index, status in enumerate(statuses) if status not in ITEM_TERMINAL]
    if state.open_tasks != len(still):
        yield f"{state.open_tasks} of its tasks are open, the events leave {len(still)}"
    is_undoing = story.status == "compensating"
    setup = 0 if is_undoing else sum(story.plan.setup[index] for index in still)
    awaited = sum(index < story.plan.count for index in still) if is_undoing else 0
    if (state.open_setup, state.awaited) != (setup, awaited):
        yield f"it waits for {state.open_setup} to set up and {state.awaited} to end, the events make it {setup}, {awaited}"


def _run(state: RunState) -> dict[str, object]:
    return {
        "name": (state.namespace, state.workflow_type, state.instance),
        "definition": (state.version, state.definition, state.semantics),
        "input": state.input,
        "correlation": (state.correlation_id, state.causation_id, state.trace, state.principal),
        "times": (state.created_at, state.started_at, state.updated_at, state.completed_at),
        "timers": (state.start_at, state.timeout_at, state.retry_at),
        "retries": state.retries,
        "node": state.node,
        "outcome": state.outcome,
        "failing": state.failing is not None,
    }


def _task(name: str, told: Task, task: TaskState) -> Iterator[str]:
    if task.items and len(task.items) != len(told.items):
        yield f"task {name} has {len(task.items)} items, the events make {len(told.items)}"
    for index, (item, one) in enumerate(zip(told.items, task.items, strict=False)):
        made, kept = _facts(item), _kept(one)
        if made != kept:
            yield f"item {index} of {name} is {kept}, the events make {made}"
    if (task.of, task.window) != (told.of, told.window):
        yield f"task {name} has {task.window} of {task.of} items in its window, the events make {told.window} of {told.of}"
    done = sum(item.status == "completed" for item in told.items)
    if not told.items and told.status == "completed":
        done = told.of  # it began with a snapshot, which has let go of the items
    if task.done != done:
        yield f"{task.done} items of task {name} are done, the events say {done}"


def _results(story: RunStory, index: int, task: TaskState) -> Iterator[str]:
    name, told = story.plan.names[index], story.tasks[index]
    results = [item.result for item in told.items if item.result is not None]
    feeds = story.plan.feeds[index]
    if told.items and told.status == "completed" and feeds:
        # Kept one by one, too, as long as a reducer may be fed them.
        is_wanted = any(story.tasks[fed].status not in ITEM_TERMINAL for fed in feeds)
        if task.results != (tuple(results) if is_wanted else ()):
            yield f"task {name} keeps other results of its items than their events"
    if feeds and task.result is None and told.status == "completed":
        return  # nothing reads them as one
    if (told.items or not told.of) and told.status == "completed" and task.result is not None:
        joined = Payload(b"[" + b",".join(result.data for result in results) + b"]")
        if task.result != joined and (told.of != 1 or task.result != results[0]):
            yield f"task {name} has another result than its events"
    elif told.items and [one.result for one in task.items if one.result is not None] != results:
        yield f"items of {name} have other results than their events"


def _facts(item: Item) -> tuple[object, ...]:
    return (
        item.status, item.attempt, item.counted, item.epoch, item.offset, item.source, item.input, item.due_at,
        item.stopping, tuple(item.lost), item.worker, item.idempotent, item.first_at, item.scheduled_at,
        item.started_at,
    )  # fmt: skip


def _kept(one: ItemState) -> tuple[object, ...]:
    return (
        one.status, one.attempt, one.counted, one.epoch, one.offset, one.source, one.input, one.due_at,
        one.stopping, one.lost, (one.worker, one.incarnation), one.idempotent, one.first_scheduled_at, one.scheduled_at,
        one.started_at,
    )  # fmt: skip


def _counted(story: RunStory, statuses: list[str], index: int, task: TaskState) -> Iterator[str]:
    """Of a task that waits for others: for how many, and whether in vain."""
    plan = story.plan
    if statuses[index] != "blocked" or story.is_over or story.status == "compensating" or index >= plan.count:
        return
    waits = story.waits_for(index, statuses)
    waits += any(plan.setup) and not plan.setup[index] and not story.is_started
    if task.unresolved != waits:
        yield f"task {plan.names[index]} waits for {task.unresolved} others in it, the events make it {waits}"
    vain = story.waits_in_vain(index, statuses)
    if task.doomed != vain:
        yield f"task {plan.names[index]} waits {'in vain' if task.doomed else 'with hope'} in it, unlike the events"
