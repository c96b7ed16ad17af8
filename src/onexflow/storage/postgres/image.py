"""A PostgreSQL store as the source or the target of a copy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from onexflow.core.errors import StoreLocked, StoreUnusable
from onexflow.ports.event_store import ParkedRecord, RequestRecord, RunRecord, SnapshotRecord
from onexflow.ports.store_image import Kind, ShardState
from onexflow.storage.postgres import statements as sql
from onexflow.storage.postgres.errors import DriverError, unusable
from onexflow.storage.postgres.server import Connection, connect
from onexflow.storage.postgres.store import PostgresStore
from onexflow.storage.postgres.writer import as_bytes, as_text

PAGE: Final = 500
_DRAFT: Final = "_copying"


class PostgresImage(PostgresStore):
    """`ports.StoreImage` in a schema. A draft is the schema `<schema>_copying`."""

    def __init__(self, url: str, *, password: str = "") -> None:
        super().__init__(url, password=password, make=False)
        self._final = self._settings

    async def open(self) -> None:
        await super().open()
        sessions = await self._control(lambda db: db.fetchval(sql.SESSIONS))
        if sessions:
            await self.close()
            raise StoreLocked(
                f"The store {self.url} is in use by {sessions} process(es).",
                {"store": self.url, "hint": "Stop the orchestrators that work on it."},
            )

    async def draft(self, shards: int) -> None:
        schema = self._final.schema + _DRAFT
        if len(schema) > 63:
            raise StoreUnusable(f"The schema's name {self._final.schema} is too long for a copy.")
        exists = "SELECT to_regnamespace($1) IS NOT NULL"
        if await self._directly(lambda db: db.fetchval(exists, self._final.schema)):
            raise StoreUnusable(
                f"There is a schema {self._final.schema} in {self.url} already. Name another: ?schema=NAME."
            )
        await self._directly(lambda db: db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
        self._settings = msgspec.structs.replace(self._final, schema=schema)
        self._shards = shards
        self._make = True
        await super().open()

    async def publish(self) -> None:
        await self.close()
        draft, self._settings, self._make = self._settings.schema, self._final, False
        await self._directly(lambda db: db.execute(f"ALTER SCHEMA {draft} RENAME TO {self._final.schema}"))

    async def states(self) -> list[ShardState]:
        found = await self._control(lambda db: db.fetch(sql.STATES))
        return [ShardState(shard, epoch, as_text(owner), *rest) for shard, epoch, owner, *rest in found]

    async def adopt(self, states: Sequence[ShardState]) -> None:
        columns = zip(*(one._replace(owner=as_bytes(one.owner)) for one in states), strict=True)  # type: ignore[arg-type]  # as the table has it
        self._held().session.promises.forget()
        await self._control(lambda db: db.execute(sql.ADOPT, *columns))

    async def every(self, kind: Kind, shard: int) -> AsyncIterator[list[Any]]:
        text = sql.EVERY[kind]
        after: Any = b"" if kind == "requests" else 0
        while found := await self._control(lambda db: db.fetch(text, shard, after, PAGE)):  # noqa: B023 - it is awaited here
            yield [_record(kind, tuple(row)[1:]) for row in found]
            after = found[-1][0]

    async def _directly(self, work: Any) -> Any:
        """On a connection of its own: there is no store yet, or no longer."""
        connection: Connection | None = None
        try:
            connection = await connect(self._final, "onexflow copy")
            return await work(connection)
        except DriverError as error:
            raise unusable(error, self.url) from error
        finally:
            if connection is not None:
                connection.terminate()


def _record(kind: Kind, row: tuple[Any, ...]) -> Any:
    if kind == "runs":
        return RunRecord(*row[1:])
    if kind == "parked":
        return ParkedRecord(row[0], row[1], as_text(row[2]))
    if kind == "snapshots":
        return SnapshotRecord(*row)
    return RequestRecord(as_text(row[0]), as_text(row[1]), *row[2:])
