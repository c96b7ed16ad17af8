"""As unit/test_no_garbage.py, over gRPC: nothing of a call is left for the cycle collector, passed on or not."""

from __future__ import annotations

from uuid import uuid4

import grpc
import pytest

import onexflow
from integration.test_forwarding import pair
from onexflow.v1 import workflow_pb2, workflow_pb2_grpc
from support.engine_kit import single
from unit.test_no_garbage import CALLS, MOST, garbage


@pytest.mark.timeout(60)
async def test_a_run_of_a_client_leaves_nothing() -> None:
    async with pair() as (one, _, __, ___), await onexflow.connect(one.address) as client:
        await client.register(single("compute", "calc").build())
        left, kinds = await garbage(lambda number: client.run("single", number))
    assert left < MOST, kinds


#: What the engine, the gateway and the streams make. A unary call of gRPC's own leaves some cycles of it.
OURS = ("frame", "traceback", "Future", "Task", "_Told", "_Call", "ShardMoved", "StartRequest")


@pytest.mark.timeout(60)
async def test_a_plain_call_that_is_passed_on_leaves_nothing() -> None:
    async with pair() as (one, _, __, ___):
        async with await onexflow.connect(one.address) as client:
            await client.register(single("compute", "calc").build())
        async with grpc.aio.insecure_channel(one.address) as channel:
            stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
            _, kinds = await garbage(
                lambda _: stub.StartWorkflow(
                    workflow_pb2.StartWorkflowRequest(workflow_type="single", instance_id=str(uuid4()), wait=True)
                )
            )
    assert sum(kinds[name] for name in OURS) / CALLS < MOST, kinds
