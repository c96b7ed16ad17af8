"""`--syscalls`: what the orchestrator asks of the kernel, by strace, beside its own count of commits.

A commit is durable when the store has called fdatasync for it: there must be one a commit at least. The rates under strace
mean nothing, the counts do.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from onexflow.telemetry import names

from .collector import Collector
from .figures import Goal, at_least, table
from .processes import Cluster
from .workloads import CHAIN, Onexflow, in_flight

GOALS: Final[dict[str, Goal]] = {"fdatasync a commit": at_least(1.0)}
CHAINS: Final = 400
SINGLES: Final = 300
IN_FLIGHT: Final = 200
#: Calls that are rarer than this share of all are summed up.
RARE: Final = 0.02


class CannotTrace(Exception):
    """There is no strace, or it may not look."""


def counts(summary: str) -> dict[str, int]:
    """Calls by name, of what `strace -c` prints."""
    found = {}
    for line in summary.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[-1] != "total" and fields[3].isdecimal():
            found[fields[-1]] = int(fields[3])
    return found


async def measure() -> str:
    """The table. Raises CannotTrace."""
    if shutil.which("strace") is None:
        raise CannotTrace("--syscalls needs strace, and there is none on PATH: apt-get install strace, or the like")
    async with Collector() as collector, Cluster(environment=collector.environment) as cluster:
        onexflow = await Onexflow.open(cluster, "compute")
        try:
            await in_flight(500, IN_FLIGHT, onexflow.single)  # warm
            pid = cluster.pids["orchestrator"]
            chains = await _traced(pid, collector, CHAINS * CHAIN, lambda: in_flight(CHAINS, IN_FLIGHT, onexflow.chain))
            alone = await _traced(pid, collector, SINGLES, lambda: in_flight(SINGLES, 1, onexflow.single))
        finally:
            await onexflow.close()
    return "\n\n".join(
        table(title, [found], GOALS)
        for title, found in (
            (f"system calls, W2: {CHAINS} chains of {CHAIN} tasks, {IN_FLIGHT} in flight", chains),
            (f"system calls, W4: {SINGLES} runs of one task, one at a time", alone),
        )
    )


async def _traced(
    pid: int, collector: Collector, tasks: int, work: Callable[[], Awaitable[object]]
) -> dict[str, float]:
    """The calls of the process meanwhile. Commits are counted within the time that is traced."""
    with tempfile.NamedTemporaryFile(prefix="onexflow-strace-") as file:
        strace = await asyncio.create_subprocess_exec(
            *("strace", "-c", "-f", "-o", file.name, "-p", str(pid)), stderr=subprocess.PIPE
        )
        assert strace.stderr is not None
        said = (await asyncio.wait_for(strace.stderr.readline(), 20.0)).decode()
        if "attached" not in said:
            await strace.wait()
            raise CannotTrace(f"strace may not look at the orchestrator: {said.strip()}")
        drain = asyncio.create_task(strace.stderr.read())
        before = await collector.read(names.COMMITS.name)
        await work()
        commits = await collector.read(names.COMMITS.name) - before
        strace.send_signal(signal.SIGINT)
        await asyncio.wait_for(strace.wait(), 20.0)
        await drain
        calls = counts(Path(file.name).read_text())
    synced = calls.get("fdatasync", 0)
    return {
        "tasks": float(tasks),
        "commits": commits,
        "fdatasync": float(synced),
        "fdatasync a commit": synced / commits,
        **{f"{name} a task": count / tasks for name, count in by_frequency(calls).items()},
    }


def by_frequency(calls: dict[str, int]) -> dict[str, int]:
    """The most frequent first, the rare ones as one; fdatasync in any case."""
    rare = sum(calls.values()) * RARE
    shown = {name: count for name, count in calls.items() if count >= rare or name == "fdatasync"}
    ordered = dict(sorted(shown.items(), key=lambda entry: -entry[1]))
    return ordered | {"all others": sum(calls.values()) - sum(shown.values())}
