"""Run the workloads and print a table with the machine's facts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import counting, store_append
from benchmarks.growth import report as growth
from onexflow.storage.postgres.embedded import EmbeddedPostgres

from ..peers import comparison
from ..probe.client import Probe
from . import overload
from .machine import machine
from .processes import Cluster, memory_mib
from .rounds import CALLS, Rounds
from .workloads import Bare, Load, Onexflow


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(CALLS)} [all]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each workload is run [3]; medians are printed")
    parser.add_argument("--role", choices=("compute", "effect"), default="compute", help="role of the no-op tasks")
    parser.add_argument(
        "--store", choices=("sqlite", "postgres"), default="sqlite", help="what the cluster runs on [sqlite]"
    )
    parser.add_argument("--no-probe", action="store_true", help="without the bare probe that it is compared with")
    parser.add_argument("--stores", action="store_true", help="instead: how long one append takes, on each store")
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE as well (docs/measured/…)")
    parser.add_argument(
        "--counting", action="store_true", help="instead: what counting each worker's results costs, in turns with not"
    )
    parser.add_argument(
        "--growth", action="store_true", help="instead: does a task cost more when there is more of everything?"
    )
    parser.add_argument("--quick", action="store_true", help="with --growth: small sizes, two minutes")
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="PEER",
        help=f"instead: other systems beside onexflow, of {', '.join(comparison.PEERS)} [all]",
    )
    arguments = parser.parse_args()
    for name in arguments.workloads:
        if name not in CALLS:
            parser.error(f"unknown workload {name!r}: {', '.join(CALLS)}")
    return arguments


def _report(file: str, heading: str, measured: Callable[[], str]) -> int:
    sys.stderr.write(f"{heading}\n")
    text = f"{heading}\n\n{measured()}\n"
    sys.stdout.write(text)
    if file:
        Path(file).write_text(f"# Benchmark\n\n{text}")
    return 0


def _growth(file: str, *, quick: bool) -> int:
    heading = machine()
    sys.stderr.write(f"{heading}\n")
    report = growth.measure([], quick=quick)
    sys.stdout.write(f"{heading}\n\n{report.text}\n")
    if file:
        growth.write(report, heading, file)
    return 0


async def _measure(arguments: argparse.Namespace) -> int:
    store = "SQLite synchronous=FULL" if arguments.store == "sqlite" else "PostgreSQL on this machine"
    setting = f"{store}, one client, one orchestrator, one worker process, {arguments.role} tasks"
    heading = f"{machine()}; {setting}"
    print(heading, file=sys.stderr)
    rounds = Rounds()
    async with contextlib.AsyncExitStack() as stack:
        server = EmbeddedPostgres() if arguments.store == "postgres" else None
        if server is not None:
            stack.push_async_callback(server.stop)
            await server.start()
        cluster = await stack.enter_async_context(Cluster("" if server is None else server.url))
        onexflow = await Onexflow.open(cluster, arguments.role)
        stack.push_async_callback(onexflow.close)
        loads = {"onexflow": Load(onexflow)}
        if not arguments.no_probe:
            loads["probe"] = Load(Bare(await stack.enter_async_context(Probe())))
        for load in loads.values():
            await load.single(500)  # warm: imports, caches, the service time that credits go by
        await rounds.run(loads, arguments.workloads or list(CALLS), arguments.rounds)
        memory = {name: memory_mib(pid) for name, pid in cluster.pids.items()}
    text = f"{heading}\n\n{rounds.table()}\n\n{_memory(memory)}\n"
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(f"# Benchmark\n\n{text}")
    return 0


def _memory(memory: dict[str, tuple[float, float]]) -> str:
    return "Memory after the run, RSS / PSS MiB: " + ", ".join(
        f"{name} {rss:.0f} / {pss:.0f}" for name, (rss, pss) in memory.items()
    )


def main() -> int:
    if sys.argv[1:2] == ["overload"]:
        return overload.main(sys.argv[2:])
    arguments = _arguments()
    if arguments.peers is not None:
        return comparison.main(arguments.peers, arguments.rounds, arguments.write)
    if arguments.counting:
        return _report(arguments.write, f"{machine()}; one engine in process on SQLite, no gRPC", counting.table)
    if arguments.growth:
        return _growth(arguments.write, quick=arguments.quick)
    if arguments.stores:
        return _report(arguments.write, f"{machine()}; PostgreSQL on this machine, too", store_append.table)
    return asyncio.run(_measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
