"""SQL texts, made once. Python gives up the GIL in every step of a statement and must win it back from a busy event
loop, so many rows go into one statement; row counts come from a short list, so that the texts and the prepared
statements are few.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

#: Row counts that have a statement: powers of two and the halves between them.
SIZES: Final = (256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)

#: (shard, iid) and (shard, offset) as one integer.
SHARD_BITS: Final = 48
MASK: Final = (1 << SHARD_BITS) - 1

ROWS: Final = ("INSERT INTO event_rows (place, count, epoch, run, seq, data) VALUES ", 6, "")
RUNS: Final = (
    "INSERT INTO runs (run, instance, kind, state, created_at, updated_at, start_hash, head, version) VALUES ",
    9,
    (
        " ON CONFLICT (run) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at,"
        " start_hash = excluded.start_hash, head = excluded.head, version = excluded.version"
    ),
)
REQUESTS: Final = (
    "INSERT INTO requests (shard, namespace, request_id, body_hash, response, at) VALUES ",
    6,
    " ON CONFLICT (request_id, namespace, shard) DO NOTHING",
)
PARK: Final = (
    "INSERT INTO parked (run, shard, wake_at, reason) VALUES ",
    4,
    " ON CONFLICT (run) DO UPDATE SET wake_at = excluded.wake_at, reason = excluded.reason",
)
UNPARK: Final = ("DELETE FROM parked WHERE run IN (VALUES ", 1, ")")
SNAPSHOTS: Final = (
    "INSERT INTO snapshots (run, seq, data) VALUES ",
    3,
    " ON CONFLICT (run) DO UPDATE SET seq = excluded.seq, data = excluded.data WHERE excluded.seq >= seq",
)
CHECKPOINTS: Final = (
    "INSERT INTO checkpoints (shard, place, data) VALUES ",
    3,
    " ON CONFLICT (shard) DO UPDATE SET place = excluded.place, data = excluded.data",
)
#: Columns: shard, head, next_iid, number of rows, now. Epoch and owner stay as they are.
HEADS: Final = (
    "INSERT INTO shards (shard, head, next_iid, row_count, now, epoch, owner) VALUES ",
    7,
    (
        " ON CONFLICT (shard) DO UPDATE SET head = excluded.head, next_iid = max(next_iid, excluded.next_iid),"
        " row_count = row_count + excluded.row_count, now = max(now, excluded.now)"
    ),
)
#: One row whatever the number of shards: each further row would cost a switch of threads.
READ_HEADS: Final = "SELECT group_concat(shard || ' ' || epoch || ' ' || head) FROM shards"

_RUN: Final = (
    "SELECT r.run, r.instance, k.namespace, k.workflow_type, r.state, r.created_at, r.updated_at,"
    " r.start_hash, r.head, r.version FROM runs r JOIN kinds k ON k.kind = r.kind "
)
FIND_RUN: Final = _RUN + "WHERE r.instance = ? AND k.namespace = ? AND k.workflow_type = ?"
SHARD_ROWS: Final = (
    "SELECT place, count, epoch, run, seq, data FROM event_rows WHERE place >= coalesce("
    "(SELECT max(place) FROM event_rows WHERE place BETWEEN ?1 AND ?2 AND place + count > ?2), ?2)"
    " AND place < ?3 ORDER BY place LIMIT ?4"
)
RUN_ROWS: Final = (
    "SELECT place, count, epoch, run, seq, data FROM event_rows WHERE run = ?1 AND seq >= coalesce("
    "(SELECT max(seq) FROM event_rows WHERE run = ?1 AND seq <= ?2), ?2)"
    " AND seq + count > ?2 ORDER BY seq LIMIT ?3"
)


def put(connection: sqlite3.Connection, form: tuple[str, int, str], values: Sequence[Any]) -> None:
    """Run the statement `form` for all rows in the flat list `values`."""
    before, width, after = form
    left = len(values) // width
    if left * width != len(values):
        raise ValueError("values do not fill the rows")
    at = 0
    for size in SIZES:
        while left >= size:
            end = at + size * width
            connection.execute(_text(before, width, after, size), values[at:end])
            at = end
            left -= size


def runs_by_number(count: int) -> str:
    """Records of `count` runs by their `run` column."""
    return f"{_RUN}WHERE r.run IN ({','.join('?' * count)})"


@cache
def _text(before: str, width: int, after: str, rows: int) -> str:
    row = f"({','.join('?' * width)})"
    return before + ",".join([row] * rows) + after
