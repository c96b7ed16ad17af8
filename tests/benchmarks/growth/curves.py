"""What is measured: for each thing that a system can have much of, CPU a task with more and more of it.

Each point is a system of its own (`system.py`); those of a curve take turns, the one with least among them, and what counts
is the ratio to it in the same turn.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import Final, NamedTuple, Self

#: A task may cost so many times what it does in the system that has least.
GOAL: Final = 1.3


class Curve(NamedTuple):
    """`prepare` and `part` are methods of `system.System`. The part is told the size when nothing is prepared and the
    system is not made with it."""

    name: str
    what: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    prepare: str = ""
    part: str = "chains"


CURVES: Final = (
    Curve("idle", "open idle runs", (0, 1_000, 10_000, 100_000), (0, 2_000), prepare="idle"),
    Curve("finished", "stored runs that have ended", (0, 1_000, 10_000, 100_000), (0, 5_000), prepare="finished"),
    Curve("graph", "tasks of the run's graph", (100, 1_000, 10_000), (100, 1_000), part="graphs"),
    Curve("history", "events of the run before the tasks", (0, 1_000, 10_000, 100_000), (0, 5_000), part="history"),
    Curve("shards", "shards", (8, 64, 256, 1_024), (8, 64)),
    Curve("streams", "worker streams", (1, 10, 50, 200), (1, 50)),
)
#: Tasks of a part that is not told a size.
PART: Final = 10_000


class Process:
    """A system, from here."""

    def __init__(self, folder: str, shards: int = 8, workers: int = 1) -> None:
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.growth.system", folder, str(shards), str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        #: What it said when it served.
        self.ready = self._hear()
        self.served = time.perf_counter() - self.began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, order: str, number: int) -> dict[str, float]:
        """Have it do something, and wait for the figures."""
        assert self._process.stdin is not None, "it has a pipe"
        self._process.stdin.write(f"{order} {number}\n")
        self._process.stdin.flush()
        return self._hear()

    def kill(self) -> None:
        """As `kill -9`: what it says is on disk is there."""
        self._process.kill()
        self._process.communicate()

    def _hear(self) -> dict[str, float]:
        assert self._process.stdout is not None, "it has a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the system has ended by itself; what it wrote says why")
        figures: dict[str, float] = json.loads(line)
        return figures


class Point(NamedTuple):
    """CPU a task at one size: µs, and times what the curve's first size costs; medians over the turns."""

    size: int
    us: float
    ratio: float


def measure(curve: Curve, sizes: tuple[int, ...], turns: int) -> list[Point]:
    """The points of a curve."""
    with ExitStack() as stack:
        systems = []
        for size in sizes:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onexflow-growth-"))
            made = {curve.name.replace("streams", "workers"): size} if curve.name in {"shards", "streams"} else {}
            system = stack.enter_context(Process(folder, **made))
            if curve.prepare and size:
                _say(f"{curve.name}: {size:,} {curve.what} …")
                system.tell(curve.prepare, size)
            systems.append(system)
        rows = []
        for turn in range(turns):
            order = list(enumerate(sizes))
            found = dict.fromkeys(sizes, 0.0)
            for number, size in order if turn % 2 == 0 else reversed(order):
                given = PART if curve.part == "chains" else size
                found[size] = systems[number].tell(curve.part, given)["us"]
            rows.append(list(found.values()))
            _say(f"{curve.name}: " + ", ".join(f"{size:,}: {us:.1f} µs" for size, us in found.items()))
    points = []
    for number, size in enumerate(sizes):
        us = statistics.median(row[number] for row in rows)
        points.append(Point(size, us, statistics.median(row[number] / row[0] for row in rows)))
    return points


def restart(runs: int, order: str) -> tuple[float, float]:
    """(seconds from the start of a process to the end of its first run, of these in the engine) with so many open runs in
    the store that a killed process has left."""
    with tempfile.TemporaryDirectory(prefix="onexflow-growth-") as folder:
        with Process(folder) as before:
            if runs:
                before.tell(order, runs)
        with Process(folder) as after:
            return after.served, after.ready["seconds"]


def idle_bytes(runs: int) -> float:
    """Memory that one open idle run costs."""
    with tempfile.TemporaryDirectory(prefix="onexflow-growth-") as folder, Process(folder) as system:
        return system.tell("idle", runs)["bytes"]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
