"""Starts: of a new run, of one that may exist, and of one that an orchestration calls.

The graph of the definition is what is started; the key and the hash make a repeated start the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import blake2b

import msgspec

from onexflow.core.commands import StartRun
from onexflow.core.definition import MAX_SECONDS
from onexflow.core.errors import (
    Coded,
    InvalidArgument,
    Overloaded,
    RunExists,
    RunFailed,
    StoreUnavailable,
    UnknownWorkflowType,
)
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey, instance_of_request, uuid_text
from onexflow.core.machine import WORKFLOW_STATES
from onexflow.core.turn import SECOND, Turn
from onexflow.engine.admission import Admission
from onexflow.engine.calls import CallBook
from onexflow.engine.catalog import Catalog
from onexflow.engine.kernel import Kernel
from onexflow.engine.lifecycle import Lifecycles
from onexflow.engine.observed import Observed
from onexflow.engine.outcomes import InBackground, Outcomes
from onexflow.engine.placing import loop_time
from onexflow.engine.queries import Queries
from onexflow.engine.recovery import RecentRuns
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.ports.client_link import Caller, OrchestratorService, StartOutcome, StartRequest
from onexflow.ports.clock import IdSource
from onexflow.spi.exceptions import SPIError
from onexflow.telemetry import tracing

#: Seconds until a called run is asked for again whose owner has no room, or whose store is away.
START_AGAIN_SECONDS = 0.5

StartReply = Callable[[StartOutcome | SPIError], None]


class Starts:
    """Each start is answered once: when it is durable, or at once when its caller waits for the run's end."""

    def __init__(
        self,
        kernel: Kernel,
        queries: Queries,
        calls: CallBook,
        lifecycles: Lifecycles,
        observed: Observed,
        outcomes: Outcomes,
        cluster: OrchestratorService,
        *,
        ids: IdSource,
        payload_limit: int,
        admission: Admission,
        refuse: Callable[[], None],
        carry_out: Callable[[Run, Turn], None],
        in_background: InBackground,
    ) -> None:
        """`refuse` raises when nothing may be started now. `cluster` starts what is another orchestrator's."""
        self._kernel = kernel
        self._queries = queries
        self._calls = calls
        self._lifecycles = lifecycles
        self._observed = observed
        self._outcomes = outcomes
        self._cluster = cluster
        self._ids = ids
        self._payload_limit = payload_limit
        self._admission = admission
        self._refuse = refuse
        self._carry_out = carry_out
        self._in_background = in_background

    def start(self, request: StartRequest, reply: StartReply) -> None:
        try:
            self._refuse()
            if request.caller is None and self._kernel.lane.is_away:
                raise self._kernel.lane.away()
            named = request if request.caller is None else self._calls.named(request, request.caller)
            key, digest = key_of(named, self._ids, self._kernel.now())
            shard = self._kernel.shard_of(key) if request.caller is None else None  # a called run may be another's
            graph = graph_for(self._kernel.catalog, named, self._payload_limit)
        except UnknownWorkflowType as error:
            if not self._kernel.is_shared:
                reply(error)
            else:  # it may have been registered through another orchestrator
                self._in_background(self._start_with(self._kernel.catalog.load(), request, reply, error), reply)
            return
        except SPIError as error:
            reply(error)
            return
        if request.caller is not None:
            self._in_background(self._start_called(named, request.caller, graph, key, digest, reply), reply)
            return
        if shard is not None and shard.recent.must_be_new(key):
            self._create(shard, request, graph, key, digest, reply)
        else:
            self._in_background(self._start_known(request, graph, key, digest, reply), reply)

    async def _start_with(
        self, refresh: Awaitable[None], request: StartRequest, reply: StartReply, unknown: UnknownWorkflowType
    ) -> None:
        await refresh
        try:
            self._kernel.catalog.record(request.namespace, request.workflow_type, request.version)
        except UnknownWorkflowType:
            raise unknown from None
        self.start(request, reply)

    def _create(
        self, shard: Shard, request: StartRequest, graph: Graph, key: RunKey, digest: bytes, reply: StartReply
    ) -> None:
        if request.caller is None:  # an orchestration's call waits for the node, or the next execution would differ
            if not self._admission.has_room():  # else nobody need look at a clock
                refusal = self._admission.refusal(loop_time())
                if refusal is not None:
                    reply(refusal)
                    return
            try:
                self._lifecycles.check(key.workflow_type, graph)
            except SPIError as error:
                reply(error)
                return
        now = self._kernel.now()
        start_at = now + int(request.delay * SECOND) if request.delay else 0
        span = self._observed.begin(key, request.trace)
        command = StartRun(
            namespace=key.namespace,
            instance=key.instance_id.bytes,
            input=request.input,
            correlation_id=request.correlation_id or uuid_text(key.instance_id),
            causation_id=request.causation_id,
            start_at=start_at,
            timeout_at=max(now, start_at) + int(request.timeout * SECOND) if request.timeout else 0,
            trace=request.trace if span is None else tracing.format_traceparent(span.get_span_context()),
            principal=request.principal,
            request_id=request.request_id,
        )
        try:
            run, turn = self._kernel.start(shard, graph, key, command, digest)
        except SPIError as error:
            self._observed.begun(key, span, error)
            reply(error)
            return
        state = run.state
        self._admission.begun(state.created_at)
        self._carry_out(run, turn)
        answer: StartOutcome | SPIError = StartOutcome(
            key=key, version=state.version, created=True, state=state.status, sequence=state.seq
        )
        if state.status == "failed" and state.error is not None:
            answer = RunFailed(
                f"the run failed at once: {state.error.message}",
                {"run": str(key), "state": "failed", "error": state.error.type, **(state.error.context or {})},
            )

        is_awaited = request.wait and request.caller is None and isinstance(answer, StartOutcome)

        def begun(error: Coded | None) -> None:
            self._observed.begun(key, span, error)
            if not is_awaited:
                reply(answer if error is None else error)
            elif error is not None:
                self._outcomes.refuse(key, error)

        if request.caller is None:
            self._kernel.lane.answer_when_durable(begun, shard, patient=is_awaited)
        else:
            self._kernel.lane.when_durable(begun, shard)
        if is_awaited:
            reply(answer)

    async def _start_known(
        self, request: StartRequest, graph: Graph, key: RunKey, digest: bytes, reply: StartReply
    ) -> None:
        """The key may exist: the same start again gives the run, another one is refused."""
        shard = self._kernel.shard_of(key)
        record = None
        while record is None:
            if request.caller is None:
                await self._queries.durable(key)
            else:  # an orchestration waits
                await self._kernel.lane.durable(shard)
            record = await self._kernel.store.find_run(shard.id, key.to_bytes())
            if record is None:
                shard.check()  # else another owner may have been there meanwhile
                if not shard.recent.has(key):
                    self._create(shard, request, graph, key, digest, reply)
                    return
        state = WORKFLOW_STATES[record.state]
        if record.start_hash == digest:
            record = self._queries.current(shard, record)
            reply(StartOutcome(key=key, version=record.version, created=False, state=state, sequence=record.head))
            return
        if request.instance_id is None:
            raise InvalidArgument("this request_id was used with another body", field="request_id")
        raise RunExists(
            f"run {key} exists with other input or correlation_id",
            {"run": str(key), "current_state": state, "required_state": "no such run"},
        )

    async def _start_called(
        self, request: StartRequest, caller: Caller, graph: Graph, key: RunKey, digest: bytes, reply: StartReply
    ) -> None:
        """A call of an orchestration: under its number there is one start, made now or before."""
        parent, is_new = await self._calls.admit(caller, key, digest)
        request = msgspec.structs.replace(
            request, correlation_id=parent.state.correlation_id, causation_id=str(caller.run)
        )
        if (
            self._kernel.is_shared
        ):  # it may be another's, and durable before its number is: its caller would not know it
            await self._kernel.lane.durable(parent.shard)
            self._start_anywhere(msgspec.structs.replace(request, caller=None, wait=False), reply)
        elif is_new:
            self._create(self._kernel.shard_of(key), request, graph, key, digest, reply)
        else:
            await self._start_known(request, graph, key, digest, reply)

    def _start_anywhere(self, request: StartRequest, reply: StartReply) -> None:
        """Start a called run at its owner. An orchestration waits where clients are refused: it has begun already."""

        def told(answer: StartOutcome | SPIError) -> None:
            if isinstance(answer, StoreUnavailable | Overloaded) and not self._kernel.lane.is_over:
                asyncio.get_running_loop().call_later(START_AGAIN_SECONDS, self._start_anywhere, request, reply)
            else:
                reply(answer)

        self._cluster.start_run(request, told)


