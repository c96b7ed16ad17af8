"""The programs find each other through a real etcd, and again when one comes back elsewhere."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest

import onexflow
from etcd_support import NO_ETCD
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.registry.etcd.url import EtcdSettings
from support.programs import assert_store_is_consistent, serving

pytestmark = pytest.mark.slow


async def keys(etcd: EmbeddedEtcd) -> list[str]:
    client = EtcdClient(EtcdSettings(endpoints=(etcd.endpoint,)))
    try:
        found = await client.range(b"/onexflow/")
    finally:
        await client.close()
    return sorted(kv.key.decode() for kv in found.kvs)


@pytest.mark.timeout(60)
async def test_a_worker_follows_the_orchestrator_that_etcd_names(tmp_path: Path) -> None:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    etcd = EmbeddedEtcd()
    await etcd.start()
    flags = (f"--registry-url={etcd.url}", "--cluster=acceptance")
    orchestrator = ("onex-orchestrator", "--listen=127.0.0.1:0", "--node-id=o1", *flags)
    try:
        with serving(*orchestrator, cwd=tmp_path) as (first, line):
            address = line.rpartition(" on ")[2]
            with serving("onex-worker", "onexflow.examples.greet", "--worker-id=w1", *flags, cwd=tmp_path) as (
                worker,
                _,
            ):
                flow = onexflow.workflow("greet")
                flow.compute("greet")
                async with await onexflow.connect(address) as client:
                    await client.register(flow.build())
                    assert await client.run("greet", input={"name": "Ada"}) == "Hello, Ada!"
                    found = await keys(etcd)
                    assert any(re.search(r"/acceptance/nodes/compute/w1$", key) for key in found), found
                    assert any(re.search(r"/acceptance/orchestrators/o1$", key) for key in found), found
                    assert sum("/acceptance/shards/" in key for key in found) == 8
                first.kill()
                first.wait(10)
                with serving(*orchestrator, cwd=tmp_path) as (second, again):
                    moved = again.rpartition(" on ")[2]
                    assert moved != address
                    async with await onexflow.connect(moved) as client:
                        async with asyncio.timeout(20):
                            assert await client.run("greet", input={"name": "Bob"}) == "Hello, Bob!"
                    for process in (worker, second):
                        process.send_signal(signal.SIGTERM)
                        assert process.wait(15) == 0
        assert [key for key in await keys(etcd) if "/nodes/" in key or "/orchestrators/" in key] == []
        assert_store_is_consistent(tmp_path)
    finally:
        await etcd.stop()
