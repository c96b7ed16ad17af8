"""Several orchestrators over PostgreSQL and a real etcd: processes that are killed and stopped under load."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import pytest

import onexflow
from etcd_support import NO_ETCD
from onexflow.audit import audit
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from postgres_support import new_schema, postgres  # noqa: F401 - a fixture
from support.programs import serving

pytestmark = pytest.mark.slow


@pytest.mark.timeout(120)
async def test_three_orchestrators_share_a_store_lose_one_and_stop_one_and_no_run_is_lost(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    etcd = EmbeddedEtcd()
    await etcd.start()
    url = new_schema(postgres)
    flags = (f"--registry-url={etcd.url}", "--cluster=shared")
    with ExitStack() as stack:

        def start(program: str, name: str, *arguments: str) -> tuple[Popen[str], str]:
            folder = tmp_path / name
            folder.mkdir()
            return stack.enter_context(serving(program, *arguments, *flags, cwd=folder))

        def orchestrator(name: str) -> tuple[Popen[str], str]:
            process, line = start(
                "onex-orchestrator", name, "--listen=127.0.0.1:0", f"--node-id={name}", f"--store-url={url}",
                "--store-shards=16",
            )  # fmt: skip
            return process, line.rpartition(" on ")[2]

        try:
            processes = {name: orchestrator(name) for name in ("o1", "o2", "o3")}
            for name in ("w1", "w2"):
                start("onex-worker", name, "onexflow.examples.greet", f"--worker-id={name}")
            store = PostgresStore(url)
            await store.open()
            await owned_by(store, {"o1", "o2", "o3"})
            flow = onexflow.workflow("greet")
            flow.compute("greet")
            addresses = [address for _, address in processes.values()]
            async with await onexflow.connect(addresses) as client:
                await client.register(flow.build())
                stop = asyncio.Event()
                load = asyncio.ensure_future(_load(client, stop))
                await asyncio.sleep(1.0)  # of load
                processes["o2"][0].kill()
                killed_at = time.monotonic()
                await owned_by(store, {"o1", "o3"})
                taken_after = time.monotonic() - killed_at
                await asyncio.sleep(1.0)  # of load
                processes["o1"][0].send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(processes["o1"][0].wait, 20) == 0
                await owned_by(store, {"o3"})
                await asyncio.sleep(1.0)  # of load
                stop.set()
                done = await load
            assert done > 100
            assert taken_after < 3.0
            processes["o3"][0].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(processes["o3"][0].wait, 20) == 0
            report = await audit(store)
            assert report.is_consistent, report.findings[:10]
            await store.close()
        finally:
            await etcd.stop()


async def _load(client: onexflow.Client, stop: asyncio.Event) -> int:
    """Runs, ten at a time, until told to stop. Every one must give its result."""
    done = 0

    async def one() -> None:
        nonlocal done
        while not stop.is_set():
            name = f"n{done}"
            assert await client.run("greet", input={"name": name}, wait_timeout=60) == f"Hello, {name}!"
            done += 1

    await asyncio.gather(*(one() for _ in range(10)))
    return done


async def owned_by(store: PostgresStore, names: set[str], within: float = 60.0) -> None:
    """Return when these have all shards, and each has some."""
    async with asyncio.timeout(within):
        while {owner for _, _, owner in await store.owners()} != names:
            await asyncio.sleep(0.05)
