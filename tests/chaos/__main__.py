"""Run scenarios with real processes for a number of rounds and print a table of their figures."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from benchmarks.bench.machine import machine

from .catalog import BRIDGE, CLUSTER, SCENARIOS, SMALL, described
from .figures import Figures, table
from .load import RATE
from .network import leave_network
from .stage import Options

GROUPS = {"small": tuple(SMALL), "bridge": tuple(BRIDGE), "cluster": tuple(CLUSTER)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/chaos", description=__doc__, epilog=described(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="by name, or `small`, `bridge` or `cluster` [all]"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run [1]")
    parser.add_argument("--rate", type=float, default=RATE, help=f"chains of three tasks a second [{RATE:g}]")
    parser.add_argument("--quick", action="store_true", help="faults no longer than it takes to see them")
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE, or add it there (docs/measured/…)")
    arguments = parser.parse_args()
    names: list[str] = []
    for name in arguments.scenarios or SCENARIOS:
        if name not in SCENARIOS and name not in GROUPS:
            parser.error(f"unknown scenario {name!r}: {', '.join((*GROUPS, *SCENARIOS))}")
        names += GROUPS.get(name, (name,))
    arguments.scenarios = list(dict.fromkeys(names))
    return arguments


def _write(file: Path, text: str) -> None:
    if not file.exists():
        file.write_text("# Chaos\n\nReal processes, `scripts/chaos`; docs/performance.md tells how to read it.\n")
    with file.open("a") as stream:
        stream.write(f"\n{text}")


async def _run(arguments: argparse.Namespace, network: str) -> int:
    options = Options(rounds=arguments.rounds, rate=arguments.rate, quick=arguments.quick)
    results: dict[str, Figures] = {}
    broken: list[str] = []
    for name in arguments.scenarios:
        try:
            results[name] = await SCENARIOS[name](options)
        except (AssertionError, TimeoutError) as error:
            broken.append(f"{name}: {str(error) or type(error).__name__}")
            print(f"{name} FAILED: {broken[-1]}", file=sys.stderr, flush=True)
            continue
        broken += [f"{name}: {what}" for what in results[name].broken()]
    verdict = (
        "Every promise held." if not broken else "**Broken promises:**\n\n" + "\n".join(f"- {one}" for one in broken)
    )
    text = (
        f"## {' '.join(arguments.scenarios)}: {options.rounds} rounds\n\n{machine()}. {options.rate:g} chains of three tasks of"
        f" 20 ms a second are started at fixed times, everything on this machine. {network} Each run was audited. {verdict}\n\n"
        f"{table(results)}\n"
    )
    print(text)
    if arguments.write:
        _write(Path(arguments.write), text)
    return 1 if broken else 0


def main() -> int:
    arguments = _arguments()
    why = leave_network()  # before there is any thread
    network = f"Partitions are held by relays ({why})." if why else "A partition is a cable taken off its bridge."
    return asyncio.run(_run(arguments, network))


if __name__ == "__main__":
    sys.exit(main())
