"""Reads of the port, each with a connection, each one statement or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from onexflow.storage.postgres import statements as sql
from onexflow.storage.postgres.server import Connection
from onexflow.storage.postgres.writer import as_bytes, as_text, digest_of, kind_of

_MAX = (1 << 63) - 1


async def shard_rows(connection: Connection, shard: int, offset: int, limit: int) -> list[Row]:
    return [Row(*found) for found in await connection.fetch(sql.SHARD_ROWS, shard, max(offset, 1), limit)]


async def run_rows(connection: Connection, shard: int, iid: int, from_seq: int, limit: int) -> list[Row]:
    return [Row(*found) for found in await connection.fetch(sql.RUN_ROWS, shard, iid, max(from_seq, 1), limit)]


async def find_run(connection: Connection, shard: int, key: bytes) -> RunRecord | None:
    found = await connection.fetchrow(sql.FIND_RUN, shard, key[:16], digest_of(*kind_of(key)))
    return None if found is None else RunRecord(*tuple(found)[1:])


async def get_runs(connection: Connection, shard: int, iids: Sequence[int]) -> list[RunRecord]:
    return [RunRecord(*tuple(found)[1:]) for found in await connection.fetch(sql.GET_RUNS, shard, list(iids))]


async def list_runs(connection: Connection, where: RunFilter, cursor: str, limit: int) -> RunPage:
    """Newest first by (created_at, shard, iid): none of them ever changes, so a page continues where the last ended."""
    below = _parse_cursor(cursor) if cursor else (_MAX, 0, 0)
    kinds = list(await _kinds(connection, where))
    found = await connection.fetch(sql.LIST_RUNS, kinds, list(where.states), *below, limit + 1) if kinds else []
    runs = [(row[0], RunRecord(*tuple(row)[1:])) for row in found[:limit]]
    rest = ""
    if len(found) > limit:
        shard, last = runs[-1]
        rest = f"{last.created_at:x}-{shard:x}-{last.iid:x}"
    return RunPage(runs, rest)


async def count_runs(connection: Connection, where: RunFilter) -> list[RunCount]:
    kinds = list(await _kinds(connection, where))
    found = await connection.fetch(sql.COUNT_RUNS, kinds, list(where.states)) if kinds else []
    return [RunCount(as_text(workflow_type), *rest) for workflow_type, *rest in found]


async def _kinds(connection: Connection, where: RunFilter) -> list[int]:
    """The numbers of the kinds of run that a filter means."""
    found = await connection.fetch(sql.KINDS_OF, as_bytes(where.namespace), as_bytes(where.workflow_type))
    return [row[0] for row in found]


def _parse_cursor(cursor: str) -> tuple[int, int, int]:
    try:
        created_at, shard, iid = (int(number, 16) for number in cursor.split("-"))
    except ValueError as error:
        raise InvalidArgument("The cursor is not one of ours.", field="cursor") from error
    if not (0 <= created_at <= _MAX and 0 <= shard < 1 << 31 and 0 <= iid <= _MAX):
        raise InvalidArgument("The cursor is not one of ours.", field="cursor")
    return created_at, shard, iid


async def snapshot(connection: Connection, shard: int, iid: int, max_seq: int | None) -> SnapshotRecord | None:
    found = await connection.fetchrow(sql.SNAPSHOT, shard, iid)
    if found is None or (max_seq is not None and found["seq"] > max_seq):
        return None
    return SnapshotRecord(*found)


async def checkpoint(connection: Connection, shard: int) -> CheckpointRecord | None:
    found = await connection.fetchrow(sql.CHECKPOINT, shard)
    return None if found is None else CheckpointRecord(*found)


async def due_parked(connection: Connection, shard: int, until: int, limit: int) -> list[ParkedRecord]:
    found = await connection.fetch(sql.DUE_PARKED, shard, until, limit)
    return [ParkedRecord(iid, wake_at, as_text(reason)) for iid, wake_at, reason in found]


async def get_parked(connection: Connection, shard: int, iid: int) -> ParkedRecord | None:
    found = await connection.fetchrow(sql.PARKED, shard, iid)
    return None if found is None else ParkedRecord(found[0], found[1], as_text(found[2]))


async def read_back(connection: Connection, shard: int, iids: Sequence[int], limit: int) -> list[StoredRun]:
    """Snapshots before rows: one that is written between the statements leaves rows to be skipped, and none that lack."""
    wanted = list(iids)
    records = await get_runs(connection, shard, wanted)
    snapshots = {row[0]: SnapshotRecord(*row) for row in await connection.fetch(sql.SNAPSHOTS_OF, shard, wanted)}
    parked = {
        iid: ParkedRecord(iid, wake_at, as_text(reason))
        for iid, wake_at, reason in await connection.fetch(sql.PARKED_OF, shard, wanted)
    }
    rows: dict[int, list[Row]] = {record.iid: [] for record in records}
    first = [snapshots[iid].seq + 1 if iid in snapshots else 1 for iid in rows]
    for found in await connection.fetch(sql.ROWS_OF, shard, list(rows), first, limit):
        row = Row(*found)
        rows[row.iid].append(row)
    return [StoredRun(one, snapshots.get(one.iid), rows[one.iid], parked.get(one.iid)) for one in records]


async def get_register(connection: Connection, shard: int, name: str) -> bytes | None:
    data: bytes | None = await connection.fetchval(sql.REGISTER, shard, digest_of(as_bytes(name)))
    return data


async def list_registers(
    connection: Connection, shard: int, prefix: str, after: str, limit: int
) -> list[RegisterRecord]:
    begins = as_bytes(prefix)
    first = max(begins, as_bytes(after) + b"\0") if after else begins
    behind = begins + b"\xff"  # no byte of UTF-8 is 0xff
    found = await connection.fetch(sql.REGISTERS, shard, first, behind, first[:256], behind[:256], limit)
    return [RegisterRecord(as_text(name), data) for name, data in found]


async def find_register(connection: Connection, name: str) -> list[tuple[int, bytes]]:
    return [(shard, data) for shard, data in await connection.fetch(sql.FIND_REGISTER, digest_of(as_bytes(name)))]


async def tombstones(connection: Connection, shard: int, from_offset: int, iid: int) -> list[Tombstone]:
    return [Tombstone(*found) for found in await connection.fetch(sql.TOMBSTONES, shard, max(from_offset, 0), iid)]


async def find_request(connection: Connection, shard: int, namespace: str, request_id: str) -> RequestRecord | None:
    found = await connection.fetchrow(sql.REQUEST, shard, digest_of(as_bytes(namespace), as_bytes(request_id)))
    return None if found is None else RequestRecord(as_text(found[0]), as_text(found[1]), *tuple(found)[2:])


async def definitions(connection: Connection) -> list[DefinitionRecord]:
    return [definition(found) for found in await connection.fetch(sql.DEFINITIONS)]


def definition(found: Any) -> DefinitionRecord:
    namespace, workflow_type, version, digest, data, registered_at = found
    return DefinitionRecord(as_text(namespace), as_text(workflow_type), version, as_text(digest), data, registered_at)


async def owners(connection: Connection) -> list[tuple[int, int, str]]:
    return [(shard, epoch, as_text(owner)) for shard, epoch, owner in await connection.fetch(sql.OWNERS)]


async def heads(connection: Connection) -> dict[int, int]:
    return {shard: head for shard, _, _, head, *_ in await connection.fetch(sql.STATES)}


async def statistics(connection: Connection) -> dict[str, int]:
    found = await connection.fetchrow(sql.STATISTICS)
    return dict(found or {})
