"""The client of a cluster: `connect` → `Client` → `RunHandle`.

Starts and waits go over one stream, in batches (`client.calls`, `client.stream`); everything else is a unary call. The
specification's service objects are loaded by the methods that give them: who only runs workflows does without.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack
from uuid import UUID
from weakref import WeakSet

from onexflow.client.calls import Calls
from onexflow.client.channels import Channels, parse_addresses
from onexflow.client.failures import run_failed
from onexflow.client.follow import follow
from onexflow.client.handle import RunHandle
from onexflow.client.ids import instance_uuid, new_request_id
from onexflow.client.lines import Lines
from onexflow.client.remote import RemoteService
from onexflow.client.security import client_security
from onexflow.client.stream import ConnectStream
from onexflow.codec.definitions import dump_definition, load_definition
from onexflow.codec.payload import decode_value, encode_value
from onexflow.codec.wire import admin as wire_admin
from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire import workflow as wire
from onexflow.codec.wire.common import MAX_PAYLOAD
from onexflow.config import Tls
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.core.payload import JSON, Payload
from onexflow.ports.client_link import (
    BlockedRun,
    ControlOutcome,
    ControlRequest,
    DefinitionInfo,
    EventView,
    Health,
    NodeView,
    RunMetrics,
    RunOutcome,
    RunSummary,
    RunView,
)
from onexflow.ports.nodes import DEFAULT_TTL
from onexflow.telemetry import tracing
from onexflow.v1 import admin_pb2
from onexflow.v1 import workflow_pb2 as pb

if TYPE_CHECKING:
    from onexflow.engine.protocols.coordinator import WorkflowEventCoordinator
    from onexflow.engine.protocols.event_bus import BusOptions, WorkflowEventBus
    from onexflow.engine.protocols.node_registry import WorkflowNodeRegistry
    from onexflow.engine.protocols.nodes import Node
    from onexflow.engine.protocols.persistence import WorkflowPersistence
    from onexflow.engine.protocols.work_queue import WorkQueue

PAGE = 1000


async def connect(
    addresses: str | Iterable[str] | None = None,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    timeout: float = 5.0,
    call_timeout: float = 30.0,
    patience: float = 60.0,
    client_id: str = "",
    tls: Tls | None = None,
    token: str | None = None,
    token_file: str | Path | None = None,
) -> Client:
    """A client of the orchestrators at `addresses` ("host:port", several parted by commas, or a list; default:
    ONEXFLOW_ADDRESS, else 127.0.0.1:7411), connected to one of them.

    `tls`: with a `ca`, connections are TLS. `token`, or `token_file`: by what the orchestrators know the caller. What is
    not given is taken from the environment (ONEXFLOW_TLS__CA, ONEXFLOW_TOKEN_FILE …: docs/configuration.md). Files are
    followed when they are replaced.

    Raises Unavailable when none answers within `timeout` seconds (NotSecured, which is one, when TLS is why),
    Unauthenticated or PermissionDenied, and InvalidConfiguration for files and tokens that cannot be used. Later losses are mended by the client itself: calls
    without an answer are repeated, without a second effect. `call_timeout` is what a call may take that does not wait
    for a run; after `patience` seconds without any orchestrator the waiting calls fail with Unavailable too.
    """
    tracing.use()
    channels = Channels(parse_addresses(addresses), security=client_security(tls, token, token_file))
    client = Client(channels, namespace, call_timeout, patience, client_id)
    try:
        await client._connected(timeout)
    except BaseException:
        await client.close()
        raise
    return client


class Client:
    """What programs ask of a cluster. Make it with `connect`; one a process is enough, for any number of tasks.

    Of several orchestrators it knows all as soon as it is connected to one, and asks the owners of its runs. Any of them may
    die: calls are repeated at another one, within their time. A start that is refused because too much is under way is made
    again after the pause that was asked for; Overloaded is raised when it was refused until its time was over.

    Every method raises the errors of `onexflow.core.errors`, the same as on the orchestrator, with their context.
    """

    def __init__(
        self, channels: Channels, namespace: str, call_timeout: float, patience: float, client_id: str
    ) -> None:
        self.namespace = namespace
        self._channels = channels
        self._call_timeout = call_timeout
        self._patience = patience
        self._service = RemoteService.of(self)
        self._registries: WeakSet[WorkflowNodeRegistry] = WeakSet()
        self._buses: WeakSet[WorkflowEventBus] = WeakSet()
        main = Calls(ask_again=()) if channels.forwarding else Calls()
        self._calls = Lines(channels, main, client_id)
        self._stream = ConnectStream(
            main,
            channels,
            client_id=client_id,
            patience=patience,
            on_owners=None if channels.forwarding else self._calls.learn,
        )
        self._running = asyncio.get_running_loop().create_task(self._stream.run(), name="onexflow-client")

    async def _connected(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._stream.up)
        except TimeoutError:
            raise self._channels.unavailable(
                self._stream.last_error or TimeoutError(f"no answer within {timeout:g} s")
            ) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls that wait fail with Unavailable. Idempotent. What was started goes on."""
        for registry in list(self._registries):
            await registry.close()
        for bus in list(self._buses):
            await bus.close()
        await self._service.close()
        self._running.cancel()
        await asyncio.wait([self._running])
        await self._calls.close()
        await self._channels.close()

    # ---- runs

    async def start(
        self,
        workflow_type: str,
        input: Any = None,
        *,
        instance_id: UUID | str | None = None,
        version: int = 0,
        correlation_id: UUID | str = "",
        causation_id: str = "",
        delay: float = 0.0,
        timeout: float = 0.0,
        request_id: str = "",
    ) -> RunHandle:
        """Start a run; durable when this returns. Idempotent by `instance_id` (with the same input) and `request_id`.

        `version` 0 is the newest definition; `delay` seconds pass before it begins; it times out `timeout` seconds
        after its start (0: the definition's). Raises UnknownWorkflowType, RunExists, InvalidArgument, Overloaded,
        Unavailable, DeadlineExceeded.
        """
        request = self._start_request(
            workflow_type, input, instance_id, version, correlation_id, causation_id, delay, timeout, request_id
        )
        answer = await self._calls.call(start=request, timeout=self._call_timeout)
        started = answer.started
        return RunHandle(self, wire_common.key(started.key), version=started.version, created=started.created)

    async def run(
        self,
        workflow_type: str,
        input: Any = None,
        *,
        instance_id: UUID | str | None = None,
        version: int = 0,
        correlation_id: UUID | str = "",
        causation_id: str = "",
        delay: float = 0.0,
        timeout: float = 0.0,
        request_id: str = "",
        wait_timeout: float | None = None,
    ) -> Any:
        """Start a run and return its decoded result: one call. As `start`, and raises RunFailed when the run ends
        without a result, DeadlineExceeded after `wait_timeout` seconds (the run goes on)."""
        request = self._start_request(
            workflow_type, input, instance_id, version, correlation_id, causation_id, delay, timeout, request_id
        )
        request.wait = True
        answer = await self._calls.call(start=request, timeout=wait_timeout)
        return self._value(answer.ended, workflow_type, request.instance_id)

    def get(self, workflow_type: str, instance_id: UUID | str) -> RunHandle:
        """A handle on a run that was started elsewhere. Asks nothing: whether there is such a run, its methods say."""
        return RunHandle(self, RunKey(self.namespace, workflow_type, instance_uuid(instance_id)))

    async def list(
        self, workflow_type: str = "", states: Iterable[str] = (), *, limit: int | None = None
    ) -> AsyncIterator[RunSummary]:
        """Runs, newest first, of one type and in any of `states` if given; pages are fetched as they are needed."""
        wanted, token, left = tuple(states), "", limit
        while left is None or left > 0:
            request = pb.ListRunsRequest(
                namespace=self.namespace,
                workflow_type=workflow_type,
                states=wanted,
                page_size=100 if left is None else min(left, PAGE),
                page_token=token,
            )
            page = await self._unary(lambda seconds, r=request: self._channels.workflows.ListRuns(r, timeout=seconds))
            for run in page.runs:
                yield wire.run_summary(run)
            left = None if left is None else left - len(page.runs)
            token = page.next_page_token
            if not token:
                return

    async def metrics(self, workflow_type: str = "") -> RunMetrics:
        """Figures of the runs of one type, or of all: counts by state, durations. Raises UnknownWorkflowType."""
        request = pb.GetWorkflowMetricsRequest(namespace=self.namespace, workflow_type=workflow_type)
        answer = await self._unary(
            lambda seconds: self._channels.workflows.GetWorkflowMetrics(request, timeout=seconds)
        )
        return wire.run_metrics(answer.metrics)

    # ---- definitions

    async def register(self, definition: WorkflowDefinition | Mapping[str, Any] | bytes) -> DefinitionInfo:
        """Validate and store a definition (of the builder, as a mapping, or as JSON text). Registering the same again
        changes nothing. Raises InvalidDefinition naming every problem's place, DefinitionConflict when this version
        has other content."""
        if isinstance(definition, WorkflowDefinition):
            text = dump_definition(definition)
        elif isinstance(definition, bytes):
            text = definition
        else:
            text = encode_value(definition).data
        request = pb.RegisterDefinitionRequest(namespace=self.namespace, definition=text, request_id=new_request_id())
        answer = await self._unary(
            lambda seconds: self._channels.workflows.RegisterDefinition(request, timeout=seconds)
        )
        return wire.definition_info(answer.info)

    async def definitions(self) -> Sequence[DefinitionInfo]:
        """All registered definitions, by type and version."""
        found: list[DefinitionInfo] = []
        token = ""
        while True:
            request = pb.ListDefinitionsRequest(namespace=self.namespace, page_size=PAGE, page_token=token)
            page = await self._unary(
                lambda seconds, r=request: self._channels.workflows.ListDefinitions(r, timeout=seconds)
            )
            found.extend(wire.definition_info(info) for info in page.definitions)
            token = page.next_page_token
            if not token:
                return found

    async def definition(self, workflow_type: str, version: int = 0) -> WorkflowDefinition:
        """A definition as registered; version 0 is the newest. Raises UnknownWorkflowType."""
        request = pb.GetDefinitionRequest(namespace=self.namespace, workflow_type=workflow_type, version=version)
        answer = await self._unary(lambda seconds: self._channels.workflows.GetDefinition(request, timeout=seconds))
        return load_definition(answer.definition, "json")

    # ---- nodes

    async def node(self, node_id: str, node_type: str = "", *, timeout: float = 0.0) -> Node:
        """The node of that id that workers serve: a class node by its node_id, a handler by its name. Its `execute_…` is
        a durable run of one task there; `timeout` seconds are what a call may take (0: any). `node_type` is needed when
        two roles have one of that name; with "orchestrator" the id may be the type of a workflow. Raises UnknownNode."""
        from onexflow.engine.protocols.nodes import find_node

        return await find_node(self._service, node_id, node_type, namespace=self.namespace, timeout=timeout)

    # ---- work queues

    def work_queue(self, name: str = "default", *, wait_seconds: float = 0.0) -> WorkQueue:
        """The specification's work queue of that name. `wait_seconds`: how long dequeue_task waits for a task."""
        from onexflow.engine.protocols.work_queue import WorkQueue

        return WorkQueue(self._service, namespace=self.namespace, name=name, wait_seconds=wait_seconds)

    # ---- the node registry

    def node_registry(self, *, ttl_seconds: float = DEFAULT_TTL, environment: str = "") -> WorkflowNodeRegistry:
        """The specification's node registry. What is registered with it is kept registered until it or this client is
        closed, and lasts `ttl_seconds` when the process ends without that."""
        from onexflow.engine.protocols.node_registry import WorkflowNodeRegistry

        registry = WorkflowNodeRegistry(
            self._service.node_registry,
            namespace=self.namespace,
            ttl_seconds=ttl_seconds,
            environment=environment,
        )
        self._registries.add(registry)
        return registry

    # ---- the event bus

    def event_bus(self, **options: Unpack[BusOptions]) -> WorkflowEventBus:
        """The specification's event bus, with options of its class: `client.event_bus(start="earliest")`. The client ends
        its subscriptions and projections when it is closed."""
        from onexflow.engine.protocols.event_bus import WorkflowEventBus

        bus = WorkflowEventBus(self._service.events, namespace=self.namespace, **options)
        self._buses.add(bus)
        return bus

    def event_coordinator(self, **options: Unpack[BusOptions]) -> WorkflowEventCoordinator:
        """The specification's event coordinator, over a bus with these options and the cluster's node registry until it is
        given others."""
        from onexflow.engine.protocols.coordinator import WorkflowEventCoordinator

        return WorkflowEventCoordinator(self._service.events, self.event_bus(**options), self.node_registry())

    # ---- persistence

    def persistence(self) -> WorkflowPersistence:
        """The specification's persistence: states, events, snapshots and clean-up."""
        from onexflow.engine.protocols.persistence import WorkflowPersistence

        return WorkflowPersistence(self._service, namespace=self.namespace)

    # ---- the cluster

    async def nodes(self) -> Sequence[NodeView]:
        """The orchestrators and workers that the orchestrator knows."""
        found: list[NodeView] = []
        token = ""
        while True:
            request = admin_pb2.ListNodesRequest(page_size=PAGE, page_token=token)
            page = await self._unary(lambda seconds, r=request: self._channels.admin.ListNodes(r, timeout=seconds))
            found.extend(wire_admin.node_view(node) for node in page.nodes)
            token = page.next_page_token
            if not token:
                return found

    async def drain(self, node_id: str) -> bool:
        """Tell a worker to finish what it has and take nothing new; False when it does so already. Raises
        UnknownNode."""
        request = admin_pb2.DrainNodeRequest(node_id=node_id, request_id=new_request_id())
        answer = await self._unary(lambda seconds: self._channels.admin.DrainNode(request, timeout=seconds))
        return bool(answer.changed)

    async def blocked(
        self, workflow_type: str = "", *, keys: Iterable[RunKey] | None = None, limit: int | None = None
    ) -> AsyncIterator[BlockedRun]:
        """The open runs of this client's namespace with what each waits for (`core.blocked`), whoever owns them, newest
        first; or just those of `keys` (of any namespace), which does not list the store: runs that have ended are left
        out.

        A harness that watches for stalls asks for the runs that it knows to be open, every 200 ms or so: what is left out
        and has not ended, and what is not `blocked.is_valid`, has no reason at that moment."""
        if keys is not None:
            wanted = [wire_common.key_to_pb(key) for key in keys]
            for first in range(0, len(wanted), PAGE):
                asked = admin_pb2.ListBlockedRequest(keys=wanted[first : first + PAGE])
                page = await self._unary(lambda seconds, r=asked: self._channels.admin.ListBlocked(r, timeout=seconds))
                for run in page.runs:
                    yield wire_admin.blocked_run(run)
            return
        token, left = "", limit
        while left is None or left > 0:
            request = admin_pb2.ListBlockedRequest(
                namespace=self.namespace,
                workflow_type=workflow_type,
                page_size=PAGE if left is None else min(left, PAGE),
                page_token=token,
            )
            page = await self._unary(lambda seconds, r=request: self._channels.admin.ListBlocked(r, timeout=seconds))
            for run in page.runs:
                yield wire_admin.blocked_run(run)
            left = None if left is None else left - len(page.runs)
            token = page.next_page_token
            if not token:
                return

    async def health(self) -> Health:
        """How the orchestrator is, and what of it is degraded."""
        request = admin_pb2.GetHealthRequest()
        answer = await self._unary(lambda seconds: self._channels.admin.GetHealth(request, timeout=seconds))
        return wire_admin.health(answer)

    # ---- for the handle

    async def _result(self, key: RunKey, timeout: float | None) -> Any:
        answer = await self._calls.call(key=wire_common.key_to_pb(key), timeout=timeout)
        return self._value(answer.ended, key.workflow_type, str(key.instance_id))

    async def _outcome(self, key: RunKey, timeout: float | None) -> RunOutcome:
        answer = await self._calls.call(key=wire_common.key_to_pb(key), timeout=timeout)
        return wire.run_outcome(answer.ended)

    async def _describe(self, key: RunKey) -> RunView:
        request = pb.DescribeRunRequest(key=wire_common.key_to_pb(key))
        answer = await self._unary(lambda seconds: self._channels.workflows.DescribeRun(request, timeout=seconds), key)
        return wire.run_view(answer.run)

    async def _history(self, key: RunKey, from_sequence: int) -> AsyncIterator[EventView]:
        sequence = max(1, from_sequence)
        while True:
            request = pb.GetHistoryRequest(key=wire_common.key_to_pb(key), from_sequence=sequence, page_size=PAGE)
            page = await self._unary(
                lambda seconds, r=request: self._channels.workflows.GetHistory(r, timeout=seconds), key
            )
            for event in page.events:
                yield wire.event_view(event)
            if not page.events:
                return
            sequence = page.events[-1].sequence + 1

    def _follow(self, key: RunKey, from_sequence: int) -> AsyncIterator[EventView]:
        return follow(self._channels, wire_common.key_to_pb(key), max(1, from_sequence), self._patience)

    async def _control(self, request: ControlRequest) -> ControlOutcome:
        return await self._service.control(request)

    # ---- helpers

    def _start_request(
        self,
        workflow_type: str,
        input: Any,
        instance_id: UUID | str | None,
        version: int,
        correlation_id: UUID | str,
        causation_id: str,
        delay: float,
        timeout: float,
        request_id: str,
    ) -> pb.StartWorkflowRequest:
        payload = input if isinstance(input, Payload) else encode_value(input)
        if len(payload.data) > MAX_PAYLOAD:
            raise InvalidArgument(f"input: {len(payload.data):,} bytes; {MAX_PAYLOAD:,} is the most", field="input")
        try:
            request = pb.StartWorkflowRequest(
                namespace=self.namespace, workflow_type=workflow_type, request_id=request_id or new_request_id()
            )
            # Setting a field costs as much as the rest of a call: those that say nothing stay unset.
            request.input.data = payload.data
            if payload.encoding != JSON:
                request.input.encoding = payload.encoding
            if instance_id is not None:
                request.instance_id = str(instance_uuid(instance_id))
            if correlation_id:
                request.correlation_id = str(correlation_id)
            if version or causation_id:
                request.version, request.causation_id = version, causation_id
            if delay or timeout:
                request.delay = wire_common.seconds(delay, "delay")
                request.timeout = wire_common.seconds(timeout, "timeout")
        except (TypeError, ValueError) as error:  # not text, a lone surrogate, a number that is out of range
            raise InvalidArgument(f"the start cannot be sent: {error}", field="start") from error
        if trace := tracing.traceparent():
            request.trace = trace
        return request

    def _value(self, outcome: pb.RunOutcome, workflow_type: str, instance_id: str) -> Any:
        if outcome.state != "completed":
            raise run_failed(outcome, workflow_type, instance_id)
        if not outcome.HasField("result"):
            return None
        return decode_value(wire_common.trusted_payload(outcome.result))

    async def _unary(self, call: Any, key: RunKey | None = None) -> Any:
        """`key`: of the run that it is about."""
        owner = self._calls.owner_of(key) if key is not None else ""
        return await self._channels.unary(call, self._call_timeout, owner)
