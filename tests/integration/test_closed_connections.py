"""Who is closed has no connection any more, though the cycle collector has not come: calls that are held by the frames of
an error hold their connection, and gRPC goes on pinging the other end on it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import onexflow
from etcd_support import NO_ETCD
from integration.fake_orchestrator import FakeOrchestrator
from onexflow.core.errors import PermissionDenied
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connections(address: str) -> int:
    """How many connections this process has to that port."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(str(link.readlink()))
        except FileNotFoundError:  # that of this very listing
            continue
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return sum(fields[2].endswith(port) and f"socket:[{fields[9]}]" in own for fields in lines)


async def until_closed(address: str) -> None:
    async with asyncio.timeout(5.0):
        while connections(address):
            await asyncio.sleep(0.01)


async def test_a_closed_client_has_none() -> None:
    async with FakeOrchestrator() as fake:
        async with await onexflow.connect(fake.address) as client:
            await client.run("greet")
            assert connections(fake.address) == 1
        await until_closed(fake.address)


async def test_a_client_that_is_refused_has_none() -> None:
    async with FakeOrchestrator() as fake:
        fake.refuse = (grpc.StatusCode.PERMISSION_DENIED, "no")
        with pytest.raises(PermissionDenied):
            await onexflow.connect(fake.address)
        await until_closed(fake.address)


@pytest.mark.parametrize("how", ["is up again", "is refused"])
async def test_a_closed_client_whose_stream_was_cut_has_none(how: str) -> None:
    async with FakeOrchestrator() as fake:
        async with await onexflow.connect(fake.address) as client:
            await client.run("greet")
            if how == "is refused":
                fake.refuse = (grpc.StatusCode.PERMISSION_DENIED, "no")
            fake.cut_streams()
            with contextlib.nullcontext() if how == "is up again" else pytest.raises(PermissionDenied):
                await client.run("greet")
        await until_closed(fake.address)


@pytest.mark.chaos
async def test_a_client_of_etcd_that_was_refused_at_first_has_none() -> None:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    etcd = EmbeddedEtcd()
    try:
        await etcd.start()  # asks it until it answers, and closes
        await until_closed(etcd.url)
    finally:
        await etcd.stop()
