"""The auditor and what became of tasks: forged retries, fed reducers and compensations are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from onexflow import Worker, workflow
from onexflow.audit import audit
from onexflow.core.commands import LoseAttempt
from onexflow.core.definition import RetryPolicy
from onexflow.core.events import (
    CompensationStarted,
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowFailed,
    WorkflowStarted,
)
from onexflow.core.payload import Failure
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, virtual_time
from onexflow.testing.clock import VirtualClock
from support.core_driver import Model, graph_of
from support.forged_log import Log, insert, rules, stored


async def retried() -> Log:
    """The log of a run of one effect: the first attempt failed, of the second nobody knows how it ended, as its worker
    was lost, and it came back late with its result."""
    flow = workflow("order")
    flow.effect("charge", retry=RetryPolicy(initial_delay=1.0, jitter=0.0))
    model = Model(graph_of(flow))
    model.authorise("charge")
    model.fail("charge")
    model.later(2)
    model.fire("retry", "charge")
    model.authorise("charge", idempotent=False)
    model.on_attempt(LoseAttempt, "charge", worker="w1")
    model.complete("charge", result={"ok": True})
    assert model.state.status == "completed"
    return await stored(model)


def moved(kind: type[Event], which: int, before: type[Event]) -> Callable[[list[Event]], list[Event]]:
    """The event of that kind and number is repeated before the last of another kind."""

    def change(events: list[Event]) -> list[Event]:
        event = [one for one in events if isinstance(one, kind)][which]
        place = max(index for index, one in enumerate(events) if isinstance(one, before))
        return [*events[:place], event, *events[place:]]

    return change


#: Each has an effect's token end twice, or end without having begun.
TOKENS = {
    "the first attempt fails twice": moved(TaskRetry, 0, TaskScheduled),
    "the first attempt fails again when the second is authorised": moved(TaskRetry, 0, WorkflowCompleted),
    "the first attempt succeeds, too": moved(TaskCompleted, 0, TaskScheduled),
    "the result comes before the second is authorised": moved(TaskCompleted, 0, TaskStarted),
    "two results of the second": moved(TaskCompleted, 0, WorkflowCompleted),
    "the second is authorised twice": moved(TaskStarted, 1, StateTransitioned),
    "it is authorised again while its end is awaited": moved(TaskStarted, 1, TaskCompleted),
    "one result, for two items that are one": lambda events: [
        TaskCompleted(one.task, [0, 0], one.results * 2) if isinstance(one, TaskCompleted) else one for one in events
    ],
}


@pytest.mark.parametrize("name", TOKENS)
@virtual_time
async def test_a_token_of_an_effect_has_one_end_across_retries(name: str) -> None:
    log = await retried()
    assert (await audit(log.store)).findings == []
    log.rewrite(TOKENS[name])
    assert rules(await audit(log.store)) & {"task-transition", "attempt"}


async def fed() -> Log:
    """The log of two items and the reducer that was fed them."""
    flow = workflow("fed")
    flow.reducer("total", feed=True, depends_on=[flow.compute("item", map="input")])
    model = Model(graph_of(flow), [1, 2])
    model.complete("item", 1, result=2)
    model.complete("item", 0, result=1)
    model.complete("total", result=3)
    assert model.state.status == "completed"
    return await stored(model)


def of_task(kind: type[Event], task: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, kind) and getattr(event, "task", -1) == task


def before(wanted: Callable[[Event], bool], place: Callable[[Event], bool]) -> Callable[[list[Event]], list[Event]]:
    """The events that are wanted stand before the first that is at that place."""

    def change(events: list[Event]) -> list[Event]:
        moving = [one for one in events if wanted(one)]
        others = [one for one in events if not wanted(one)]
        index = next(index for index, one in enumerate(others) if place(one))
        return [*others[:index], *moving, *others[index:]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        before(of_task(TaskCompleted, 1), of_task(TaskCompleted, 0)),
        before(of_task(TaskScheduled, 1), of_task(TaskScheduled, 0)),
        lambda events: [one for one in events if not (of_task(TaskCompleted, 0)(one) and one.items == [0])],
    ],
    ids=["it completes before its items", "it is scheduled before them", "an item has no end"],
)
@virtual_time
async def test_a_fed_reducer_begins_with_its_items_and_ends_after_them(
    change: Callable[[list[Any]], list[Event]],
) -> None:
    log = await fed()
    assert (await audit(log.store)).findings == []
    log.rewrite(change)
    assert rules(await audit(log.store)) & {"dependency"}


async def undone() -> Log:
    """The log of a run of two effects and a third that failed: both were undone."""
    worker = Worker("w")
    for name in ("book", "pay", "undo"):
        worker.effect(name)(lambda contract: contract)
    flow = workflow("saga")
    book = flow.effect("book", compensation="undo")
    pay = flow.effect("pay", depends_on=[book], compensation="undo")
    flow.compute("fail", depends_on=[pay], input="length(`5`)")
    clock = VirtualClock()
    store = MemoryStore(clock, shards=1)
    async with Cluster(store=store, clock=clock) as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(worker)
        outcome = await cluster.wait((await cluster.start("saga", {})).key)
        assert outcome.state == "compensated"
    await store.open()
    return Log(store)


def without_results(events: list[Event]) -> list[Event]:
    """Nothing has completed before the compensation."""
    place = next(index for index, one in enumerate(events) if isinstance(one, CompensationStarted))
    head = [one for one in events[:place] if isinstance(one, WorkflowCreated | WorkflowStarted)]
    return [*head, *events[place:]]


def order_turned(events: list[Event]) -> list[Event]:
    """What undoes the one stands where the other was undone."""
    turned = {3: 4, 4: 3}
    return [
        msgspec.structs.replace(one, task=turned[one.task])
        if isinstance(one, TaskScheduled | TaskStarted | TaskCompleted) and one.task in turned
        else one
        for one in events
    ]


def one_left_out(events: list[Event]) -> list[Event]:
    """The first effect is not undone."""
    return [one for one in events if getattr(one, "task", 0) != 3]


def failed_instead(events: list[Event]) -> list[Event]:
    """The run just ends."""
    place = next(index for index, one in enumerate(events) if isinstance(one, CompensationStarted))
    return [*events[:place], WorkflowFailed(Failure("MappingError", "…"))]


#: Each breaks the rule "compensation".
UNDOING = [
    without_results,
    order_turned,
    one_left_out,
    failed_instead,
    insert(CompensationStarted, TaskScheduled(4, source=-1)),
    insert(CompensationStarted, WorkflowCancelled("no", "compensating")),
]


@pytest.mark.parametrize("change", UNDOING, ids=lambda change: change.__name__)
@virtual_time
async def test_forged_undoing_is_found(change: Callable[[list[Event]], list[Event]]) -> None:
    log = await undone()
    assert (await audit(log.store)).is_consistent
    log.rewrite(change)
    assert "compensation" in rules(await audit(log.store))
