"""Several orchestrators over PostgreSQL and a real etcd: processes that are killed and stopped under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, cast

import pytest

import onexflow
from etcd_support import NO_ETCD
from onexflow.audit import audit
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.spi import WorkflowEvent
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
        self._store = (f"--store-url={store_url}", "--store-shards=16")
        self.of: dict[str, Popen[str]] = {}
        self.addresses = [self.orchestrate(name) for name in ("o1", "o2", "o3")]
        for name in ("w1", "w2"):
            self._start("onex-worker", name, "onexflow.examples.greet", f"--worker-id={name}")

    def orchestrate(self, name: str) -> str:
        """Start an orchestrator of that name; returns its address."""
        arguments = ("--listen=127.0.0.1:0", f"--node-id={name}", *self._store)
        self.of[name], line = self._start("onex-orchestrator", name, *arguments)
        return line.rpartition(" on ")[2].strip()

    def _start(self, program: str, name: str, *arguments: str) -> tuple[Popen[str], str]:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
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


@pytest.mark.timeout(120)
async def test_a_rolling_restart_is_seen_by_no_client(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """The new ones have other addresses: the client, which was given one of the old, has to learn them."""
    async with cluster(postgres, tmp_path) as (processes, store):
        async with await onexflow.connect(processes.addresses[:1]) as client:
            await client.register(greet())
            stop = asyncio.Event()
            loads = [asyncio.ensure_future(_load(client, stop)), asyncio.ensure_future(_commands(client, stop))]
            for name in ("o1", "o2", "o3"):
                await processes.end(name)
                await owned_by(store, {"o1", "o2", "o3"} - {name})
                await asyncio.to_thread(processes.orchestrate, name)
                if name == "o1":
                    await owned_by(store, {"o1", "o2", "o3"})  # it is given shards again
                assert not any(load.done() for load in loads), [load.exception() for load in loads if load.done()]
            stop.set()
            assert all(count > 20 for count in await asyncio.gather(*loads))
        for name in ("o1", "o2", "o3"):
            await processes.end(name)


@pytest.mark.timeout(120)
async def test_a_consumer_misses_nothing_while_owners_are_killed_and_frozen(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    async with cluster(postgres, tmp_path) as (processes, store):
        async with await onexflow.connect(processes.addresses[:1]) as client:
            await client.register(greet())
            seen: dict[str, list[int]] = {}
            alone: dict[str, list[int]] = {}

            async def handle(event: WorkflowEvent) -> None:
                seen.setdefault(str(event.instance_id), []).append(event.sequence_number)

            async def note(event: WorkflowEvent) -> None:
                alone.setdefault(str(event.instance_id), []).append(event.sequence_number)

            shared, own = client.event_bus(group="g"), client.event_bus()
            other = client.event_bus(group="g")
            await shared.subscribe_to_workflow_events("greet", handler=cast("Any", handle))
            await other.subscribe_to_workflow_events("greet", handler=cast("Any", handle))
            await own.subscribe_to_workflow_events("greet", handler=cast("Any", note))
            stop = asyncio.Event()
            load = asyncio.ensure_future(_load(client, stop, count=3, pause=0.05))
            await asyncio.sleep(1.0)  # of load
            processes.of["o1"].kill()  # the one that the client was given
            await owned_by(store, {"o2", "o3"})
            await asyncio.to_thread(processes.orchestrate, "o1")
            await owned_by(store, {"o1", "o2", "o3"})
            processes.of["o3"].send_signal(signal.SIGSTOP)
            await owned_by(store, {"o1", "o2"})
            processes.of["o3"].send_signal(signal.SIGCONT)
            await asyncio.sleep(1.0)  # of load
            stop.set()
            await load
            runs = {
                str(run.key.instance_id): [
                    event.sequence for event in await client.get("greet", run.key.instance_id).history()
                ]
                async for run in client.list("greet")
            }
            async with asyncio.timeout(60):
                while any(
                    set(found.get(run, ())) < set(events) for found in (seen, alone) for run, events in runs.items()
                ):
                    await asyncio.sleep(0.05)
            for found in (seen, alone):
                assert {run: list(dict.fromkeys(events)) for run, events in found.items()} == runs
            assert alone == runs  # nothing twice
        for name in ("o1", "o2", "o3"):
            await processes.end(name)


def greet() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow("greet")
    flow.compute("greet")
    return flow.build()


async def _commands(client: onexflow.Client, stop: asyncio.Event) -> int:
    """Runs that are to begin much later are looked at and cancelled."""
    done = 0
    while not stop.is_set():
        handle = await client.start("greet", {"name": "nobody"}, delay=600.0)
        assert (await handle.state()).state == "pending"
        assert (await handle.cancel()).changed
        assert (await handle.outcome(60)).state == "cancelled"
        done += 1
        await asyncio.sleep(0.05)
    return done


async def _load(client: onexflow.Client, stop: asyncio.Event, count: int = 10, pause: float = 0.0) -> int:
    """Runs, so many at a time, until told to stop. Every one must give its result."""
    done = 0

    async def one() -> None:
        nonlocal done
        while not stop.is_set():
            name = f"n{done}"
            assert await client.run("greet", input={"name": name}, wait_timeout=60) == f"Hello, {name}!"
            done += 1
            await asyncio.sleep(pause)  # between runs

    await asyncio.gather(*(one() for _ in range(count)))
    return done


async def owned_by(store: PostgresStore, names: set[str], within: float = 60.0) -> None:
    """Return when these have all shards, and each has some."""
    async with asyncio.timeout(within):
        while {owner for _, _, owner in await store.owners()} != names:
            await asyncio.sleep(0.05)
