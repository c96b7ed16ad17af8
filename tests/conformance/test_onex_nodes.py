"""Nodes on the caller's side, in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from onexflow import Client, Worker
from onexflow.client.remote import RemoteService
from onexflow.ports.client_link import RunService
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_nodes import NodeConformance, Serve, worker
from support.grpc_cluster import grpc_cluster, grpc_worker


class TestInProcess(NodeConformance):
    @pytest.fixture
    async def cluster(self) -> AsyncIterator[Cluster]:
        async with Cluster(seed=1) as cluster:
            await cluster.add_worker(worker())
            yield cluster

    @pytest.fixture
    def service(self, cluster: Cluster) -> RunService:
        return cluster.engine

    @pytest.fixture
    def serve(self, cluster: Cluster) -> Serve:
        @asynccontextmanager
        async def served(made: Worker, worker_id: str) -> AsyncIterator[None]:
            await cluster.add_worker(made, worker_id)
            yield
            await cluster.stop_worker(worker_id)

        return served


class TestOverGrpc(NodeConformance):
    @pytest.fixture
    async def client(self) -> AsyncIterator[Client]:
        async with grpc_cluster(worker()) as client:
            yield client

    @pytest.fixture
    async def service(self, client: Client) -> AsyncIterator[RunService]:
        remote = RemoteService.of(client)
        yield remote
        await remote.close()

    @pytest.fixture
    def serve(self, client: Client) -> Serve:
        def served(made: Worker, worker_id: str) -> AbstractAsyncContextManager[None]:
            return grpc_worker(client._channels.address, made, worker_id)

        return served
