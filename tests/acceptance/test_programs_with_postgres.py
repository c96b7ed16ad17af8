"""The programs on a real PostgreSQL, as a user starts them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import onexflow
from onexflow.app import exits
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from postgres_support import new_schema, own_postgres, postgres  # noqa: F401 - a fixture
from support.programs import finished, serving

pytestmark = pytest.mark.slow


@pytest.mark.timeout(90)
async def test_an_orchestrator_on_postgres_is_killed_and_comes_back_with_everything(
    tmp_path: Path,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    url = new_schema(postgres).replace(f":{postgres.password}@", "@")
    config = tmp_path / "onexflow.toml"
    config.write_text(f'[store]\nurl = "{url}"\npassword = "{postgres.password}"\n')
    orchestrator = ("onex-orchestrator", "--listen=127.0.0.1:0", f"--config={config}", "--log-level=debug")
    flow = onexflow.workflow("greet")
    flow.compute("greet")
    with serving(*orchestrator, cwd=tmp_path) as (first, line):
        address = line.rpartition(" on ")[2]
        with serving("onex-worker", "onexflow.examples.greet", f"--orchestrators={address}", cwd=tmp_path):
            async with await onexflow.connect(address) as client:
                await client.register(flow.build())
                assert await client.run("greet", input={"name": "Ada"}) == "Hello, Ada!"
        first.kill()
        first.wait(10)
        log = (tmp_path / "onex-orchestrator.err").read_text()
        assert "orchestrator.serving" in log
        assert postgres.password not in log
    with serving(*orchestrator, f"--listen={address}", cwd=tmp_path):
        async with await onexflow.connect(address) as client:
            [run] = [run async for run in client.list()]
            assert await asyncio.wait_for(client.get("greet", run.key.instance_id).result(), 10) == "Hello, Ada!"


async def test_a_start_on_a_store_that_cannot_be_used_is_two_lines_and_a_code(tmp_path: Path) -> None:
    flags = ("--listen=127.0.0.1:0", "--log-level=error")
    async with own_postgres(synchronous_commit="off") as server:
        unsafe = await asyncio.to_thread(
            lambda: finished("onex-orchestrator", *flags, cwd=tmp_path, ONEXFLOW_STORE__URL=server.url)
        )
        assert unsafe.returncode == exits.STORE_UNUSABLE
        assert "has synchronous_commit=off" in unsafe.stderr
        url = server.url.replace(server.password, "hunter2")
        wrong = await asyncio.to_thread(
            lambda: finished("onex-orchestrator", *flags, cwd=tmp_path, ONEXFLOW_STORE__URL=url)
        )
        assert wrong.returncode == exits.STORE_UNUSABLE
        assert server.password not in unsafe.stderr
        shown = finished("onex-orchestrator", "--show-config", cwd=tmp_path, ONEXFLOW_STORE__URL=url)
        for text in (wrong.stderr, wrong.stdout, shown.stdout):
            assert "hunter2" not in text
    away = finished("onex-orchestrator", *flags, cwd=tmp_path, ONEXFLOW_STORE__URL=server.url)
    assert away.returncode == exits.UNAVAILABLE
    assert "cannot be reached" in away.stderr
    assert "Traceback" not in away.stderr + wrong.stderr + unsafe.stderr
