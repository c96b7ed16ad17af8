"""Throw bad input at what takes input, and print what was thrown and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from benchmarks.bench.machine import machine

from . import stored
from .calls import Calls

#: Findings that are printed of each target.
_SHOWN: Final = 20


def calls(seed: int, rounds: int) -> tuple[list[str], str]:
    """random and damaged messages to every method of every service, while a canary's runs go on"""
    played = Calls(seed)
    asyncio.run(played.run(rounds))
    return played.findings, f"{_counted(played.codes)}; {played.canaries:,} runs of the canary"


def definitions(seed: int, rounds: int) -> tuple[list[str], str]:
    """workflow definitions that are right in parts, as JSON and as YAML"""
    findings, kinds = stored.definitions(seed, rounds)
    return findings, _counted(kinds)


def rows(seed: int, rounds: int) -> tuple[list[str], str]:
    """rows and snapshots of the log with some bytes changed"""
    findings, kinds = stored.rows(seed, rounds)
    return findings, _counted(kinds)


TARGETS: Final[dict[str, Callable[[int, int], tuple[list[str], str]]]] = {
    target.__name__: target for target in (calls, definitions, rows)
}


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in kinds.most_common())


def _arguments() -> argparse.Namespace:
    told = "\n".join(f"  {name:11} {target.__doc__}" for name, target in TARGETS.items())
    parser = argparse.ArgumentParser(
        "scripts/fuzz",
        description=__doc__,
        epilog=f"targets:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by name [all]")
    parser.add_argument("--rounds", type=int, default=5000, help="pieces of input for each [5000]")
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="the same seed makes the same input; calls also say again what was answered [1]",
    )
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE (docs/measured/…)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.targets) - set(TARGETS)):
        parser.error(f"unknown target {unknown[0]!r}: {', '.join(TARGETS)}")
    return arguments


def main() -> int:
    arguments = _arguments()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # what is refused on purpose is no news
    table, told = [], []
    for name in arguments.targets or TARGETS:
        began = time.monotonic()
        findings, outcome = TARGETS[name](arguments.seed, arguments.rounds)
        seconds = time.monotonic() - began
        table.append(f"| {name} | {arguments.rounds:,} | {outcome} | {len(findings)} | {seconds:,.0f} |")
        told += [f"{name}: {finding}" for finding in findings[:_SHOWN]]
    text = "\n".join(
        [
            f"# Bad input, seed {arguments.seed}",
            "",
            f"{machine()}. {'Nothing was found.' if not told else '**Findings are below.**'}",
            "",
            "| target | pieces of input | what came of them | findings | s |",
            "|---|---|---|---|---|",
            *table,
            "",
            *told,
        ]
    )
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(text)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
