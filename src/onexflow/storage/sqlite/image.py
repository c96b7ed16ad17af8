"""A SQLite store as the source or the target of a copy."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from onexflow.core.errors import StoreUnusable
from onexflow.ports.event_store import ParkedRecord, RequestRecord, SnapshotRecord
from onexflow.ports.store_image import Kind, ShardState
from onexflow.storage.sqlite import reader
from onexflow.storage.sqlite import statements as sql
from onexflow.storage.sqlite.place import LockFile
from onexflow.storage.sqlite.store import SqliteStore
from onexflow.storage.sqlite.writer import as_bytes

PAGE: Final = 500
_BESIDE: Final = ("", "-wal", "-shm", ".lock")


class SqliteImage(SqliteStore):
    """`ports.StoreImage` on a file. A draft is `<file>.copying`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._final = self._path
        self._draft = self._path.with_name(f"{self._path.name}.copying")

    async def open(self) -> None:
        if not await asyncio.to_thread(self._final.is_file):
            raise StoreUnusable(f"There is no store {self._final}.", {"store": str(self._final)})
        await super().open()

    async def draft(self, shards: int) -> None:
        await asyncio.to_thread(self._make_way)
        self._shards = shards
        self._work_on(self._draft)
        await super().open()

    async def publish(self) -> None:
        await self.close()
        await asyncio.to_thread(self._rename)
        self._work_on(self._final)

    async def states(self) -> list[ShardState]:
        return await self._read(_states)

    async def adopt(self, states: Sequence[ShardState]) -> None:
        await self._write(lambda db: _adopt(db, states))

    async def every(self, kind: Kind, shard: int) -> AsyncIterator[list[Any]]:
        read = {"runs": _runs, "parked": _parked, "snapshots": _snapshots, "requests": _requests}[kind]
        after = 0
        while True:
            records, after = await self._read(read, shard, after)
            if not records:
                return
            yield records

    def _work_on(self, path: Path) -> None:
        self._path = path
        self._lock = LockFile(path)

    def _make_way(self) -> None:
        if self._final.exists():
            raise StoreUnusable(f"There is a store {self._final} already.", {"store": str(self._final)})
        for suffix in _BESIDE:
            self._draft.with_name(self._draft.name + suffix).unlink(missing_ok=True)

    def _rename(self) -> None:
        self._make_sure_of(self._draft)
        self._draft.replace(self._final)
        self._make_sure_of(self._final.parent)
        for suffix in _BESIDE[1:]:
            self._draft.with_name(self._draft.name + suffix).unlink(missing_ok=True)

    @staticmethod
    def _make_sure_of(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _states(db: sqlite3.Connection) -> list[ShardState]:
    found = db.execute("SELECT shard, epoch, owner, head, next_iid, now FROM shards ORDER BY shard")
    return [ShardState(shard, epoch, reader.as_text(owner), *rest) for shard, epoch, owner, *rest in found]


def _adopt(db: sqlite3.Connection, states: Sequence[ShardState]) -> None:
    db.executemany(
        "UPDATE shards SET epoch = ?, owner = ?, head = ?, head_before = ?, next_iid = ?, now = ? WHERE shard = ?",
        [(one.epoch, as_bytes(one.owner), one.head, one.head, one.next_iid, one.now, one.shard) for one in states],
    )


def _numbers(db: sqlite3.Connection, table: str, shard: int, after: int) -> list[int]:
    base = shard << sql.SHARD_BITS
    found = db.execute(
        f"SELECT run FROM {table} WHERE run > ? AND run <= ? ORDER BY run LIMIT ?",  # noqa: S608 - a name of ours
        (base | after, base | sql.MASK, PAGE),
    )
    return [run & sql.MASK for (run,) in found]


def _runs(db: sqlite3.Connection, shard: int, after: int) -> tuple[list[Any], int]:
    iids = _numbers(db, "runs", shard, after)
    return reader.get_runs(db, shard, iids), max(iids, default=after)


def _parked(db: sqlite3.Connection, shard: int, after: int) -> tuple[list[ParkedRecord], int]:
    iids = _numbers(db, "parked", shard, after)
    found = [reader.get_parked(db, shard, iid) for iid in iids]
    return [record for record in found if record is not None], max(iids, default=after)


def _snapshots(db: sqlite3.Connection, shard: int, after: int) -> tuple[list[SnapshotRecord], int]:
    iids = _numbers(db, "snapshots", shard, after)
    found = [reader.snapshot(db, shard, iid, None) for iid in iids]
    return [record for record in found if record is not None], max(iids, default=after)


def _requests(db: sqlite3.Connection, shard: int, after: int) -> tuple[list[RequestRecord], int]:
    found = db.execute(
        "SELECT number, namespace, request_id, body_hash, response, at FROM requests"
        " WHERE shard = ? AND number > ? ORDER BY number LIMIT ?",
        (shard, after, PAGE),
    ).fetchall()
    records = [
        RequestRecord(reader.as_text(namespace), reader.as_text(request_id), body_hash, response, at)
        for _, namespace, request_id, body_hash, response, at in found
    ]
    return records, found[-1][0] if found else after
