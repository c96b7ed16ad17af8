"""How long one append takes on SQLite: 100 rows of 200 bytes over 8 shards, with an idle and with a busy event loop.

    python tests/benchmarks/store_append.py [FOLDER]

A busy loop is the case that matters: sqlite gives up the GIL in each step and must win it back.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import uuid
from pathlib import Path

from onexflow.core.ids import RunKey
from onexflow.ports.event_store import ParkedRecord, Row, RunRecord, ShardAppend
from onexflow.storage.sqlite import SqliteStore

SHARDS = 8
ROWS = 100
DATA = b"x" * 200


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


async def measure(path: Path, *, commits: int, busy: bool, with_runs: bool) -> list[float]:
    store = SqliteStore(path, SHARDS)
    await store.open()
    for shard in range(SHARDS):
        await store.claim(shard, 0, "bench")
    load = Load(with_runs=with_runs)
    stop = asyncio.Event()
    spinner = asyncio.create_task(spin(stop)) if busy else None
    times = []
    for _ in range(commits):
        batch = load.batch()
        began = time.perf_counter()
        outcome = await store.append(batch)
        times.append(time.perf_counter() - began)
        assert len(outcome.stored) == SHARDS, outcome
    stop.set()
    if spinner is not None:
        await spinner
    await store.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="")
    parser.add_argument("--commits", type=int, default=500)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0002)
    sys.stdout.write(f"{'load':<30}{'loop':<8}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'max ms':>9}{'rows/s':>10}\n")
    for with_runs in (False, True):
        for busy in (False, True):
            with tempfile.TemporaryDirectory(dir=arguments.folder or None) as folder:
                times = asyncio.run(
                    measure(Path(folder) / "s.db", commits=arguments.commits, busy=busy, with_runs=with_runs)
                )
            times.sort()
            shown = [times[int(len(times) * part)] * 1000 for part in (0.5, 0.9, 0.99)] + [times[-1] * 1000]
            name = f"{ROWS} rows" + (f" + {ROWS} runs + 8 parked" if with_runs else "")
            line = "".join(f"{value:>9.2f}" for value in shown)
            rate = ROWS * len(times) / sum(times)
            sys.stdout.write(f"{name:<30}{'busy' if busy else 'idle':<8}{line}{rate:>10.0f}\n")


if __name__ == "__main__":
    main()
