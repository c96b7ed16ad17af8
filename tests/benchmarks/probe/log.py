"""The probe's event log: one thread, one connection, one transaction a commit, one packed row a run and commit."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

from . import wire

#: (shard, first offset, events, run, first sequence number, packed events)
Row = tuple[int, int, int, int, int, bytes]


class Log:
    """Appends, in a thread."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE events (shard INTEGER, offset INTEGER, count INTEGER, run INTEGER, seq INTEGER, data BLOB,"
            " PRIMARY KEY (shard, offset)) WITHOUT ROWID"
        )
        self._jobs: queue.SimpleQueue[tuple[list[Row], Callable[[], None]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def append(self, rows: list[Row], done: Callable[[], None]) -> None:
        """`done` is called on the loop when they are durable."""
        self._jobs.put((rows, done))

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        connection = self._connection
        while (job := self._jobs.get()) is not None:
            rows, done = job
            connection.execute("BEGIN IMMEDIATE")
            left, at = len(rows), 0
            for size in (64, 32, 16, 8, 4, 2, 1):
                while left >= size:
                    flat = [value for row in rows[at : at + size] for value in row]
                    connection.execute(_INSERTS[size], flat)
                    at += size
                    left -= size
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(done)


_INSERTS = {
    size: "INSERT INTO events VALUES " + ",".join(["(?,?,?,?,?,?)"] * size) for size in (64, 32, 16, 8, 4, 2, 1)
}


def check(path: str) -> int:
    """Read the log back: offsets without a gap in each shard, sequence numbers without a gap in each run, every run told
    from its creation to its end with each task scheduled, started and completed once. Returns the number of runs."""
    heads: dict[int, int] = {}
    runs: dict[tuple[int, int], list[wire.Event]] = {}
    with closing(sqlite3.connect(path)) as connection:
        for shard, offset, count, run, seq, data in connection.execute("SELECT * FROM events ORDER BY shard, offset"):
            assert offset == heads.get(shard, 1), f"shard {shard} has a gap before {offset}"
            heads[shard] = offset + count
            told = runs.setdefault((shard, run), [])
            assert seq == len(told) + 1, f"run {run} has a gap before {seq}"
            told += wire.events.decode(data)
            assert seq + count == len(told) + 1
    for place, told in runs.items():
        kinds = [[step for kind, step, _ in told if kind == wanted] for wanted in range(5)]
        assert told[0][0] == wire.CREATED, f"run {place} does not begin with its creation"
        assert told[-1][0] == wire.FINISHED, f"run {place} does not end"
        scheduled, started, completed = (sorted(kinds[kind]) for kind in (wire.SCHEDULED, wire.STARTED, wire.COMPLETED))
        assert scheduled == started == completed == list(range(len(scheduled))), f"run {place} lacks a task"
    return len(runs)
