"""Every class of error comes out on the other side as it went in: by status, and as an answer on a stream."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from onexflow.codec.wire import common
from onexflow.core.errors import (
    BY_CODE,
    Coded,
    InternalError,
    InvalidArgument,
    InvalidDefinition,
    Overloaded,
    Unavailable,
)
from onexflow.rpc.status import DETAILS, code_of, from_status, judged, to_status
from onexflow.spi import exceptions

PLAIN = [
    exceptions.SPIError,
    exceptions.ProtocolHandlerError,
    exceptions.HandlerInitializationError,
    exceptions.RegistryError,
    exceptions.InvalidProtocolStateError,
]


@pytest.mark.parametrize("cls", [*BY_CODE.values(), *PLAIN], ids=lambda cls: cls.__name__)
def test_an_error_comes_back_with_its_class_message_and_context(cls: type[exceptions.SPIError]) -> None:
    error = cls("It broke – here.", {"run": "r1", "numbers": [1, 2]})
    status = to_status(error)
    back = from_status(status.code, status.details, status.trailing_metadata)
    assert type(back) is cls
    assert str(back) == str(error)
    assert back.context == error.context

    answer = common.error(common.error_to_pb(error))
    assert type(answer) is cls
    assert answer.context == error.context


def test_codes_are_the_ones_that_the_table_names() -> None:
    named = {cls.__name__: code_of(cls("x")).name for cls in BY_CODE.values()}
    assert named["InvalidDefinition"] == named["ProtocolViolation"] == "INVALID_ARGUMENT"
    assert named["UnknownRun"] == named["UnknownNode"] == "NOT_FOUND"
    assert named["RunExists"] == named["DefinitionConflict"] == "ALREADY_EXISTS"
    assert named["InvalidTransition"] == named["RunFailed"] == "FAILED_PRECONDITION"
    assert named["StoreFull"] == "RESOURCE_EXHAUSTED"
    assert named["ShardMoved"] == named["Draining"] == "UNAVAILABLE"
    assert named["DeadlineExceeded"] == "DEADLINE_EXCEEDED"
    assert named["InternalError"] == "INTERNAL"
    assert "UNKNOWN" not in named.values()


def _details(error: Coded) -> dict[str, object]:
    ((name, raw),) = to_status(error).trailing_metadata
    assert name == DETAILS
    found: dict[str, object] = {}
    for detail in status_pb2.Status.FromString(raw).details:
        for cls in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest):
            if detail.Is(cls.DESCRIPTOR):
                message = cls()
                detail.Unpack(message)
                found[cls.__name__] = message
    return found


def test_details_follow_googles_error_model() -> None:
    details = _details(InvalidArgument("delay is negative.", field="delay"))
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("OXF-1001", "onexflow", {"context": '{"field":"delay"}'})
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "delay"
    assert "RetryInfo" not in details

    retry = _details(Overloaded("Full.", {"retry_after": 2.5}))["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (2, 500_000_000)

    listed = _details(InvalidDefinition("Two slips.", {"problems": [{"place": "tasks[0]", "problem": "no name"}]}))
    bad = listed["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "tasks[0]"


def test_an_unknown_error_is_logged_and_told_without_its_story() -> None:
    told = judged(KeyError("the secret"), "StartWorkflow")
    assert type(told) is InternalError
    assert "secret" not in str(to_status(told))


def test_a_status_without_our_details_becomes_the_nearest_error() -> None:
    assert type(from_status(grpc.StatusCode.UNAVAILABLE, "connection refused")) is Unavailable
    assert type(from_status(grpc.StatusCode.INTERNAL, "?")) is InternalError
    assert type(from_status(grpc.StatusCode.UNKNOWN, "?")) is InternalError
    assert type(from_status(grpc.StatusCode.INVALID_ARGUMENT, "?", [(DETAILS, b"\xff\xff")])) is InvalidArgument


def test_an_error_of_a_newer_peer_keeps_its_code() -> None:
    error = common.make_error("OXF-7777", "New.", {"a": 1})
    assert type(error) is InternalError
    assert error.context == {"a": 1, "reason": "OXF-7777"}


def test_a_write_to_a_stream_that_has_ended_is_worth_trying_again() -> None:
    error = from_status(grpc.StatusCode.INTERNAL, "Internal error from Core")
    assert type(error) is Unavailable
    assert type(from_status(grpc.StatusCode.INTERNAL, "something else")) is InternalError
