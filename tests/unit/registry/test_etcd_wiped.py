"""How long the view of an etcd that has come back empty shows those who have not registered again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.registry.etcd.watch import Watcher
from onexflow.registry.view import Kv, View
from onexflow.testing.clock import virtual_time


class Etcd:
    """An etcd with nothing in it, whose life the test changes."""

    def __init__(self, ttl: float) -> None:
        self.settings = EtcdSettings(endpoints=("127.0.0.1:1",), ttl=ttl)
        self.life = 1

    async def once(self, *_: Any) -> pb.TxnResponse:
        return pb.TxnResponse(header=pb.ResponseHeader(cluster_id=self.life, revision=9), succeeded=True)

    async def range(self, _: bytes) -> Any:
        return SimpleNamespace(kvs=[], header=pb.ResponseHeader(revision=9))


@pytest.mark.parametrize(("ttl", "least", "most"), [(5.0, 6.0, 7.0), (1.0, 2.9, 3.1)])
def test_who_died_is_shown_for_less_than_the_lease_and_two_seconds(ttl: float, least: float, most: float) -> None:
    @virtual_time
    async def shown_for() -> float:
        etcd = Etcd(ttl)
        gone = asyncio.Event()
        view = View(lambda _key, _old, new: None if new else gone.set(), lambda *_: None)
        watcher = Watcher(
            cast("EtcdClient", etcd),
            view,
            on_live=lambda: None,
            on_failure=lambda _: None,
            expiry_suspect=lambda: False,
        )
        await watcher._check_life()
        view.reset({b"nodes/dead": Kv(b"1", 1, 5)}, 5)
        etcd.life = 2
        began = asyncio.get_running_loop().time()
        await watcher._list_again()
        async with asyncio.timeout(60.0):
            await gone.wait()
        return asyncio.get_running_loop().time() - began

    assert least < shown_for() < most
