"""Readers: a few threads with a read-only connection each. A read that takes too long is ended, so that the WAL can
shrink.
"""

from __future__ import annotations

import asyncio
import heapq
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from onexflow.core.errors import InvalidArgument
from onexflow.ports.event_store import (
    CheckpointRecord,
    DefinitionRecord,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunCount,
    RunFilter,
    RunPage,
    RunRecord,
    SnapshotRecord,
    StoredRun,
    Tombstone,
)
from onexflow.storage.sqlite import statements as sql
from onexflow.storage.sqlite.errors import translate
from onexflow.storage.sqlite.schema import connect_reader
from onexflow.storage.sqlite.writer import as_bytes

T = TypeVar("T")

THREADS: Final = 2
READ_SECONDS: Final = 5.0
_OPCODES_BETWEEN_LOOKS: Final = 50_000


class Readers:
    """The pool. `run` calls a function of this module with a connection, in a thread."""

    def __init__(self, path: Path, *, seconds: float = READ_SECONDS) -> None:
        self._path = path
        self._seconds = seconds
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="onexflow-store-read")

    async def run(self, read: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, read, arguments)

    def close(self) -> None:
        """Wait for the reads under way and close the connections. Blocks."""
        self._pool.shutdown(wait=True)
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _call(self, read: Callable[..., T], arguments: tuple[object, ...]) -> T:
        try:
            connection = self._connection()
            self._local.deadline = time.monotonic() + self._seconds
            connection.execute("BEGIN")
            try:
                return read(connection, *arguments)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise translate(error, str(self._path)) from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            local = self._local
            connection = connect_reader(self._path)
            connection.set_progress_handler(lambda: int(time.monotonic() > local.deadline), _OPCODES_BETWEEN_LOOKS)
            local.connection = connection
            self._open.append(connection)
        return connection


def shard_rows(db: sqlite3.Connection, shard: int, offset: int, limit: int) -> list[Row]:
    base = shard << sql.SHARD_BITS
    start = base + max(offset, 1)
    return [_row(found) for found in db.execute(sql.SHARD_ROWS, (base, start, base + sql.MASK, limit))]


def run_rows(db: sqlite3.Connection, shard: int, iid: int, from_seq: int, limit: int) -> list[Row]:
    run = shard << sql.SHARD_BITS | iid
    return [_row(found) for found in db.execute(sql.RUN_ROWS, (run, max(from_seq, 1), limit))]


def _row(found: tuple[int, int, int, int, int, bytes]) -> Row:
    place, count, epoch, run, seq, data = found
    return Row(place & sql.MASK, count, epoch, run & sql.MASK, seq, data)


def find_run(db: sqlite3.Connection, shard: int, key: bytes) -> RunRecord | None:
    namespace, _, workflow_type = key[16:].partition(b"\0")
    for found in db.execute(sql.FIND_RUN, (key[:16], namespace, workflow_type)):
        if found[0] >> sql.SHARD_BITS == shard:
            return _record(found)
    return None


def get_runs(db: sqlite3.Connection, shard: int, iids: Sequence[int]) -> list[RunRecord]:
    base = shard << sql.SHARD_BITS
    records: list[RunRecord] = []
    for start in range(0, len(iids), 500):
        wanted = [base | iid for iid in iids[start : start + 500]]
        records += map(_record, db.execute(sql.runs_by_number(len(wanted)), wanted))
    return records


def _record(found: tuple[Any, ...]) -> RunRecord:
    run, instance, namespace, workflow_type, state, created_at, updated_at, start_hash, head, version = found
    key = b"%b%b\0%b" % (instance, namespace, workflow_type)
    return RunRecord(run & sql.MASK, key, state, created_at, updated_at, start_hash, head, version)


def list_runs(db: sqlite3.Connection, where: RunFilter, cursor: str, limit: int) -> RunPage:
    """Newest first by (created_at, run): both never change, so a page continues where the last one ended."""
    below = _parse_cursor(cursor) if cursor else (1 << 62, 0)
    sources = [
        db.execute(
            "SELECT created_at, run FROM runs WHERE kind = ? AND state = ? AND created_at <= ?"
            " AND (created_at, run) < (?, ?) ORDER BY created_at DESC, run DESC LIMIT ?",
            (kind, state, below[0], *below, limit + 1),
        )
        for kind, _ in _kinds(db, where)
        for state in _states(db, kind, where.states)
    ]
    places = list(islice(heapq.merge(*sources, reverse=True), limit + 1))
    runs = [run for _, run in places[:limit]]
    records = dict(_numbered(db, runs))
    rest = f"{places[limit - 1][0]:x}-{places[limit - 1][1]:x}" if len(places) > limit else ""
    return RunPage([(run >> sql.SHARD_BITS, records[run]) for run in runs], rest)


