"""All of it, as a page and a picture."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from benchmarks.growth import curves, plot, takeover
from benchmarks.growth.curves import CURVES, GOAL, Curve, Point, Process
from benchmarks.growth.system import STARTED_A_SECOND

#: Turns of a curve.
TURNS: Final = 5
TURNS_QUICK: Final = 2
#: (open runs, runs of the owner that is gone, items of fan-outs).
SIZES: Final = (100_000, 33_000, (1_000, 10_000, 100_000))
SIZES_QUICK: Final = (2_000, 1_000, (300, 2_000))


class Report(NamedTuple):
    """The page and the picture."""

    text: str
    picture: str


def measure(names: list[str], *, quick: bool = False) -> Report:
    """The curves of these names (none: all), and then also what a restart, a takeover, an idle run and a fan-out cost."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found: list[tuple[Curve, list[Point]]] = []
    for curve in CURVES:
        if not names or curve.name in names:
            sizes = curve.quick if quick else curve.sizes
            found.append((curve, curves.measure(curve, sizes, TURNS_QUICK if quick else TURNS)))
    parts = [_table(found, TURNS_QUICK if quick else TURNS)]
    if not names:
        open_runs, taken_over, items = SIZES_QUICK if quick else SIZES
        parts += [_held(open_runs, taken_over), _fans(items)]
    return Report("\n\n".join(parts), plot.svg(found))


def _table(found: list[tuple[Curve, list[Point]]], turns: int) -> str:
    lines = ["| how many of what | CPU µs a task | times the least | goal | |", "|---|---|---|---|---|"]
    for curve, points in found:
        for point in points:
            goal, judged = f"≤ {GOAL}", "met" if point.ratio <= GOAL else "not met"
            if point is points[0]:
                goal = judged = ""
            lines.append(f"| {point.size:,} {curve.what} | {point.us:.1f} | {point.ratio:.2f} | {goal} | {judged} |")
    about = (
        f"One engine in process on SQLite, no gRPC. Medians of {turns} turns; each line is a system of its own, those of "
        "one kind take turns. Tasks are those of chains of ten, 200 in flight; of graphs and of a run with a history, its own; "
        "the checkpoint of SQLite's WAL that a history's events leave to be made is waited for, and in no figure."
    )
    return "\n".join([*lines, "", about])


def _held(runs: int, taken_over: int) -> str:
    lines = [
        "| | measured | goal | |",
        "|---|---|---|---|",
        _row(f"memory of an open idle run, {runs:,} of them, bytes", curves.idle_bytes(runs), 2000, "{:,.0f}"),
    ]
    for what, count, order in (
        ("of an empty store", 0, ""),
        (f"with {runs:,} open runs, paged out", runs, "idle"),
        (f"with {runs:,} open runs, just started", runs, "open"),
    ):
        served, inside = curves.restart(count, order)
        lines.append(
            _row(f"restart {what}: first run ended, s ({inside:.2f} of them the engine's)", served, 2.0, "{:.2f}")
        )
    seconds = asyncio.run(takeover.measure(taken_over))
    lines.append(_row(f"takeover of {taken_over:,} open idle runs: all shards served, s", seconds, 1.0, "{:.2f}"))
    about = (
        f"Idle runs are started at {STARTED_A_SECOND:,} a second and paged out. A restart is a process killed with `kill -9` and a new "
        "one, interpreter and imports included. The takeover is on PostgreSQL, from the moment the owner's death is known."
    )
    return "\n".join([*lines, "", about])


def _row(what: str, figure: float, goal: float, form: str) -> str:
    return f"| {what} | {form.format(figure)} | ≤ {goal:,g} | {'met' if figure <= goal else 'not met'} |"


def _fans(sizes: tuple[int, ...]) -> str:
    lines = [
        "| items of one run | CPU µs an item | events of the run | outcomes in the log | memory MiB |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="onexflow-growth-") as folder, Process(folder) as system:
            figures = system.tell("fan", size)
        lines.append(
            f"| {size:,} | {figures['us']:.1f} | {figures['events']:,.0f} | {figures['recorded']:,.0f} "
            f"| {figures['mib']:.0f} |"
        )
    return "\n".join(lines)


def write(report: Report, heading: str, file: str) -> None:
    """The page, with the picture beside it."""
    page = Path(file)
    picture = page.with_suffix(".svg")
    picture.write_text(report.picture)
    page.write_text(f"# Growth\n\n{heading}\n\n![CPU a task over sizes]({picture.name})\n\n{report.text}\n")


def main() -> None:
    """For a single curve: `python -m benchmarks.growth.report [CURVE …] [--quick]`."""
    names = [name for name in sys.argv[1:] if name != "--quick"]
    sys.stdout.write(f"{measure(names, quick='--quick' in sys.argv).text}\n")


if __name__ == "__main__":
    main()
