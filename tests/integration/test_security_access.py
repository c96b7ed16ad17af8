"""Identities: whose name is written down, who may say for whom it asks, what a worker may register, and a policy that
changes while streams are open."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

import onexflow
import onexflow.onex
import onexflow.sync
from onexflow.client.channels import Channels
from onexflow.core.errors import InvalidConfiguration, PermissionDenied, Unauthenticated, Unavailable
from onexflow.core.identity import ON_BEHALF, Identity
from onexflow.ports import worker_link as wl
from onexflow.rpc.channel import PRINCIPAL, PRINCIPAL_ROLES, open_channel
from onexflow.rpc.status import from_rpc_error
from onexflow.rpc.tls import ClientSecurity
from onexflow.rpc.worker_connection import WorkerConnections
from onexflow.v1 import common_pb2, worker_pb2, worker_pb2_grpc, workflow_pb2_grpc
from onexflow.v1 import workflow_pb2 as pb
from support.rpc_kit import RUN, FakeService
from support.security_kit import EVERY_ROLE, hashed, identity, policy_of, secured, shows

KEY = common_pb2.RunKey(namespace="default", workflow_type="echo", instance_id=str(RUN))


class Recording(FakeService):
    """Remembers the commands, too."""

    def __init__(self) -> None:
        super().__init__()
        self.controls: list[Any] = []

    async def control(self, request: Any) -> Any:
        self.controls.append(request)
        return await super().control(request)


# ---- whose name is written down


async def test_starts_and_commands_carry_the_name_of_who_was_recognised(tmp_path: Path) -> None:
    service = Recording()
    async with secured(policy_of(tmp_path / "p.toml"), service=service) as server:
        async with await onexflow.connect(server.address, token="token-of-the-client") as client:
            await client.start("echo")
        channel = open_channel(server.address, security=shows("the-operator"))
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        await stub.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo"))
        await stub.PauseRun(pb.PauseRunRequest(key=KEY))
        await stub.CancelRun(pb.CancelRunRequest(key=KEY))
        await stub.ResolveTask(pb.ResolveTaskRequest(key=KEY, task="t", retry=True))
        await stub.AssignRun(pb.AssignRunRequest(key=KEY, node_id="n"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ResumeRun(pb.ResumeRunRequest(key=KEY))
        await channel.close()
    assert [start.principal for start in service.starts] == ["the-client", "the-operator"]
    assert [control.principal for control in service.controls] == ["the-operator"] * 5


async def test_without_a_policy_nobody_is_written_down_whatever_is_claimed() -> None:
    service = FakeService()
    async with secured(service=service) as server:
        channel = open_channel(server.address)
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        await stub.StartWorkflow(pb.StartWorkflowRequest(workflow_type="echo"), metadata=((PRINCIPAL, "king"),))
        answer = await started_for(stub, pb.Principal(name="king", roles=["client"]))
        assert answer.HasField("started")
        await channel.close()
    assert [start.principal for start in service.starts] == ["", ""]


async def started_for(stub: Any, principal: pb.Principal | None) -> pb.Answer:
    """The answer to a start on a stream, for somebody."""
    call = stub.Connect()
    await call.write(pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=1)))
    await call.read()
    request = pb.ConnectRequest()
    request.batch.starts.add(call_id=1, start=pb.StartWorkflowRequest(workflow_type="echo"), principal=principal)
    await call.write(request)
    response = await call.read()
    call.cancel()
    answer: pb.Answer = response.batch.answers[0]
    return answer


async def test_the_blocking_client_and_the_getters_of_the_specification_show_who_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    async with secured(policy_of(tmp_path / "p.toml"), service=service) as server:

        def blocking() -> None:
            with onexflow.sync.connect(server.address, token="token-of-the-client") as client:
                client.start("echo")

        await asyncio.to_thread(blocking)
        monkeypatch.setenv("ONEXFLOW_ADDRESS", server.address)
        (tmp_path / "token").write_text("token-of-the-operator")
        monkeypatch.setenv("ONEXFLOW_TOKEN_FILE", str(tmp_path / "token"))
        await onexflow.onex.get_workflow_orchestrator().start_workflow("echo", RUN, {})
        await onexflow.onex.close()
    assert [start.principal for start in service.starts] == ["the-client", "the-operator"]


# ---- who may say for whom it asks


@pytest.mark.parametrize("name", ["the-client", "the-operator"])
async def test_who_is_no_orchestrator_may_not_say_for_whom_it_asks(tmp_path: Path, name: str) -> None:
    service = FakeService()
    async with secured(policy_of(tmp_path / "p.toml"), service=service) as server:
        channel = open_channel(server.address, security=shows(name))
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as told:
            bearer = ("authorization", f"Bearer token-of-{name}")
            forged = grpc.aio.insecure_channel(server.address)
            await workflow_pb2_grpc.WorkflowServiceStub(forged).StartWorkflow(
                pb.StartWorkflowRequest(workflow_type="echo"),
                metadata=(bearer, (PRINCIPAL, "king"), (PRINCIPAL_ROLES, "operator")),
            )
        await forged.close()
        error = from_rpc_error(told.value)
        assert isinstance(error, PermissionDenied)
        assert f"{name} is no orchestrator of this cluster" in str(error)
        answer = await started_for(stub, pb.Principal(name="king", roles=["client"]))
        assert answer.error.code == PermissionDenied.code
        call: Any = stub.Connect()
        await call.write(pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=1)))
        await call.read()
        wait = pb.ConnectRequest()
        wait.batch.waits.add(call_id=1, key=KEY, principal=pb.Principal(name="king", roles=["client"]))
        await call.write(wait)
        assert (await call.read()).batch.answers[0].error.code == PermissionDenied.code
        call.cancel()
        await channel.close()
    assert service.starts == []


async def test_an_orchestrator_passes_on_a_name_and_its_roles_are_checked_again(tmp_path: Path) -> None:
    service = FakeService()
    async with secured(policy_of(tmp_path / "p.toml"), service=service) as server:
        channel = open_channel(server.address, security=shows("the-member"), forwarding=True)
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        start = pb.StartWorkflowRequest(workflow_type="echo")
        await stub.StartWorkflow(start)  # its own
        for roles in (("client",), ("operator",), ("worker",), ("member",), ()):
            ON_BEHALF.set(Identity("ada", frozenset(roles)))
            if roles in (("client",), ("operator",)):
                await stub.StartWorkflow(start)
                continue
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await stub.StartWorkflow(start)
            assert told.value.code() is grpc.StatusCode.PERMISSION_DENIED
            ON_BEHALF.set(None)
            answer = await started_for(stub, pb.Principal(name="ada", roles=roles))
            assert answer.error.code == PermissionDenied.code
        ON_BEHALF.set(None)
        assert (await started_for(stub, pb.Principal(name="ada", roles=["client"]))).HasField("started")
        await channel.close()
    assert [start.principal for start in service.starts] == ["the-member", "ada", "ada", "ada"]


# ---- workers


class Runtime:
    """What a worker says first, and what it hears."""

    def __init__(self, *handlers: tuple[str, str]) -> None:
        self.hello = wl.Hello(
            worker_id="w", incarnation="w.1", slots={}, liveness="", build_id="",
            handlers=tuple(wl.HandlerInfo(name=name, role=role) for role, name in handlers),
        )  # fmt: skip
        self.heard: list[object] = []

    def attach(self, link: Any) -> Runtime:
        link.send(self.hello)
        return self

    def on_message(self, message: object) -> None:
        self.heard.append(message)

    def on_close(self, reason: str) -> None:
        assert reason


LIMITED = identity(
    "payer", "worker", more='node_roles = ["effect", "reducer"]\nhandlers = ["payments.*", "refund"]'
) + identity("free", "worker")  # fmt: skip


async def test_a_worker_registers_what_its_identity_may_and_is_refused_by_name_beyond_that(tmp_path: Path) -> None:
    service = FakeService()
    async with secured(policy_of(tmp_path / "p.toml", LIMITED), service=service) as server:
        free = WorkerConnections(Runtime(("compute", "anything")), server.address, security=shows("free"))
        good = Runtime(("effect", "payments.charge"), ("reducer", "refund"))
        allowed = WorkerConnections(good, server.address, security=shows("payer"))
        bad = Runtime(("effect", "payments.charge"), ("effect", "refunds"), ("compute", "payments.sum"))
        refused = WorkerConnections(bad, server.address, security=shows("payer"))
        async with free, allowed, refused:
            await free.wait_connected(5)
            await allowed.wait_connected(5)
            with pytest.raises(PermissionDenied) as told:
                await refused.wait_connected(0.5)
            assert "payer may not register effect refunds, compute payments.sum." in str(told.value)
            assert told.value.context["refused"] == ["effect refunds", "compute payments.sum"]
            assert told.value.context["handlers"] == ["payments.*", "refund"]
            assert free.connected
            assert allowed.connected
        assert len(service.peers) == 2  # the engine never heard of the third


async def test_many_refused_handlers_are_counted_not_listed(tmp_path: Path) -> None:
    async with secured(policy_of(tmp_path / "p.toml", LIMITED)) as server:
        many = Runtime(*(("compute", f"h{number}") for number in range(5000)))
        async with WorkerConnections(many, server.address, security=shows("payer")) as refused:
            with pytest.raises(PermissionDenied, match=r"compute h9 and 4990 more\."):
                await refused.wait_connected(1.0)


async def test_a_client_is_no_worker_and_is_told_so(tmp_path: Path) -> None:
    async with (
        secured(policy_of(tmp_path / "p.toml")) as server,
        WorkerConnections(Runtime(), server.address, security=shows("the-client")) as refused,
    ):
        with pytest.raises(PermissionDenied, match="may not call Session: it needs the role worker"):
            await refused.wait_connected(0.5)


# ---- a policy that changes


async def session(server_address: str, name: str) -> tuple[grpc.aio.Channel, Any]:
    """A worker's stream that is up."""
    channel = open_channel(server_address, security=shows(name))
    call = worker_pb2_grpc.WorkerServiceStub(channel).Session()
    hello = worker_pb2.Hello(protocol_version=1, worker_id="w", incarnation="i")
    try:
        await call.write(worker_pb2.SessionRequest(hello=hello))
        await call.read()
    except BaseException:
        await channel.close()
        raise
    return channel, call