def count_runs(db: sqlite3.Connection, where: RunFilter) -> list[RunCount]:
    return [
        RunCount(workflow_type, version, state, runs, events)
        for kind, workflow_type in _kinds(db, where)
        for version, state, runs, events in db.execute(
            "SELECT version, state, count(*), sum(head) FROM runs WHERE kind = ? GROUP BY version, state", (kind,)
        )
        if not where.states or state in where.states
    ]


def _kinds(db: sqlite3.Connection, where: RunFilter) -> list[tuple[int, str]]:
    """The numbers and types of the kinds of run that a filter means."""
    query = "SELECT kind, workflow_type FROM kinds WHERE namespace = ?"
    names = [as_bytes(where.namespace)]
    if where.workflow_type:
        query += " AND workflow_type = ?"
        names.append(as_bytes(where.workflow_type))
    return [(kind, as_text(workflow_type)) for kind, workflow_type in db.execute(query, names).fetchall()]


def _states(db: sqlite3.Connection, kind: int, wanted: frozenset[int]) -> list[int]:
    """The states that runs of this kind are in, found by skipping through the index."""
    found: list[int] = []
    last = -1
    while True:
        (state,) = db.execute("SELECT min(state) FROM runs WHERE kind = ? AND state > ?", (kind, last)).fetchone()
        if state is None:
            return found
        if not wanted or state in wanted:
            found.append(state)
        last = state


def _numbered(db: sqlite3.Connection, runs: list[int]) -> list[tuple[int, RunRecord]]:
    numbered: list[tuple[int, RunRecord]] = []
    for start in range(0, len(runs), 500):
        wanted = runs[start : start + 500]
        numbered += ((found[0], _record(found)) for found in db.execute(sql.runs_by_number(len(wanted)), wanted))
    return numbered


def _parse_cursor(cursor: str) -> tuple[int, int]:
    created_at, _, run = cursor.partition("-")
    try:
        place = int(created_at, 16), int(run, 16)
    except ValueError as error:
        raise InvalidArgument("The cursor is not one of ours.", field="cursor") from error
    if not all(0 <= number < 1 << 63 for number in place):
        raise InvalidArgument("The cursor is not one of ours.", field="cursor")
    return place


def snapshot(db: sqlite3.Connection, shard: int, iid: int, max_seq: int | None) -> SnapshotRecord | None:
    found = db.execute("SELECT seq, data FROM snapshots WHERE run = ?", (shard << sql.SHARD_BITS | iid,)).fetchone()
    if found is None or (max_seq is not None and found[0] > max_seq):
        return None
    return SnapshotRecord(iid, *found)


def checkpoint(db: sqlite3.Connection, shard: int) -> CheckpointRecord | None:
    found = db.execute("SELECT place, data FROM checkpoints WHERE shard = ?", (shard,)).fetchone()
    return None if found is None else CheckpointRecord(found[0] & sql.MASK, found[1])


def due_parked(db: sqlite3.Connection, shard: int, until: int, limit: int) -> list[ParkedRecord]:
    found = db.execute(
        "SELECT run, wake_at, reason FROM parked WHERE shard = ? AND wake_at > 0 AND wake_at <= ?"
        " ORDER BY wake_at, run LIMIT ?",
        (shard, until, limit),
    )
    return [ParkedRecord(run & sql.MASK, wake_at, as_text(reason)) for run, wake_at, reason in found]


def get_parked(db: sqlite3.Connection, shard: int, iid: int) -> ParkedRecord | None:
    found = db.execute("SELECT wake_at, reason FROM parked WHERE run = ?", (shard << sql.SHARD_BITS | iid,)).fetchone()
    return None if found is None else ParkedRecord(iid, found[0], as_text(found[1]))


