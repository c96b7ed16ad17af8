"""The real engine, spoken to with nothing but generated stubs: a client and a worker as any language could write them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from onexflow.app.system import SystemClock, SystemIds
from onexflow.codec.payload import JsonCodec
from onexflow.core.errors import InvalidArgument
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.status import from_rpc_error
from onexflow.storage.memory import MemoryStore
from onexflow.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    worker_pb2,
    worker_pb2_grpc,
    workflow_pb2,
    workflow_pb2_grpc,
)

DEFINITION = {
    "workflow_type": "sum",
    "version": 1,
    "tasks": [
        {"name": "double", "role": "compute"},
        {"name": "pay", "role": "effect", "depends_on": ["double"]},
        {"name": "fold", "role": "reducer", "depends_on": ["pay"]},
    ],
}
HANDLERS = {"double": lambda value: value * 2, "pay": lambda value: value + 1, "fold": lambda value: {"sum": value}}
ROLES = {"double": "compute", "pay": "effect", "fold": "reducer"}


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        registry = MemoryRegistry(MemoryRegistryHub(clock))
        await registry.start()
        stack.push_async_callback(registry.close)
        engine = Orchestrator(
            MemoryStore(clock), registry, clock=clock, ids=SystemIds(), codec=JsonCodec(), orchestrator_id="o1",
            incarnation="i1",
        )  # fmt: skip
        await engine.start()
        stack.push_async_callback(engine.stop)
        server = GrpcServer(engine, "127.0.0.1:0")
        address = await server.start()
        stack.push_async_callback(server.stop, 0.2)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        definition = workflow_pb2.RegisterDefinitionRequest(definition=json.dumps(DEFINITION).encode())
        workflows: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
        assert (await workflows.RegisterDefinition(definition)).info.created
        yield channel


class PlainWorker:
    """A worker of forty lines: slots are granted once and again as they come free."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stream: Any = worker_pb2_grpc.WorkerServiceStub(channel).Session()
        self.acknowledged: set[int] = set()
        self.attempts = 0

    async def open(self) -> None:
        handlers = [worker_pb2.HandlerInfo(role=role, name=name) for name, role in ROLES.items()]
        slots = dict.fromkeys(ROLES.values(), 4)
        hello = worker_pb2.Hello(protocol_version=1, worker_id="plain", incarnation="1", handlers=handlers, slots=slots)
        await self.say(hello=hello)
        assert (await self.stream.read()).HasField("welcome")
        await self.say(credits=worker_pb2.Credits(granted=slots))

    async def say(self, **message: Any) -> None:
        await self.stream.write(worker_pb2.SessionRequest(**message))

    async def run(self) -> None:
        while (message := await self.stream.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            if kind == "assignments":
                await self.work(message.assignments.assignments)
            elif kind == "ack":
                self.acknowledged |= {token.offset for token in message.ack.tokens}
            elif kind == "ping":
                await self.say(pong=worker_pb2.Pong(nonce=message.ping.nonce))

    async def work(self, assignments: Any) -> None:
        results, used = [], dict.fromkeys(ROLES.values(), 0)
        for one in assignments:
            self.attempts += 1
            used[one.role] += 1
            value = HANDLERS[one.handler](json.loads(one.input.data))
            payload = common_pb2.Payload(data=json.dumps(value).encode())
            results.append(worker_pb2.AttemptResult(token=one.token, status="completed", result=payload))
        await self.say(results=worker_pb2.Results(results=results))
        await self.say(credits=worker_pb2.Credits(granted=used))


async def test_runs_start_and_end_over_both_streams(channel: grpc.aio.Channel) -> None:
    worker = PlainWorker(channel)
    await worker.open()
    working = asyncio.create_task(worker.run())

    stub: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
    stream = stub.Connect()
    await stream.write(workflow_pb2.ConnectRequest(hello=workflow_pb2.ConnectHello(protocol_version=1)))
    assert (await stream.read()).welcome.window >= 50
    starts = [
        workflow_pb2.StartCall(
            call_id=number,
            start=workflow_pb2.StartWorkflowRequest(
                workflow_type="sum",
                input=common_pb2.Payload(data=str(number).encode()),
                wait=True,
                request_id=f"r{number}",
            ),
        )
        for number in range(1, 51)
    ]
    await stream.write(workflow_pb2.ConnectRequest(batch=workflow_pb2.CallBatch(starts=starts)))
    ended: dict[int, workflow_pb2.RunOutcome] = {}
    while len(ended) < 50:
        for answer in (await stream.read()).batch.answers:
            assert answer.WhichOneof("answer") == "ended"
            ended[answer.call_id] = answer.ended
    assert {number: json.loads(outcome.result.data) for number, outcome in ended.items()} == {
        number: {"sum": number * 2 + 1} for number in range(1, 51)
    }
    assert worker.attempts == 150

    history = await stub.GetHistory(workflow_pb2.GetHistoryRequest(key=ended[1].key))
    assert [event.sequence for event in history.events] == list(range(1, len(history.events) + 1))
    followed = [
        event async for part in stub.FollowRun(workflow_pb2.FollowRunRequest(key=ended[1].key)) for event in part.events
    ]
    assert followed == list(history.events)

    again = workflow_pb2.CallBatch(starts=[starts[0]], waits=[workflow_pb2.WaitCall(call_id=99, key=ended[2].key)])
    await stream.write(workflow_pb2.ConnectRequest(batch=again))
    repeated: dict[int, workflow_pb2.Answer] = {}
    while len(repeated) < 2:
        repeated.update({answer.call_id: answer for answer in (await stream.read()).batch.answers})
    assert repeated[1].ended == ended[1]
    assert repeated[99].ended == ended[2]
    assert worker.attempts == 150

    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    await worker.say(goodbye=worker_pb2.Goodbye())
    await worker.stream.done_writing()
    await working
    assert await worker.stream.code() is grpc.StatusCode.OK


async def test_a_worker_that_breaks_the_protocol_loses_its_stream_and_the_work_goes_on(
    channel: grpc.aio.Channel,
) -> None:
    hostile = PlainWorker(channel)
    await hostile.open()
    await hostile.say(hello=worker_pb2.Hello(protocol_version=1, worker_id="plain", incarnation="1"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await hostile.run()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    worker = PlainWorker(channel)
    await worker.open()
    working = asyncio.create_task(worker.run())
    stub: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
    answer = await stub.StartWorkflow(
        workflow_pb2.StartWorkflowRequest(workflow_type="sum", input=common_pb2.Payload(data=b"4"), wait=True)
    )
    assert json.loads(answer.outcome.result.data) == {"sum": 9}
    worker.stream.cancel()
    await asyncio.gather(working, return_exceptions=True)


LEAD = {"workflow_type": "led", "version": 1, "tasks": [{"name": "lead", "role": "orchestrator"}]}


async def test_an_orchestration_makes_its_calls_once(channel: grpc.aio.Channel) -> None:
    worker = PlainWorker(channel)
    await worker.open()
    working = asyncio.create_task(worker.run())
    stub: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
    await stub.RegisterDefinition(workflow_pb2.RegisterDefinitionRequest(definition=json.dumps(LEAD).encode()))

    leader: Any = worker_pb2_grpc.WorkerServiceStub(channel).Session()
    lead = worker_pb2.HandlerInfo(role="orchestrator", name="lead")
    hello = worker_pb2.Hello(
        protocol_version=1, worker_id="leader", incarnation="1", handlers=[lead], slots={"orchestrator": 1}
    )
    await leader.write(worker_pb2.SessionRequest(hello=hello))
    await leader.write(worker_pb2.SessionRequest(credits=worker_pb2.Credits(granted={"orchestrator": 1})))
    led = asyncio.ensure_future(
        stub.StartWorkflow(workflow_pb2.StartWorkflowRequest(workflow_type="led", correlation_id="c", wait=True))
    )
    while (message := await leader.read()).WhichOneof("message") != "assignments":
        pass
    (one,) = message.assignments.assignments
    assert one.role == "orchestrator"

    def call(value: int, workflow_type: str = "sum", number: str = "1") -> Any:
        run = common_pb2.RunKey(namespace=one.namespace, workflow_type=one.workflow_type, instance_id=one.instance_id)
        caller = workflow_pb2.Caller(run=run, task=one.task, number=number)
        payload = common_pb2.Payload(data=str(value).encode())
        request = workflow_pb2.StartWorkflowRequest(
            workflow_type=workflow_type, input=payload, wait=True, caller=caller
        )
        return stub.StartWorkflow(request)

    first, again = await call(4), await call(4)
    assert (first.start.created, again.start.created) == (True, False)
    assert first.outcome == again.outcome
    assert json.loads(first.outcome.result.data) == {"sum": 9}
    described = await stub.DescribeRun(workflow_pb2.DescribeRunRequest(key=first.start.key))
    assert described.run.correlation_id == "c"
    for wrong in (call(5), call(4, "led")):
        with pytest.raises(grpc.aio.AioRpcError, match="not deterministic") as caught:
            await wrong
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(4, number="")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    other = await call(5, number="2.1")
    assert other.start.created

    payload = common_pb2.Payload(data=b'"done"')
    result = worker_pb2.AttemptResult(token=one.token, status="completed", result=payload)
    await leader.write(worker_pb2.SessionRequest(results=worker_pb2.Results(results=[result])))
    assert json.loads((await led).outcome.result.data) == "done"
    with pytest.raises(grpc.aio.AioRpcError, match="makes no more calls"):
        await call(4)
    for stream in (leader, worker.stream):
        stream.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_a_worker_tells_the_life_of_its_nodes(channel: grpc.aio.Channel) -> None:
    workflows: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
    definition = {
        "workflow_type": "node.effect.api",
        "tasks": [{"name": "execute", "role": "effect", "handler": "api"}],
    }
    await workflows.RegisterDefinition(
        workflow_pb2.RegisterDefinitionRequest(definition=json.dumps(definition).encode())
    )
    stream: Any = worker_pb2_grpc.WorkerServiceStub(channel).Session()

    def told(state: str, name: str = "api") -> Any:
        return worker_pb2.HandlerInfo(role="effect", name=name, state=state)

    hello = worker_pb2.Hello(
        protocol_version=1, worker_id="w", incarnation="1", handlers=[told("initializing")], slots={"effect": 1}
    )
    await stream.write(worker_pb2.SessionRequest(hello=hello))
    assert (await stream.read()).HasField("welcome")
    call = workflow_pb2.StartWorkflowRequest(workflow_type="node.effect.api")
    with pytest.raises(grpc.aio.AioRpcError, match="is initializing") as caught:
        await workflows.StartWorkflow(call)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await stream.write(worker_pb2.SessionRequest(credits=worker_pb2.Credits(granted={"effect": 1})))
    await stream.write(worker_pb2.SessionRequest(lifecycle=worker_pb2.Lifecycle(handlers=[told("ready")])))
    async with asyncio.timeout(10):
        while True:
            try:
                await workflows.StartWorkflow(call)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
    while (message := await stream.read()).WhichOneof("message") != "assignments":
        pass
    assert message.assignments.assignments[0].handler == "api"
    await stream.write(worker_pb2.SessionRequest(lifecycle=worker_pb2.Lifecycle(handlers=[told("ready", "other")])))
    with pytest.raises(grpc.aio.AioRpcError, match="none of the handlers") as caught:
        while await stream.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_operator_lists_and_drains_nodes(channel: grpc.aio.Channel) -> None:
    admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
    assert (await admin.GetHealth(admin_pb2.GetHealthRequest())).serving
    worker = PlainWorker(channel)
    await worker.open()

    async def nodes() -> dict[str, Any]:
        views = (await admin.ListNodes(admin_pb2.ListNodesRequest())).nodes
        return {view.kind: view for view in views if view.node_id == "plain"}

    assert set(await nodes()) == set(ROLES.values())
    assert (await nodes())["compute"].handlers == ["double"]
    await admin.DrainNode(admin_pb2.DrainNodeRequest(node_id="plain"))
    assert {view.status for view in (await nodes()).values()} == {"draining"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.DrainNode(admin_pb2.DrainNodeRequest(node_id="nobody"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    worker.stream.cancel()


@pytest.mark.parametrize(
    "method", ["WorkflowService/StartWorkflow", "AdminService/ListNodes", "WorkflowService/FollowRun"]
)
async def test_bytes_that_are_no_request_are_the_callers_fault(channel: Any, method: str) -> None:
    path = f"/onexflow.v1.{method}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method.endswith("FollowRun"):
            await channel.unary_stream(path)(b"\xff").read()
        else:
            await channel.unary_unary(path)(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(caught.value)
    assert type(error) is InvalidArgument
    assert error.context["field"] == "request"
    assert "cannot be read" in str(error)
