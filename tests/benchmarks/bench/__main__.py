"""Run the workloads and print a table with the machine's facts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import counting, store_append
from onexflow.storage.postgres.embedded import EmbeddedPostgres

from .processes import Cluster, memory_mib
from .workloads import Load, Sample

CALLS = {"single": 4000, "chain": 400, "fan": 10, "latency": 300}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(CALLS)} [all]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each workload is run [3]; medians are printed")
    parser.add_argument("--role", choices=("compute", "effect"), default="compute", help="role of the no-op tasks")
    parser.add_argument(
        "--store", choices=("sqlite", "postgres"), default="sqlite", help="what the cluster runs on [sqlite]"
    )
    parser.add_argument("--stores", action="store_true", help="instead: how long one append takes, on each store")
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE as well (docs/measured/…)")
    parser.add_argument(
        "--counting", action="store_true", help="instead: what counting each worker's results costs, in turns with not"
    )
    arguments = parser.parse_args()
    for name in arguments.workloads:
        if name not in CALLS:
            parser.error(f"unknown workload {name!r}: {', '.join(CALLS)}")
    return arguments


def fsync_ms() -> float:
    """Median time of an fdatasync after a 4 KiB append on this disk."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="onexflow-fsync-") as file:
        for _ in range(50):
            os.write(file.fileno(), b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def spin_ms() -> float:
    """Time of a fixed piece of pure Python: how fast this machine is at this moment."""
    began = time.perf_counter()
    sum(range(2_000_000))
    return (time.perf_counter() - began) * 1e3


def machine() -> str:
    """The moment, the commit, the machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, {os.cpu_count()} CPUs ({model}), "
        f"Python {platform.python_version()}, fdatasync p50 {fsync_ms():.2f} ms, spin {spin_ms():.0f} ms"
    )


def table(samples: dict[str, list[Sample]], memory: dict[str, tuple[float, float]]) -> str:
    lines = [
        "| workload | rounds | tasks/s median (min-max) | p50 / p99 ms | CPU µs/task: orchestrator / worker / client | total |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in samples.items():
        rates = [sample.rate for sample in rounds]
        cpu = {key: statistics.median(sample.cpu_us[key] for sample in rounds) for key in rounds[0].cpu_us}
        latencies = sorted(value for sample in rounds for value in sample.latencies_ms)
        shown = f"{_at(latencies, 0.5):.2f} / {_at(latencies, 0.99):.2f}" if latencies else ""
        lines.append(
            f"| {name} | {len(rounds)} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) | {shown} "
            f"| {cpu['orchestrator']:.0f} / {cpu['worker']:.0f} / {cpu['client']:.0f} | {sum(cpu.values()):.0f} |"
        )
    lines.append("")
    lines.append("Memory after the run, RSS / PSS MiB: " + ", ".join(
        f"{name} {rss:.0f} / {pss:.0f}" for name, (rss, pss) in memory.items()))  # fmt: skip
    return "\n".join(lines)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _report(file: str, heading: str, measured: Callable[[], str]) -> int:
    sys.stderr.write(f"{heading}\n")
    text = f"{heading}\n\n{measured()}\n"
    sys.stdout.write(text)
    if file:
        Path(file).write_text(f"# Benchmark\n\n{text}")
    return 0


async def _measure(arguments: argparse.Namespace) -> int:
    wanted = arguments.workloads or list(CALLS)
    samples: dict[str, list[Sample]] = {}
    store = "SQLite synchronous=FULL" if arguments.store == "sqlite" else "PostgreSQL on this machine"
    setting = f"{store}, one client, one orchestrator, one worker process, {arguments.role} tasks"
    heading = f"{machine()}; {setting}"
    print(heading, file=sys.stderr)
    async with contextlib.AsyncExitStack() as stack:
        server = EmbeddedPostgres() if arguments.store == "postgres" else None
        if server is not None:
            stack.push_async_callback(server.stop)
            await server.start()
        cluster = await stack.enter_async_context(Cluster("" if server is None else server.url))
        load = await Load.open(cluster, arguments.role)
        await load.single(500)  # warm: imports, caches, the service time that credits go by
        for number in range(arguments.rounds):
            for name in wanted:
                sample = await getattr(load, name)(CALLS[name])
                samples.setdefault(sample.workload, []).append(sample)
                print(f"round {number + 1}: {sample.workload} {sample.rate:,.0f}/s", file=sys.stderr)
        memory = {name: memory_mib(pid) for name, pid in cluster.pids.items()}
        await load.close()
    text = f"{heading}\n\n{table(samples, memory)}\n"
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(f"# Benchmark\n\n{text}")
    return 0


def main() -> int:
    arguments = _arguments()
    if arguments.counting:
        return _report(arguments.write, f"{machine()}; one engine in process on SQLite, no gRPC", counting.table)
    if arguments.stores:
        return _report(arguments.write, f"{machine()}; PostgreSQL on this machine, too", store_append.table)
    return asyncio.run(_measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