def read_back(db: sqlite3.Connection, shard: int, iids: Sequence[int], limit: int) -> list[StoredRun]:
    found = []
    for record in get_runs(db, shard, iids):
        known = snapshot(db, shard, record.iid, None)
        rows = run_rows(db, shard, record.iid, known.seq + 1 if known is not None else 1, limit)
        found.append(StoredRun(record, known, rows, get_parked(db, shard, record.iid)))
    return found


def get_register(db: sqlite3.Connection, shard: int, name: str) -> bytes | None:
    found = db.execute("SELECT data FROM registers WHERE shard = ? AND name = ?", (shard, as_bytes(name))).fetchone()
    return None if found is None else found[0]


def list_registers(db: sqlite3.Connection, shard: int, prefix: str, after: str, limit: int) -> list[RegisterRecord]:
    begins = as_bytes(prefix)
    first = max(begins, as_bytes(after) + b"\0") if after else begins
    found = db.execute(
        "SELECT name, data FROM registers WHERE shard = ? AND name >= ? AND name < ? ORDER BY name LIMIT ?",
        (shard, first, begins + b"\xff", limit),  # no byte of UTF-8 is 0xff
    )
    return [RegisterRecord(as_text(name), data) for name, data in found]


def find_register(db: sqlite3.Connection, name: str) -> list[tuple[int, bytes]]:
    found = db.execute(
        "SELECT s.shard, r.data FROM shards s CROSS JOIN registers r ON r.shard = s.shard AND r.name = ?"
        " ORDER BY s.shard",
        (as_bytes(name),),
    )
    return found.fetchall()


def tombstones(db: sqlite3.Connection, shard: int, from_offset: int, iid: int) -> list[Tombstone]:
    base = shard << sql.SHARD_BITS
    first = base + max(from_offset, 0)
    if iid:
        found = db.execute(sql.RUN_TOMBSTONES, (base | iid, first))
    else:
        found = db.execute(sql.TOMBSTONES, (first, base + sql.MASK))
    return [
        Tombstone(run & sql.MASK, first_seq, last_seq, first_offset, last_place & sql.MASK, count, digest, at)
        for run, first_seq, last_seq, first_offset, last_place, count, digest, at in found
    ]


def find_request(db: sqlite3.Connection, shard: int, namespace: str, request_id: str) -> RequestRecord | None:
    found = db.execute(
        "SELECT body_hash, response, at FROM requests WHERE request_id = ? AND namespace = ? AND shard = ?",
        (as_bytes(request_id), as_bytes(namespace), shard),
    ).fetchone()
    return None if found is None else RequestRecord(namespace, request_id, *found)


def definitions(db: sqlite3.Connection) -> list[DefinitionRecord]:
    found = db.execute(
        "SELECT namespace, workflow_type, version, hash, data, registered_at FROM definitions"
        " ORDER BY namespace, workflow_type, version"
    )
    return [definition(entry) for entry in found]


def definition(found: tuple[Any, ...]) -> DefinitionRecord:
    namespace, workflow_type, version, digest, data, registered_at = found
    return DefinitionRecord(as_text(namespace), as_text(workflow_type), version, as_text(digest), data, registered_at)


def owners(db: sqlite3.Connection) -> list[tuple[int, int, str]]:
    found = db.execute("SELECT shard, epoch, owner FROM shards ORDER BY shard")
    return [(shard, epoch, as_text(owner)) for shard, epoch, owner in found]


def heads(db: sqlite3.Connection) -> dict[int, int]:
    return dict(db.execute("SELECT shard, head FROM shards"))


def statistics(db: sqlite3.Connection) -> dict[str, int]:
    return {
        "events": db.execute("SELECT coalesce(sum(head - 1), 0) FROM shards").fetchone()[0],
        "rows": db.execute("SELECT count(*) FROM event_rows").fetchone()[0],
        "runs": db.execute("SELECT count(*) FROM runs").fetchone()[0],
        "parked": db.execute("SELECT count(*) FROM parked").fetchone()[0],
        "requests": db.execute("SELECT count(*) FROM requests").fetchone()[0],
        "registers": db.execute("SELECT count(*) FROM registers").fetchone()[0],
        "cut_events": db.execute("SELECT coalesce(sum(count), 0) FROM tombstones").fetchone()[0],
        "bytes": db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0],
    }


def as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