async def test_a_stream_ends_when_its_identity_is_taken_out_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    two = identity("one", "worker") + identity("two", "worker")
    service = FakeService()
    async with secured(policy_of(file, two), service=service) as server:
        (first, out), (second, kept) = await session(server.address, "one"), await session(server.address, "two")
        file.write_text(identity("two", "worker"))
        async with asyncio.timeout(10):  # the server looks by itself
            assert await out.code() is grpc.StatusCode.UNAVAILABLE
        assert "The access policy has changed" in await out.details()
        assert await service.peers[0].closed is False
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await session(server.address, "one")
        assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED
        service.peers[1].link.send(wl.Ping(7))
        assert (await kept.read()).ping.nonce == 7
        await first.close()
        await second.close()


async def test_a_stream_ends_when_what_its_worker_may_register_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    async with secured(policy_of(file, identity("one", "worker") + identity("two", "worker"))) as server:
        (first, out), (second, kept) = await session(server.address, "one"), await session(server.address, "two")
        file.write_text(identity("one", "worker", more='handlers = ["a"]') + identity("two", "worker"))
        server.refresh_security()
        async with asyncio.timeout(10):
            assert await out.code() is grpc.StatusCode.UNAVAILABLE
        assert not kept.done()
        await first.close()
        await second.close()


