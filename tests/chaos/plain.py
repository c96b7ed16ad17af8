"""Starts as any gRPC client would make them, without the client library: how they are answered while something is away."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple
from uuid import uuid4

import grpc
from google.rpc import error_details_pb2, status_pb2

from onexflow.core.errors import BY_CODE
from onexflow.rpc.channel import open_channel
from onexflow.v1 import workflow_pb2, workflow_pb2_grpc

#: Seconds that a plain call has: longer is a hang.
PATIENCE = 8.0


class Answer(NamedTuple):
    """How a plain start was answered."""

    seconds: float
    #: Of its refusal; "": none, "hung": no answer.
    code: str
    #: Seconds after which it may be tried again; 0: it was not told so.
    again: float

    @property
    def is_refused(self) -> bool:
        return self.code not in {"", "hung"}


async def plain_start(address: str, workflow_type: str) -> Answer:
    request = workflow_pb2.StartWorkflowRequest(workflow_type=workflow_type, request_id=str(uuid4()))
    request.namespace = "default"
    request.input.encoding, request.input.data = "json", b"{}"
    began = time.monotonic()
    async with open_channel(address) as channel:
        try:
            await workflow_pb2_grpc.WorkflowServiceStub(channel).StartWorkflow(request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            code, again = _details(error)
            return Answer(time.monotonic() - began, code, again)
    return Answer(time.monotonic() - began, "", 0.0)


def check_codes(answers: Iterable[Answer]) -> None:
    """Refusals have codes of ours."""
    unknown = {answer.code for answer in answers if answer.is_refused} - set(BY_CODE)
    assert not unknown, f"refused with {unknown}"


def _details(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return "hung", 0.0
    code, again = error.code().name, 0.0
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    code = info.reason
                elif detail.Unpack(retry):
                    again = retry.retry_delay.ToNanoseconds() / 1e9
    return code, again
