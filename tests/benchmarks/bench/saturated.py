"""W2 with so many chains in flight that the orchestrator's loop never rests: the rate, and how late the loop is then."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from .figures import Goal, quantile
from .processes import spawn
from .workloads import Load, Onexflow

GOALS: Final[dict[str, Goal]] = {}
IN_FLIGHT: Final = 2_000
RUNS: Final = 8_000
REST_SECONDS: Final = 1.0


async def measure(onexflow: Onexflow) -> dict[str, float]:
    """One round."""
    async with _pulse(onexflow.address) as pulse:
        await asyncio.sleep(REST_SECONDS)
        began = time.perf_counter()
        sample = await Load(onexflow).chain(RUNS, IN_FLIGHT)
        ended = time.perf_counter()
    before = sorted(ms for at, ms in pulse if at < began)
    during = sorted(ms for at, ms in pulse if began <= at < ended)
    return {
        "tasks/s": sample.rate,
        "orchestrator, % of one core": sample.cpu_us["orchestrator"] * sample.rate / 1e4,
        "worker, % of one core": sample.cpu_us["worker"] * sample.rate / 1e4,
        "CPU µs/task of the orchestrator": sample.cpu_us["orchestrator"],
        "health call at rest p50, ms": quantile(before, 0.5),
        "health call p50, ms": quantile(during, 0.5),
        "health call p99, ms": quantile(during, 0.99),
        "health call at most, ms": during[-1],
    }


@asynccontextmanager
async def _pulse(address: str) -> AsyncIterator[list[tuple[float, float]]]:
    """Health calls meanwhile, by a process of their own; what they took is in the list afterwards."""
    found: list[tuple[float, float]] = []
    process = await spawn("benchmarks.bench.pulse", address, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 20.0), "nobody asks for the health"
        yield found
    finally:
        said, _ = await asyncio.wait_for(process.communicate(b""), 60.0)  # which ends its input
        found += [(at, ms) for at, ms in json.loads(said or "[]")]