async def test_a_token_is_rotated_without_a_restart_of_anybody(tmp_path: Path) -> None:
    file, token = tmp_path / "p.toml", tmp_path / "token"
    token.write_text("first\n")
    service = FakeService()
    async with secured(policy_of(file, identity("app", "client", token="first")), service=service) as server:
        async with await onexflow.connect(server.address, token_file=token) as client:
            await client.start("echo")
            both = identity("app", "client", token="first").replace(
                hashed("first"), f"{hashed('first')}', '{hashed('second')}"
            )
            file.write_text(both)
            server.refresh_security()
            token.write_text("second\n")
            await client.start("echo")
            assert len(await client.definitions()) == 5  # a call of its own, with the new token
            file.write_text(identity("app", "client", token="second"))
            server.refresh_security()  # ends the stream that was opened with the first
            await client.start("echo")
        with pytest.raises(Unauthenticated, match="No identity has this token, or no longer"):
            await onexflow.connect(server.address, token="first")
    assert [start.principal for start in service.starts] == ["app"] * 3


@pytest.mark.parametrize("broken", ["[[identity", "", None])
async def test_a_policy_that_cannot_be_read_leaves_the_one_before(tmp_path: Path, broken: str | None) -> None:
    file = tmp_path / "p.toml"
    async with secured(policy_of(file)) as server:
        with capture_logs() as logs:
            if broken is None:
                file.unlink()
            else:
                file.write_text(broken)
            server.refresh_security()
        assert [line["event"] for line in logs] == ["files.refused"]
        assert str(file) in logs[0]["error"]
        async with await onexflow.connect(server.address, token="token-of-the-client") as client:
            await client.start("echo")


