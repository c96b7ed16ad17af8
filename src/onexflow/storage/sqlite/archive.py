"""Reading a store's file beside its owner: no lock, no writing, the reading half of the port."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onexflow.core.errors import StoreUnavailable, StoreUnusable
from onexflow.ports.event_store import (
    CheckpointRecord,
    DefinitionRecord,
    ParkedRecord,
    Row,
    RunRecord,
    SnapshotRecord,
    Tombstone,
)
from onexflow.storage.sqlite import reader, schema


class SqliteArchive:
    """A store as it stands, also while an orchestrator writes to it. Each call reads one consistent state."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._readers: reader.Readers | None = None
        self.shards = 0

    async def open(self) -> None:
        """Raises StoreUnusable: no such file, not a store, or one of a newer release."""
        if not self._path.is_file():
            raise StoreUnusable(f"there is no store {self._path}", {"path": str(self._path)})
        self._readers = reader.Readers(self._path)
        try:
            await self._readers.run(schema.check, self._path)
        except BaseException:
            self.close()
            raise
        self.shards = len(await self.owners())

    def close(self) -> None:
        """Idempotent."""
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()

    async def owners(self) -> Sequence[tuple[int, int, str]]:
        return await self._opened().run(reader.owners)

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        return await self._opened().run(reader.shard_rows, shard, offset, limit)

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        return await self._opened().run(reader.run_rows, shard, iid, from_seq, limit)

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        return await self._opened().run(reader.get_runs, shard, iids)

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        return await self._opened().run(reader.snapshot, shard, iid, max_seq)

    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None:
        return await self._opened().run(reader.checkpoint, shard)

    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None:
        return await self._opened().run(reader.get_parked, shard, iid)

    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]:
        return await self._opened().run(reader.tombstones, shard, from_offset, iid)

    async def load_definitions(self) -> list[DefinitionRecord]:
        return await self._opened().run(reader.definitions)

    def _opened(self) -> reader.Readers:
        if self._readers is None:
            raise StoreUnavailable(f"The store {self._path} is not open.")
        return self._readers
