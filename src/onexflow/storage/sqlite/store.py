"""SqliteStore: the event store in one file, for one orchestrator. Durable: every append is fsynced (WAL, FULL).

`place` guards the file, `schema` opens it, `writer` appends, `reader` reads; this module is what the port sees.
The rule of thumb that shaped it: few sqlite calls, because each waits for a GIL that the event loop holds.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from onexflow.core.errors import InternalError, StoreUnavailable, StoreUnusable
from onexflow.ports.clock import Clock
from onexflow.ports.event_store import (
    AppendOutcome,
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
    ShardAppend,
    ShardClaim,
    SnapshotRecord,
    StoredRun,
    Tombstone,
)
from onexflow.storage.sqlite import reader, schema
from onexflow.storage.sqlite.place import LockFile, prepare
from onexflow.storage.sqlite.writer import Writer, as_bytes
from onexflow.storage.time import StoreTime

T = TypeVar("T")

MAX_SHARDS: Final = 4096
_FORGET_AT_ONCE: Final = 1000


class SqliteStore:
    """`ports.EventStore` on SQLite. `shards` counts only for a store that does not exist yet."""

    def __init__(self, path: str | os.PathLike[str], shards: int = 8, clock: Clock | None = None) -> None:
        if not 1 <= shards <= MAX_SHARDS:
            raise StoreUnusable(f"A store has 1 to {MAX_SHARDS} shards, not {shards}.")
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link to another name
        self._shards = shards
        self._read_clock: Callable[[], int] = time.time_ns if clock is None else clock.now
        self._time = StoreTime(self._read_clock, time.monotonic if clock is None else clock.monotonic)
        self._lock = LockFile(self._path)
        self._writer: Writer | None = None
        self._readers: reader.Readers | None = None

    @property
    def shards(self) -> int:
        return self._shards

    @property
    def path(self) -> Path:
        return self._path

    async def open(self) -> None:
        if self._writer is None:
            await asyncio.to_thread(self._open)

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        if writer is not None and readers is not None:
            await asyncio.shield(asyncio.to_thread(self._close, writer, readers))

    def now(self) -> int:
        return self._time.now()

    async def owners(self) -> Sequence[tuple[int, int, str]]:
        return await self._read(reader.owners)

    async def heads(self) -> dict[int, int]:
        return await self._read(reader.heads)

    async def claim(self, shard: int, epoch: int, owner: str) -> ShardClaim | None:
        return await self._write(lambda db: _claim(db, shard, epoch, owner))

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        writer = self._opened()
        outcome: AppendOutcome = await writer.submit(lambda: writer.append(batch))
        return outcome

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        return await self._read(reader.shard_rows, shard, offset, limit)

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        return await self._read(reader.run_rows, shard, iid, from_seq, limit)

    async def find_run(self, shard: int, key: bytes) -> RunRecord | None:
        return await self._read(reader.find_run, shard, key)

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        return await self._read(reader.get_runs, shard, iids)

    async def list_runs(self, where: RunFilter, cursor: str = "", limit: int = 100) -> RunPage:
        return await self._read(reader.list_runs, where, cursor, max(limit, 1))

    async def count_runs(self, where: RunFilter) -> list[RunCount]:
        return await self._read(reader.count_runs, where)

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        return await self._read(reader.snapshot, shard, iid, max_seq)

    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None:
        return await self._read(reader.checkpoint, shard)

    async def due_parked(self, shard: int, until: int, limit: int = 1024) -> list[ParkedRecord]:
        return await self._read(reader.due_parked, shard, until, limit)

    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None:
        return await self._read(reader.get_parked, shard, iid)

    async def read_back(self, shard: int, iids: Sequence[int], limit: int = 64) -> list[StoredRun]:
        return await self._read(reader.read_back, shard, iids, limit)

    async def get_register(self, shard: int, name: str) -> bytes | None:
        return await self._read(reader.get_register, shard, name)

    async def list_registers(
        self, shard: int, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[RegisterRecord]:
        return await self._read(reader.list_registers, shard, prefix, after, limit)

    async def find_register(self, name: str) -> list[tuple[int, bytes]]:
        return await self._read(reader.find_register, name)

    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]:
        return await self._read(reader.tombstones, shard, from_offset, iid)

    async def find_request(self, shard: int, namespace: str, request_id: str) -> RequestRecord | None:
        return await self._read(reader.find_request, shard, namespace, request_id)

    async def forget_requests(self, before: int) -> int:
        total = 0
        while True:  # in small transactions, so that appends pass between them
            gone = await self._write(lambda db: _forget(db, before))
            total += gone
            if gone < _FORGET_AT_ONCE:
                return total

    async def save_definition(self, record: DefinitionRecord) -> DefinitionRecord:
        return await self._write(lambda db: _save_definition(db, record))

    async def load_definitions(self) -> list[DefinitionRecord]:
        return await self._read(reader.definitions)

    async def statistics(self) -> dict[str, int]:
        return await self._read(reader.statistics)

    # -------------------------------------------------------------------------------- beside the port, for tests

    async def pragma(self, text: str) -> object:
        """The writing connection's answer to `PRAGMA text`. Tests ask for its settings and take its space away
        (`max_page_count=…`)."""
        writer = self._opened()

        def ask() -> object:
            found = writer.connection.execute(f"PRAGMA {text}").fetchone()
            return None if found is None else found[0]

        return await writer.submit(ask)

    # ----------------------------------------------------------------------------------------------------- inside

    def _open(self) -> None:
        prepare(self._path)
        self._lock.acquire()
        connection: sqlite3.Connection | None = None
        try:
            connection = schema.connect_writer(self._path)
            schema.migrate(connection, self._path, schema.migrations(), self._read_clock())
            self._load_shards(connection)
            self._readers = reader.Readers(self._path)
            self._writer = Writer(connection, self._path, self._shards, self.now)
        except BaseException as error:
            if connection is not None:
                connection.close()
            self._lock.release()
            if isinstance(error, sqlite3.Error):
                raise schema.unusable(error, self._path) from error
            raise

    def _load_shards(self, connection: sqlite3.Connection) -> None:
        count, latest = connection.execute("SELECT count(*), max(now) FROM shards").fetchone()
        if count:
            self._shards = count
        else:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO shards VALUES (?, 0, x'', 1, 1, 1, 0)", ((shard,) for shard in range(self._shards))
            )
            connection.execute("COMMIT")
        self._time.not_below(latest or 0)

    def _close(self, writer: Writer, readers: reader.Readers) -> None:
        readers.close()
        writer.stop()
        self._lock.release()

    def _opened(self) -> Writer:
        writer = self._writer
        if writer is None:
            raise StoreUnavailable(f"The store {self._path} is not open.")
        if writer.failed is not None:
            raise StoreUnavailable(str(writer.failed), writer.failed.context)
        return writer

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        writer = self._opened()
        result: T = await writer.submit(lambda: writer.transaction(lambda: work(writer.connection)))
        return result

    async def _read(self, read: Callable[..., T], *arguments: object) -> T:
        self._opened()
        readers = self._readers
        if readers is None:
            raise InternalError("The store is open and has no readers.")
        return await readers.run(read, *arguments)


def _claim(db: sqlite3.Connection, shard: int, epoch: int, owner: str) -> ShardClaim | None:
    changed = db.execute(
        "UPDATE shards SET epoch = epoch + 1, owner = ? WHERE shard = ? AND epoch = ?", (as_bytes(owner), shard, epoch)
    )
    if changed.rowcount != 1:
        return None
    return ShardClaim(
        *db.execute("SELECT shard, epoch, head, next_iid FROM shards WHERE shard = ?", (shard,)).fetchone()
    )


def _forget(db: sqlite3.Connection, before: int) -> int:
    return db.execute(
        "DELETE FROM requests WHERE number IN (SELECT number FROM requests WHERE at < ? ORDER BY at LIMIT ?)",
        (before, _FORGET_AT_ONCE),
    ).rowcount


def _save_definition(db: sqlite3.Connection, record: DefinitionRecord) -> DefinitionRecord:
    names = (as_bytes(record.namespace), as_bytes(record.workflow_type), record.version)
    db.execute(
        "INSERT INTO definitions VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING",
        (*names, as_bytes(record.hash), record.data, record.registered_at),
    )
    found = db.execute(
        "SELECT * FROM definitions WHERE namespace = ? AND workflow_type = ? AND version = ?", names
    ).fetchone()
    return reader.definition(found)
