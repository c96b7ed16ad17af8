"""The engine's smaller parts, each alone: timers, the dispatcher's queues, group commit, the catalog, the words of views."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from onexflow.codec.definitions import dump_definition
from onexflow.core.builder import workflow
from onexflow.core.commands import FireTimer
from onexflow.core.definition import Timeouts
from onexflow.core.errors import DefinitionConflict, InvalidDefinition, UnknownWorkflowType
from onexflow.core.ids import Token
from onexflow.core.turn import SECOND
from onexflow.engine.catalog import Catalog
from onexflow.engine.dispatcher import Dispatcher
from onexflow.engine.timers import Timers
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single

# ---- timers


def _all(_: Any) -> bool:
    return True


@virtual_time
async def test_timers_fire_in_the_order_of_their_due_times_and_never_early() -> None:
    clock = VirtualClock()
    fired: list[tuple[int, float]] = []
    timers = Timers(clock.now, lambda run, command: fired.append((command.item, clock.monotonic())), _all)
    for number, seconds in enumerate((30, 10, 20, 10)):
        timers.add(clock.now() + seconds * SECOND, None, FireTimer("retry", 0, number))
    await asyncio.sleep(60)
    assert [number for number, _ in fired] == [1, 3, 2, 0]
    assert [at for _, at in fired] == pytest.approx([10, 10, 20, 30], abs=0.001)
    assert all(at >= due for (_, at), due in zip(fired, (10, 10, 20, 30), strict=True))
    assert not len(timers)


@virtual_time
async def test_a_jump_of_the_wall_clock_is_noticed_within_a_minute() -> None:
    clock = VirtualClock()
    fired: list[float] = []
    timers = Timers(clock.now, lambda run, command: fired.append(clock.monotonic()), _all)
    timers.add(clock.now() + 3600 * SECOND, None, FireTimer("retry"))
    await asyncio.sleep(1)
    clock.skew = 3600.0
    await asyncio.sleep(60)
    assert fired == pytest.approx([60], abs=1)


@virtual_time
async def test_a_timer_added_by_a_timer_fires_and_stopped_ones_do_not() -> None:
    clock = VirtualClock()
    fired: list[str] = []

    def fire(run: Any, command: FireTimer) -> None:
        fired.append(command.kind)
        if command.kind == "start":
            timers.add(clock.now(), run, FireTimer("retry"))
            timers.add(clock.now() + 9 * SECOND, run, FireTimer("heartbeat"))

    timers = Timers(clock.now, fire, _all)
    timers.add(clock.now() + SECOND, None, FireTimer("start"))
    await asyncio.sleep(5)
    assert fired == ["start", "retry"]
    timers.stop()
    await asyncio.sleep(60)
    assert fired == ["start", "retry"]


@virtual_time
async def test_timers_of_ended_runs_do_not_pile_up() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc", timeout=3600))
        for number in range(20):
            keys = [(await cluster.start("single", number)).key for _ in range(200)]
            for key in keys:
                await cluster.result(key)
        assert len(cluster.engine._book.timers) <= Timers.SWEEP_AT


# ---- the dispatcher


def attempt(number: int, priority: str = "normal") -> Any:
    graph = SimpleNamespace(specs=[SimpleNamespace(priority=priority)])
    run = SimpleNamespace(graph=graph, state=SimpleNamespace(node=""))
    return SimpleNamespace(
        run=run,
        task=0,
        role="compute",
        info=SimpleNamespace(handler="h"),
        withdrawn=False,
        token=Token(0, 1, number),
        session=None,
    )


class Session:
    """A worker's stream with credits, as far as the dispatcher uses it."""

    def __init__(self, credits: int, name: str = "w") -> None:
        self.credits = {"compute": credits}
        self.takes_work = True
        self.handler_keys = [("compute", "h")]
        self.worker_id = name
        self.got: list[int] = []


def dispatcher() -> Dispatcher:
    def place(attempt: Any, session: Any) -> bool:
        if attempt.session is not None:
            return False
        session.got.append(attempt.token.offset)
        return True

    return Dispatcher(place)


