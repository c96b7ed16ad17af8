"""How long one append takes: 100 rows of 200 bytes over 8 shards, with an idle and with a busy event loop.

    python tests/benchmarks/store_append.py [FOLDER] [--store SQLite|PostgreSQL]

A busy loop is the case that matters: sqlite gives up the GIL in each step and must win it back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from onexflow.core.ids import RunKey
from onexflow.ports.event_store import EventStore, ParkedRecord, Row, RunRecord, ShardAppend
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.storage.sqlite import SqliteStore

SHARDS = 8
ROWS = 100
DATA = b"x" * 200
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Load:
    """Appends as an engine makes them: rows, and beside them optionally a listing entry for each run."""

    def __init__(self, *, with_runs: bool) -> None:
        self._with_runs = with_runs
        self._heads = [1] * SHARDS
        self._iid = 0

    def batch(self) -> list[ShardAppend]:
        parts = []
        for shard in range(SHARDS):
            head = self._heads[shard]
            count = ROWS // SHARDS + (shard < ROWS % SHARDS)
            rows, runs, parked = [], [], []
            for n in range(count):
                self._iid += 1
                rows.append(Row(head + n * 3, 3, 1, self._iid, 1, DATA))
                if self._with_runs:
                    key = RunKey(
                        "default", "bench", uuid.UUID(int=time.time_ns() << 60 | uuid.uuid4().int >> 68)
                    ).to_bytes()
                    runs.append(RunRecord(self._iid, key, 2, self._iid, self._iid, b"h" * 32, 3))
            if self._with_runs:
                parked.append(ParkedRecord(self._iid, 1, "timer"))
            self._heads[shard] = head + 3 * count
            parts.append(
                ShardAppend(shard=shard, epoch=1, head=head, next=head + 3 * count, rows=rows, runs=runs, parked=parked)
            )
        return parts


async def spin(stop: asyncio.Event) -> int:
    """Pure Python in slices of 1 ms, as an engine's turns are."""
    turns = 0
    while not stop.is_set():
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            turns += 1
        await asyncio.sleep(0)
    return turns


def server_cpu(server: EmbeddedPostgres | None) -> float:
    """Seconds of CPU that the server's processes have used."""
    total = 0.0
    for pid in [] if server is None else server.processes():
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15]) / TICKS
    return total


class Measured(NamedTuple):
    """Seconds of each append; CPU seconds of this process and of the server."""

    times: list[float]
    own: float
    server: float


async def measure(
    store: EventStore, server: EmbeddedPostgres | None, *, commits: int, busy: bool, with_runs: bool
) -> Measured:
    await store.open()
    for shard in range(SHARDS):
        await store.claim(shard, 0, "bench")
    load = Load(with_runs=with_runs)
    await store.append(load.batch())
    stop = asyncio.Event()
    spinner = asyncio.create_task(spin(stop)) if busy else None
    times = []
    own, others = time.process_time(), server_cpu(server)
    for _ in range(commits):
        batch = load.batch()
        began = time.perf_counter()
        outcome = await store.append(batch)
        times.append(time.perf_counter() - began)
        assert len(outcome.stored) == SHARDS, outcome
    own, others = time.process_time() - own, server_cpu(server) - others
    stop.set()
    if spinner is not None:
        await spinner
    await store.close()
    return Measured(sorted(times), own, others)


HEADING: Final = (
    "| store | an append | loop | p50 ms | p90 ms | p99 ms | max ms | rows/s | CPU µs a row: here / server |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line(name: str, measured: Measured, *, busy: bool, with_runs: bool) -> str:
    times = measured.times
    shown = [times[int(len(times) * part)] * 1000 for part in (0.5, 0.9, 0.99)] + [times[-1] * 1000]
    what = f"{ROWS} rows" + (f", {ROWS} runs, 8 parked" if with_runs else "")
    rows = ROWS * len(times)
    here = "" if busy else f"{measured.own / rows * 1e6:.1f}"  # a busy loop's own work is not the append's
    cells = [name, what, "busy" if busy else "idle", *(f"{value:.2f}" for value in shown), f"{rows / sum(times):,.0f}"]
    return f"| {' | '.join(cells)} | {here} / {measured.server / rows * 1e6:.1f} |"


def lines(folder: str, commits: int, names: Sequence[str]) -> Iterator[str]:
    """A line for each store, load and loop."""
    server = EmbeddedPostgres() if "PostgreSQL" in names else None
    with asyncio.Runner() as runner:
        if server is not None:
            runner.run(server.start())
        try:
            for with_runs, busy, name in itertools.product((False, True), (False, True), names):
                with tempfile.TemporaryDirectory(dir=folder or None) as place:
                    store: EventStore = SqliteStore(Path(place) / "s.db", SHARDS)
                    if name == "PostgreSQL" and server is not None:
                        store = PostgresStore(f"{server.url}?schema=s{uuid.uuid4().hex[:8]}", SHARDS)
                    beside = server if name == "PostgreSQL" else None
                    measured = runner.run(measure(store, beside, commits=commits, busy=busy, with_runs=with_runs))
                yield line(name, measured, busy=busy, with_runs=with_runs)
        finally:
            if server is not None:
                runner.run(server.stop())


def table() -> str:
    """Both stores, for `scripts/bench --stores`."""
    sys.setswitchinterval(0.0005)  # as the orchestrator has it
    return "\n".join([HEADING, *lines("", 500, ("SQLite", "PostgreSQL"))])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="")
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--store", choices=("SQLite", "PostgreSQL"), action="append", help="which [both]")
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0002)
    print(HEADING)
    for text in lines(arguments.folder, arguments.commits, arguments.store or ("SQLite", "PostgreSQL")):
        print(text, flush=True)


if __name__ == "__main__":
    main()
