"""Making and checking the tables: numbered migrations, and the refusal of what is not ours or too new."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final, NamedTuple

from onexflow.core.errors import StoreUnusable
from onexflow.storage.postgres.server import Connection
from onexflow.storage.postgres.url import PostgresSettings

#: With the schema's name, the advisory lock under which one process at a time migrates.
_LOCK: Final = 0x6F6E6578
_MIGRATIONS_TABLE: Final = (
    "CREATE TABLE migrations (number int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, at bigint NOT NULL)"
)
_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"


class Migration(NamedTuple):
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """The migrations that this release has, in order."""
    folder = resources.files("onexflow.storage.postgres") / "migrations"
    found = [
        Migration(int(entry.name[:4]), entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    ]
    return sorted(found)


async def migrate(connection: Connection, settings: PostgresSettings, known: list[Migration], shards: int) -> int:
    """Bring the schema to this release's tables, and make the shards if there are none; how many there are.

    Raises StoreUnusable; then nothing was changed. Any number of processes may do this at once."""
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = '60s'")
        await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK, settings.schema)
        applied = await _applied(connection, settings)
        _check(applied, known, settings)
        for migration in known:
            if migration.number not in applied:
                await connection.execute(migration.sql)
                await connection.execute(
                    f"INSERT INTO migrations SELECT $1, $2, $3, {_NOW}",
                    *(migration.number, migration.name, migration.checksum),
                )
        held: int = await connection.fetchval("SELECT count(*) FROM shards")
        if not held:
            await connection.execute(
                "INSERT INTO shards SELECT shard, 0, '', '', 1, 1, 0 FROM generate_series(0, $1::int - 1) AS shard",
                shards,
            )
            await connection.execute("INSERT INTO store SELECT gen_random_uuid(), store_clock()")
        return held or shards


async def check(connection: Connection, settings: PostgresSettings, known: list[Migration], _: int) -> int:
    """How many shards the store has. Raises StoreUnusable when there is none, or its tables are not this release's."""
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{settings.schema}.migrations"):
        raise StoreUnusable(f"There is no store in the schema {settings.schema} of {settings.shown}.")
    found = await connection.fetch("SELECT number, name, checksum FROM migrations")
    _check({row["number"]: (row["name"], row["checksum"]) for row in found}, known, settings)
    if len(found) < len(known):
        raise StoreUnusable(f"The store {settings.shown} is of an older release: start an orchestrator on it once.")
    held: int = await connection.fetchval("SELECT count(*) FROM shards")
    return held


async def _applied(connection: Connection, settings: PostgresSettings) -> dict[int, tuple[str, str]]:
    schema = settings.schema
    if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", schema):
        await connection.execute(f"CREATE SCHEMA {schema}")
    tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema)
    ours = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.migrations")
    if tables and not ours:
        raise StoreUnusable(
            f"The schema {schema} of {settings.shown} has tables of another program. Name another: ?schema=NAME."
        )
    if not ours:
        await connection.execute(_MIGRATIONS_TABLE)
    found = await connection.fetch("SELECT number, name, checksum FROM migrations")
    return {row["number"]: (row["name"], row["checksum"]) for row in found}


def _check(applied: dict[int, tuple[str, str]], known: list[Migration], settings: PostgresSettings) -> None:
    ours = {migration.number: migration for migration in known}
    for number, (name, checksum) in sorted(applied.items()):
        if number not in ours:
            raise StoreUnusable(
                f"The store {settings.shown} was written by a newer release (schema {name}). "
                "Use that release, or a later one.",
                {"schema": number, "known": max(ours, default=0)},
            )
        if ours[number].checksum != checksum:
            raise StoreUnusable(f"The store {settings.shown} was made with another form of migration {name}.")
