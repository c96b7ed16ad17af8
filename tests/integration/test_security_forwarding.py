"""Two orchestrators that ask who calls: what one passes on to the other is done in the name of who asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import onexflow
from onexflow.app.system import SystemClock, SystemIds
from onexflow.client.peers import PeerPool
from onexflow.codec.payload import JsonCodec
from onexflow.config import Tls
from onexflow.core.errors import PermissionDenied, ShardMoved
from onexflow.core.ids import RunKey
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.channel import open_channel
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.tls import ClientSecurity, ServerTls
from onexflow.rpc.worker_connection import connect_worker
from onexflow.spi import WorkTask
from onexflow.storage.memory import MemoryStore
from onexflow.v1 import common_pb2, workflow_pb2_grpc
from onexflow.v1 import workflow_pb2 as pb
from onexflow.worker.runtime import WorkerRuntime
from support.engine_kit import Script, single
from support.security_kit import Authority, identity, policy_of, shows

pytestmark = pytest.mark.timeout(60)

POLICY = (
    identity("ada", "client")
    + identity("olga", "operator")
    + identity("a", "member")
    + identity("b", "member")
    + identity("w", "worker")
)


class Served(NamedTuple):
    engine: Orchestrator
    address: str

    def owns(self, key: RunKey) -> bool:
        return key.slot * 8 // 4096 in self.engine.shards


class Pair(NamedTuple):
    one: Served
    two: Served
    script: Script

    def foreign_run(self) -> RunKey:
        """A run that the second owns."""
        while True:
            key = RunKey("default", "single", SystemIds().uuid())
            if not self.one.owns(key):
                return key


@asynccontextmanager
async def orchestrator(
    store: MemoryStore, hub: MemoryRegistryHub, name: str, policy: Any, own: ClientSecurity, tls: ServerTls | None
) -> AsyncIterator[Served]:
    registry, peers = MemoryRegistry(hub), PeerPool(name, own)
    await registry.start()
    engine = Orchestrator(
        store, registry, clock=SystemClock(), ids=SystemIds(), codec=JsonCodec(), orchestrator_id=name,
        incarnation=f"{name}.1", shared=True, peers=peers,
    )  # fmt: skip
    await engine.start()
    server = GrpcServer(engine.gateway, "127.0.0.1:0", policy=policy, tls=tls)
    address = await server.start()
    await engine.announce(address)
    try:
        yield Served(engine, address)
    finally:
        await engine.hand_over()
        await server.stop(1.0)
        await engine.stop()
        await peers.close()
        await registry.close()


@asynccontextmanager
async def pair(
    tmp_path: Path,
    *,
    first: ClientSecurity,
    second: ClientSecurity,
    tls: ServerTls | None = None,
    worker: ClientSecurity | None = None,
    policy: str = POLICY,
) -> AsyncIterator[Pair]:
    """Two that own four of eight shards each, and a worker. They show each other `first` and `second`."""
    store, hub = MemoryStore(SystemClock()), MemoryRegistryHub(SystemClock())
    await store.open()
    for number in range(8):
        assert await store.claim(number, 0, "ab"[number % 2]) is not None
    script, known = Script(), policy_of(tmp_path / "policy.toml", policy)
    async with (
        orchestrator(store, hub, "a", known, first, tls) as one,
        orchestrator(store, hub, "b", known, second, tls) as two,
    ):
        async with asyncio.timeout(10):
            while len(one.engine.shards) + len(two.engine.shards) < 8:
                await asyncio.sleep(0.01)
        async with WorkerRuntime(script.worker(), worker_id="w", incarnation="w.1", clock=SystemClock()) as runtime:
            connections = await connect_worker(runtime, [one.address, two.address], security=worker or shows("w"))
            await connections.wait_connected(5)
            yield Pair(one, two, script)
            await connections.close()
    await store.close()


async def principals(client: onexflow.Client, key: RunKey) -> list[str]:
    """Whose name stands in the run's history, event by event where there is one."""
    history = await client.get(key.workflow_type, key.instance_id).history()
    return [event.data["principal"] for event in history if event.data.get("principal")]


