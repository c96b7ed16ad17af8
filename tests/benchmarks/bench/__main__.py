"""Run the workloads and print a table with the machine's facts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import counting, store_append
from benchmarks.growth import report as growth
from onexflow.app.adapters import LOCAL_SHARDS
from onexflow.app.tuning import loop_factory
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.telemetry import logging

from ..peers import comparison
from ..probe.client import Probe
from . import footprint, overload, syscalls, two
from .machine import machine
from .parts import ON_CLUSTER, PARTS
from .parts import run as run_part
from .processes import Cluster, memory_mib
from .rounds import CALLS, Rounds
from .workloads import Bare, Load, Onexflow

WORKLOADS = (*CALLS, *PARTS)
_STORES = {"sqlite": "SQLite synchronous=FULL", "postgres": "PostgreSQL on this machine"}
_STORES["both"] = " and ".join(_STORES.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)} [all]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each workload is run [3]; medians are printed")
    parser.add_argument("--role", choices=("compute", "effect"), default="compute", help="role of the no-op tasks")
    parser.add_argument(
        "--store", choices=tuple(_STORES), default="sqlite", help="what the cluster runs on; both: in turns [sqlite]"
    )
    parser.add_argument(
        "--shards", type=int, default=0, help=f"of the store and of the probe's log [{LOCAL_SHARDS}, on PostgreSQL 64]"
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
    parser.add_argument(
        "--syscalls", action="store_true", help="instead: system calls a task, and that each commit is synced (strace)"
    )
    arguments = parser.parse_args()
    for name in arguments.workloads:
        if name not in WORKLOADS:
            parser.error(f"unknown workload {name!r}: {', '.join(WORKLOADS)}")
    if arguments.shards < 0 or (arguments.shards and {"footprint", "two"} & set(arguments.workloads or WORKLOADS)):
        parser.error("--shards takes a number and goes with workloads of one cluster: neither footprint nor two")
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
    wanted = arguments.workloads or list(WORKLOADS)
    setting = f"{_STORES[arguments.store]}, one client, one orchestrator, one worker process, {arguments.role} tasks"
    if arguments.shards:
        setting += f", {arguments.shards} shards"
    heading = f"{machine()}; {two.SETTING if wanted == ['two'] else setting}"
    print(heading, file=sys.stderr)
    tables = [heading]
    async with contextlib.AsyncExitStack() as stack:
        urls = {} if arguments.store == "postgres" else {"onexflow": ""}
        if arguments.store != "sqlite":
            server = EmbeddedPostgres()
            stack.push_async_callback(server.stop)
            await server.start()
            urls["postgres" if urls else "onexflow"] = server.url
        if "footprint" in wanted:  # before others are there to share the libraries' memory
            tables += [
                await run_part("footprint", _where(name, urls), arguments.rounds, partial(footprint.measure, url))
                for name, url in urls.items()
            ]
        if "two" in wanted:
            tables.append(await run_part("two", "", arguments.rounds, two.measure))
        if set(wanted) - {"footprint", "two"}:
            tables += await _on_clusters(stack, urls, wanted, arguments)
    text = "\n\n".join(tables) + "\n"
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(f"# Benchmark\n\n{text}")
    return 0


async def _on_clusters(
    stack: contextlib.AsyncExitStack, urls: dict[str, str], wanted: list[str], arguments: argparse.Namespace
) -> list[str]:
    """The tables of all workloads that one cluster for each store serves."""
    clusters = {
        name: await stack.enter_async_context(Cluster(url, shards=arguments.shards)) for name, url in urls.items()
    }
    runners = {}
    for name, cluster in clusters.items():
        runners[name] = await Onexflow.open(cluster, arguments.role)
        stack.push_async_callback(runners[name].close)
    loads = {name: Load(runner) for name, runner in runners.items()}
    in_turns = [name for name in wanted if name in CALLS]
    if in_turns and not arguments.no_probe:
        loads["probe"] = Load(Bare(await stack.enter_async_context(Probe(arguments.shards or LOCAL_SHARDS))))
    for load in loads.values():
        await load.single(500)  # warm: imports, caches, the service time that credits go by
    gc.collect()
    gc.freeze()  # what the bench has loaded is no client's: a look of the collector at it would stand in its latencies
    tables = []
    if in_turns:
        rounds = Rounds()
        await rounds.run(loads, in_turns, arguments.rounds)
        memory = [_memory(f"{name}'s " if len(urls) > 1 else "", cluster) for name, cluster in clusters.items()]
        tables += [rounds.table(), *memory]
    tables += [
        await run_part(part, _where(name, urls), arguments.rounds, partial(ON_CLUSTER[part], runner))
        for part in wanted
        if part in ON_CLUSTER
        for name, runner in runners.items()
    ]
    return tables


def _where(name: str, urls: dict[str, str]) -> str:
    """On which store, where there are two."""
    return "" if len(urls) == 1 else "PostgreSQL" if name == "postgres" else "SQLite"


def _memory(whose: str, cluster: Cluster) -> str:
    sizes = {name: memory_mib(pid) for name, pid in cluster.pids.items()}
    return f"Memory after the run, RSS / PSS MiB: {whose}" + ", ".join(
        f"{name} {rss:.0f} / {pss:.0f}" for name, (rss, pss) in sizes.items()
    )


def main() -> int:
    if sys.argv[1:2] == ["overload"]:
        return overload.main(sys.argv[2:])
    arguments = _arguments()
    logging.configure("warning")
    if arguments.peers is not None:
        return comparison.main(arguments.peers, arguments.rounds, arguments.write)
    if arguments.counting:
        return _report(arguments.write, f"{machine()}; one engine in process on SQLite, no gRPC", counting.table)
    if arguments.growth:
        return _growth(arguments.write, quick=arguments.quick)
    if arguments.stores:
        return _report(arguments.write, f"{machine()}; PostgreSQL on this machine, too", store_append.table)
    if arguments.syscalls:
        try:
            return _report(
                arguments.write, f"{machine()}; SQLite synchronous=FULL", lambda: asyncio.run(syscalls.measure())
            )
        except syscalls.CannotTrace as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
    with asyncio.Runner(loop_factory=loop_factory()) as runner:  # the clients on uvloop, like the binaries
        return runner.run(_measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
