"""Errors ↔ gRPC status, by the Google error model: the same class, with its context, comes out on the other side.

| errors | gRPC status |
|---|---|
| InvalidArgument, InvalidDefinition, ProtocolViolation | INVALID_ARGUMENT |
| UnknownWorkflowType, UnknownRun, UnknownTask, UnknownNode, UnknownTopic, UnknownGroup, UnknownProjection, RegistryError | NOT_FOUND |
| OutOfRange | OUT_OF_RANGE |
| RunExists, DefinitionConflict | ALREADY_EXISTS |
| InvalidTransition, InvalidProtocolStateError, all of OXF-4xxx and OXF-5xxx but the ones below | FAILED_PRECONDITION |
| Overloaded, StoreFull | RESOURCE_EXHAUSTED |
| Unavailable, StoreUnavailable, ShardMoved, Draining, NotSecured, RegistryUnavailable | UNAVAILABLE |
| DeadlineExceeded | DEADLINE_EXCEEDED |
| PermissionDenied | PERMISSION_DENIED |
| Unauthenticated | UNAUTHENTICATED |
| RoleNotSupported | UNIMPLEMENTED |
| InternalError | INTERNAL |

Details: ErrorInfo (reason = our code, domain "onexflow", metadata "context" = facts as JSON, 4 KiB at most), RetryInfo
of what is worth trying again, BadRequest of a wrong argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from onexflow.codec.wire import common
from onexflow.core.errors import (
    BY_CODE,
    Coded,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ProtocolViolation,
    Unauthenticated,
    Unavailable,
)
from onexflow.rpc.tls import not_secured
from onexflow.spi.exceptions import RegistryError, SPIError
from onexflow.telemetry.late import LateLogger

DOMAIN: Final = "onexflow"
DETAILS: Final = "grpc-status-details-bin"

_log = LateLogger("onexflow.rpc")

_BY_FAMILY: Final = {
    "OXF-10": grpc.StatusCode.INVALID_ARGUMENT,
    "OXF-11": grpc.StatusCode.UNAVAILABLE,
    "OXF-12": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "OXF-13": grpc.StatusCode.DEADLINE_EXCEEDED,
    "OXF-14": grpc.StatusCode.INVALID_ARGUMENT,
    "OXF-15": grpc.StatusCode.PERMISSION_DENIED,
    "OXF-20": grpc.StatusCode.NOT_FOUND,
    "OXF-90": grpc.StatusCode.INTERNAL,
}
_BY_CODE: Final = {
    "OXF-3001": grpc.StatusCode.ALREADY_EXISTS,
    "OXF-3003": grpc.StatusCode.ALREADY_EXISTS,
    "OXF-1502": grpc.StatusCode.UNAUTHENTICATED,
    "OXF-4005": grpc.StatusCode.OUT_OF_RANGE,
    "OXF-5003": grpc.StatusCode.UNAVAILABLE,
    "OXF-5008": grpc.StatusCode.UNIMPLEMENTED,
}
#: What a status without details of ours is taken for: it comes from gRPC itself or from what stands between.
_PLAIN: Final[dict[grpc.StatusCode, type[Coded]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolViolation,
}
#: What grpc.aio makes of a write to a stream that the other side has ended, when it finds out before the status comes:
#: the status is lost then, and opening another stream tells.
_BROKEN_WRITE: Final = "Internal error from Core"


class Status(NamedTuple):
    """What `ServicerContext.abort_with_status` takes."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def code_of(error: SPIError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    if isinstance(error, Coded):
        code = error.code
        return _BY_CODE.get(code) or _BY_FAMILY.get(code[:6]) or grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, RegistryError):
        return grpc.StatusCode.NOT_FOUND
    return grpc.StatusCode.FAILED_PRECONDITION if type(error) is not SPIError else grpc.StatusCode.UNKNOWN


def to_status(error: SPIError) -> Status:
    """The status that tells a caller of `error`."""
    code = code_of(error)
    context = common.context_to_json(error.context)
    message = str(error)[: common.MAX_MESSAGE_TEXT]
    info = error_details_pb2.ErrorInfo(
        reason=common.reason(error), domain=DOMAIN, metadata={"context": context} if context else {}
    )
    details = [_packed(info)]
    if after := common.retry_after(error):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(after * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, InvalidArgument) and (violations := _violations(error, message)):
        details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    return Status(code, message, ((DETAILS, status.SerializeToString()),))


def from_rpc_error(error: grpc.aio.AioRpcError) -> SPIError:
    """The error that a failed call tells of: the same class, with its context, that the server raised."""
    return from_status(error.code(), error.details() or "", error.trailing_metadata() or ())


def from_status(
    code: grpc.StatusCode, message: str, trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
) -> SPIError:
    """The error of a status: the class of its reason; without details of ours, the nearest to its code."""
    for name, value in trailing_metadata:
        if name == DETAILS and isinstance(value, bytes) and (error := _from_details(value)) is not None:
            return error
    if code is grpc.StatusCode.UNAVAILABLE and (insecure := not_secured(message)) is not None:
        return insecure
    if code is grpc.StatusCode.INTERNAL and message == _BROKEN_WRITE:
        return Unavailable("The stream was ended by the other side while it was written to.", {"status": code.name})
    context = {"status": code.name}
    if (cls := _PLAIN.get(code)) is not None:
        return cls(message, context)
    return InternalError(message, context)


def judged(error: BaseException, where: str) -> SPIError:
    """`error` itself when a caller may see it; what is no error of ours is logged here, and told as InternalError."""
    if isinstance(error, SPIError):
        return error
    _log.error("call.failed", method=where, error=repr(error), exc_info=error)
    return InternalError(f"{where} failed inside the orchestrator; its log has the story.", {"method": where})


def _from_details(raw: bytes) -> SPIError | None:
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(raw)
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
                context = common.context_from_json(info.metadata.get("context", ""))
                return common.make_error(info.reason, status.message, context)
    except DecodeError:
        return None
    return None


def _violations(error: InvalidArgument, message: str) -> list[error_details_pb2.BadRequest.FieldViolation]:
    violation = error_details_pb2.BadRequest.FieldViolation
    if field := error.context.get("field"):
        return [violation(field=str(field), description=message)]
    problems = error.context.get("problems")
    if not isinstance(problems, list):
        return []
    return [
        violation(field=str(one.get("place", ""))[:256], description=str(one.get("problem", ""))[:256])
        for one in problems[:8]
        if isinstance(one, dict)
    ]


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


assert set(_BY_CODE) <= set(BY_CODE)