async def test_a_call_that_is_passed_on_is_recorded_in_the_name_of_who_asked(tmp_path: Path) -> None:
    async with pair(tmp_path, first=shows("a"), second=shows("b")) as (one, two, script):
        key = Pair(one, two, script).foreign_run()
        async with (
            await onexflow.connect(one.address, token="token-of-ada") as ada,
            await onexflow.connect(one.address, token="token-of-olga") as olga,
        ):
            await ada.register(single("effect", "send").build())
            handles = [await ada.start("single", number) for number in range(8)]  # over the stream
            handles.append(await ada.start("single", 8, instance_id=key.instance_id))
            assert {one.owns(handle.key) for handle in handles} == {True, False}
            assert [await handle.result() for handle in handles] == list(range(9))
            for handle in handles:
                assert await principals(ada, handle.key) == ["ada"]

            other = Pair(one, two, script).foreign_run()
            await started_by_a_plain_stub(one.address, other, "olga")
            assert await principals(olga, other) == ["olga"]
            paused = await olga.start(
                "single", 1, instance_id=Pair(one, two, script).foreign_run().instance_id, delay=60
            )
            await ada.get("single", paused.key.instance_id).cancel(reason="lunch")
            assert await principals(ada, paused.key) == ["olga", "ada"]

            for number in range(4):  # queues, states and drains go the same way
                queue = ada.work_queue(f"q{number}")
                await queue.enqueue_task(WorkTask(task_id="t", task_name="nobody", payload=number))
            assert await olga.drain("w")
            with pytest.raises(PermissionDenied, match="ada may not call DrainNode"):
                await ada.drain("w")


async def started_by_a_plain_stub(address: str, key: RunKey, name: str) -> None:
    channel = open_channel(address, security=shows(name))
    stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
    await stub.StartWorkflow(
        pb.StartWorkflowRequest(workflow_type="single", instance_id=str(key.instance_id), namespace="default")
    )
    followed = stub.FollowRun(
        pb.FollowRunRequest(
            key=common_pb2.RunKey(namespace="default", workflow_type="single", instance_id=str(key.instance_id))
        )
    )
    seen = [event.type async for response in followed for event in response.events]
    assert seen[-1] == "workflow.completed"
    await channel.close()


async def test_an_orchestrator_that_is_not_known_as_one_passes_nothing_on_and_says_why(tmp_path: Path) -> None:
    async with pair(tmp_path, first=shows("ada"), second=shows("b")) as (one, two, script):
        key = Pair(one, two, script).foreign_run()
        async with await onexflow.connect(two.address, token="token-of-ada") as client:
            await client.register(single("effect", "send").build())
            await client.start("single", 1, instance_id=key.instance_id)
        async with await onexflow.connect(one.address, token="token-of-ada") as client:
            with pytest.raises(PermissionDenied, match="ada is no orchestrator of this cluster"):
                await client.get("single", key.instance_id).state()
            with pytest.raises(PermissionDenied, match="ada is no orchestrator of this cluster"):
                await client.start("single", 2, instance_id=Pair(one, two, script).foreign_run().instance_id)


async def test_one_without_credentials_is_unknown_to_the_others(tmp_path: Path) -> None:
    async with (
        pair(tmp_path, first=ClientSecurity(), second=shows("b")) as (one, two, script),
        await onexflow.connect(one.address, token="token-of-ada") as client,
    ):
        for call in (
            client.get("single", Pair(one, two, script).foreign_run().instance_id).state(),
            client.get("single", Pair(one, two, script).foreign_run().instance_id).result(),
        ):
            with pytest.raises(PermissionDenied, match="this orchestrator is not known at") as told:
                await call
            assert "role member" in told.value.context["hint"]


async def test_what_was_passed_on_is_not_passed_on_again_even_when_it_is_followed(tmp_path: Path) -> None:
    async with pair(tmp_path, first=shows("a"), second=shows("b")) as (one, two, script):
        key = Pair(one, two, script).foreign_run()
        pool = PeerPool("test", shows("b"))
        heard: asyncio.Queue[Any] = asyncio.Queue()
        pool(one.address).follow_run(key, 1, heard.put_nowait)
        async with asyncio.timeout(5):
            assert isinstance(await heard.get(), ShardMoved)
        await pool.close()


async def test_with_certificates_an_orchestrators_own_is_what_the_others_know_it_by(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    mine = ca.issue("127.0.0.1", "a.example", file="orchestrator")
    hers = ca.issue("ada.example")
    members = POLICY + identity("both", "member", certificates=("dns:a.example",))
    own = ClientSecurity(ca=ca.file, certificate=mine.certificate, key=mine.key)
    tls = ServerTls(mine.certificate, mine.key, ca.file)
    worker = ClientSecurity(ca=ca.file, certificate=hers.certificate, key=hers.key, token="token-of-w")
    async with pair(tmp_path, first=own, second=own, tls=tls, worker=worker, policy=members) as (one, two, script):
        shown = Tls(ca=ca.file, certificate=hers.certificate, key=hers.key)
        async with await onexflow.connect(one.address, tls=shown, token="token-of-ada") as client:
            await client.register(single("effect", "send").build())
            key = Pair(one, two, script).foreign_run()
            handle = await client.start("single", 5, instance_id=key.instance_id)
            assert await handle.result() == 5
            assert await principals(client, key) == ["ada"]
