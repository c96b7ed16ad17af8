"""A client of several orchestrators: it learns who they are and who owns what, asks the owners, and outlives any of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

import onexflow
from integration.test_forwarding import Served, client_shard, pair
from integration.test_security_forwarding import pair as secured
from onexflow.app.system import SystemIds
from onexflow.client.client import Client
from onexflow.codec.wire import common as wire_common
from onexflow.core.ids import RunKey
from onexflow.engine.orchestrator import Orchestrator
from onexflow.v1 import workflow_pb2 as pb
from onexflow.v1 import workflow_pb2_grpc
from support.engine_kit import single
from support.security_kit import shows


async def learnt(client: Client, *served: Served) -> None:
    """Return when the client knows all of them and has a stream to each but its own."""
    async with asyncio.timeout(10):
        while not (
            {one.address for one in served} <= set(client._channels.addresses)
            and sum(line.is_up for line in client._calls._lines.values()) == len(served) - 1
        ):
            await asyncio.sleep(0.01)


def counted(engine: Orchestrator, method: str) -> list[Any]:
    """Arguments of the calls that this orchestrator is asked from now on, by whomever."""
    calls: list[Any] = []
    inner = getattr(engine, method)

    def asked(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return inner(*arguments, **named)

    setattr(engine, method, asked)
    return calls


@pytest.mark.timeout(60)
async def test_a_client_learns_the_owners_and_asks_them_itself() -> None:
    async with pair() as (one, two, _, __), await onexflow.connect(one.address) as client:
        await client.register(single("effect", "send").build())
        await learnt(client, one, two)
        starts, described = counted(one.engine, "start_run"), counted(one.engine, "describe_run")
        handles = [await client.start("single", number) for number in range(16)]
        assert [await handle.result() for handle in handles] == list(range(16))
        for handle in handles:
            await handle.state()
            await handle.history()
        mine = [handle for handle in handles if client_shard(one, handle.key)]
        assert 0 < len(mine) < 16
        assert len(starts) == len(described) == len(mine)


@pytest.mark.timeout(60)
async def test_a_client_outlives_the_orchestrator_that_it_was_given() -> None:
    async with pair() as (one, two, _, __), await onexflow.connect(one.address) as client:
        await client.register(single("effect", "send").build())
        await learnt(client, one, two)
        handles = [await client.start("single", number) for number in range(8)]
        waiting = [asyncio.ensure_future(handle.result()) for handle in handles]
        await one.kill()
        starting = [asyncio.ensure_future(client.run("single", number)) for number in range(8, 16)]
        described = [asyncio.ensure_future(handle.state()) for handle in handles]
        assert await asyncio.gather(*waiting, *starting) == list(range(16))
        assert {view.state for view in await asyncio.gather(*described)} <= {"running", "completed"}


@pytest.mark.timeout(60)
async def test_a_client_outlives_the_owner_that_it_asks() -> None:
    async with pair() as (one, two, _, __), await onexflow.connect(one.address) as client:
        await client.register(single("effect", "send").build())
        await learnt(client, one, two)
        asked = [asyncio.ensure_future(client.run("single", number)) for number in range(16)]
        await asyncio.sleep(0)
        await two.kill()
        handles = [await client.start("single", number) for number in range(16, 24)]
        assert await asyncio.gather(*asked) == list(range(16))
        assert {(await handle.outcome()).state for handle in handles} == {"completed"}
        assert all([len(await handle.history()) > 3 for handle in handles])


@pytest.mark.timeout(60)
async def test_a_consumer_has_the_events_of_both_where_callers_are_known(tmp_path: Path) -> None:
    async with (
        secured(tmp_path, first=shows("a"), second=shows("b")) as both,
        await onexflow.connect(both.one.address, token="token-of-ada") as client,
    ):
        await client.register(single("effect", "send").build())
        async with asyncio.timeout(10):
            while len(client._calls._lines) != 1:
                await asyncio.sleep(0.01)
        bus = client.event_bus(group="g")
        subscription = await bus.subscribe_to_workflow_events("single", ["task.completed"])
        handles = [await client.start("single", number) for number in range(16)]
        assert {both.one.owns(handle.key) for handle in handles} == {True, False}
        left = {handle.instance_id for handle in handles}
        async with asyncio.timeout(20):
            while left:
                for message in await bus.pull(subscription):
                    left.discard(message.instance_id)
                    await message.ack()
        assert [view.members for view in await bus.list_groups()] == [1]
        await bus.close()


@pytest.mark.timeout(60)
async def test_plain_stubs_are_told_who_answered() -> None:
    async with pair() as (one, two, _, __), await onexflow.connect(two.address) as client:
        await client.register(single("effect", "send").build())
        key = RunKey("default", "single", SystemIds().uuid())
        while client_shard(one, key):
            key = RunKey("default", "single", SystemIds().uuid())
        await client.start("single", 1, instance_id=key.instance_id)
        async with grpc.aio.insecure_channel(one.address) as channel:
            stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
            call: Any = stub.DescribeRun(pb.DescribeRunRequest(key=wire_common.key_to_pb(key)))
            assert (await call).run.key.instance_id == str(key.instance_id)
            assert ("onexflow-owner", two.address) in list(await call.trailing_metadata())