# ---- what is open to all, and what is kept to oneself


async def test_the_health_service_asks_nobody(tmp_path: Path) -> None:
    async with secured(policy_of(tmp_path / "p.toml")) as server:
        channel = open_channel(server.address)
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await channel.close()


@pytest.mark.parametrize("said", ["Basic abc", "Bearer", "Bearer  ", "bearer tokn", "Bearer a b", ""])
async def test_odd_authorizations_are_unauthenticated(tmp_path: Path, said: str) -> None:
    async with secured(policy_of(tmp_path / "p.toml")) as server:
        channel = grpc.aio.insecure_channel(server.address)
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await stub.ListDefinitions(pb.ListDefinitionsRequest(), metadata=(("authorization", said),))
        assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await channel.close()


async def test_the_scheme_may_be_written_as_one_likes(tmp_path: Path) -> None:
    async with secured(policy_of(tmp_path / "p.toml")) as server:
        channel = grpc.aio.insecure_channel(server.address)
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        said = (("authorization", "bearer token-of-the-client"),)
        assert len((await stub.ListDefinitions(pb.ListDefinitionsRequest(), metadata=said)).definitions) == 5
        await channel.close()


async def test_a_token_is_in_no_log_no_error_and_no_representation(tmp_path: Path) -> None:
    secret, file = "very-secret-token", tmp_path / "token"
    file.write_text(secret)
    shown = [repr(ClientSecurity(token=secret)), repr(ClientSecurity(token_file=str(file)))]
    with capture_logs() as logs:
        async with secured(policy_of(tmp_path / "p.toml")) as server:
            for given in ({"token": secret}, {"token_file": str(file)}):
                with pytest.raises(Unauthenticated) as told:
                    await onexflow.connect(server.address, **given)
                shown += [str(told.value), repr(told.value), repr(told.value.context)]
            async with WorkerConnections(Runtime(), server.address, security=ClientSecurity(token=secret)) as refused:
                heard = await _refusal(refused)
            shown += [str(heard), repr(heard.context)]
    assert any(line["event"] == "call.refused" and line["method"].endswith("/Connect") for line in logs)
    assert any(line["event"] == "stream.lost" for line in logs)
    assert secret not in repr(logs) + "".join(shown)


async def _refusal(worker: WorkerConnections) -> Unauthenticated:
    """What a worker is told in the end. A stream that is refused while its Hello is being written is cut to gRPC, and
    opened again."""
    async with asyncio.timeout(10.0):
        while True:
            try:
                await worker.wait_connected(0.3)
            except Unauthenticated as error:
                return error
            except Unavailable:
                continue
            raise AssertionError("it is connected")


@pytest.mark.parametrize("token", ["two words", "ünicode", "line\nbreak"])
def test_a_token_that_cannot_travel_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(InvalidConfiguration) as told:
        ClientSecurity(token=token)
    assert token not in str(told.value)


async def test_a_token_does_not_travel_in_the_clear_beyond_this_machine() -> None:
    for make in (
        lambda: Channels(("orchestrator.example:7411",), security=shows("x")),
        lambda: WorkerConnections(Runtime(), "192.0.2.1:7411", security=shows("x")),
        lambda: open_channel("192.0.2.1:7411", security=shows("x")),
    ):
        with pytest.raises(InvalidConfiguration, match="in the clear: give the cluster's authority"):
            make()
    with pytest.raises(InvalidConfiguration, match="in the clear"):
        await onexflow.connect("192.0.2.1:7411", token="x")


def test_the_policy_of_these_tests_has_every_role() -> None:
    assert EVERY_ROLE.count("[[identity]]") == 4
