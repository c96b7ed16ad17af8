"""For tests that speak to the server with generated stubs alone: a scripted orchestrator behind it, and a plain channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import grpc

from onexflow.core.errors import InvalidTransition, UnknownNode, UnknownRun, UnknownWorkflowType
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.ports import client_link as cl
from onexflow.ports import worker_link as wl
from onexflow.rpc.server import GrpcServer
from onexflow.spi.exceptions import SPIError

RUN = UUID("01890000-0000-7000-8000-000000000001")


class RecordingPeer:
    """What the orchestrator hears on a worker's stream; answers Hello with Welcome."""

    def __init__(self, link: wl.WorkerLink) -> None:
        self.link = link
        self.messages: list[wl.FromWorker] = []
        self.heard = asyncio.Event()
        self.closed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.raises: Exception | None = None

    def on_message(self, message: wl.FromWorker) -> None:
        if self.raises is not None:
            raise self.raises
        self.messages.append(message)
        self.heard.set()
        if isinstance(message, wl.Hello):
            self.link.send(wl.Welcome(orchestrator_id="o1", epochs={0: 7}))

    def on_close(self, planned: bool) -> None:
        self.closed.set_result(planned)

    async def until(self, count: int) -> wl.FromWorker:
        """The newest message, once there are `count`."""
        while len(self.messages) < count:
            self.heard.clear()
            await self.heard.wait()
        return self.messages[-1]


