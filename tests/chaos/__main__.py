"""Run scenarios with real processes for a number of rounds and print a table of their figures."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

from benchmarks.bench.machine import machine

from .scenarios import SCENARIOS, Figures


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)} [all]")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run [1]")
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE as well (docs/measured/…)")
    arguments = parser.parse_args()
    for name in arguments.scenarios:
        if name not in SCENARIOS:
            parser.error(f"unknown scenario {name!r}: {', '.join(SCENARIOS)}")
    return arguments


def table(results: dict[str, list[Figures]]) -> str:
    """A row a figure: minimum, median, maximum over the rounds."""
    lines = ["| scenario | rounds | figure | min | median | max |", "|---|---|---|---|---|---|"]
    for name, rounds in results.items():
        for figure in rounds[0]:
            values = [round_[figure] for round_ in rounds]
            low, middle, high = min(values), statistics.median(values), max(values)
            lines.append(f"| {name} | {len(rounds)} | {figure} | {low:,.4g} | {middle:,.4g} | {high:,.4g} |")
    return "\n".join(lines)


async def main() -> int:
    arguments = _arguments()
    results: dict[str, list[Figures]] = {}
    for name in arguments.scenarios or SCENARIOS:
        for number in range(arguments.rounds):
            figures = await SCENARIOS[name]()
            results.setdefault(name, []).append(figures)
            print(f"{name} round {number + 1}: {figures}", file=sys.stderr)
    text = f"{machine()}\n\n{table(results)}\n"
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(
            f"# Chaos\n\nEvery round's promises held (a broken one ends the command).\n\n{text}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
