"""The database file: who may open it, where it may lie, which schema it has, how it is written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onexflow.core.errors import InternalError, StoreFull, StoreLocked, StoreUnavailable, StoreUnusable
from onexflow.ports.event_store import RegisterRecord
from onexflow.storage.sqlite import SqliteStore, place, schema
from onexflow.storage.sqlite import statements as sql
from onexflow.storage.sqlite.errors import translate
from onexflow.storage.sqlite.reader import Readers
from onexflow.testing.conformance.store_kit import one_row

HOLD = """
import asyncio, sys
from onexflow.storage.sqlite import SqliteStore
async def main():
    await SqliteStore(sys.argv[1]).open()
    print("open", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.db"


async def opened(path: Path, **settings: int) -> SqliteStore:
    store = SqliteStore(path, **settings)
    await store.open()
    return store


# ------------------------------------------------------------------------------------------------------------- lock


async def test_a_second_process_is_told_who_holds_the_store(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreLocked, match=f"in use by process {holder.pid}") as raised:
            await SqliteStore(path).open()
        assert raised.value.context == {"store": str(path), "pid": str(holder.pid)}
        holder.kill()
        holder.wait()
        store = await opened(path)  # the lock went with its holder
        await store.close()


async def test_a_second_store_of_one_process_is_locked_out_too(path: Path) -> None:
    first = await opened(path)
    with pytest.raises(StoreLocked):
        await SqliteStore(path).open()
    await first.open()  # is open already
    await first.close()
    second = await opened(path)
    await second.close()


async def test_a_failed_open_leaves_no_lock(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(StoreUnusable, match="not a SQLite database"):
        await SqliteStore(path).open()
    path.unlink()
    await (await opened(path)).close()


# ------------------------------------------------------------------------------------------------------------ place


async def test_files_are_for_their_owner_alone(path: Path) -> None:
    store = await opened(path)
    await store.claim(0, 0, "me")
    await store.append([one_row(0, 1, 1)])
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {"store.db", "store.db-wal", "store.db-shm", "store.db.lock"}
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await store.close()


async def test_the_parent_of_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="missing does not exist"):
        await SqliteStore(tmp_path / "missing" / "data" / "store.db").open()


async def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="Is a directory"):
        await SqliteStore(tmp_path).open()


@pytest.mark.parametrize("shards", [0, -1, 5000])
def test_the_number_of_shards_has_bounds(path: Path, shards: int) -> None:
    with pytest.raises(StoreUnusable):
        SqliteStore(path, shards=shards)


async def test_the_number_of_shards_is_the_files(path: Path) -> None:
    await (await opened(path, shards=3)).close()
    store = await opened(path, shards=8)
    assert store.shards == 3
    assert len(await store.owners()) == 3
    await store.close()


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path: Path) -> None:
    inner = tmp_path / "a b" / "c"
    inner.mkdir(parents=True)
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    table = tmp_path / "mounts"
    table.write_text(f"/dev/x / ext4 rw 0 0\nhost:/x {escaped} nfs4 rw 0 0\nother {tmp_path}/a tmpfs rw 0 0\n")
    assert place.file_system(inner, str(table)) == "nfs4"
    assert place.file_system(tmp_path, str(table)) == "ext4"
    assert not place.file_system(inner, str(tmp_path / "absent"))


async def test_network_file_systems_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "file_system", lambda directory: "nfs4")
    with pytest.raises(StoreUnusable, match="network file system"):
        await SqliteStore(path).open()


