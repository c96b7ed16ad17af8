"""Store time where the wall clock jumps."""

from __future__ import annotations

import asyncio

from onexflow.storage.memory import MemoryStore
from onexflow.storage.time import StoreTime
from onexflow.testing import Cluster, VirtualClock, virtual_time
from support.engine_kit import Script, ready, single

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


class Jumping(VirtualClock):
    """A clock whose wall time can be set."""

    shift = 0

    def now(self) -> int:
        return super().now() + self.shift


def test_time_goes_on_when_the_wall_clock_is_set_back_and_follows_it_when_it_is_ahead() -> None:
    wall, monotonic = 10 * HOUR, 5.0
    time = StoreTime(lambda: wall, lambda: monotonic)
    assert time.now() == 10 * HOUR
    wall -= HOUR
    assert time.now() == 10 * HOUR
    monotonic += 2.0
    wall += 2 * SECOND
    assert time.now() == 10 * HOUR + 2 * SECOND
    wall += 2 * HOUR
    assert time.now() == 11 * HOUR + 2 * SECOND
    time.not_below(20 * HOUR)
    monotonic += 1.0
    assert time.now() == 20 * HOUR + SECOND


@virtual_time
async def test_a_retry_comes_in_time_though_the_wall_clock_was_set_back() -> None:
    script, clock = Script(), Jumping()
    script.errors["calc"] = [ValueError("once")]
    async with Cluster(clock=clock, store=MemoryStore(clock)) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        clock.shift = -HOUR
        async with asyncio.timeout(10):
            assert await cluster.result(key) == 5
