"""A run assigned to a node, with real processes: stored with the run, honoured, visible in etcd, given back on a kill."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.errors import UnknownNode
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings

from . import scenarios, traces
from .processes import Processes, until

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120)]


async def _keys(client: EtcdClient, prefix: str) -> list[str]:
    answer = await client.range(prefix.encode())
    return [kv.key.decode() for kv in answer.kvs]


async def test_an_assigned_run_goes_to_its_node_until_that_dies() -> None:
    async with Processes(seconds=0.05) as cluster:
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        etcd = EtcdClient(EtcdSettings(endpoints=(cluster.etcd.endpoint,)))
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            await client.register(scenarios.chain("charge", "effect"))
            handle = await client.start("chaos-charge", {}, delay=0.5)
            with pytest.raises(UnknownNode):
                await handle.assign("nobody")
            assert (await handle.assign("w2")).changed
            assert not (await handle.assign("w2")).changed
            assert (await handle.state()).node_id == "w2"
            key = f"/onexflow/local/assignments/default/chaos-charge/{handle.key.instance_id}"
            assert await _keys(etcd, "/onexflow/local/assignments/") == [key]
            assert len(await _keys(etcd, "/onexflow/local/shards/")) == 8
            assert "/onexflow/local/nodes/effect/w2" in await _keys(etcd, "/onexflow/local/nodes/")

            await until(lambda: len(traces.executions(cluster.folder)) >= 3, "three tasks")
            second = cluster.workers["w2"]
            assert {execution.pid for execution in traces.executions(cluster.folder)} == {second.pid}
            cluster.kill(second)
            async with asyncio.timeout(30.0):
                await handle.result()
            assert {execution.pid for execution in traces.executions(cluster.folder)} == {
                second.pid,
                cluster.workers["w1"].pid,
            }
        await etcd.close()
