"""Several orchestrators over PostgreSQL and a real etcd: processes that are killed and stopped under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
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


class Processes:
    """Three orchestrators `o1` to `o3` and two workers, over one PostgreSQL and one etcd."""

    def __init__(self, stack: ExitStack, folder: Path, store_url: str, registry_url: str) -> None:
        self._stack = stack
        self._folder = folder
        self._flags = (f"--registry-url={registry_url}", "--cluster=shared")
        store = (f"--store-url={store_url}", "--store-shards=16")
        started = {
            name: self._start("onex-orchestrator", name, "--listen=127.0.0.1:0", f"--node-id={name}", *store)
            for name in ("o1", "o2", "o3")
        }
        self.of = {name: process for name, (process, _) in started.items()}
        self.addresses = [line.rpartition(" on ")[2] for _, line in started.values()]
        for name in ("w1", "w2"):
            self._start("onex-worker", name, "onexflow.examples.greet", f"--worker-id={name}")

    def _start(self, program: str, name: str, *arguments: str) -> tuple[Popen[str], str]:
        folder = self._folder / name
        folder.mkdir()
        return self._stack.enter_context(serving(program, *arguments, *self._flags, cwd=folder))

    async def end(self, name: str) -> None:
        """SIGTERM."""
        self.of[name].send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self.of[name].wait, 20) == 0


@asynccontextmanager
async def cluster(server: EmbeddedPostgres, folder: Path) -> AsyncIterator[tuple[Processes, PostgresStore]]:
    """All of it, once every orchestrator owns something; audited at the end."""
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    etcd = EmbeddedEtcd()
    await etcd.start()
    url = new_schema(server)
    with ExitStack() as stack:
        try:
            processes = Processes(stack, folder, url, etcd.url)
            store = PostgresStore(url)
            await store.open()
            await owned_by(store, {"o1", "o2", "o3"})
            yield processes, store
            report = await audit(store)
            assert report.is_consistent, report.findings[:10]
            await store.close()
        finally:
            await etcd.stop()


@pytest.mark.timeout(120)
async def test_three_orchestrators_share_a_store_lose_one_and_stop_one_and_no_run_is_lost(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    async with cluster(postgres, tmp_path) as (processes, store):
        async with await onexflow.connect(processes.addresses) as client:
            await client.register(greet())
            stop = asyncio.Event()
            load = asyncio.ensure_future(_load(client, stop))
            await asyncio.sleep(1.0)  # of load
            processes.of["o2"].kill()
            killed_at = time.monotonic()
            await owned_by(store, {"o1", "o3"})
            assert time.monotonic() - killed_at < 3.0
            await asyncio.sleep(1.0)  # of load
            await processes.end("o1")
            await owned_by(store, {"o3"})
            await asyncio.sleep(1.0)  # of load
            stop.set()
            assert await load > 100
        await processes.end("o3")


@pytest.mark.timeout(120)
async def test_an_orchestrator_that_is_stopped_for_ten_seconds_loses_its_shards_and_writes_nothing_when_it_wakes(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    async with cluster(postgres, tmp_path) as (processes, store):
        async with await onexflow.connect(processes.addresses[:1]) as client:
            await client.register(greet())
            stop = asyncio.Event()
            load = asyncio.ensure_future(_load(client, stop))
            await asyncio.sleep(1.0)  # of load
            processes.of["o2"].send_signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            await owned_by(store, {"o1", "o3"})
            taken_after = time.monotonic() - stopped_at
            epochs = {shard: epoch for shard, epoch, _ in await store.owners()}
            await asyncio.sleep(max(0.0, 10.0 - taken_after))  # stopped
            processes.of["o2"].send_signal(signal.SIGCONT)
            await asyncio.sleep(3.0)  # of load, with it awake: it finds that it was deposed
            stop.set()
            assert await load > 100
        # The epochs of an append never go back (the audit sees to it): what it writes, it writes under epochs of its own.
        assert all(epoch >= epochs[shard] for shard, epoch, _ in await store.owners())
        assert taken_after < 5.0 + 3.0  # the lease, and a moment
        for name in ("o1", "o2", "o3"):
            await processes.end(name)


def greet() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow("greet")
    flow.compute("greet")
    return flow.build()


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