def test_nothing_is_placed_without_a_credit_and_urgent_goes_first() -> None:
    dispatch, session = dispatcher(), Session(0)
    dispatch.add(session)
    for number, priority in enumerate(("low", "normal", "urgent", "high", "normal")):
        dispatch.enqueue(attempt(number, priority))
    assert session.got == []
    assert dispatch.waiting() == {"compute": 5}
    session.credits["compute"] = 3
    dispatch.pump(session)
    assert session.got == [2, 3, 1]
    assert session.credits["compute"] == 0
    assert dispatch.waiting() == {"compute": 2}


def test_what_is_not_wanted_any_more_costs_no_credit() -> None:
    dispatch, session = dispatcher(), Session(0)
    dispatch.add(session)
    gone, taken, wanted = attempt(1), attempt(2), attempt(3)
    for one in (gone, taken, wanted):
        dispatch.enqueue(one)
    gone.withdrawn, taken.session = True, session
    session.credits["compute"] = 1
    dispatch.pump(session)
    assert session.got == [3]


def test_a_batch_fills_one_worker_before_the_next_and_a_draining_one_gets_nothing() -> None:
    dispatch = dispatcher()
    first, second, draining = Session(3, "a"), Session(3, "b"), Session(9, "c")
    draining.takes_work = False
    for session in (first, second, draining):
        dispatch.add(session)
    for number in range(5):
        dispatch.enqueue(attempt(number))
    assert sorted((len(first.got), len(second.got))) == [2, 3]
    assert not draining.got
    assert dispatch.serves("compute", "h")
    dispatch.remove(first)
    dispatch.remove(second)
    assert not dispatch.serves("compute", "h")


# ---- group commit


@virtual_time
async def test_an_idle_lane_commits_at_once_and_a_busy_one_in_batches() -> None:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        await cluster.register(single("compute", "calc").build())
        await cluster.start("single", 0)
        assert len(store.asked) == 1
        store.hold()
        starts = [asyncio.create_task(cluster.start("single", number)) for number in range(100)]
        await store.wait_held()
        await asyncio.sleep(1)
        store.release()
        await asyncio.gather(*starts)
        assert len(store.asked) <= 3, "a hundred starts while one append was under way are one append"
        parts = store.asked[-1]
        assert all(part.next - part.head == sum(row.count for row in part.rows) for part in parts)


# ---- the catalog


@virtual_time
async def test_definitions_are_kept_by_version_and_never_changed() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    await store.open()
    catalog = Catalog(store, clock.now)

    def text(version: int, handler: str = "h") -> bytes:
        flow = workflow("w", version)
        flow.compute("a", handler=handler)
        return dump_definition(flow.build())

    first = await catalog.register("default", text(1))
    assert first.created
    assert not (await catalog.register("default", text(1))).created
    with pytest.raises(DefinitionConflict, match="version 1 is registered with other content"):
        await catalog.register("default", text(1, "other"))
    await catalog.register("default", text(2, "other"))
    assert catalog.record("default", "w").version == 2
    assert catalog.record("default", "w", 1).hash == first.hash
    for version, namespace in ((3, "default"), (0, "elsewhere")):
        with pytest.raises(UnknownWorkflowType):
            catalog.record(namespace, "w", version)
    with pytest.raises(InvalidDefinition):
        await catalog.register("default", b'{"workflow_type": "w"')
    again = Catalog(store, clock.now)
    await again.load()
    assert [info.version for info in again.list("default")] == [1, 2]
    assert again.graph(again.record("default", "w")).specs[0].handler == "other"
    assert not again.list("elsewhere")


# ---- views


@virtual_time
async def test_every_open_task_says_what_it_waits_for() -> None:
    script = Script()
    gate = script.gate("send")
    flow = workflow("w")
    a = flow.effect("a", handler="send", timeouts=Timeouts(schedule_to_close=60))
    flow.compute("b", depends_on=[a], handler="calc")
    flow.compute("c", handler="nobody_has_it")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("w")).key
        await script.called("send")
        view = await cluster.state(key)
        assert {task.name: task.blocked_because for task in view.tasks} == {
            "a": "running on w1",
            "b": "waits for a",
            "c": "no worker with compute handler nobody_has_it",
        }
        assert "a: running on w1" in view.blocked_because
        gate.set()
        await cluster.control(key, "cancel")
        view = await cluster.state(key)
        assert (view.blocked_because, view.next_wake_at) == ("", 0)
