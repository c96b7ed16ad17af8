"""The orchestrator's gRPC server: services, health, reflection, limits, and a graceful end."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from onexflow.core.address import is_loopback, split_address
from onexflow.core.errors import InvalidConfiguration, PortBusy
from onexflow.core.identity import Policy
from onexflow.ports.client_link import OrchestratorService
from onexflow.rpc.admin_service import AdminEndpoint, WorkerEndpoint
from onexflow.rpc.channel import server_options
from onexflow.rpc.client_session import ClientStream
from onexflow.rpc.consume_session import ConsumeStream
from onexflow.rpc.events_service import EventsEndpoint
from onexflow.rpc.followed import Followed
from onexflow.rpc.guard import Guard
from onexflow.rpc.node_service import NodeEndpoint
from onexflow.rpc.persistence_service import PersistenceEndpoint
from onexflow.rpc.queue_service import QueueEndpoint
from onexflow.rpc.readable import Readable
from onexflow.rpc.stream import FLUSH_WITHIN
from onexflow.rpc.tls import ServerTls
from onexflow.rpc.worker_session import WorkerStream
from onexflow.rpc.workflow_service import WorkflowEndpoint
from onexflow.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    persistence_pb2,
    persistence_pb2_grpc,
    queue_pb2,
    queue_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
    workflow_pb2,
    workflow_pb2_grpc,
)

SERVICES: Final = (
    workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"].full_name,
    worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    queue_pb2.DESCRIPTOR.services_by_name["WorkQueueService"].full_name,
    events_pb2.DESCRIPTOR.services_by_name["EventBusService"].full_name,
    nodes_pb2.DESCRIPTOR.services_by_name["NodeRegistryService"].full_name,
    persistence_pb2.DESCRIPTOR.services_by_name["PersistenceService"].full_name,
)
#: Seconds between looks at service.health().
_HEALTH_EVERY: Final = 0.5
#: Seconds between looks at the files of certificates and policy.
_FILES_EVERY: Final = 1.0


class GrpcServer:
    """Serves one orchestrator at host:port. `start` and `stop` are idempotent; stop before start is legal.

    With `tls` connections are encrypted; without, only loopback addresses are taken unless `allow_insecure` says otherwise.
    With `policy` callers must be known and may do what it says; without, everybody who connects may do anything.
    """

    def __init__(
        self,
        service: OrchestratorService,
        address: str = "127.0.0.1:7411",
        *,
        reflection: bool = False,
        allow_insecure: bool = False,
        tls: ServerTls | None = None,
        policy: Followed[Policy] | None = None,
    ) -> None:
        self._service = service
        self._address = address
        self._reflection = reflection
        self._allow_insecure = allow_insecure
        self._tls = tls
        self._guard = Guard(policy) if policy is not None else None
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._watches: list[asyncio.Task[None]] = []
        self._is_draining = False
        self._workers: set[WorkerStream] = set()
        self._clients: set[ClientStream] = set()
        self._consumers: set[ConsumeStream] = set()
        self._nodes = NodeEndpoint(service)
        self.address = ""  #: host:port that is served, once started

    async def start(self) -> str:
        """Serve; returns host:port. Raises PortBusy, InvalidConfiguration."""
        if self._server is not None:
            return self.address
        host, port = self._checked_address()
        _check_free(host, port)
        server = grpc.aio.server(options=server_options(), interceptors=[self._guard] if self._guard else [])
        self._add_services(server)
        try:
            if self._tls is not None:
                bound = server.add_secure_port(self._address, self._tls.credentials())
            else:
                bound = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise PortBusy(f"{host}:{port} is in use.", {"address": self._address}) from error
        await self._follow_health()
        await server.start()
        self._server = server
        self._watches = [asyncio.create_task(self._watch_health(), name="onexflow-health")]
        if self._tls is not None or self._guard is not None:
            self._watches.append(asyncio.create_task(self._watch_files(), name="onexflow-security"))
        self.address = f"{host}:{bound}"
        return self.address

    async def drain(self, reason: str = "The orchestrator is stopping.") -> None:
        """Say on every stream, and to the health service, that this orchestrator takes nothing new. Idempotent."""
        if self._is_draining:
            return
        self._is_draining = True
        await self._follow_health()
        for worker in self._workers:
            worker.drain(reason)
        for client in self._clients:
            client.drain(reason)
        self._nodes.drain(reason)

    async def stop(self, grace: float = 5.0) -> None:
        """End all streams after what is ready was sent, give calls up to `grace` seconds, and close the port."""
        server, self._server = self._server, None
        if server is None:
            return
        await self.drain()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        reason = "The orchestrator is stopping."
        for worker in self._workers:
            worker.close(reason)
        for client in self._clients:
            client.close(reason)
        for consumer in self._consumers:
            consumer.close(reason)
        streams = (*self._workers, *self._clients, *self._consumers)
        if endings := [asyncio.ensure_future(stream.over.wait()) for stream in streams]:
            _, late = await asyncio.wait(endings, timeout=2 * FLUSH_WITHIN)
            for ending in late:
                ending.cancel()
        await server.stop(grace)

    def _checked_address(self) -> tuple[str, int]:
        if split_address(self._address) is None:
            raise InvalidConfiguration(f"{self._address!r} is no host:port.", {"address": self._address})
        if self._tls is None and not (self._allow_insecure or is_loopback(self._address)):
            raise InvalidConfiguration(
                f"{self._address} can be reached from other machines, and the connection would not be encrypted.",
                {
                    "address": self._address,
                    "hint": "Give a certificate (tls), serve 127.0.0.1, or allow it (insecure).",
                },
            )
        host, _, port = self._address.rpartition(":")  # the brackets stay: this becomes an address again
        return host, int(port)

    def _add_services(self, server: grpc.aio.Server) -> None:
        workflows: Any = WorkflowEndpoint(self._service, self._clients)
        workers: Any = WorkerEndpoint(self._service, self._workers)
        admin: Any = AdminEndpoint(self._service)
        queues: Any = QueueEndpoint(self._service)
        events: Any = EventsEndpoint(self._service.events, self._consumers)
        nodes: Any = self._nodes
        records: Any = PersistenceEndpoint(self._service)
        ours: Any = Readable(server)
        workflow_pb2_grpc.add_WorkflowServiceServicer_to_server(workflows, ours)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(workers, ours)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, ours)
        queue_pb2_grpc.add_WorkQueueServiceServicer_to_server(queues, ours)
        events_pb2_grpc.add_EventBusServiceServicer_to_server(events, ours)
        nodes_pb2_grpc.add_NodeRegistryServiceServicer_to_server(nodes, ours)
        persistence_pb2_grpc.add_PersistenceServiceServicer_to_server(records, ours)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._reflection:
            reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_EVERY)
            await self._follow_health()
            shards = self._service.shard_map()
            for client in self._clients:
                client.tell_owners(shards)

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(_FILES_EVERY)
            self.refresh_security()

    def refresh_security(self) -> None:
        """Follow the files of certificates and policy; it is done every second."""
        if self._tls is not None:
            self._tls.refresh()
        if self._guard is not None:
            self._guard.refresh()

    async def _follow_health(self) -> None:
        serving = not self._is_draining and self._service.health().serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES):
            await self._health.set(name, status)


def _check_free(host: str, port: int) -> None:
    """Raise what is wrong with the address: gRPC says only that something is, and its server cannot be taken back."""
    name = f"{host}:{port}"
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(f"{name} is in use.", {"address": name}) from error
        raise InvalidConfiguration(f"{name} cannot be served: {error.strerror or error}.", {"address": name}) from error
