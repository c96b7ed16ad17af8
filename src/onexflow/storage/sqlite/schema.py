"""Opening a database file: pragmas, numbered migrations, and the refusal of what is not ours or too new."""

from __future__ import annotations

import hashlib
import sqlite3
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from onexflow.core.errors import StoreUnusable
from onexflow.storage.sqlite.errors import primary_code

#: Marks a database file as ours: "onex" in ASCII.
APPLICATION_ID: Final = 0x6F6E6578
_OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables
_MIGRATIONS_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS migrations "
    "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, at INTEGER NOT NULL) STRICT"
)


class Migration(NamedTuple):
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """The migrations that this release has, in order."""
    folder = resources.files("onexflow.storage.sqlite") / "migrations"
    found = [
        Migration(int(entry.name[:4]), entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    ]
    return sorted(found)


def connect_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes: WAL, every commit fsynced, no checkpoint in a commit's way."""
    connection = _connect(f"{path.absolute().as_uri()}?mode=rw", timeout=5.0)
    try:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA cache_size=-65536")
        # What a statement of many rows may have to take back: in a file it costs as many writes as half the commit.
        connection.execute("PRAGMA temp_store=MEMORY")
        level = connection.execute("PRAGMA synchronous").fetchone()[0]
    except BaseException:
        connection.close()
        raise
    if mode != "wal" or level != 2:
        connection.close()
        raise StoreUnusable(f"The store {path} does not take safe settings: journal mode {mode}, synchronous {level}.")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = _connect(f"{path.absolute().as_uri()}?mode=rw", timeout=1.0)
    connection.execute("PRAGMA query_only=1")
    connection.execute("PRAGMA cache_size=-16384")
    return connection


def _connect(uri: str, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(
        uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def migrate(connection: sqlite3.Connection, path: Path, known: list[Migration], now: int) -> None:
    """Bring the database to this release's schema. Raises StoreUnusable; then nothing was changed."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 or later is needed.")
    connection.execute("BEGIN IMMEDIATE")
    try:
        applied = _applied(connection, path)
        _check(applied, known, path)
        for migration in known:
            if migration.number not in applied:
                for statement in split(migration.sql):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO migrations VALUES (?,?,?,?)",
                    (migration.number, migration.name, migration.checksum, now),
                )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreUnusable unless the database is a store of exactly this release's schema. Writes nothing."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreUnusable(f"{path} is not a store of onexflow.")
    found = connection.execute("SELECT number, name, checksum FROM migrations").fetchall()
    applied = {number: (name, checksum) for number, name, checksum in found}
    known = migrations()
    _check(applied, known, path)
    if len(applied) < len(known):
        raise StoreUnusable(
            f"The store {path} is of an older release: an orchestrator of this one brings it up to date."
        )


def _applied(connection: sqlite3.Connection, path: Path) -> dict[int, tuple[str, str]]:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application or tables:
            raise StoreUnusable(f"{path} is a database of another program.")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(_MIGRATIONS_TABLE)
    return {
        number: (name, checksum)
        for number, name, checksum in connection.execute("SELECT number, name, checksum FROM migrations")
    }


def _check(applied: dict[int, tuple[str, str]], known: list[Migration], path: Path) -> None:
    ours = {migration.number: migration for migration in known}
    for number, (name, checksum) in sorted(applied.items()):
        if number not in ours:
            raise StoreUnusable(
                f"The store {path} was written by a newer release (schema {name}). Use that release, or a later one.",
                {"schema": number, "known": max(ours, default=0)},
            )
        if ours[number].checksum != checksum:
            raise StoreUnusable(f"The store {path} was made with another form of migration {name}.")


def split(script: str) -> list[str]:
    """The statements of a script."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements


def unusable(error: sqlite3.Error, path: Path) -> StoreUnusable:
    """What to say when the database cannot be opened."""
    if primary_code(error) == sqlite3.SQLITE_NOTADB:
        return StoreUnusable(f"{path} is not a SQLite database.")
    return StoreUnusable(f"The store {path} cannot be opened: {error}.")
