"""The work queue in process and over gRPC: one suite on both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.testing import Cluster
from onexflow.testing.conformance.work_queue import Connect, WorkQueueConformance
from support.grpc_cluster import grpc_cluster


class TestInProcess(WorkQueueConformance):
    @pytest.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        async with Cluster(seed=1) as cluster:
            yield lambda wait: WorkQueue(cluster.engine, wait_seconds=wait)


class TestOverGrpc(WorkQueueConformance):
    @pytest.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        async with grpc_cluster() as client:
            yield lambda wait: client.work_queue(wait_seconds=wait)
