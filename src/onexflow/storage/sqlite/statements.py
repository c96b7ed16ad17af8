"""SQL texts, made once. Python gives up the GIL in every step of a statement and must win it back from a busy event
loop, so many rows go into one statement; row counts come from a short list, so that the texts and the prepared
statements are few.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

#: Row counts that have a statement: those below STEP, and its multiples up to MOST_ROWS. Any number up to that takes two at
#: most.
STEP: Final = 16
MOST_ROWS: Final = 256

#: (shard, iid) and (shard, offset) as one integer.
SHARD_BITS: Final = 48
MASK: Final = (1 << SHARD_BITS) - 1

#: OR ROLLBACK: who writes takes the whole transaction back anyway, and SQLite copies no pages to take back this statement
#: alone. (One that updates what is there copies them in any case.) Nobody may go on after an error of these: there is no
#: transaction any more.
_ROWS: Final = "INSERT OR ROLLBACK INTO event_rows (number, place, count, epoch, run, seq, data) VALUES "
#: Values of an event row besides its number.
ROW_WIDTH: Final = 6
PARTS: Final = ("INSERT OR ROLLBACK INTO parts (place, number, count) VALUES ", 3, "")
NEW_KIND: Final = "INSERT INTO kinds (namespace, workflow_type) VALUES (?,?)"
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
REGISTERS: Final = (
    "INSERT INTO registers (shard, name, data) VALUES ",
    3,
    " ON CONFLICT (shard, name) DO UPDATE SET data = excluded.data",
)
#: The shard is the first parameter: pairs in the list would make it look at every register.
UNREGISTER: Final = ("DELETE FROM registers WHERE shard = ? AND name IN (VALUES ", 1, ")")
#: Parameters: run, before_seq. Parts of which no row is left once the cut is done; it goes first, while the rows still
#: tell their places. A row is in the part with the highest place not above its own.
CUT_PARTS: Final = (
    "DELETE FROM parts WHERE place IN (SELECT (SELECT max(p.place) FROM parts p WHERE p.place <= r.place)"
    " FROM event_rows r WHERE r.run = ?1 AND r.seq < ?2 AND r.seq + r.count <= ?2)"
    " AND NOT EXISTS (SELECT 1 FROM event_rows o WHERE o.number BETWEEN parts.number AND parts.number + parts.count - 1"
    " AND NOT (o.run = ?1 AND o.seq + o.count <= ?2))"
)
CUT_ROWS: Final = "DELETE FROM event_rows WHERE run = ?1 AND seq < ?2 AND seq + count <= ?2"
#: Parameters: run, before_seq, and what the row that stands across it becomes. It keeps its number, and so its part.
CUT_REST: Final = (
    "UPDATE event_rows SET place = ?3, count = ?4, epoch = ?5, seq = ?6, data = ?7"
    " WHERE run = ?1 AND seq < ?2 AND seq + count > ?2"
)
TOMBSTONE: Final = (
    "INSERT INTO tombstones (run, first_seq, last_seq, first_offset, last_place, count, hash, at)"
    " VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (run, first_seq) DO NOTHING"
)
_TOMBSTONE: Final = "SELECT run, first_seq, last_seq, first_offset, last_place, count, hash, at FROM tombstones WHERE "
TOMBSTONES: Final = _TOMBSTONE + "last_place BETWEEN ? AND ? ORDER BY last_place, run, first_seq"
RUN_TOMBSTONES: Final = _TOMBSTONE + "run = ? AND +last_place >= ? ORDER BY last_place, first_seq"
#: The last number that a row has or a part still speaks of: those behind it are free.
LAST_NUMBER: Final = (
    "SELECT max(coalesce((SELECT max(number) FROM event_rows), 0), coalesce((SELECT max((SELECT number + count - 1"
    " FROM parts WHERE place >= s.shard << 48 AND place < (s.shard + 1) << 48"
    " ORDER BY place DESC LIMIT 1)) FROM shards s), 0))"
)
#: Moves the heads of the shards whose epoch and head match, and counts them; `owner` is there to satisfy the table.
HEADS: Final = (
    "INSERT INTO shards (shard, epoch, head_before, head, next_iid, now, owner) VALUES ",
    7,
    (
        " ON CONFLICT (shard) DO UPDATE SET head = excluded.head, head_before = excluded.head_before,"
        " next_iid = max(next_iid, excluded.next_iid), now = max(now, excluded.now)"
        " WHERE epoch = excluded.epoch AND head = excluded.head_before"
    ),
)
#: One row whatever the number of shards: each further row would cost a switch of threads.
READ_HEADS: Final = "SELECT group_concat(shard || ' ' || epoch || ' ' || head) FROM shards"

_RUN: Final = (
    "SELECT r.run, r.instance, k.namespace, k.workflow_type, r.state, r.created_at, r.updated_at,"
    " r.start_hash, r.head, r.version FROM runs r JOIN kinds k ON k.kind = r.kind "
)
FIND_RUN: Final = _RUN + "WHERE r.instance = ? AND k.namespace = ? AND k.workflow_type = ?"
#: Parameters: first place of the shard, wanted place, end of the shard, limit.
SHARD_ROWS: Final = (
    "SELECT r.place, r.count, r.epoch, r.run, r.seq, r.data FROM parts p"
    " CROSS JOIN event_rows r ON r.number BETWEEN p.number AND p.number + p.count - 1"
    " WHERE p.place >= coalesce((SELECT max(place) FROM parts WHERE place BETWEEN ?1 AND ?2), ?1) AND p.place <= ?3"
    " AND r.place + r.count > ?2 ORDER BY p.place, r.number LIMIT ?4"
)
RUN_ROWS: Final = (
    "SELECT place, count, epoch, run, seq, data FROM event_rows WHERE run = ?1 AND seq >= coalesce("
    "(SELECT max(seq) FROM event_rows WHERE run = ?1 AND seq <= ?2), 1)"
    " AND seq + count > ?2 ORDER BY seq LIMIT ?3"
)


def put(connection: sqlite3.Connection, form: tuple[str, int, str], values: Sequence[Any], *first: object) -> int:
    """Run the statement `form` for all rows in the flat list `values`; how many rows it changed. `first` are parameters
    that stand before the rows."""
    before, width, after = form
    if len(values) % width:
        raise ValueError("values do not fill the rows")
    changed = 0
    for at, size in _statements(len(values) // width):
        rows = values[at * width : (at + size) * width]
        changed += connection.execute(_text(before, width, after, size), [*first, *rows]).rowcount
    return changed


def put_rows(connection: sqlite3.Connection, values: Sequence[Any], number: int) -> None:
    """Insert event rows, numbered from `number` on. Only the first of a statement says so: SQLite finds the next number in
    less time than it takes to see that a given one is free."""
    for at, size in _statements(len(values) // ROW_WIDTH):
        rows = values[at * ROW_WIDTH : (at + size) * ROW_WIDTH]
        connection.execute(_rows_text(size), [number + at, *rows])


def _statements(rows: int) -> Iterator[tuple[int, int]]:
    """Where each statement for so many rows begins, and how many it takes."""
    at = 0
    while at < rows:
        left = rows - at
        size = min(left - left % STEP, MOST_ROWS) or left
        yield at, size
        at += size


def runs_by_number(count: int) -> str:
    """Records of `count` runs by their `run` column."""
    return f"{_RUN}WHERE r.run IN ({','.join('?' * count)})"


@cache
def _text(before: str, width: int, after: str, rows: int) -> str:
    row = f"({','.join('?' * width)})"
    return before + ",".join([row] * rows) + after


@cache
def _rows_text(rows: int) -> str:
    row = ",".join("?" * ROW_WIDTH)
    return f"{_ROWS}(?,{'),(NULL,'.join([row] * rows)})"
