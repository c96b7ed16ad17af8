"""SQL texts, made once.

An append is one statement, and so one transaction and one round trip: it locks and moves the heads of the shards whose
epoch and head match, skips those that somebody else has locked, and writes the parts of exactly these shards. What an
append does not have, its statement does not mention; the driver keeps each form prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple


class Section(NamedTuple):
    """A part of the append statement: columns with their types, and the CTEs that store them.

    `{unnest}` becomes the rows of the arrays; `held` has the shards that may be written."""

    columns: tuple[tuple[str, str], ...]
    text: str


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, kind) for name, kind in (part.split() for part in text.split(",")))


WANT: Final = _columns("shard int, epoch bigint, head bigint, next bigint, top bigint")

SECTIONS: Final[dict[str, Section]] = {
    "rows": Section(
        _columns("shard int, off bigint, epoch bigint, iid bigint, seq bigint, n int, data bytea"),
        "put_rows AS (INSERT INTO event_rows (shard, off, epoch, iid, seq, n, data)"
        " SELECT e.shard, e.off, e.epoch, e.iid, e.seq, e.n, e.data FROM {unnest} JOIN held USING (shard))",
    ),
    "runs": Section(
        _columns(
            "shard int, iid bigint, instance bytea, kind int, state int, created_at bigint, updated_at bigint,"
            "start_hash bytea, head bigint, version bigint"
        ),
        "put_runs AS (INSERT INTO runs"
        " (shard, iid, instance, kind, state, created_at, updated_at, start_hash, head, version)"
        " SELECT e.shard, e.iid, e.instance, e.kind, e.state, e.created_at, e.updated_at, e.start_hash, e.head, e.version"
        " FROM {unnest} JOIN held USING (shard)"
        " ON CONFLICT (shard, iid) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at,"
        " start_hash = excluded.start_hash, head = excluded.head, version = excluded.version)",
    ),
    "requests": Section(
        _columns(
            "shard int, digest bytea, namespace bytea, request_id bytea, body_hash bytea, response bytea, at bigint"
        ),
        "put_requests AS (INSERT INTO requests (shard, digest, namespace, request_id, body_hash, response, at)"
        " SELECT e.shard, e.digest, e.namespace, e.request_id, e.body_hash, e.response, e.at"
        " FROM {unnest} JOIN held USING (shard) ON CONFLICT (shard, digest) DO NOTHING)",
    ),
    "parked": Section(
        _columns("shard int, iid bigint, wake_at bigint, reason bytea"),
        "put_parked AS (INSERT INTO parked (shard, iid, wake_at, reason)"
        " SELECT e.shard, e.iid, e.wake_at, e.reason FROM {unnest} JOIN held USING (shard)"
        " ON CONFLICT (shard, iid) DO UPDATE SET wake_at = excluded.wake_at, reason = excluded.reason)",
    ),
    "unparked": Section(
        _columns("shard int, iid bigint"),
        "drop_parked AS (DELETE FROM parked p USING {unnest} JOIN held USING (shard)"
        " WHERE p.shard = e.shard AND p.iid = e.iid)",
    ),
    "snapshots": Section(
        _columns("shard int, iid bigint, seq bigint, data bytea"),
        "put_snapshots AS (INSERT INTO snapshots (shard, iid, seq, data)"
        " SELECT e.shard, e.iid, e.seq, e.data FROM {unnest} JOIN held USING (shard)"
        " ON CONFLICT (shard, iid) DO UPDATE SET seq = excluded.seq, data = excluded.data"
        " WHERE excluded.seq >= snapshots.seq)",
    ),
    "checkpoints": Section(
        _columns("shard int, off bigint, data bytea"),
        "put_checkpoints AS (INSERT INTO checkpoints (shard, off, data)"
        " SELECT e.shard, e.off, e.data FROM {unnest} JOIN held USING (shard)"
        " ON CONFLICT (shard) DO UPDATE SET off = excluded.off, data = excluded.data)",
    ),
    "registers": Section(
        _columns("shard int, digest bytea, begins bytea, name bytea, data bytea"),
        "put_registers AS (INSERT INTO registers (shard, digest, begins, name, data)"
        " SELECT e.shard, e.digest, e.begins, e.name, e.data FROM {unnest} JOIN held USING (shard)"
        " ON CONFLICT (digest, shard) DO UPDATE SET data = excluded.data)",
    ),
    "unregistered": Section(
        _columns("shard int, digest bytea"),
        "drop_registers AS (DELETE FROM registers r USING {unnest} JOIN held USING (shard)"
        " WHERE r.shard = e.shard AND r.digest = e.digest)",
    ),
    # A row that stands across the cut becomes its rest, the others go; no row is met by both.
    "cuts": Section(
        _columns(
            "shard int, iid bigint, before bigint, rest bool, off bigint, epoch bigint, seq bigint, n int, data bytea"
        ),
        "cut AS (SELECT e.* FROM {unnest} JOIN held USING (shard)),"
        " cut_across AS (UPDATE event_rows r SET off = c.off, epoch = c.epoch, seq = c.seq, n = c.n, data = c.data"
        " FROM cut c WHERE c.rest AND r.shard = c.shard AND r.iid = c.iid AND r.seq < c.before"
        " AND r.seq + r.n > c.before),"
        " cut_whole AS (DELETE FROM event_rows r USING cut c WHERE r.shard = c.shard AND r.iid = c.iid"
        " AND r.seq < c.before AND r.seq + r.n <= c.before)",
    ),
    "tombstones": Section(
        _columns(
            "shard int, iid bigint, first_seq bigint, last_seq bigint, first_off bigint, last_off bigint, n bigint,"
            "hash bytea, at bigint"
        ),
        "put_tombstones AS (INSERT INTO tombstones"
        " (shard, iid, first_seq, last_seq, first_off, last_off, n, hash, at)"
        " SELECT e.shard, e.iid, e.first_seq, e.last_seq, e.first_off, e.last_off, e.n, e.hash, e.at"
        " FROM {unnest} JOIN held USING (shard) ON CONFLICT (shard, iid, first_seq) DO NOTHING)",
    ),
}


@cache
def append(sections: tuple[str, ...]) -> str:
    """The statement that appends these sections. Parameters: the columns of WANT, then those of each section.

    Answers (shard, clock) of the shards that were stored."""
    ctes = [
        "clock AS MATERIALIZED (SELECT store_clock() AS at)",
        f"want AS MATERIALIZED (SELECT * FROM {_unnest('w', WANT, 1)})",  # noqa: S608 - a constant of ours
        (
            "lk AS (SELECT s.shard FROM shards s JOIN want w ON s.shard = w.shard AND s.epoch = w.epoch"
            " AND s.head = w.head ORDER BY s.shard FOR NO KEY UPDATE OF s SKIP LOCKED)"
        ),
        (
            "held AS (UPDATE shards s SET head = w.next, next_iid = greatest(s.next_iid, w.top),"
            " now = greatest(s.now, c.at) FROM lk JOIN want w USING (shard), clock c WHERE s.shard = lk.shard"
            " RETURNING s.shard, s.now)"
        ),
    ]
    at = 1 + len(WANT)
    for name in sections:
        section = SECTIONS[name]
        ctes.append(section.text.format(unnest=_unnest("e", section.columns, at)))
        at += len(section.columns)
    return f"WITH {', '.join(ctes)} SELECT shard, now FROM held"  # noqa: S608 - made of constants of ours


def _unnest(alias: str, columns: Sequence[tuple[str, str]], first: int) -> str:
    arrays = ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(columns, first))
    return f"unnest({arrays}) AS {alias}({', '.join(name for name, _ in columns)})"


#: What the store has of these shards.
HEADS: Final = "SELECT shard, epoch, head FROM shards WHERE shard = ANY($1::int[])"
#: Writes, and so waits until what was written before is durable where it must be (a standby, too).
CONFIRM: Final = "UPDATE shards SET now = greatest(now, store_clock()) WHERE shard = ANY($1::int[]) RETURNING shard, epoch, head, now"
CLAIM: Final = (
    "UPDATE shards SET epoch = epoch + 1, owner = $3, session = $4, now = greatest(now, store_clock())"
    " WHERE shard = $1 AND epoch = $2 RETURNING shard, epoch, head, next_iid, now"
)
SESSION: Final = "SELECT session FROM shards WHERE shard = $1"
OWNERS: Final = "SELECT shard, epoch, owner FROM shards ORDER BY shard"
CLOCK: Final = "SELECT greatest(store_clock(), (SELECT max(now) FROM shards))"
#: Ends the other connections whose names begin so, and waits for each; answers whether all are gone.
TERMINATE: Final = (
    "SELECT coalesce(bool_and(pg_terminate_backend(pid, $2)), true) FROM pg_stat_activity"
    " WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid()"
    " AND datname = current_database() AND usename = current_user"
)
KINDS: Final = "SELECT kind, namespace, workflow_type FROM kinds WHERE digest = ANY($1::bytea[])"
NEW_KINDS: Final = (
    "INSERT INTO kinds (digest, namespace, workflow_type)"
    " SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) ON CONFLICT (digest) DO NOTHING"
)
FORGET: Final = (
    "DELETE FROM requests r USING (SELECT shard, digest FROM requests WHERE at < $1 ORDER BY at LIMIT $2"
    " FOR UPDATE SKIP LOCKED) old WHERE r.shard = old.shard AND r.digest = old.digest"
)
SAVE_DEFINITION: Final = (
    "INSERT INTO definitions (digest, namespace, workflow_type, version, hash, data, registered_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (digest) DO NOTHING"
)
_DEFINITION: Final = "SELECT namespace, workflow_type, version, hash, data, registered_at FROM definitions "
DEFINITION: Final = _DEFINITION + "WHERE digest = $1"
DEFINITIONS: Final = _DEFINITION + "ORDER BY namespace, workflow_type, version"

# ------------------------------------------------------------------------------------------------------------- reads

SHARD_ROWS: Final = (
    "SELECT off, n, epoch, iid, seq, data FROM event_rows WHERE shard = $1 AND off >= coalesce("
    "(SELECT max(off) FROM event_rows WHERE shard = $1 AND off <= $2), $2) AND off + n > $2 ORDER BY off LIMIT $3"
)
RUN_ROWS: Final = (
    "SELECT off, n, epoch, iid, seq, data FROM event_rows WHERE shard = $1 AND iid = $2 AND seq >= coalesce("
    "(SELECT max(seq) FROM event_rows WHERE shard = $1 AND iid = $2 AND seq <= $3), $3) AND seq + n > $3"
    " ORDER BY seq LIMIT $4"
)
#: Parameters: shard, runs, the number from which on each is wanted, rows of each at most.
ROWS_OF: Final = (
    "SELECT e.* FROM unnest($2::bigint[], $3::bigint[]) AS w(iid, first) CROSS JOIN LATERAL"
    " (SELECT off, n, epoch, iid, seq, data FROM event_rows WHERE shard = $1 AND iid = w.iid AND seq >= coalesce("
    "(SELECT max(seq) FROM event_rows WHERE shard = $1 AND iid = w.iid AND seq <= w.first), w.first)"
    " AND seq + n > w.first ORDER BY seq LIMIT $4) AS e ORDER BY e.iid, e.seq"
)
_RUN: Final = (
    "SELECT r.shard, r.iid, r.instance || k.namespace || '\\x00'::bytea || k.workflow_type AS key, r.state,"
    " r.created_at, r.updated_at, r.start_hash, r.head, r.version FROM runs r JOIN kinds k USING (kind) "
)
FIND_RUN: Final = _RUN + "WHERE r.shard = $1 AND r.instance = $2 AND k.digest = $3"
GET_RUNS: Final = _RUN + "WHERE r.shard = $1 AND r.iid = ANY($2::bigint[])"
KINDS_OF: Final = (
    "SELECT kind, workflow_type FROM kinds WHERE namespace = $1 AND ($2::bytea = '' OR workflow_type = $2)"
)
#: Parameters: kinds, states (empty: all), then (created_at, shard, iid) to be below, limit. It goes through the index by
#: (kind, state), newest first, and never looks at more than a page of each.
LIST_RUNS: Final = f"""
WITH RECURSIVE places AS (
  SELECT k.kind, (SELECT min(state) FROM runs WHERE kind = k.kind) AS state FROM unnest($1::int[]) AS k(kind)
  UNION ALL
  SELECT p.kind, (SELECT min(state) FROM runs WHERE kind = p.kind AND state > p.state) FROM places p
  WHERE p.state IS NOT NULL),
