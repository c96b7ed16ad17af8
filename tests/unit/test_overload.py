"""More is asked for than can be done: what is taken ends soon, the rest is refused and told when to come again."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.codec.wire.common import retry_after
from onexflow.core.errors import Overloaded
from onexflow.core.turn import SECOND
from onexflow.engine.admission import AGAIN, FRESH_RUNS, FRESH_SECONDS, HEARD_SECONDS, WAITED_SECONDS, Admission
from onexflow.testing.clock import virtual_time
from onexflow.testing.cluster import Cluster
from support.narrow_way import Handler, Load, serve

RATE = 1000.0


@pytest.mark.parametrize("handler", [Handler("compute", 64), Handler("effect", 64), Handler("effect", 8)])
def test_at_three_times_the_capacity_what_is_taken_is_not_late(handler: Handler) -> None:
    @virtual_time
    async def run() -> None:
        async with Cluster() as cluster:
            await serve(cluster, handler, RATE)
            await Load(cluster).closed(200, 600)
            normal = Load(cluster)
            await normal.closed(200, 1500)
            assert not normal.refused, "200 at a time hear of nothing"
            flood = Load(cluster)
            await flood.opened(3 * RATE, 2.0)
            # Nothing is lost: `opened` has waited for the answer to each, and `Load` asserts what it is.
            assert len(flood.latencies) + len(flood.refused) == 3 * RATE * 2
            assert len(flood.latencies) >= 0.95 * RATE * 2, "the capacity is used"
            assert flood.most_open <= 2 * FRESH_RUNS, "memory is bounded"
            assert flood.p99() <= 2 * normal.p99()
            assert all(AGAIN[0] <= retry_after(error) <= 1.25 * AGAIN[1] for error in flood.refused)
            assert len({retry_after(error) for error in flood.refused}) > 10, "they do not all come at once"
            again = Load(cluster)
            await asyncio.sleep(1)
            await again.closed(200, 600)
            assert not again.refused, "afterwards all is as before"

    run()


@virtual_time
async def test_a_backlog_of_long_tasks_is_no_overload() -> None:
    """What waits for slots waits, however much it is: that is what the queue is for."""
    async with Cluster() as cluster:
        await serve(cluster, Handler("effect", 32, seconds=1.0), 1e6)
        load = Load(cluster)
        await load.closed(1000, 1000)
        assert not load.refused
        assert max(load.latencies) > 20


@virtual_time
async def test_runs_without_a_worker_are_taken() -> None:
    async with Cluster() as cluster:
        await serve(cluster, Handler("compute", 64), 1e6)
        await cluster.stop_worker("w1")
        load = Load(cluster)
        for _ in range(2000):
            _ = load.start()
        await asyncio.sleep(1)
        assert load.open == 2000


@virtual_time
async def test_who_is_refused_may_come_again_and_is_then_taken() -> None:
    async with Cluster() as cluster:
        await serve(cluster, Handler("compute", 64), RATE)
        load = Load(cluster)
        flood = asyncio.ensure_future(load.opened(3 * RATE, 1.0))
        while not load.refused:
            await asyncio.sleep(0.01)
        await flood
        await asyncio.sleep(retry_after(load.refused[-1]))
        before = len(load.latencies)
        await load.start()
        assert len(load.latencies) == before + 1


# ---- the rule by itself


def admission(fresh: int, *, at: float = 100.0) -> Admission:
    """With so many open runs, and results that come in a second late from then on."""
    found = Admission()
    for _ in range(fresh):
        found.begun(int(at) * SECOND)
    found.heard(at - 1, at - 1.001, 0.0, 0.0)
    found.heard(at, at - 1.001, 0.0, 0.0)
    return found


def test_it_takes_both_many_runs_and_late_results() -> None:
    assert admission(FRESH_RUNS - 1).refusal(100.0) is None
    assert "1000 ms late: no new one" in str(admission(FRESH_RUNS).refusal(100.0))
    many = admission(FRESH_RUNS)
    many.heard(100.001, 100.0, 0.0, 0.0)
    assert many.refusal(100.001) is None


def test_starts_that_wait_unseen_count_as_runs_and_as_late() -> None:
    idle = Admission()
    assert idle.refusal(100.0, waited=2 * WAITED_SECONDS, behind=FRESH_RUNS - 1) is None
    assert idle.refusal(100.0, waited=WAITED_SECONDS / 2, behind=FRESH_RUNS) is None
    assert isinstance(idle.refusal(100.0, waited=2 * WAITED_SECONDS, behind=FRESH_RUNS), Overloaded)


def test_runs_that_have_ended_or_are_old_do_not_count() -> None:
    found = admission(FRESH_RUNS)
    found.ended(100 * SECOND)
    assert found.fresh == FRESH_RUNS - 1
    found.ended(3 * SECOND)  # of before this process
    assert found.fresh == FRESH_RUNS - 1
    found.begun((101 + FRESH_SECONDS) * SECOND)
    assert found.fresh == 1


def test_what_was_heard_long_ago_says_nothing() -> None:
    found = admission(FRESH_RUNS)
    assert found.late(100.0 + HEARD_SECONDS / 2) == pytest.approx(1.0)
    assert found.late(100.1 + HEARD_SECONDS) == 0.0


def test_a_handler_that_takes_long_is_not_late_and_slots_that_wait_for_the_way_are() -> None:
    found = Admission()
    found.heard(1.0, 0.999, 0.0, 0.0)
    found.heard(7.0, 1.0, 5.99, 1000.0)
    assert found.late(7.0) == pytest.approx(0.009)
    found = Admission()
    found.heard(1.0, 0.999, 0.0, 0.0)
    found.heard(7.0, 6.99, 0.0, 10.0)
    assert found.late(7.0) == pytest.approx(0.099)


def refused(found: Admission, now: float, times: int) -> float:
    """The longest pause that so many were told."""
    pauses = []
    for _ in range(times):
        found.heard(now, now - 1.001, 0.0, 0.0)
        error = found.refusal(now)
        assert error is not None
        pauses.append(retry_after(error))
    return max(pauses)


def test_the_pause_grows_while_more_come_than_end_and_falls_again() -> None:
    found = admission(FRESH_RUNS * 2)
    told = [refused(found, 100.0 + 1.1 * second, 100) for second in range(10)]
    assert told == sorted(told)
    assert told[0] < 1.25 * AGAIN[0]
    assert told[-1] == pytest.approx(1.25 * AGAIN[1], rel=0.05)
    for second in range(10):
        for _ in range(1000):
            found.ended(0)
        told.append(refused(found, 120.0 + 1.1 * second, 1))
    assert told[-1] <= 1.25 * AGAIN[0]
