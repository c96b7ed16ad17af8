"""Play workflows under seeded faults in virtual time, and print what was done and what came of it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import structlog

from benchmarks.bench.machine import machine
from onexflow.testing.simulation import FAULTS, Report, simulate

from .scenarios import SCENARIOS


def _arguments() -> argparse.Namespace:
    told = "\n".join(f"  {name:8} {' '.join((make.__doc__ or '').split())}" for name, make in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        "scripts/simulate",
        description=__doc__,
        epilog=f"scenarios:\n{told}\n\nfaults: {', '.join(FAULTS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="by name [all]")
    parser.add_argument("--rounds", type=int, default=50, help="of each scenario [50]")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has the next [1]")
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE (docs/measured/…)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.scenarios) - set(SCENARIOS)):
        parser.error(f"unknown scenario {unknown[0]!r}: {', '.join(SCENARIOS)}")
    return arguments


def _row(name: str, report: Report, seconds: float) -> str:
    rounds = report.rounds
    figures: list[Any] = [
        len(rounds), sum(one.runs for one in rounds), sum(report.faults.values()), sum(one.events for one in rounds),
        sum(one.executions for one in rounds), sum(one.resolved for one in rounds),
    ]  # fmt: skip
    shown = " | ".join(f"{figure:,}" for figure in figures)
    return f"| {name} | {shown} | {sum(one.seconds for one in rounds):,.0f} | {seconds:,.0f} |"


def main() -> int:
    arguments = _arguments()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # what fails on purpose is no news
    rows, broken = [], []
    faults: Counter[str] = Counter()
    for name in arguments.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]()
        began = time.monotonic()
        try:
            report = simulate(
                scenario.worker, scenario.workflow, scenario.inputs,
                others=scenario.others, seed=arguments.seed, rounds=arguments.rounds,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - the other scenarios go on
            told = "\n".join([str(error) or repr(error), *getattr(error, "__notes__", [])])
            broken.append(f"{name}: {told}")
            print(f"{name} FAILED: {told}", file=sys.stderr, flush=True)
            continue
        faults += report.faults
        rows.append(_row(name, report, time.monotonic() - began))
    verdict = "Every promise held." if not broken else "**Broken promises:**\n\n" + "\n\n".join(broken)
    text = "\n".join(
        [
            f"# Simulation: seeds {arguments.seed} to {arguments.seed + arguments.rounds - 1}",
            "",
            f"{machine()}; three orchestrators, two workers, eight shards, in virtual time. {verdict}",
            "",
            "| scenario | rounds | runs | faults | events | executions of handlers | resolved by a person | virtual s | real s |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "| fault | times |",
            "|---|---|",
            *(f"| {name} | {faults[name]:,} |" for name in FAULTS),
            "",
        ]
    )
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(text)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