def graph_for(catalog: Catalog, request: StartRequest, payload_limit: int) -> Graph:
    """The graph to start. Raises InvalidArgument, UnknownWorkflowType."""
    if len(request.input.data) > payload_limit:
        raise InvalidArgument(
            f"the input has {len(request.input.data):,} bytes, the limit is {payload_limit:,}", field="input"
        )
    if request.delay or request.timeout:
        for field, seconds in (("delay", request.delay), ("timeout", request.timeout)):
            if not 0 <= seconds <= MAX_SECONDS:
                raise InvalidArgument(
                    f"{field} must be between 0 and {MAX_SECONDS:,.0f} seconds, not {seconds}", field=field
                )
    return catalog.graph(catalog.record(request.namespace, request.workflow_type, request.version))


def key_of(request: StartRequest, ids: IdSource, now: int) -> tuple[RunKey, bytes]:
    """The run's key, and the hash of what is started. Raises InvalidArgument for an id of the future."""
    instance = request.instance_id
    if instance is None:
        instance = instance_of_request(request.request_id) if request.request_id else ids.uuid()
    if RecentRuns.is_premature(instance, now):
        field = "request_id" if request.instance_id is None else "instance_id"
        raise InvalidArgument(f"{field} is a UUIDv7 of the future: is the clock of the client right?", field=field)
    digest = blake2b(request.input.data, digest_size=16)
    digest.update(f"\0{request.input.encoding}\0{request.correlation_id}\0{request.version}".encode())
    return RunKey(request.namespace, request.workflow_type, instance), digest.digest()
