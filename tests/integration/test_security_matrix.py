"""Every method of onexflow.v1, called by every role and by nobody: the table of rpc.rights is what happens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc.aio._call import StreamStreamCall

from onexflow.core.errors import Unavailable
from onexflow.core.identity import ACCESS_ROLES
from onexflow.rpc.channel import open_channel
from onexflow.rpc.rights import RIGHTS
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.status import from_rpc_error
from support.methods import FILES, METHODS
from support.security_kit import policy_of, secured, shows

#: What each role may do beside what its own rows say, written down here once more so that a slip there is seen.
ALSO = {"client": {"client"}, "worker": {"worker"}, "operator": {"operator", "client"},
        "member": {"member", "operator", "client"}}  # fmt: skip


def may(role: str, method: str) -> bool:
    return bool(ALSO.get(role, set()) & set(RIGHTS[method]))


def test_the_table_has_a_row_for_every_method_that_there_is_and_for_no_other() -> None:
    assert set(RIGHTS) == set(METHODS)
    assert len(METHODS) > 50
    for method, roles in RIGHTS.items():
        assert roles, method
        assert set(roles) <= set(ACCESS_ROLES)


def test_every_proto_file_with_a_service_is_looked_at() -> None:
    protos = Path(__file__).parents[2] / "proto/onexflow/v1"
    with_service = {file.stem for file in protos.glob("*.proto") if "\nservice " in file.read_text()}
    assert with_service == {Path(file.DESCRIPTOR.name).stem for file in FILES}


async def outcome(channel: grpc.aio.Channel, path: str, method: MethodDescriptor) -> grpc.StatusCode:
    """How an empty call ends. What neither refuses nor answers within the deadline was let in."""
    request: Any = message_factory.GetMessageClass(method.input_type)()
    response: Any = message_factory.GetMessageClass(method.output_type)
    codecs = {"request_serializer": type(request).SerializeToString, "response_deserializer": response.FromString}
    call: Any
    try:
        if method.client_streaming:
            call = channel.stream_stream(path, **codecs)(timeout=10)
            await call.write(request)
            await call.done_writing()
            await call.read()
        elif method.server_streaming:
            call = channel.unary_stream(path, **codecs)(request, timeout=10)
            await call.read()
        else:
            await channel.unary_unary(path, **codecs)(request, timeout=10)
            return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL and isinstance(from_rpc_error(error), Unavailable):
            return await outcome(channel, path, method)  # the refusal overtook the write, and its status is lost
        return error.code()
    except asyncio.InvalidStateError:
        code: grpc.StatusCode = await call.code()
        return code
    call.cancel()
    return grpc.StatusCode.OK


REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


async def all_outcomes(server: GrpcServer, name: str) -> dict[str, grpc.StatusCode]:
    channel = open_channel(server.address, security=shows(name))
    try:
        return {path: await outcome(channel, path, method) for path, method in METHODS.items()}
    finally:
        await channel.close()


async def test_a_refusal_that_overtakes_the_first_write_is_told_to_who_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc.aio says INTERNAL then, some time in a thousand; what is ours takes that for a lost stream."""
    broken: list[Any] = []
    write = StreamStreamCall.write

    async def late(call: Any, request: Any) -> None:
        if not broken:
            broken.append(call)
            while not call.done():
                await asyncio.sleep(0.01)
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "Internal error from Core")
        await write(call, request)

    monkeypatch.setattr(StreamStreamCall, "write", late)
    path = "/onexflow.v1.WorkerService/Session"
    async with secured(policy_of(tmp_path / "policy.toml")) as server:
        channel = open_channel(server.address, security=shows("nobody-known"))
        assert await outcome(channel, path, METHODS[path]) is grpc.StatusCode.UNAUTHENTICATED
        assert await broken[0].code() is grpc.StatusCode.UNAUTHENTICATED
        await channel.close()


@pytest.mark.parametrize("role", ACCESS_ROLES)
async def test_a_role_may_call_what_the_table_says_and_nothing_else(tmp_path: Path, role: str) -> None:
    async with secured(policy_of(tmp_path / "policy.toml")) as server:
        outcomes = await all_outcomes(server, f"the-{role}")
    assert {path for path, code in outcomes.items() if code not in REFUSED} == {
        path for path in METHODS if may(role, path)
    }
    assert grpc.StatusCode.UNAUTHENTICATED not in outcomes.values()
    assert set(outcomes.values()) - REFUSED  # somebody was let in: the server is there


@pytest.mark.parametrize("name", ["", "nobody-known"])
async def test_without_credentials_that_are_known_every_call_is_unauthenticated(tmp_path: Path, name: str) -> None:
    async with secured(policy_of(tmp_path / "policy.toml")) as server:
        outcomes = await all_outcomes(server, name)
    assert set(outcomes.values()) == {grpc.StatusCode.UNAUTHENTICATED}


async def test_without_a_policy_nobody_is_asked() -> None:
    async with secured() as server:
        outcomes = await all_outcomes(server, "")
    assert REFUSED.isdisjoint(outcomes.values())
