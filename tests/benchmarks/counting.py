"""What it costs to count what each worker has done (`engine.tally`): runs with and without it, in turns.

    scripts/bench --counting

One orchestrator in this process, no gRPC, as in `engine_loop`; "without" is a counter that does nothing. Part of the line
of figures is what the counter costs when it is called by itself: on a busy machine the difference of two runs is mostly
noise, this is not.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.engine_loop import measure
from onexflow.core.ids import Token
from onexflow.engine.tally import Tally
from onexflow.ports.worker_link import AttemptResult

PAIRS = 5
RUNS = 100
TASKS = 10  #: of a run
BEST_OF = 25
CALLS = 200_000


@contextmanager
def _no_counting() -> Iterator[None]:
    count = Tally.add
    Tally.add = _nothing  # type: ignore[method-assign]  # what is measured: runs without it
    try:
        yield
    finally:
        Tally.add = count  # type: ignore[method-assign]  # as above


def _nothing(self: Tally, result: AttemptResult) -> None:
    """Count nothing."""


def _pair() -> tuple[float, float]:
    """µs of CPU a task with counting and without: of runs in turns the best, as what else runs only ever adds. Who goes
    first changes (A B B A): the second of two runs is not as the first, whatever it does."""
    counted, bare = [], []
    for turn in range(BEST_OF + 1):
        if turn % 2:
            counted.append(_a_task())
        with _no_counting():
            bare.append(_a_task())
        if not turn % 2:
            counted.append(_a_task())
    return min(counted), min(bare)


def _a_task() -> float:
    return asyncio.run(measure("chain", RUNS))[0] / (RUNS * TASKS) * 1e6


def _a_call() -> float:
    """µs of one result's counting."""
    tally, result = Tally("i"), AttemptResult(Token(1, 1, 1, 0), "completed", started_at=1_000, finished_at=3_000)
    add = tally.add
    began = time.thread_time()
    for _ in range(CALLS):
        add(result)
    return (time.thread_time() - began) / CALLS * 1e6


def table() -> str:
    """The figures, in turns."""
    sys.setswitchinterval(0.0005)
    _a_task()  # warm
    rows = []
    for number in range(PAIRS):
        counted, bare = _pair()
        rows.append((counted, bare))
        sys.stderr.write(f"pair {number + 1}: {counted:.1f} with, {bare:.1f} without\n")
    call = min(_a_call() for _ in range(PAIRS))
    lines = ["| pair | µs CPU a task with counting | without | difference |", "|---|---|---|---|"]
    for number, (counted, bare) in enumerate(rows, 1):
        lines.append(f"| {number} | {counted:.1f} | {bare:.1f} | {(counted / bare - 1) * 100:+.1f} % |")
    counted, bare = (statistics.median(column) for column in zip(*rows, strict=True))
    lines.append(f"| median | {counted:.1f} | {bare:.1f} | {(counted / bare - 1) * 100:+.1f} % |")
    best = min(bare for _, bare in rows)
    by_itself = (
        f"Counting one result takes {call:.2f} µs by itself: {call / best * 100:.2f} % of the best {best:.1f} µs of CPU that "
        "the orchestrator's engine uses for a task of these chains, and less of what a task costs with gRPC, worker and client."
    )
    on_demand = (
        "`get_workflow_metrics`, `get_queue_metrics` and the work-queue part of `get_node_metrics` are computed from what is "
        "stored when they are asked for: tasks pay nothing for them."
    )
    return "\n".join([*lines, "", by_itself, "", on_demand])