page AS (
  SELECT f.shard, f.iid, f.created_at FROM places p CROSS JOIN LATERAL (
    SELECT r.shard, r.iid, r.created_at FROM runs r WHERE r.kind = p.kind AND r.state = p.state
    AND (r.created_at, r.shard, r.iid) < ($3::bigint, $4::int, $5::bigint)
    ORDER BY r.created_at DESC, r.shard DESC, r.iid DESC LIMIT $6) f
  WHERE p.state IS NOT NULL AND (cardinality($2::int[]) = 0 OR p.state = ANY($2::int[]))
  ORDER BY f.created_at DESC, f.shard DESC, f.iid DESC LIMIT $6)
{_RUN} JOIN page USING (shard, iid) ORDER BY r.created_at DESC, r.shard DESC, r.iid DESC
"""  # noqa: S608 - made of constants of ours
COUNT_RUNS: Final = (
    "SELECT k.workflow_type, r.version, r.state, count(*) AS runs, sum(r.head)::bigint AS events"
    " FROM runs r JOIN kinds k USING (kind) WHERE r.kind = ANY($1::int[])"
    " AND (cardinality($2::int[]) = 0 OR r.state = ANY($2::int[])) GROUP BY k.workflow_type, r.version, r.state"
)
SNAPSHOT: Final = "SELECT iid, seq, data FROM snapshots WHERE shard = $1 AND iid = $2"
SNAPSHOTS_OF: Final = "SELECT iid, seq, data FROM snapshots WHERE shard = $1 AND iid = ANY($2::bigint[])"
CHECKPOINT: Final = "SELECT off, data FROM checkpoints WHERE shard = $1"
DUE_PARKED: Final = (
    "SELECT iid, wake_at, reason FROM parked WHERE shard = $1 AND wake_at > 0 AND wake_at <= $2"
    " ORDER BY wake_at, iid LIMIT $3"
)
PARKED: Final = "SELECT iid, wake_at, reason FROM parked WHERE shard = $1 AND iid = $2"
PARKED_OF: Final = "SELECT iid, wake_at, reason FROM parked WHERE shard = $1 AND iid = ANY($2::bigint[])"
REGISTER: Final = "SELECT data FROM registers WHERE shard = $1 AND digest = $2"
#: Parameters: shard, first name (from it on), first name behind, both again by their first 256 bytes, limit.
REGISTERS: Final = (
    "SELECT name, data FROM registers WHERE shard = $1 AND name >= $2 AND name < $3 AND begins >= $4 AND begins <= $5"
    " ORDER BY begins, name LIMIT $6"
)
FIND_REGISTER: Final = "SELECT shard, data FROM registers WHERE digest = $1 ORDER BY shard"
TOMBSTONES: Final = (
    "SELECT iid, first_seq, last_seq, first_off, last_off, n, hash, at FROM tombstones"
    " WHERE shard = $1 AND last_off >= $2 AND ($3::bigint = 0 OR iid = $3) ORDER BY last_off, iid, first_seq"
)
REQUEST: Final = "SELECT namespace, request_id, body_hash, response, at FROM requests WHERE shard = $1 AND digest = $2"
STATISTICS: Final = """
SELECT (SELECT coalesce(sum(head - 1), 0) FROM shards)::bigint AS events,
  (SELECT count(*) FROM event_rows) AS rows,
  (SELECT count(*) FROM runs) AS runs,
  (SELECT count(*) FROM parked) AS parked,
  (SELECT count(*) FROM requests) AS requests,
  (SELECT count(*) FROM registers) AS registers,
  (SELECT coalesce(sum(n), 0) FROM tombstones)::bigint AS cut_events,
  (SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
   WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r')::bigint AS bytes
"""

# -------------------------------------------------------------------------------------------------------------- copies

#: How many sessions of owners have connections.
SESSIONS: Final = (
    "SELECT count(DISTINCT s.session) FROM shards s JOIN pg_stat_activity a"
    " ON starts_with(a.application_name, 'onexflow ' || s.session || ' ') WHERE s.session <> ''"
)
STATES: Final = "SELECT shard, epoch, owner, head, next_iid, now FROM shards ORDER BY shard"
ADOPT: Final = (
    "UPDATE shards s SET epoch = n.epoch, owner = n.owner, session = '', head = n.head, next_iid = n.next_iid, now = n.now"
    " FROM unnest($1::int[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[])"
    " AS n(shard, epoch, owner, head, next_iid, now) WHERE s.shard = n.shard"
)
#: All records of a kind in a shard, each with what the next page begins behind. Parameters: shard, behind what, limit.
EVERY: Final = {
    "runs": _RUN.replace("SELECT ", "SELECT r.iid AS after, ", 1)
    + "WHERE r.shard = $1 AND r.iid > $2 ORDER BY r.iid LIMIT $3",
    "parked": ("SELECT iid, iid, wake_at, reason FROM parked WHERE shard = $1 AND iid > $2 ORDER BY iid LIMIT $3"),
    "snapshots": "SELECT iid, iid, seq, data FROM snapshots WHERE shard = $1 AND iid > $2 ORDER BY iid LIMIT $3",
    "requests": (
        "SELECT digest, namespace, request_id, body_hash, response, at FROM requests WHERE shard = $1 AND digest > $2"
        " ORDER BY digest LIMIT $3"
    ),
}
