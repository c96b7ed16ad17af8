"""Reducers that are fed the results of a mapped task while they arrive, in the whole engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow import Worker, workflow
from onexflow.core.definition import RetryPolicy, Timeouts
from onexflow.core.errors import RunFailed
from onexflow.ports.worker_link import FEED_WINDOW_BYTES, FEED_WINDOW_ITEMS, Fed, Feed
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock, virtual_time
from onexflow.worker.context import Context
from support.engine_kit import until
from support.fed_kit import Work, begun, flow, folded, holder, outcomes


@pytest.mark.parametrize("seconds", [0.002, 0.05])
@virtual_time
async def test_ten_thousand_items_are_folded_while_they_come(seconds: float) -> None:
    count = 10_000
    async with Cluster() as cluster:
        work = Work(seconds)
        await cluster.register(flow().build())
        for number in range(4):
            await cluster.add_worker(work.worker(), f"w{number}")
        key = (await cluster.start("fed", list(range(count)))).key
        assert await cluster.result(key) == sum(range(count)) * 2
        [fold] = work.folds
        assert sorted(fold) == list(range(count))
        assert 0 < work.at_first < count
        history = await cluster.history(key)
        assert len(history) < 2000
        assert sorted(outcomes(history)) == list(range(count))


@virtual_time
async def test_what_is_given_and_not_taken_is_bounded() -> None:
    """The reducer is slow: neither its stream nor its worker holds more than the window."""
    count = 3_000
    async with Cluster() as cluster:
        work = Work()
        work.gate.clear()
        await cluster.register(flow().build())
        await cluster.add_worker(work.worker("compute"), "computes")
        worker = await cluster.add_worker(work.worker("reducer"), "reduces")
        key = (await cluster.start("fed", list(range(count)))).key
        await until(lambda: work.done == count)
        await asyncio.sleep(10)
        assert worker.stream is not None
        given = [m for m in worker.stream.log if isinstance(m, Feed)]
        assert all(len(m.items) <= 64 for m in given)
        assert sum(len(m.items) for m in given) <= FEED_WINDOW_ITEMS + 1
        work.pace = 0.001
        work.gate.set()
        assert await cluster.result(key) == sum(range(count)) * 2
        outstanding = 0
        for message in worker.stream.log:
            outstanding += len(message.items) if isinstance(message, Feed) else 0
            outstanding -= message.count if isinstance(message, Fed) else 0
            assert 0 <= outstanding <= FEED_WINDOW_ITEMS


@virtual_time
async def test_large_items_are_given_by_the_mebibyte_and_together_may_be_any_size() -> None:
    """2,000 items of 10 kB are more than any message may hold."""
    made = workflow("large")
    items = made.compute("item", map="input")
    made.reducer("total", feed=True, depends_on=[items])
    worker = Worker("large")
    sizes: list[int] = []

    @worker.compute("item")
    async def item(number: int) -> str:
        await asyncio.sleep(0.01)
        return "x" * (10_000 if number else 1_900_000)

    @worker.reducer("total")
    async def total(contract: Any, ctx: Context) -> int:
        return sum([len(value) async for _, value in ctx.items()])

    async with Cluster() as cluster:
        await cluster.register(made.build())
        added = await cluster.add_worker(worker)
        assert await cluster.run("large", list(range(2_000))) == 1_999 * 10_000 + 1_900_000
        assert added.stream is not None
        given: list[int] = []
        for message in added.stream.log:
            if isinstance(message, Feed):
                sizes.append(sum(len(one.payload.data) for one in message.items))
                assert sizes[-1] <= 1 << 20 or len(message.items) == 1
                given += [len(one.payload.data) for one in message.items]
                assert sum(given) <= FEED_WINDOW_BYTES or len(given) == 1
            elif isinstance(message, Fed):
                del given[: message.count]
        assert max(sizes) > 1_900_000


@virtual_time
async def test_a_map_over_nothing_ends_at_once() -> None:
    async with Cluster() as cluster:
        work = Work()
        await cluster.register(flow().build())
        await cluster.add_worker(work.worker())
        assert await cluster.run("fed", []) == 0
        assert work.folds == [[]]


# ---- the run's life


@virtual_time
async def test_a_failure_of_the_reducer_is_a_new_fold_from_the_first_item() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        work.errors = [OSError("again")]
        key = await begun(cluster, work, retry=RetryPolicy(initial_delay=0.5))
        await folded(cluster, work, key)


@virtual_time
async def test_a_failure_after_the_last_item_is_fed_all_again() -> None:
    async with Cluster() as cluster:
        work = Work()
        work.errors = [OSError("again")]
        work.gate.clear()
        await cluster.register(flow(retry=RetryPolicy(initial_delay=0.5)).build())
        await cluster.add_worker(work.worker())
        key = (await cluster.start("fed", list(range(500)))).key
        await asyncio.sleep(10)
        assert (await cluster.task(key, "item")).state == "completed"
        work.gate.set()
        await folded(cluster, work, key, 500)


@virtual_time
async def test_a_cancel_stops_the_fold() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        await cluster.control(key, "cancel")
        await until(lambda: not any(w.runtime.statistics().running.get("reducer") for w in cluster.workers.values()))
        assert (await cluster.state(key)).state == "cancelled"


@virtual_time
async def test_a_paused_run_leaves_the_fold_where_it_is_and_a_resume_goes_on() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        await cluster.control(key, "pause")
        await asyncio.sleep(30)
        assert 10 < len(work.folds[0]) < 1_000
        await cluster.control(key, "resume")
        await folded(cluster, work, key, folds=1)


@virtual_time
async def test_a_mapped_task_that_fails_stops_the_fold() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        work.bad = {900}
        key = await begun(cluster, work, mapped={"retry": RetryPolicy(policy="none"), "allow_failure": True})
        assert (await cluster.wait(key)).state == "completed"
        assert (await cluster.task(key, "total")).state == "cancelled"
        await until(lambda: not any(w.runtime.statistics().running.get("reducer") for w in cluster.workers.values()))


# ---- handlers


@pytest.mark.parametrize("kind", ["early", "sync", "blind", "not fed"])
@virtual_time
async def test_a_handler_that_cannot_be_fed_fails_and_says_why(kind: str) -> None:
    worker = Worker("wrong")

    @worker.compute("item")
    async def item(number: int) -> int:
        return number

    async def early(contract: Any, ctx: Context) -> int:
        async for index, value in ctx.items():
            return int(index + value)
        return 0

    def sync(contract: Any, ctx: Context) -> int:
        return 0

    async def blind(contract: Any) -> int:
        return 0

    async def not_fed(contract: Any, ctx: Context) -> int:
        ctx.items()
        return 0

    handlers: dict[str, Any] = {"early": early, "sync": sync, "blind": blind, "not fed": not_fed}
    worker.reducer("total")(handlers[kind])
    made = flow()
    if kind == "not fed":
        made = workflow("fed")
        made.reducer("total", depends_on=[made.compute("item", map="input")], retry=RetryPolicy(policy="none"))
    said = {
        "early": "ended before `ctx.items()` did",
        "sync": "must be async",
        "blind": "must take `ctx`",
        "not fed": "is not fed: it has no items to take",
    }
    async with Cluster() as cluster:
        await cluster.register(made.build())
        await cluster.add_worker(worker)
        with pytest.raises(RunFailed, match=said[kind].replace("(", r"\(").replace(")", r"\)")):
            await cluster.run("fed", [1, 2, 3])


# ---- what it may be given, and what is said of it


@virtual_time
async def test_nothing_is_given_that_is_not_durable() -> None:
    clock = VirtualClock()
    store = FaultyStore(MemoryStore(clock))
    async with Cluster(store=store, clock=clock) as cluster:
        work = Work()
        await cluster.register(flow().build())
        await cluster.add_worker(work.worker("compute"), "computes", slots={"compute": 64})
        await cluster.add_worker(work.worker("reducer"), "reduces")
        work.seconds = 0.1
        key = (await cluster.start("fed", list(range(200)))).key
        store.hold()
        await until(lambda: work.done == 200)
        await asyncio.sleep(1)
        assert work.folds == [[]], "it has begun, ahead of the disk, and was given nothing"
        store.release()
        await folded(cluster, work, key, 200, folds=1)


@virtual_time
async def test_it_says_what_it_waits_for() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        await cluster.control(key, "pause")
        await cluster.control(key, "resume")
        work.gate.clear()
        await until(lambda: cluster.workers[holder(cluster)].runtime.statistics().running["reducer"] == 1)
        await asyncio.sleep(0.5)
        blocked = (await cluster.task(key, "total")).blocked
        assert blocked is not None
        assert (blocked.kind, blocked.worker) == ("running", holder(cluster)), "it is at an item"
        work.gate.set()
        work.seconds = 100.0
        await asyncio.sleep(3)
        blocked = (await cluster.task(key, "total")).blocked
        assert blocked is not None
        assert (blocked.kind, blocked.names) == ("dependencies", ("item",))
        assert blocked.ended_by


@virtual_time
async def test_a_run_that_is_read_back_amid_the_fold_has_it_begun_anew() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        run = cluster.engine._kernel.resident(key)
        assert run is not None
        cluster.engine._kernel.read_anew(run)
        await folded(cluster, work, key)


@virtual_time
async def test_items_that_nobody_gives_are_found_by_the_watchdog() -> None:
    async with Cluster() as cluster:
        work = Work(0.1)
        key = await begun(cluster, work)
        cluster.expects_stalls = True
        run = cluster.engine._kernel.resident(key)
        assert run is not None
        for arrivals in run.arrivals.values():
            arrivals.cursors.clear()  # a fault of ours
        await folded(cluster, work, key)
        assert cluster.engine.watchdog.repaired


@virtual_time
async def test_waiting_for_items_is_no_silence_of_the_handler() -> None:
    async with Cluster() as cluster:
        work = Work(30.0)
        await cluster.register(flow(timeouts=Timeouts(heartbeat=2.0)).build())
        await cluster.add_worker(work.worker())
        key = (await cluster.start("fed", list(range(20)))).key
        await folded(cluster, work, key, 20, folds=1)


@virtual_time
async def test_a_handler_that_hangs_at_an_item_is_silent() -> None:
    async with Cluster() as cluster:
        work = Work(0.01)
        work.gate.clear()
        await cluster.register(flow(timeouts=Timeouts(heartbeat=2.0)).build())
        await cluster.add_worker(work.worker())
        key = (await cluster.start("fed", list(range(300)))).key
        await until(lambda: len(work.folds) == 2)
        work.gate.set()
        await until(lambda: len(work.folds[-1]) == 300)
        assert await cluster.result(key) == sum(range(300)) * 2


@virtual_time
async def test_two_reducers_and_a_reader_of_the_list_get_the_same_items() -> None:
    made = flow()
    made.reducer("again", handler="total", feed=True, depends_on=["item"])
    made.reducer("whole", depends_on=["item"])
    async with Cluster() as cluster:
        work = Work(0.01)
        worker = work.worker()

        @worker.reducer("whole")
        async def whole(numbers: list[int]) -> int:
            return sum(numbers)

        await cluster.register(made.build())
        await cluster.add_worker(worker)
        count = 700
        wanted = sum(range(count)) * 2
        assert await cluster.run("fed", list(range(count))) == {"total": wanted, "again": wanted, "whole": wanted}


@virtual_time
async def test_folds_of_many_runs_take_turns_when_slots_are_few() -> None:
    """More runs than slots: a fold holds its slot until its items have come, and they never wait for one of those."""
    async with Cluster() as cluster:
        work = Work(0.02)
        await cluster.register(flow().build())
        await cluster.add_worker(work.worker(), slots={"compute": 4, "reducer": 2})
        keys = [(await cluster.start("fed", list(range(50)))).key for _ in range(10)]
        for key in keys:
            assert await cluster.result(key) == sum(range(50)) * 2
        assert len(work.folds) == 10
