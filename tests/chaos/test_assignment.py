"""A run assigned to a node, with real processes: stored with the run, honoured, visible in etcd, given back on a kill."""

from __future__ import annotations

import asyncio
import json

import pytest

from onexflow.core.errors import UnknownNode
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.spi import WorkflowNodeCapability, WorkflowNodeInfo

from . import scenarios, traces
from .processes import Processes, until

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120)]


async def _keys(client: EtcdClient, prefix: str) -> list[str]:
    answer = await client.range(prefix.encode())
    return [kv.key.decode() for kv in answer.kvs]


async def _keeper(client: EtcdClient, key: str) -> str:
    """Which orchestrator keeps a guest; "" when it is not registered."""
    answer = await client.range(key.encode())
    return str(json.loads(answer.kvs[0].value)["keeper"]) if answer.kvs else ""


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


async def test_a_guest_and_what_it_was_assigned_survive_a_killed_orchestrator() -> None:
    async with Processes(seconds=0.05) as cluster:
        await cluster.start_worker("w1")
        etcd = EtcdClient(EtcdSettings(endpoints=(cluster.etcd.endpoint,)))
        async with await cluster.client() as other:
            await cluster.wait_for_workers(other, 1)
            await other.register(scenarios.chain("charge", "effect"))
            handle = await other.start("chaos-charge", {}, delay=3600.0)
            shown = [
                "/onexflow/local/nodes/guest/agent",
                f"/onexflow/local/assignments/default/chaos-charge/{handle.key.instance_id}",
            ]
            async with await cluster.client() as client:
                registry = client.node_registry(ttl_seconds=9)
                node = WorkflowNodeInfo(node_id="agent", node_type="effect", host="192.168.1.100", port=8080)
                await registry.register_node(node, [WorkflowNodeCapability(capability_name="paint")])
                await registry.assign_workflow_to_node("chaos-charge", handle.key.instance_id, "agent")
                assert [await _keys(etcd, key) for key in shown] == [[key] for key in shown]
                before = await _keeper(etcd, shown[0])
                killed = cluster.orchestrator
                assert killed is not None
                cluster.kill(killed)
                await killed.wait()
                await cluster.start_orchestrator()
                async with asyncio.timeout(30.0):
                    while len(await other.node_registry().discover_nodes("paint")) != 1:
                        await asyncio.sleep(0.05)
                    while await _keeper(etcd, shown[0]) in {"", before}:
                        await asyncio.sleep(0.05)
                [assignment] = await registry.get_workflow_assignments("agent")
                assert assignment.instance_id == handle.key.instance_id
                assert (await handle.state()).node_id == "agent"
            async with asyncio.timeout(30.0):  # its client has ended
                while (await handle.state()).node_id or await _keys(etcd, "/onexflow/local/assignments/"):
                    await asyncio.sleep(0.05)
            assert await _keys(etcd, shown[0]) == []
            await handle.cancel()
        await etcd.close()