# ----------------------------------------------------------------------------------------------------------- schema


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    await (await opened(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO migrations VALUES (9999, '9999_future', 'x', 0)")
    database.close()
    with pytest.raises(StoreUnusable, match="newer release") as raised:
        await SqliteStore(path).open()
    assert raised.value.context == {"schema": 9999, "known": schema.migrations()[-1].number}


async def test_a_changed_migration_is_refused(path: Path) -> None:
    await (await opened(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE migrations SET checksum = 'x'")
    database.close()
    with pytest.raises(StoreUnusable, match="another form of migration 0001"):
        await SqliteStore(path).open()


async def test_a_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StoreUnusable, match="another program"):
        await SqliteStore(path).open()


def test_a_migration_that_fails_leaves_the_schema_as_it_was(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    database = schema.connect_writer(path)
    known = schema.migrations()
    schema.migrate(database, path, known, 0)
    broken = schema.Migration(9000, "9000_broken", "CREATE TABLE half (x);\n-- then\nSELECT broken(;\n")
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(database, path, [*known, broken], 0)
    added = schema.Migration(9000, "9000_added", "CREATE TABLE whole (x);\nINSERT INTO whole VALUES ('a;b');\n")
    schema.migrate(database, path, [*known, added], 0)
    schema.migrate(database, path, [*known, added], 0)
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert "whole" in tables
    assert "half" not in tables
    database.close()


async def test_a_store_of_release_0_1_gets_what_is_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: known[:1])
    path.parent.mkdir()
    path.touch()
    database = schema.connect_writer(path)
    schema.migrate(database, path, known[:1], 0)
    database.execute("INSERT INTO shards VALUES (0, 1, x'', 3, 1, 2, 0)")
    database.execute("INSERT INTO event_rows VALUES (1, 1, 2, 1, 1, 1, x'61')")
    database.execute("INSERT INTO parts VALUES (1, 1, 1)")
    database.close()
    monkeypatch.setattr(schema, "migrations", lambda: known)
    store = await opened(path)
    part = one_row(0, 1, 3, seq=3)
    part.registers = [RegisterRecord("a", b"v")]
    assert (await store.append([part])).stored == {0}
    assert [row.offset for row in await store.read_shard(0, 1)] == [1, 3]
    assert await store.get_register(0, "a") == b"v"
    assert await store.tombstones(0) == []
    await store.close()


async def test_what_happens_to_one_name_or_run_does_not_look_at_all(path: Path) -> None:
    store = await opened(path)
    await store.close()
    with sqlite3.connect(path) as database:
        remove = sql.UNREGISTER[0] + "(?),(?)" + sql.UNREGISTER[2]
        for statement, count in (
            (remove, 3), (sql.CUT_PARTS, 2), (sql.CUT_ROWS, 2), (sql.CUT_REST, 7), (sql.TOMBSTONES, 2), (sql.RUN_TOMBSTONES, 2)
        ):  # fmt: skip
            plan = [line[3] for line in database.execute("EXPLAIN QUERY PLAN " + statement, range(count))]
            assert [line for line in plan if line.startswith("SEARCH")]
            tables = ("registers", "event_rows", "parts", "tombstones", "r", "p", "o")
            assert not [line for line in plan if line.startswith("SCAN") and line.split()[1] in tables]
    database.close()


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in schema.migrations()] == list(range(1, len(schema.migrations()) + 1))


# ---------------------------------------------------------------------------------------------------------- writing


async def test_the_writer_syncs_every_commit_and_never_checkpoints_within_one(path: Path) -> None:
    store = await opened(path)
    assert await store.pragma("synchronous") == 2
    assert await store.pragma("journal_mode") == "wal"
    assert await store.pragma("wal_autocheckpoint") == 0
    await store.close()


async def test_a_failed_disk_ends_the_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(path)
    await store.claim(0, 0, "me")
    writer = store._opened()

    class Broken:
        in_transaction = False

        def execute(self, text: str, *values: object) -> sqlite3.Cursor:
            if text == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
                raise error
            return connection.execute(text, *values)

    connection, writer.connection = writer.connection, Broken()  # type: ignore[assignment]  # a disk that fails
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as raised:
            await store.append([one_row(0, 1, 1)])
        assert raised.value.context["fatal"] is True
        assert raised.value.context["sqlite_error"] == "SQLITE_IOERR_FSYNC"
    writer.connection = connection
    for refused in (store.read_shard(0, 1), store.claim(0, 1, "me"), store.owners()):
        with pytest.raises(StoreUnavailable):
            await refused
    await store.close()


async def test_a_row_in_the_way_of_an_append_undoes_all_of_it(path: Path) -> None:
    store = await opened(path)
    await store.claim(0, 0, "me")
    writer = store._opened()
    writer.connection.execute("INSERT INTO event_rows VALUES (1, 1, 1, 1, 1, 1, x'00')")
    with pytest.raises(InternalError):
        await store.append([one_row(0, 1, 1)])
    writer.connection.execute("DELETE FROM event_rows")
    assert (await store.append([one_row(0, 1, 1)])).stored == {0}
    assert [row.data for row in await store.read_shard(0, 1)] == [b"data"]
    await store.close()


async def test_a_store_busy_with_another_program_is_not_fatal(path: Path) -> None:
    store = await opened(path)
    await store.claim(0, 0, "me")
    await store.pragma("busy_timeout=1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable) as raised:
        await store.append([one_row(0, 1, 1)])
    assert "fatal" not in raised.value.context
    other.execute("ROLLBACK")
    other.close()
    assert (await store.append([one_row(0, 1, 1)])).stored == {0}
    await store.close()


async def test_a_cancelled_append_is_stored_all_the_same(path: Path) -> None:
    store = await opened(path)
    await store.claim(0, 0, "me")
    append = asyncio.create_task(store.append([one_row(0, 1, 1)]))
    await asyncio.sleep(0)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    await store.close()
    store = await opened(path)
    assert len(await store.read_shard(0, 1)) == 1
    await store.close()


async def test_the_log_is_moved_into_the_database_when_it_is_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onexflow.storage.sqlite.writer.FORCED_CHECKPOINT", 100)
    store = await opened(path)
    await store.claim(0, 0, "me")
    for head in range(1, 101):
        await store.append([one_row(0, 1, head, seq=head, data=bytes(20_000))])
    assert path.with_name("store.db-wal").stat().st_size < 1_500_000 < path.stat().st_size
    await store.close()


async def test_a_read_that_takes_too_long_is_ended(path: Path) -> None:
    store = await opened(path)
    readers = Readers(path, seconds=0.01)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreUnavailable, match="too long"):
        await readers.run(lambda db: db.execute(endless).fetchone())
    assert await readers.run(lambda db: db.execute("SELECT 1").fetchone()) == (1,)
    with pytest.raises(StoreUnavailable, match="readonly"):
        await readers.run(lambda db: db.execute("DELETE FROM runs"))
    readers.close()
    await store.close()


def test_errors_of_the_driver_become_ours() -> None:
    def error(code: int) -> sqlite3.Error:
        made = sqlite3.OperationalError("words")
        made.sqlite_errorcode = code
        made.sqlite_errorname = "NAME"
        return made

    assert isinstance(translate(error(sqlite3.SQLITE_FULL), "p"), StoreFull)
    assert translate(error(sqlite3.SQLITE_IOERR_WRITE), "p").context["fatal"] is True
    assert translate(error(sqlite3.SQLITE_CORRUPT), "p").context["fatal"] is True
    assert "fatal" not in translate(error(sqlite3.SQLITE_BUSY), "p").context
    assert "fatal" not in translate(sqlite3.ProgrammingError("no code"), "p").context