class FakeService:
    """An OrchestratorService without an engine. Runs of type "echo" end with their input, of "stuck" never."""

    orchestrator_id = "o1"
    #: Nobody of these tests asks them.
    events: Any = None
    node_registry: Any = None
    records: Any = None

    def __init__(self) -> None:
        self.peers: list[RecordingPeer] = []
        self.joined = asyncio.Event()
        self.starts: list[cl.StartRequest] = []
        self.inputs: dict[RunKey, Payload] = {}
        self.waiting: dict[RunKey, list[Callable[[Any], None]]] = {}
        self.given_up = 0
        self.serving = True
        self.explodes = False
        self.refuses: SPIError | None = None
        self.asked: list[tuple[float, int]] = []
        self.followers: list[Callable[[Any], None]] = []
        self.changed = asyncio.Event()

    def refusal(self, waited: float, behind: int) -> SPIError | None:
        self.asked.append((waited, behind))
        return self.refuses

    def shard_map(self) -> cl.ShardMap:
        return cl.ShardMap()

    def accept_worker(self, link: wl.WorkerLink) -> RecordingPeer:
        peer = RecordingPeer(link)
        self.peers.append(peer)
        self.joined.set()
        return peer

    def start_run(self, request: cl.StartRequest, reply: Callable[[cl.StartOutcome | SPIError], None]) -> None:
        self.starts.append(request)
        if self.explodes:
            raise KeyError("the secret")
        if request.workflow_type not in {"echo", "stuck"}:
            reply(UnknownWorkflowType(f"No {request.workflow_type}.", {"workflow_type": request.workflow_type}))
            return
        key = RunKey(request.namespace, request.workflow_type, request.instance_id or RUN)
        self.inputs[key] = request.input
        outcome = cl.StartOutcome(key=key, version=1, created=True, state="running", sequence=1)
        asyncio.get_running_loop().call_soon(reply, outcome)

    def wait_run(self, key: RunKey, reply: Callable[[cl.RunOutcome | SPIError], None]) -> Callable[[], None]:
        if key.workflow_type == "echo":
            result = self.inputs.get(key, Payload(b'"unknown"'))
            asyncio.get_running_loop().call_soon(reply, cl.RunOutcome(key=key, state="completed", result=result))
        else:
            self.waiting.setdefault(key, []).append(reply)

        def give_up() -> None:
            self.given_up += 1
            self.changed.set()

        return give_up

    async def control(self, request: cl.ControlRequest) -> cl.ControlOutcome:
        if request.action == "resume":
            raise InvalidTransition("It is not paused.", {"current_state": "running", "required_state": "paused"})
        return cl.ControlOutcome(changed=True, state=f"{request.action}d", sequence=5)

    async def describe_run(self, key: RunKey) -> cl.RunView:
        if key.workflow_type not in {"echo", "stuck"}:
            raise UnknownRun(f"No run {key}.", {"run": str(key)})
        if self.explodes:
            await asyncio.Event().wait()
        return cl.RunView(
            key=key, version=1, state="running", sequence=1, correlation_id="", created_at=1, started_at=1,
            updated_at=1, completed_at=0, input=Payload(b"1"), result=None, error=None, tasks=(),
        )  # fmt: skip

    async def read_history(self, key: RunKey, from_sequence: int = 1, limit: int = 1000) -> Sequence[cl.EventView]:
        return [event(n) for n in range(from_sequence, min(from_sequence + limit, 101))]

    def follow_run(self, key: RunKey, from_sequence: int, listener: Callable[[Any], None]) -> Callable[[], None]:
        listener([event(n) for n in range(from_sequence, 101)])
        self.followers.append(listener)
        return lambda: self.followers.remove(listener)

    async def list_runs(
        self, namespace: str, workflow_type: str = "", states: Sequence[str] = (), cursor: str = "", limit: int = 100
    ) -> tuple[Sequence[cl.RunSummary], str]:
        key = RunKey(namespace, workflow_type or "echo", RUN)
        summary = cl.RunSummary(key=key, version=1, state="running", sequence=1, created_at=1, updated_at=1)
        return [summary] * min(limit, 3), "" if cursor else "next"

    async def measure_runs(self, namespace: str, workflow_type: str = "") -> cl.RunMetrics:
        if workflow_type not in {"", "echo"}:
            raise UnknownWorkflowType(f"No {workflow_type}.", {"workflow_type": workflow_type})
        return cl.RunMetrics(
            workflow_type=workflow_type, by_state={"running": 2, "completed": 1}, events=12, tasks=6, mean=1.5, p50=1.0,
            p95=2.0, p99=2.5, throughput=0.5, window=60.0,
        )  # fmt: skip

    async def register_definition(self, namespace: str, definition: bytes) -> cl.DefinitionInfo:
        return info("new", created=True)

    async def get_definition(
        self, namespace: str, workflow_type: str, version: int = 0
    ) -> tuple[cl.DefinitionInfo, bytes]:
        return info(workflow_type), b"{}"

    async def list_definitions(self, namespace: str) -> Sequence[cl.DefinitionInfo]:
        return [info(f"w{n}") for n in range(5)]

    async def list_nodes(self) -> Sequence[cl.NodeView]:
        return [
            cl.NodeView(
                node_id=f"w{n}", kind="effect", incarnation="i", address="", status="ready", handlers=("h",), slots=1,
                running=0, connected=True, registered=True,
            )
            for n in range(3)
        ]  # fmt: skip

    async def drain_node(self, node_id: str) -> bool:
        if node_id != "w0":
            raise UnknownNode(f"No node {node_id}.", {"node": node_id})
        return True

    def health(self) -> cl.Health:
        return cl.Health(serving=self.serving, details={} if self.serving else {"store": "full"})


def event(sequence: int) -> cl.EventView:
    return cl.EventView(
        sequence=sequence, type="task.completed", kind="", timestamp=1, shard=0, offset=sequence, epoch=1,
        data={"n": sequence},
    )  # fmt: skip


def info(workflow_type: str, *, created: bool = False) -> cl.DefinitionInfo:
    return cl.DefinitionInfo(
        namespace="default", workflow_type=workflow_type, version=1, hash="h", tasks=1, registered_at=1, created=created
    )


@asynccontextmanager
async def served(service: Any) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    """A server before `service`, and a channel to it with gRPC's own defaults."""
    server = GrpcServer(service, "127.0.0.1:0", reflection=True)
    channel = grpc.aio.insecure_channel(await server.start())
    try:
        yield server, channel
    finally:
        await channel.close()
        await server.stop(0.2)
