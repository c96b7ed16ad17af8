"""The half that keeps the lease, on an etcd that wants a token for leases, too (newer ones do; 3.5.1 does not look)."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from onexflow.core.secret import Secret
from onexflow.registry.etcd.access import AUTHENTICATE, Access
from onexflow.registry.etcd.client import LEASE_GRANT, LEASE_KEEP_ALIVE
from onexflow.registry.etcd.lease import LeaseKeeper
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb


class StrictLeases(grpc.GenericRpcHandler):
    """Leases for those who show the token that is good now."""

    def __init__(self) -> None:
        self.token = "t0"
        self.logins = 0
        self.granted: list[int] = []
        self.renewed: queue.Queue[str] = queue.Queue()

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def handler(kind: Any, run: Any, request: Any) -> grpc.RpcMethodHandler:
            made: grpc.RpcMethodHandler = kind(
                run, request_deserializer=request.FromString, response_serializer=lambda it: it.SerializeToString()
            )
            return made

        return {
            AUTHENTICATE: handler(grpc.unary_unary_rpc_method_handler, self._login, pb.AuthenticateRequest),
            LEASE_GRANT: handler(grpc.unary_unary_rpc_method_handler, self._grant, pb.LeaseGrantRequest),
            LEASE_KEEP_ALIVE: handler(grpc.stream_stream_rpc_method_handler, self._renew, pb.LeaseKeepAliveRequest),
        }.get(call.method)

    def _login(self, request: pb.AuthenticateRequest, _: grpc.ServicerContext) -> pb.AuthenticateResponse:
        assert (request.name, request.password) == ("me", "hunter2")
        self.logins += 1
        return pb.AuthenticateResponse(token=self.token)

    def _check(self, context: grpc.ServicerContext) -> str:
        shown = dict(context.invocation_metadata()).get("token", "")
        if shown != self.token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")
        return str(shown)

    def _grant(self, request: pb.LeaseGrantRequest, context: grpc.ServicerContext) -> pb.LeaseGrantResponse:
        self._check(context)
        self.granted.append(request.id)
        return pb.LeaseGrantResponse(id=request.id, ttl=request.ttl)

    def _renew(self, requests: Iterator[pb.LeaseKeepAliveRequest], context: grpc.ServicerContext) -> Iterator[Any]:
        shown = self._check(context)
        for request in requests:
            self.renewed.put(shown)
            yield pb.LeaseKeepAliveResponse(id=request.id, ttl=1)


@pytest.fixture
def leases() -> Iterator[tuple[StrictLeases, str]]:
    handler = StrictLeases()
    server = grpc.server(ThreadPoolExecutor(4))
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((handler,))
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(0.2).wait()


def test_a_lease_is_taken_and_kept_with_a_token_and_survives_its_end(leases: tuple[StrictLeases, str]) -> None:
    server, endpoint = leases
    access = Access(user="me", password=Secret("hunter2"))
    failures: list[Exception] = []
    keeper = LeaseKeeper(
        EtcdSettings(endpoints=(endpoint,), ttl=0.3, access=access, beat_limit=60.0), lambda _: None, failures.append
    )
    keeper.start()
    try:
        assert server.renewed.get(timeout=10) == "t0"
        server.token = "t1"
        while server.renewed.get(timeout=10) != "t1":
            pass
        assert server.logins == 2
        assert server.granted == [keeper.lease]
        assert failures == []
    finally:
        keeper.stop()
