# ruff: noqa: N802 - the methods have the names of the wire
"""An orchestrator made of generated stubs, for tests of the client: every start is answered by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

import grpc

from onexflow.codec.wire import common as wire_common
from onexflow.core.errors import UnknownRun
from onexflow.rpc.status import to_status
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import admin_pb2, admin_pb2_grpc, common_pb2, workflow_pb2_grpc
from onexflow.v1 import workflow_pb2 as pb

#: The answer to a start or a wait; None: none comes.
Script = Callable[[pb.StartWorkflowRequest | common_pb2.RunKey], "pb.Answer | None"]
RUN = UUID("01890000-0000-7000-8000-000000000001")


def key(workflow_type: str = "greet") -> common_pb2.RunKey:
    return common_pb2.RunKey(namespace="default", workflow_type=workflow_type, instance_id=str(RUN))


def echo(call: pb.StartWorkflowRequest | common_pb2.RunKey) -> pb.Answer:
    """Every run is completed at once, with its input as the result."""
    if isinstance(call, common_pb2.RunKey):
        result = common_pb2.Payload(data=b'"waited"')
    elif call.wait:
        result = call.input
    else:
        return pb.Answer(started=pb.StartOutcome(key=key(call.workflow_type), version=1, created=True, state="running"))
    return pb.Answer(ended=pb.RunOutcome(key=key(), state="completed", result=result))


if TYPE_CHECKING:  # a script answers a part of the services only; the generated bases answer UNIMPLEMENTED for the rest

    class _Base: ...
else:

    class _Base(workflow_pb2_grpc.WorkflowServiceServicer, admin_pb2_grpc.AdminServiceServicer): ...


class FakeOrchestrator(_Base):
    def __init__(self, script: Script = echo) -> None:
        self.script = script
        self.batches: list[pb.CallBatch] = []
        self.request_ids: list[str] = []
        self.abandoned: list[int] = []
        self.streams = 0
        self.window = 1000
        #: Refuses the stream with this status.
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        #: Calls that got no answer, by what the script said.
        self.unanswered = asyncio.Event()
        self.cut = asyncio.Event()
        self.events: list[pb.EventView] = []
        self.unary_failures: list[SPIError] = []
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self, address: str = "127.0.0.1:0") -> None:
        self._server = grpc.aio.server()
        workflow_pb2_grpc.add_WorkflowServiceServicer_to_server(cast("Any", self), self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(cast("Any", self), self._server)
        port = self._server.add_insecure_port(address)
        await self._server.start()
        self.address = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def cut_streams(self) -> None:
        """End every open Connect stream with UNAVAILABLE."""
        self.cut.set()
        self.cut = asyncio.Event()

    async def Connect(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.ConnectResponse]:
        self.streams += 1
        if self.refuse is not None:
            await context.abort(*self.refuse)
        cut = asyncio.ensure_future(self.cut.wait())
        try:
            first = await context.read()
            assert first.hello.protocol_version == 1
            yield pb.ConnectResponse(
                welcome=pb.ConnectWelcome(protocol_version=1, orchestrator_id="fake", window=self.window)
            )
            while True:
                reading = asyncio.ensure_future(context.read())
                await asyncio.wait([reading, cut], return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    reading.cancel()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                message = await reading
                if message is grpc.aio.EOF:
                    return
                answers = self._answers(message.batch)
                if answers:
                    yield pb.ConnectResponse(batch=pb.AnswerBatch(answers=answers))
        finally:
            cut.cancel()

    def _answers(self, batch: pb.CallBatch) -> list[pb.Answer]:
        self.batches.append(batch)
        self.abandoned.extend(batch.abandoned)
        self.request_ids.extend(call.start.request_id for call in batch.starts)
        answers = []
        calls: list[tuple[int, Any]] = [(call.call_id, call.start) for call in batch.starts]
        calls += [(call.call_id, call.key) for call in batch.waits]
        for call_id, what in calls:
            answer = self.script(what)
            if answer is None:
                self.unanswered.set()
                continue
            answer.call_id = call_id
            answers.append(answer)
        return answers

    async def _maybe_fail(self, context: Any) -> None:
        if self.unary_failures:
            status = to_status(self.unary_failures.pop(0))
            context.set_trailing_metadata(status.trailing_metadata)
            await context.abort(status.code, status.details, status.trailing_metadata)

    async def PauseRun(self, request: Any, context: Any) -> pb.PauseRunResponse:
        await self._maybe_fail(context)
        self.request_ids.append(request.request_id)
        return pb.PauseRunResponse(outcome=pb.ControlOutcome(changed=True, state="paused", sequence=4))

    async def DescribeRun(self, request: Any, context: Any) -> pb.DescribeRunResponse:
        status = to_status(UnknownRun("no such run", {"instance_id": request.key.instance_id}))
        await context.abort(status.code, status.details, status.trailing_metadata)
        raise AssertionError

    async def ListRuns(self, request: Any, context: Any) -> pb.ListRunsResponse:
        first = int(request.page_token or 0)
        numbers = range(first, min(first + request.page_size, 250))
        runs = [pb.RunSummary(key=key(), sequence=one) for one in numbers]
        return pb.ListRunsResponse(runs=runs, next_page_token=str(numbers.stop) if numbers.stop < 250 else "")

    async def FollowRun(self, request: Any, context: Any) -> AsyncIterator[pb.FollowRunResponse]:
        for event in self.events:
            if event.sequence >= request.from_sequence:
                yield pb.FollowRunResponse(events=[event])
                if event.type == "cut":
                    event.type = "whole"
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def GetHealth(self, request: Any, context: Any) -> admin_pb2.GetHealthResponse:
        return admin_pb2.GetHealthResponse(serving=True)


def failed(message: str = "no luck", state: str = "failed") -> pb.Answer:
    error = common_pb2.Failure(
        type="ValueError", message=message, traceback="…", context_json='{"task": "charge", "attempt": 3}'
    )
    return pb.Answer(ended=pb.RunOutcome(key=key(), state=state, error=error))


def error(what: Any) -> pb.Answer:
    return pb.Answer(error=wire_common.error_to_pb(what))
