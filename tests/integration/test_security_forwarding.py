"""Two orchestrators that ask who calls: what one passes on to the other is done in the name of who asked."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
import pytest

import onexflow
from onexflow.app.system import SystemClock, SystemIds
from onexflow.client.peers import PeerPool
from onexflow.codec.payload import JsonCodec
from onexflow.codec.wire.common import key_to_pb
from onexflow.config import Tls
from onexflow.core.errors import PermissionDenied, ShardMoved
from onexflow.core.ids import RunKey
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.channel import open_channel
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.status import from_rpc_error
from onexflow.rpc.tls import ClientSecurity, ServerTls
from onexflow.rpc.worker_connection import connect_worker
from onexflow.storage.memory import MemoryStore
from onexflow.v1 import admin_pb2, admin_pb2_grpc, common_pb2, queue_pb2, queue_pb2_grpc, workflow_pb2_grpc
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


class Plain:
    """A client that asks one orchestrator alone, whoever owns what."""

    def __init__(self, address: str, security: ClientSecurity) -> None:
        self.channel = open_channel(address, security=security)
        self.stub: Any = workflow_pb2_grpc.WorkflowServiceStub(self.channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.queues: Any = queue_pb2_grpc.WorkQueueServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def asked(self, call: Any) -> Any:
        """The answer; an error is raised as ours."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def on_a_stream(self, fill: Callable[[pb.CallBatch], object]) -> pb.Answer:
        """The answer to the one call of a batch."""
        call = self.stub.Connect()
        await call.write(pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=1)))
        assert (await call.read()).HasField("welcome")
        request = pb.ConnectRequest()
        fill(request.batch)
        await call.write(request)
        while not (response := await call.read()).batch.answers:
            pass
        call.cancel()
        answer: pb.Answer = response.batch.answers[0]
        return answer

    async def principals(self, key: RunKey) -> list[str]:
        """Whose name stands in the run's history, event by event where there is one."""
        history = await self.stub.GetHistory(pb.GetHistoryRequest(key=key_to_pb(key), page_size=100))
        found = [json.loads(event.data_json or "{}").get("principal") for event in history.events]
        return [name for name in found if name]


def start_of(key: RunKey, number: int = 1, **more: Any) -> pb.StartWorkflowRequest:
    return pb.StartWorkflowRequest(
        workflow_type="single", instance_id=str(key.instance_id), namespace="default",
        input=common_pb2.Payload(data=str(number).encode()), **more,
    )  # fmt: skip


async def register(address: str, **security: Any) -> None:
    async with await onexflow.connect(address, **security) as client:
        await client.register(single("effect", "send").build())


async def test_a_call_that_is_passed_on_is_recorded_in_the_name_of_who_asked(tmp_path: Path) -> None:
    async with (
        pair(tmp_path, first=shows("a"), second=shows("b")) as two_of_them,
        Plain(two_of_them.one.address, shows("ada")) as ada,
        Plain(two_of_them.one.address, shows("olga")) as olga,
    ):
        await register(two_of_them.one.address, token="token-of-ada")
        streamed, called, delayed = (two_of_them.foreign_run() for _ in range(3))
        started = await ada.on_a_stream(lambda batch: batch.starts.add(call_id=1, start=start_of(streamed, 7)))
        assert started.started.created
        ended = await ada.on_a_stream(lambda batch: batch.waits.add(call_id=1, key=key_to_pb(streamed)))
        assert ended.ended.result.data == b"7"
        assert await ada.principals(streamed) == ["ada"]

        assert (await olga.asked(olga.stub.StartWorkflow(start_of(called, 8, wait=True)))).outcome.result.data == b"8"
        followed = olga.stub.FollowRun(pb.FollowRunRequest(key=key_to_pb(called)))
        assert [event.type async for response in followed for event in response.events][-1] == "workflow.completed"
        assert await ada.principals(called) == ["olga"]

        await olga.asked(olga.stub.StartWorkflow(start_of(delayed, delay=60)))
        assert (await ada.asked(ada.stub.CancelRun(pb.CancelRunRequest(key=key_to_pb(delayed))))).outcome.changed
        assert await ada.principals(delayed) == ["olga", "ada"]

        for number in range(8):  # queues, of both owners
            task = queue_pb2.EnqueueTaskRequest(
                work_queue=queue_pb2.WorkQueueRef(name=f"q{number}"), task_id="t", name="nobody"
            )
            assert (await ada.asked(ada.queues.EnqueueTask(task))).changed
        drain = admin_pb2.DrainNodeRequest(node_id="w")
        with pytest.raises(PermissionDenied, match="ada may not call DrainNode"):
            await ada.asked(ada.admin.DrainNode(drain))
        assert (await olga.asked(olga.admin.DrainNode(drain))).changed


async def test_a_client_has_the_runs_of_both_in_its_name_whoever_is_asked(tmp_path: Path) -> None:
    async with (
        pair(tmp_path, first=shows("a"), second=shows("b")) as two_of_them,
        await onexflow.connect(two_of_them.one.address, token="token-of-ada") as client,
    ):
        await client.register(single("effect", "send").build())
        handles = [await client.start("single", number) for number in range(8)]
        handles.append(await client.start("single", 8, instance_id=two_of_them.foreign_run().instance_id))
        assert {two_of_them.one.owns(handle.key) for handle in handles} == {True, False}
        assert [await handle.result() for handle in handles] == list(range(9))
        for handle in handles:
            created = (await handle.history())[0]
            assert created.data["principal"] == "ada"


async def test_an_orchestrator_that_is_not_known_as_one_passes_nothing_on_and_says_why(tmp_path: Path) -> None:
    async with (
        pair(tmp_path, first=shows("ada"), second=shows("b")) as two_of_them,
        Plain(two_of_them.one.address, shows("ada")) as ada,
    ):
        await register(two_of_them.two.address, token="token-of-ada")
        key = two_of_them.foreign_run()
        with pytest.raises(PermissionDenied, match="ada is no orchestrator of this cluster"):
            await ada.asked(ada.stub.DescribeRun(pb.DescribeRunRequest(key=key_to_pb(key))))
        with pytest.raises(PermissionDenied, match="ada is no orchestrator of this cluster"):
            await ada.asked(ada.stub.StartWorkflow(start_of(key)))


async def test_one_without_credentials_is_unknown_to_the_others(tmp_path: Path) -> None:
    unheard: list[Any] = []  # such as an exception that nobody has looked at
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    async with (
        pair(tmp_path, first=ClientSecurity(), second=shows("b")) as two_of_them,
        Plain(two_of_them.one.address, shows("ada")) as ada,
    ):
        key = two_of_them.foreign_run()
        for call in (
            ada.stub.DescribeRun(pb.DescribeRunRequest(key=key_to_pb(key))),
            ada.stub.GetResult(pb.GetResultRequest(key=key_to_pb(key), wait=True)),
        ):
            with pytest.raises(PermissionDenied, match="this orchestrator is not known at") as told:
                await ada.asked(call)
            assert "role member" in told.value.context["hint"]
            del told
    gc.collect()
    assert unheard == []


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
        await register(one.address, tls=shown, token="token-of-ada")
        known = ClientSecurity(ca=ca.file, certificate=hers.certificate, key=hers.key, token="token-of-ada")
        async with Plain(one.address, known) as ada:
            key = Pair(one, two, script).foreign_run()
            outcome = (await ada.asked(ada.stub.StartWorkflow(start_of(key, 5, wait=True)))).outcome
            assert outcome.result.data == b"5"
            assert await ada.principals(key) == ["ada"]
