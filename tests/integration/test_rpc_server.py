"""The unary calls, errors, health, reflection, ports and liveness, seen from outside."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from onexflow.core.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    InvalidConfiguration,
    InvalidTransition,
    PortBusy,
    Unavailable,
    UnknownNode,
    UnknownRun,
    UnknownWorkflowType,
)
from onexflow.rpc import unary
from onexflow.rpc.admin_service import AdminEndpoint, WorkerEndpoint
from onexflow.rpc.liveness import LivenessServer, TcpProber
from onexflow.rpc.server import SERVICES, GrpcServer
from onexflow.rpc.status import from_rpc_error
from onexflow.rpc.workflow_service import WorkflowEndpoint
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import admin_pb2, admin_pb2_grpc, common_pb2, worker_pb2, workflow_pb2, workflow_pb2_grpc
from onexflow.v1 import workflow_pb2 as pb
from support.rpc_kit import RUN, FakeService, served


def key(workflow_type: str = "echo") -> common_pb2.RunKey:
    return common_pb2.RunKey(workflow_type=workflow_type, instance_id=str(RUN))


class Kit:
    def __init__(self, service: FakeService, server: GrpcServer, channel: grpc.aio.Channel) -> None:
        self.service, self.server, self.channel = service, server, channel
        self.workflows: Any = workflow_pb2_grpc.WorkflowServiceStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    service = FakeService()
    async with served(service) as (server, channel):
        yield Kit(service, server, channel)


async def failure(call: Any) -> SPIError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def test_every_method_of_the_protos_is_served() -> None:
    for proto, endpoint in (
        (workflow_pb2, WorkflowEndpoint),
        (worker_pb2, WorkerEndpoint),
        (admin_pb2, AdminEndpoint),
    ):
        for service in proto.DESCRIPTOR.services_by_name.values():
            assert [method.name for method in service.methods if not hasattr(endpoint, method.name)] == []


async def test_the_unary_calls_answer(kit: Kit) -> None:
    w = kit.workflows
    started = await w.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo", request_id="r"))
    assert (started.start.created, started.HasField("outcome")) == (True, False)
    value = common_pb2.Payload(data=b"[1]")
    ended = await w.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo", input=value, wait=True))
    assert ended.outcome.result.data == b"[1]"
    assert (await w.GetResult(pb.GetResultRequest(key=key(), wait=True))).outcome.state == "completed"
    assert not (await w.GetResult(pb.GetResultRequest(key=key()))).HasField("outcome")
    assert (await w.PauseRun(pb.PauseRunRequest(key=key()))).outcome.state == "paused"
    assert (await w.CancelRun(pb.CancelRunRequest(key=key()))).outcome.changed
    assert (await w.ResolveTask(pb.ResolveTaskRequest(key=key(), task="t", retry=True))).outcome.changed
    assert (await w.DescribeRun(pb.DescribeRunRequest(key=key()))).run.state == "running"
    history = await w.GetHistory(pb.GetHistoryRequest(key=key(), from_sequence=5, page_size=3))
    assert [event.sequence for event in history.events] == [5, 6, 7]
    figures = (await w.GetWorkflowMetrics(pb.GetWorkflowMetricsRequest(workflow_type="echo"))).metrics
    assert (dict(figures.by_state), figures.p95) == ({"running": 2, "completed": 1}, 2.0)
    runs = await w.ListRuns(pb.ListRunsRequest(page_size=2))
    assert (len(runs.runs), runs.next_page_token) == (2, "next")
    registered = await w.RegisterDefinition(pb.RegisterDefinitionRequest(definition=b"{}"))
    assert registered.info.created
    assert (await w.GetDefinition(pb.GetDefinitionRequest(workflow_type="echo"))).definition == b"{}"
    nodes = await kit.admin.ListNodes(admin_pb2.ListNodesRequest(page_size=2))
    assert ([node.node_id for node in nodes.nodes], nodes.next_page_token) == (["w0", "w1"], "2")
    nodes = await kit.admin.ListNodes(admin_pb2.ListNodesRequest(page_size=2, page_token="2"))
    assert ([node.node_id for node in nodes.nodes], nodes.next_page_token) == (["w2"], "")
    assert (await kit.admin.DrainNode(admin_pb2.DrainNodeRequest(node_id="w0"))).changed
    assert (await kit.admin.GetHealth(admin_pb2.GetHealthRequest())).serving


async def test_definitions_come_in_pages(kit: Kit) -> None:
    seen: list[str] = []
    token = ""
    while True:
        page = await kit.workflows.ListDefinitions(pb.ListDefinitionsRequest(page_size=2, page_token=token))
        seen += [one.workflow_type for one in page.definitions]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["w0", "w1", "w2", "w3", "w4"]


async def test_errors_come_back_with_their_class_and_context(kit: Kit) -> None:
    w = kit.workflows
    wrong = await failure(w.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo", instance_id="no")))
    assert type(wrong) is InvalidArgument
    assert wrong.context == {"field": "instance_id"}
    none = await failure(w.StartWorkflow(pb.StartWorkflowRequest(workflow_type="none")))
    assert type(none) is UnknownWorkflowType
    assert none.context == {"workflow_type": "none"}
    assert type(await failure(w.DescribeRun(pb.DescribeRunRequest(key=key("x"))))) is UnknownRun
    state = await failure(w.ResumeRun(pb.ResumeRunRequest(key=key())))
    assert type(state) is InvalidTransition
    assert state.context == {"current_state": "running", "required_state": "paused"}
    assert type(await failure(kit.admin.DrainNode(admin_pb2.DrainNodeRequest(node_id="x")))) is UnknownNode
    assert type(await failure(w.RegisterDefinition(pb.RegisterDefinitionRequest()))) is InvalidArgument
    assert type(await failure(w.ListDefinitions(pb.ListDefinitionsRequest(page_token="x")))) is InvalidArgument
    assert type(await failure(w.ResolveTask(pb.ResolveTaskRequest(key=key(), task="t")))) is InvalidArgument


async def test_an_unexpected_error_is_not_told(kit: Kit) -> None:
    kit.service.explodes = True
    error = await failure(kit.workflows.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo")))
    assert type(error) is InternalError
    assert "secret" not in str(error) + str(error.context)


async def test_a_call_has_a_deadline_whether_the_caller_gave_one_or_not(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = pb.GetResultRequest(key=key("stuck"), wait=True)
    assert type(await failure(kit.workflows.GetResult(request, timeout=0.1))) is DeadlineExceeded
    monkeypatch.setattr(unary, "DEFAULT_DEADLINE", 0.1)
    assert type(await failure(kit.workflows.GetResult(request))) is DeadlineExceeded
    while kit.service.given_up < 2:
        kit.service.changed.clear()
        await kit.service.changed.wait()


async def test_the_trace_of_a_start_is_its_own_or_that_of_the_call(kit: Kit) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = pb.StartWorkflowRequest(workflow_type="echo")
    await kit.workflows.StartWorkflow(request, metadata=(("traceparent", parent),))
    await kit.workflows.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo", trace="mine"))
    assert [start.trace for start in kit.service.starts] == [parent, "mine"]


async def test_following_gives_every_event_and_then_the_end(kit: Kit) -> None:
    stream = kit.workflows.FollowRun(pb.FollowRunRequest(key=key(), from_sequence=11))
    seen: list[int] = []
    while len(seen) < 90:
        message = await stream.read()
        assert len(message.events) <= 64
        seen += [event.sequence for event in message.events]
    assert seen == list(range(11, 101))
    (listener,) = kit.service.followers
    listener(None)
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK

    stream = kit.workflows.FollowRun(pb.FollowRunRequest(key=common_pb2.RunKey(workflow_type="echo")))
    assert type(await failure(stream.read())) is InvalidArgument


async def test_health_follows_the_orchestrator_and_its_draining(kit: Kit) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", *SERVICES):
        assert (await kit.health.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
    watch = kit.health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
    assert (await watch.read()).status == serving
    kit.service.serving = False
    assert (await watch.read()).status == not_serving
    kit.service.serving = True
    assert (await watch.read()).status == serving
    await kit.server.drain()
    assert (await watch.read()).status == not_serving
    watch.cancel()


async def test_reflection_names_the_services(kit: Kit) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(kit.channel)
    stream = stub.ServerReflectionInfo()
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await stream.read()).list_services_response.service}
    stream.cancel()
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


async def test_a_busy_port_and_a_bad_address_are_told_apart() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortBusy, match=str(port)):
            await GrpcServer(FakeService(), f"127.0.0.1:{port}").start()
    for address in ("nonsense", "127.0.0.1:99999", "0.0.0.0:0", "192.0.2.1:0"):
        with pytest.raises(InvalidConfiguration):
            await GrpcServer(FakeService(), address).start()
    with pytest.raises(InvalidConfiguration):
        await GrpcServer(FakeService(), "192.0.2.1:0", allow_insecure=True).start()


async def test_two_servers_cannot_share_a_port() -> None:
    first = GrpcServer(FakeService(), "127.0.0.1:0")
    address = await first.start()
    with pytest.raises(PortBusy):
        await GrpcServer(FakeService(), address).start()
    await first.stop(0)
    again = GrpcServer(FakeService(), address)
    assert await again.start() == address
    await again.stop(0)


async def test_stop_before_start_and_twice_is_legal() -> None:
    server = GrpcServer(FakeService(), "127.0.0.1:0")
    await server.stop()
    await server.start()
    await server.stop(0)
    await server.stop(0)


async def test_the_liveness_port_answers_with_the_incarnation() -> None:
    server = LivenessServer("i-1")
    address = await server.start()
    prober = TcpProber(1.0)
    assert await prober.probe(address) == "i-1"
    assert await prober.probe(address) == "i-1"
    await server.stop()
    await server.stop()
    assert await prober.probe(address) is None


async def test_the_liveness_port_answers_while_the_loop_is_busy_until_it_hangs() -> None:
    server = LivenessServer("i-1", hangs_after=0.0)  # what is owed from one question to the next hangs
    host, _, port = (await server.start()).rpartition(":")
    answers: list[bytes] = []

    def ask() -> None:
        for _ in range(2):
            with socket.create_connection((host, int(port))) as connection:
                answers.append(connection.recv(100))

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()  # the loop does nothing meanwhile
    assert answers == [b"i-1\n", b""]
    await asyncio.sleep(0)
    assert await TcpProber(1.0).probe(f"{host}:{port}") == "i-1", "it has turned"
    await server.stop()


async def test_silence_and_nonsense_prove_nothing() -> None:
    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unavailable):
            await TcpProber(0.05).probe(f"127.0.0.1:{silent.getsockname()[1]}")
    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    with pytest.raises(Unavailable):
        await TcpProber(1.0).probe(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    for address in ("nonsense", "127.0.0.1:x", ""):
        with pytest.raises(Unavailable):
            await TcpProber(1.0).probe(address)


async def test_the_loopback_address_of_another_machine_proves_nothing() -> None:
    """Refused here, whatever the worker there does: it would be taken for dead with each stream that breaks."""
    server = LivenessServer("i-1")
    address = await server.start()
    await server.stop()
    with pytest.raises(Unavailable, match="of another machine's own"):
        await TcpProber(1.0, here=False).probe(address)


async def test_a_busy_liveness_port_is_said() -> None:
    server = LivenessServer("i-1")
    port = int((await server.start()).rpartition(":")[2])
    with pytest.raises(PortBusy):
        await LivenessServer("i-2").start(port=port)
    await server.stop()
