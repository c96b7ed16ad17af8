"""Owners that live and do not work (rule 17): one whose loop hangs, and one that is cut off from the store alone. Real
processes over PostgreSQL and etcd; the others take their shards, and they are members again without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

import onexflow
from etcd_support import NO_ETCD
from onexflow.audit import audit
from onexflow.core.errors import StoreUnavailable
from onexflow.engine.fitness import FRESH_SECONDS, STORE_SECONDS
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.testing.faults.relay import Relay
from postgres_support import new_schema, postgres  # noqa: F401 - a fixture
from support.programs import serving

pytestmark = pytest.mark.slow

LEASE = 5.0
#: What a process does that was told by SIGUSR2 to hang, as a handler of an extension that never returns would.
HANG = """
import signal, time

signal.signal(signal.SIGUSR2, lambda *_: time.sleep(14))  # the loop hangs
"""


@asynccontextmanager
async def pair(
    server: EmbeddedPostgres, folder: Path, relay: Relay | None = None
) -> AsyncIterator[tuple[dict[str, Popen[str]], onexflow.Client, PostgresStore]]:
    """Orchestrators `o1` (through the relay, if there is one) and `o2`, a worker, and a client that knows both."""
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    etcd = EmbeddedEtcd()
    await etcd.start()
    url = new_schema(server)
    (folder / "sitecustomize.py").write_text(HANG)
    path = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    flags = (f"--registry-url={etcd.url}", "--cluster=hung", f"--registry-lease-ttl={LEASE:g}")
    with ExitStack() as stack:
        try:
            of, addresses = {}, []
            for name in ("o1", "o2"):
                (folder / name).mkdir()
                way = url if relay is None or name == "o2" else url.replace(_place(server), relay.address)
                of[name], line = await asyncio.to_thread(  # the relay goes on meanwhile
                    stack.enter_context,
                    serving(
                        "onex-orchestrator", "--listen=127.0.0.1:0", f"--node-id={name}", f"--store-url={way}",
                        "--store-shards=8", *flags, cwd=folder / name, PYTHONPATH=path,
                    ),
                )  # fmt: skip
                addresses.append(line.rpartition(" on ")[2])
            (folder / "w1").mkdir()
            stack.enter_context(
                serving("onex-worker", "onexflow.examples.greet", "--worker-id=w1", *flags, cwd=folder / "w1")
            )
            store = PostgresStore(url)
            await store.open()
            await owned_by(store, {"o1", "o2"})
            async with await onexflow.connect(addresses) as client:
                flow = onexflow.workflow("greet")
                flow.compute("greet")
                await client.register(flow.build())
                yield of, client, store
            report = await audit(store)
            assert report.is_consistent, report.findings[:10]
            await store.close()
        finally:
            await etcd.stop()


def _place(server: EmbeddedPostgres) -> str:
    """host:port of the server, as its URL has it."""
    return server.url.partition("://")[2].rpartition("@")[2].partition("/")[0]


async def owned_by(store: PostgresStore, names: set[str], within: float = 40.0) -> float:
    """Return when these have all shards, and each has some; how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(within):
        while {owner for _, _, owner in await store.owners()} != names:
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def greet_all(client: onexflow.Client, count: int) -> None:
    """So many runs, one after the other, over all shards: every one gives its result. An owner without its store says so
    until the client has learned of the next one; it is asked again then, as its users would."""
    for number in range(count):
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable), stop=stop_after_delay(20), wait=wait_fixed(0.1)
        )
        greeting: str = await retrying(client.run, "greet", {"name": f"n{number}"}, wait_timeout=30)
        assert greeting == f"Hello, n{number}!"


@pytest.mark.timeout(120)
async def test_an_owner_whose_loop_hangs_loses_its_shards_and_is_a_member_again_when_it_wakes(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    async with pair(postgres, tmp_path) as (of, client, store):
        await greet_all(client, 16)
        of["o1"].send_signal(signal.SIGUSR2)
        taken = await owned_by(store, {"o2"})
        assert taken < LEASE + 5
        assert of["o1"].poll() is None
        await greet_all(client, 16)
        await owned_by(store, {"o1", "o2"})  # awake, deposed, and given shards again
        assert of["o1"].poll() is None
        await greet_all(client, 16)
        for process in of.values():
            process.send_signal(signal.SIGTERM)
        assert [await asyncio.to_thread(process.wait, 20) for process in of.values()] == [0, 0]


@pytest.mark.timeout(120)
async def test_an_owner_cut_off_from_the_store_alone_loses_its_shards_and_is_a_member_again_when_it_is_back(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    async with Relay(_place(postgres)) as relay, pair(postgres, tmp_path, relay) as (of, client, store):
        await greet_all(client, 16)
        relay.hold()
        taken = await owned_by(store, {"o2"})
        assert taken < STORE_SECONDS + FRESH_SECONDS + 4
        await greet_all(client, 16)
        relay.resume()
        await owned_by(store, {"o1", "o2"})
        await greet_all(client, 16)
        assert of["o1"].poll() is None
