"""An orchestrator at the other end of a client, as `ports.client_link.RunService`: what the specification's service objects
(`engine.protocols`) are given over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onexflow.client.ids import new_request_id
from onexflow.client.remote_events import RemoteEvents
from onexflow.client.remote_nodes import RemoteNodes
from onexflow.client.remote_persistence import RemotePersistence
from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire import queue as wire_queue
from onexflow.codec.wire import workflow as wire
from onexflow.core.errors import Unavailable
from onexflow.core.ids import RunKey
from onexflow.ports import queue
from onexflow.ports.client_link import (
    BlockedRun,
    ControlOutcome,
    ControlRequest,
    DefinitionInfo,
    EventView,
    NodeView,
    RunMetrics,
    RunOutcome,
    RunView,
    StartOutcome,
    StartRequest,
)
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import common_pb2
from onexflow.v1 import workflow_pb2 as pb

if TYPE_CHECKING:
    from onexflow.client.client import Client

_QUEUE_METHODS: Final[dict[type, str]] = {
    queue.Enqueue: "EnqueueTask",
    queue.Dequeue: "DequeueTasks",
    queue.Complete: "CompleteTask",
    queue.Fail: "FailTask",
    queue.Progress: "ReportProgress",
    queue.Assign: "AssignTask",
    queue.Pause: "PauseQueue",
    queue.Resume: "ResumeQueue",
    queue.SetStrategy: "SetAssignmentStrategy",
    queue.GetTask: "GetTask",
    queue.ListTasks: "ListTasks",
    queue.Measure: "GetQueueMetrics",
}


class RemoteService:
    """Implements `RunService` over the client that `source` gives (asked at every call, so it may connect at the first).

    Calls are repeated as the client repeats its own: under one request_id, without a second effect.
    """

    def __init__(self, source: Callable[[], Awaitable[Client]]) -> None:
        self._source = source
        #: What is under way, and how to tell the caller that it was given up.
        self._tasks: dict[asyncio.Task[None], Callable[[SPIError], None]] = {}
        #: What `ports.events` asks.
        self.events = RemoteEvents(source, self._keep)
        #: What `ports.nodes` asks.
        self.node_registry = RemoteNodes(source, self._keep)
        #: What `ports.persistence` asks.
        self.records = RemotePersistence(source)

    @classmethod
    def of(cls, client: Client) -> RemoteService:
        """Over a client that is there."""

        async def source() -> Client:
            return client

        return cls(source)

    def start_run(self, request: StartRequest, reply: Callable[[StartOutcome | SPIError], None]) -> None:
        message = wire.start_to_pb(request)
        message.request_id = message.request_id or new_request_id()

        async def start() -> None:
            try:
                client = await self._source()
                answer = await client._calls.call(start=message, timeout=client._call_timeout)
                outcome: StartOutcome | SPIError = wire.start_outcome(answer.started)
            except SPIError as error:
                outcome = error.with_traceback(None)
            reply(outcome)

        self._keep(start(), reply)

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome | SPIError], None]) -> Callable[[], None]:
        async def wait() -> None:
            try:
                client = await self._source()
                answer = await client._calls.call(key=_key(key))
                outcome: RunOutcome | SPIError = wire.run_outcome(answer.ended)
            except SPIError as error:
                outcome = error.with_traceback(None)
            reply(outcome)

        return self._keep(wait(), reply)

    async def control(self, request: ControlRequest) -> ControlOutcome:
        message, method = _control_message(request)
        message.request_id = message.request_id or new_request_id()
        answer = await self._unary(method, message, request.key)
        return wire.control_outcome(answer.outcome)

    async def describe_run(self, key: RunKey) -> RunView:
        answer = await self._unary("DescribeRun", pb.DescribeRunRequest(key=_key(key)), key)
        return wire.run_view(answer.run)

    async def read_history(self, key: RunKey, from_sequence: int = 1, limit: int = 1000) -> Sequence[EventView]:
        request = pb.GetHistoryRequest(key=_key(key), from_sequence=max(1, from_sequence), page_size=limit)
        answer = await self._unary("GetHistory", request, key)
        return [wire.event_view(event) for event in answer.events]

    def follow_run(
        self, key: RunKey, from_sequence: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> Callable[[], None]:
        async def follow() -> None:
            try:
                client = await self._source()
                async for event in client._follow(key, from_sequence):
                    listener([event])
            except SPIError as error:
                listener(error)
            else:
                listener(None)

        return self._keep(follow(), listener)

    async def measure_runs(self, namespace: str, workflow_type: str = "") -> RunMetrics:
        request = pb.GetWorkflowMetricsRequest(namespace=namespace, workflow_type=workflow_type)
        return wire.run_metrics((await self._unary("GetWorkflowMetrics", request)).metrics)

    async def get_definition(
        self, namespace: str, workflow_type: str, version: int = 0
    ) -> tuple[DefinitionInfo, bytes]:
        request = pb.GetDefinitionRequest(namespace=namespace, workflow_type=workflow_type, version=version)
        answer = await self._unary("GetDefinition", request)
        return wire.definition_info(answer.info), answer.definition

    async def register_definition(self, namespace: str, definition: bytes) -> DefinitionInfo:
        request = pb.RegisterDefinitionRequest(namespace=namespace, definition=definition, request_id=new_request_id())
        return wire.definition_info((await self._unary("RegisterDefinition", request)).info)

    async def explain_runs(self, keys: Sequence[RunKey]) -> Sequence[BlockedRun]:
        client = await self._source()
        return [run async for run in client.blocked(keys=keys)]

    async def can_append(self) -> bool:
        return (await (await self._source()).health()).can_append

    async def list_nodes(self) -> Sequence[NodeView]:
        return await (await self._source()).nodes()

    async def drain_node(self, node_id: str) -> bool:
        return await (await self._source()).drain(node_id)

    async def queue_call(self, call: queue.AnyCall) -> queue.Answer:
        if not call.request_id:
            call = msgspec.structs.replace(call, request_id=new_request_id())
        request, method = wire_queue.call_to_pb(call), _QUEUE_METHODS[type(call)]
        client = await self._source()
        return wire_queue.answer(
            await client._unary(lambda seconds: getattr(client._channels.queues, method)(request, timeout=seconds))
        )

    async def close(self) -> None:
        """Give up what is under way on the running loop: those who wait get Unavailable. The client is its owner's to
        close."""
        loop = asyncio.get_running_loop()
        given_up = [task for task in self._tasks if task.get_loop() is loop]
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)

    async def _unary(self, method: str, request: Any, key: RunKey | None = None) -> Any:
        client = await self._source()
        return await client._unary(
            lambda seconds: getattr(client._channels.workflows, method)(request, timeout=seconds), key
        )

    def _keep(self, work: Coroutine[Any, Any, None], tell: Callable[[SPIError], None]) -> Callable[[], None]:
        """Do it in the background; returns the way to stop it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = tell

        def ended(task: asyncio.Task[None]) -> None:
            given_up = self._tasks.pop(task, None)
            if given_up is not None and task.cancelled():  # by `close`, or with the client's own streams
                given_up(Unavailable("the connection was closed"))

        task.add_done_callback(ended)

        def stop() -> None:
            self._tasks.pop(task, None)
            task.cancel()

        return stop


def _key(key: RunKey) -> common_pb2.RunKey:
    return wire_common.key_to_pb(key)


def _control_message(request: ControlRequest) -> tuple[Any, str]:
    """The message and the method of a command."""
    key = _key(request.key)
    match request.action:
        case "pause":
            return pb.PauseRunRequest(key=key, reason=request.reason, request_id=request.request_id), "PauseRun"
        case "resume":
            return pb.ResumeRunRequest(key=key, reason=request.reason, request_id=request.request_id), "ResumeRun"
        case "cancel":
            return pb.CancelRunRequest(key=key, reason=request.reason, request_id=request.request_id), "CancelRun"
        case "assign":
            return pb.AssignRunRequest(key=key, node_id=request.node_id, request_id=request.request_id), "AssignRun"
        case "resolve":
            return wire.resolve_to_pb(request), "ResolveTask"
