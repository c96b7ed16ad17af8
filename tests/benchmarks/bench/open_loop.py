"""Open loop: runs of three tasks that come at half of the rate that this cluster can do, whether or not it keeps up.

The peak is measured first, in a closed loop. Then runs come independently of each other (Poisson), each timed from the
moment when it was to be sent: one that had to wait for the client, too, is as late as its caller would have seen it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from .figures import Goal, at_most, quantile
from .workloads import Onexflow, in_flight

GOALS: Final[dict[str, Goal]] = {"start to result p99, ms": at_most(25.0)}
PEAK_RUNS: Final = 4_000
PEAK_IN_FLIGHT: Final = 200
SHARE: Final = 0.5  #: of the peak
SECONDS: Final = 5.0


def arrivals(rate: float, seconds: float, seed: int = 1) -> Iterator[float]:
    """Moments of a Poisson process, from 0 on."""
    draw = random.Random(seed)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


async def offered(
    moments: Iterator[float], one: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Call `one` at each of the moments; the seconds from each moment to the end of its call."""
    taken: list[float] = []
    began = clock()

    async def timed(due: float) -> None:
        await one()
        taken.append(clock() - due)

    async with asyncio.TaskGroup() as group:
        for moment in moments:
            due = began + moment
            await asyncio.sleep(max(0.0, due - clock()))
            group.create_task(timed(due))
    return taken


async def measure(onexflow: Onexflow) -> dict[str, float]:
    """One round: the peak, and then half of it."""
    began = time.perf_counter()
    await in_flight(PEAK_RUNS, PEAK_IN_FLIGHT, onexflow.triple)
    peak = PEAK_RUNS / (time.perf_counter() - began)
    began = time.perf_counter()
    taken = sorted(await offered(arrivals(peak * SHARE, SECONDS), onexflow.triple))
    return {
        "peak in a closed loop, runs/s": peak,
        "offered, runs/s": len(taken) / SECONDS,
        "done, runs/s": len(taken) / (time.perf_counter() - began),
        "start to result p50, ms": quantile(taken, 0.5) * 1e3,
        "start to result p99, ms": quantile(taken, 0.99) * 1e3,
        "start to result at most, ms": taken[-1] * 1e3,
    }
