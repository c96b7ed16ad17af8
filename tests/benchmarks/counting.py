"""What it costs to count what each worker has done (`engine.tally`): with and without it, in turns.

    scripts/bench --counting

One orchestrator in this process, no gRPC, as in `engine_loop`; "without" is a counter that does nothing. With and without
take turns every 2,000 tasks, some 0.2 s, so that whatever else the machine does falls on both alike; a run is PARTS turns
of each, and its figure the median of their differences. Beside it stands what the counter costs when it is called by
itself.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from benchmarks.engine_loop import EngineLoop
from onexflow.core.ids import Token
from onexflow.engine.tally import Tally
from onexflow.ports.worker_link import AttemptResult

RUNS = 5
PARTS = 60  #: of a run, with counting and without each
CHAINS = 200  #: of a part
TASKS = 10  #: of a chain
MESSAGE = 45  #: results of a message, as chains have them
CALLS = 5_000


@contextmanager
def _no_counting() -> Iterator[None]:
    count = Tally.add
    Tally.add = _nothing  # type: ignore[method-assign]  # what is measured: runs without it
    try:
        yield
    finally:
        Tally.add = count  # type: ignore[method-assign]  # as above


def _nothing(self: Tally, results: Iterable[AttemptResult]) -> None:
    """Count nothing."""


async def _run() -> tuple[float, float, float]:
    """µs of CPU a task with counting and without (medians of the parts), and the median of their differences. Who goes
    first changes (A B B A): the second of two is not as the first, whatever it does."""
    counted: list[float] = []
    bare: list[float] = []
    async with EngineLoop() as loop:

        async def part(figures: list[float]) -> None:
            process, _ = await loop.run("chain", CHAINS)
            figures.append(process / (CHAINS * TASKS) * 1e6)

        await loop.run("chain", CHAINS)  # warm
        for turn in range(PARTS):
            if turn % 2:
                await part(counted)
            with _no_counting():
                await part(bare)
            if not turn % 2:
                await part(counted)
    differences = [one - other for one, other in zip(counted, bare, strict=True)]
    return statistics.median(counted), statistics.median(bare), statistics.median(differences)


def _by_itself() -> float:
    """µs of one result's counting, in messages as chains have them."""
    tally, result = Tally("i"), AttemptResult(Token(1, 1, 1, 0), "completed", started_at=1_000, finished_at=3_000)
    message = [result] * MESSAGE
    add = tally.add
    began = time.thread_time()
    for _ in range(CALLS):
        add(message)
    return (time.thread_time() - began) / (CALLS * MESSAGE) * 1e6


def table() -> str:
    """The figures, in turns."""
    sys.setswitchinterval(0.0005)
    rows = []
    for number in range(RUNS):
        counted, bare, difference = asyncio.run(_run())
        rows.append((counted, bare, difference / bare * 100))
        sys.stderr.write(f"run {number + 1}: {counted:.1f} with, {bare:.1f} without, {rows[-1][2]:+.2f} %\n")
    call = min(_by_itself() for _ in range(RUNS))
    lines = ["| run | µs CPU a task with counting | without | difference |", "|---|---|---|---|"]
    for number, (counted, bare, percent) in enumerate(rows, 1):
        lines.append(f"| {number} | {counted:.1f} | {bare:.1f} | {percent:+.2f} % |")
    counted, bare, percent = (statistics.median(column) for column in zip(*rows, strict=True))
    lines.append(f"| median | {counted:.1f} | {bare:.1f} | {percent:+.2f} % |")
    parts = (
        f"A run is {PARTS} parts of {CHAINS * TASKS:,} tasks with counting and as many without, in turns; the difference is "
        "the median over its parts."
    )
    by_itself = (
        f"Counting one result takes {call:.2f} µs by itself: {call / bare * 100:.2f} % of the {bare:.1f} µs of CPU that "
        "the orchestrator's engine uses for a task of these chains, and less of what a task costs with gRPC, worker and client."
    )
    on_demand = (
        "`get_workflow_metrics`, `get_queue_metrics` and the work-queue part of `get_node_metrics` are computed from what is "
        "stored when they are asked for: tasks pay nothing for them."
    )
    return "\n".join([*lines, "", parts, "", by_itself, "", on_demand])
