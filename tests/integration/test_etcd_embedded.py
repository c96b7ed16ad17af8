"""The embedded cluster does to its members what its methods say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from etcd_support import NO_ETCD
from onexflow.core.errors import RegistryUnavailable
from onexflow.registry.etcd.client import EtcdClient, EtcdError, put_op
from onexflow.registry.etcd.embedded import EmbeddedEtcdCluster, find_etcd
from onexflow.registry.etcd.url import EtcdSettings, parse_etcd_url
from onexflow.registry.etcd.v1 import etcd_pb2 as pb

pytestmark = pytest.mark.chaos


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedEtcdCluster]:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    cluster = EmbeddedEtcdCluster()
    await cluster.start()
    yield cluster
    await cluster.stop()


async def write(*endpoints: str, value: bytes) -> None:
    client = EtcdClient(EtcdSettings(endpoints=endpoints))
    try:
        await client.txn(pb.TxnRequest(success=[put_op(b"/test", value)]))
    finally:
        await client.close()


async def read(*endpoints: str) -> tuple[int, list[bytes]]:
    """The cluster's id, and what `write` wrote last."""
    client = EtcdClient(EtcdSettings(endpoints=endpoints))
    try:
        answer = await client.range(b"/test")
    finally:
        await client.close()
    return answer.header.cluster_id, [kv.value for kv in answer.kvs]


async def test_members_are_one_cluster(cluster: EmbeddedEtcdCluster) -> None:
    assert parse_etcd_url(cluster.url).endpoints == cluster.endpoints
    assert len(set(cluster.pids)) == len(cluster.endpoints) == 3
    await write(cluster.endpoints[0], value=b"1")
    for endpoint in cluster.endpoints:
        assert (await read(endpoint))[1] == [b"1"]


async def test_a_killed_leader_is_replaced_and_comes_back_with_its_data(cluster: EmbeddedEtcdCluster) -> None:
    await write(*cluster.endpoints, value=b"1")
    first, endpoints = await cluster.leader(), cluster.endpoints
    pid = cluster.pids[first]
    await cluster.kill(first)
    with pytest.raises(EtcdError):
        await read(endpoints[first])
    second = await cluster.leader()
    assert second != first
    await write(endpoints[second], value=b"2")
    await cluster.start_member(first)
    await cluster.start_member(first)
    assert (await read(endpoints[first]))[1] == [b"2"]
    assert cluster.endpoints == endpoints
    assert cluster.pids[first] != pid


async def test_a_frozen_leader_is_replaced(cluster: EmbeddedEtcdCluster) -> None:
    first = await cluster.leader()
    cluster.freeze(first)
    assert await cluster.leader() != first
    cluster.thaw(first)
    await cluster.leader()
    await write(cluster.endpoints[first], value=b"1")


async def test_without_a_majority_nobody_leads(cluster: EmbeddedEtcdCluster) -> None:
    await write(*cluster.endpoints, value=b"1")
    await asyncio.gather(*(cluster.kill(index) for index in range(3)))
    await cluster.start_member(0)
    with pytest.raises(RegistryUnavailable, match="No member"):
        await cluster.leader(timeout=1.5)
    await cluster.start_member(2)
    assert await cluster.leader() in {0, 2}
    await cluster.start()
    assert (await read(cluster.endpoints[1]))[1] == [b"1"]


async def test_wiped_it_is_another_cluster_at_the_same_place(cluster: EmbeddedEtcdCluster) -> None:
    await write(*cluster.endpoints, value=b"1")
    endpoints = cluster.endpoints
    before, _ = await read(*endpoints)
    await cluster.wipe()
    assert cluster.endpoints == endpoints
    after, values = await read(*endpoints)
    assert not values
    assert after != before


async def test_stopped_it_leaves_nothing(cluster: EmbeddedEtcdCluster) -> None:
    root, pids = cluster.root, cluster.pids
    assert root is not None
    cluster.freeze(1)
    await cluster.stop()
    await cluster.stop()
    assert not root.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
