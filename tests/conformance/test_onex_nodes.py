"""Nodes on the caller's side, in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from onexflow.client.remote import RemoteService
from onexflow.ports.client_link import RunService
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_nodes import NodeConformance, worker
from support.grpc_cluster import grpc_cluster


class TestInProcess(NodeConformance):
    @pytest.fixture
    async def service(self) -> AsyncIterator[RunService]:
        async with Cluster(seed=1) as cluster:
            await cluster.add_worker(worker())
            yield cluster.engine


class TestOverGrpc(NodeConformance):
    @pytest.fixture
    async def service(self) -> AsyncIterator[RunService]:
        async with grpc_cluster(worker()) as client:
            remote = RemoteService.of(client)
            yield remote
            await remote.close()
