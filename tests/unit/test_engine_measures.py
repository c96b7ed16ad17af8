"""Figures of runs: true counts, of the right runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from onexflow.core.errors import UnknownWorkflowType
from onexflow.core.ids import Token
from onexflow.engine.measures import percentile
from onexflow.engine.tally import Tally
from onexflow.ports.worker_link import AttemptResult
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ((), 0.5, 0.0),
        ((3.0,), 0.99, 3.0),
        ((1.0, 2.0), 0.5, 1.0),
        ((1.0, 2.0, 3.0), 0.5, 2.0),
        (range(1, 101), 0.95, 95),
    ],
)
def test_percentile_is_the_nearest_rank(values: Sequence[float], share: float, wanted: float) -> None:
    assert percentile(values, share) == wanted


@virtual_time
async def test_figures_are_those_of_what_is_stored() -> None:
    script = Script()
    async with Cluster(seed=1) as cluster:
        await ready(cluster, script, single("compute", "calc", "quick"), single("effect", "charge", "stuck"))
        empty = await cluster.engine.measure_runs("default", "quick")
        assert (empty.by_state, empty.events, empty.window, empty.throughput) == ({}, 0, 0.0, 0.0)
        script.gate("charge")
        started = [await cluster.start("stuck") for _ in range(3)]
        await cluster.control(started[0].key, "cancel")
        histories = 0
        for _ in range(5):
            run = await cluster.start("quick", 1)
            await cluster.wait(run.key)
            histories += len(await cluster.history(run.key))
        await cluster.clock.sleep(10)
        quick = await cluster.engine.measure_runs("default", "quick")
        assert quick.by_state == {"completed": 5}
        assert (quick.events, quick.tasks) == (histories, 5)
        assert 10 <= quick.window < 11
        assert quick.throughput == pytest.approx(5 / quick.window)
        assert 0 <= quick.p50 <= quick.p95 <= quick.p99 < 1
        everything = await cluster.engine.measure_runs("default")
        assert sum(everything.by_state.values()) == 8
        assert everything.by_state["completed"] == 5
        assert everything.by_state["cancelled"] == 1
        with pytest.raises(UnknownWorkflowType):
            await cluster.engine.measure_runs("default", "nosuch")
        assert (await cluster.engine.measure_runs("elsewhere")).by_state == {}
        before = await cluster.engine.measure_runs("default", "quick")
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        after = await cluster.engine.measure_runs("default", "quick")
        assert (after.by_state, after.events, after.p99) == (before.by_state, before.events, before.p99)
        script.gates["charge"].set()


def test_a_worker_that_tells_no_times_spoils_no_mean() -> None:
    tally = Tally("w.1")
    for started, finished in ((10, 30), (0, 1_800_000_000_000_000_000), (0, 0), (50, 40), (7, 0)):
        tally.add([AttemptResult(Token(1, 1, 1), "completed", started_at=started, finished_at=finished)])
    tally.add([AttemptResult(Token(1, 1, 1), "returned", finished_at=5)])
    assert (tally.completed, tally.nanoseconds, list(tally.durations)) == (5, 20, [20, 0, 0, 0, 0])
