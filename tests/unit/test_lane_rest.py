"""A busy lane rests between its appends, the longer the more runs it has stored that go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.engine.lane import REST_A_RUN, REST_SECONDS
from onexflow.ports.client_link import StartRequest
from onexflow.ports.event_store import AppendOutcome, ShardAppend
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single

TAKES = 0.010


class Slow(MemoryStore):
    """An append takes 10 ms. Knows when each began and ended, and of how many runs it was."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.appends: list[tuple[float, float, int]] = []

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(TAKES)
        outcome = await super().append(batch)
        self.appends.append((began, loop.time(), len({(part.shard, row.iid) for part in batch for row in part.rows})))
        return outcome

    def rests(self) -> list[tuple[int, float]]:
        """(runs of an append, seconds to the next one), of the appends behind which the next one came soon."""
        gaps = [(one[2], after[0] - one[1]) for one, after in zip(self.appends, self.appends[1:], strict=False)]
        return [(runs, gap) for runs, gap in gaps if gap < 2 * REST_SECONDS]


def pair() -> Any:
    """Two tasks; the second one waits at a gate."""
    flow = workflow("pair")
    first = flow.compute("first", handler="calc", input="input")
    flow.compute("second", handler="work", depends_on=[first])
    return flow


async def stored(runs: int) -> list[tuple[int, float]]:
    """The rests while so many runs are started at once, and go on."""
    clock = VirtualClock()
    store = Slow(clock)
    script = Script()
    gate = script.gate("work")
    async with Cluster(store=store, clock=clock) as cluster:
        await ready(cluster, script, pair())
        await asyncio.sleep(1)
        store.appends.clear()
        keys = await asyncio.gather(*(cluster.start("pair", number) for number in range(runs)))
        await asyncio.sleep(0.1)
        rests = store.rests()
        gate.set()
        await asyncio.gather(*(cluster.result(one.key) for one in keys))
    return rests


@pytest.mark.parametrize(("runs", "rest"), [(20, 0.0), (100, 100 * REST_A_RUN), (400, REST_SECONDS)])
@virtual_time
async def test_the_rest_grows_with_the_runs_of_the_append_up_to_a_bound_and_few_get_none(
    runs: int, rest: float
) -> None:
    rests = [gap for stored_runs, gap in await stored(runs) if stored_runs == runs]
    assert rests
    assert rests[0] == pytest.approx(rest, abs=1e-6)


@asynccontextmanager
async def slow() -> AsyncIterator[tuple[Cluster, Slow]]:
    """A cluster that serves runs of one task, and its slow store, to which nothing was appended for a while."""
    clock = VirtualClock()
    store = Slow(clock)
    async with Cluster(store=store, clock=clock) as cluster:
        await ready(cluster, Script(), single("compute", "calc"))
        await asyncio.sleep(1)
        store.appends.clear()
        yield cluster, store


@virtual_time
async def test_what_follows_from_an_answer_at_once_is_in_the_next_append() -> None:
    async with slow() as (cluster, store):

        def start(reply: Callable[[Any], None]) -> None:
            request = StartRequest(namespace="default", workflow_type="single", delay=60.0)
            cluster.engine.start_run(request, reply)

        async def follow() -> None:
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            start(answer.set_result)
            await answer
            start(ignored.append)

        ignored: list[Any] = []
        following = asyncio.ensure_future(follow())
        await asyncio.sleep(TAKES / 2)
        start(ignored.append)  # decided while the first is being stored: the next append follows at once
        await asyncio.sleep(10 * TAKES)
        await following
        assert [runs for _, _, runs in store.appends] == [1, 2]


@virtual_time
async def test_runs_that_have_ended_are_not_rested_for() -> None:
    async with slow() as (cluster, store):
        keys = await asyncio.gather(*(cluster.start("single", number) for number in range(100)))
        await asyncio.gather(*(cluster.result(one.key) for one in keys))
        gaps = [gap for runs, gap in store.rests() if runs == 100]
        assert gaps
        assert gaps[0] == pytest.approx(0.0, abs=1e-6)
