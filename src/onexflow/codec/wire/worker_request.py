"""The worker's stream, worker → orchestrator: messages of `ports.worker_link` ↔ `onexflow.v1` SessionRequest.

Hot: batches of results; in their loop a token is written into its place field by field, since a message of its own that is
copied, or a call for each, costs twice as much. One message of the port may become several on the wire (64 entries, 1 MiB).
A result that breaks a limit does not end the stream, since it would come again on the next one: it becomes a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, cast

from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument, ProtocolViolation
from onexflow.core.ids import Token
from onexflow.core.payload import JSON, NULL, Failure, Payload
from onexflow.ports import worker_link as link
from onexflow.v1 import worker_pb2 as pb

MAX_HANDLERS: Final = 10_000
MAX_SLOTS: Final = 100_000
MAX_LABELS: Final = 64
MAX_RESULTS: Final = 1024  #: of one message; a batch has fewer

_STATUSES: Final = frozenset({"completed", "failed", "stopped", "returned"})

Status = Literal["completed", "failed", "stopped", "returned"]


def to_requests(message: link.FromWorker) -> Iterator[pb.SessionRequest]:
    """The wire messages of one message of the worker's, in order."""
    match message:
        case link.Results(results, granted):
            for number, batch in enumerate(common.cut(results, _result_sizes(results))):
                # What is too large for a message is too large for a batch, and so alone in its own.
                request = _results_to_pb(batch if len(batch) > 1 else [_bounded(batch[0])])
                if granted and not number:
                    request.results.credits.granted.update(granted)
                yield request
        case link.Credits(granted):
            yield pb.SessionRequest(credits=pb.Credits(granted=granted))
        case link.Reclaim(wanted):
            yield pb.SessionRequest(reclaim=pb.Reclaim(wanted=wanted))
        case link.Progress(token, details):
            yield pb.SessionRequest(
                progress=pb.Progress(token=common.token_to_pb(token), details=common.payload_to_pb(details))
            )
        case link.Fed(token, count):
            yield pb.SessionRequest(fed=pb.Fed(token=common.token_to_pb(token), count=count))
        case link.Held(shard, epoch, running):
            yield pb.SessionRequest(
                held=pb.Held(shard=shard, epoch=epoch, running=[common.token_to_pb(token) for token in running])
            )
        case link.Pong(nonce):
            yield pb.SessionRequest(pong=pb.Pong(nonce=nonce))
        case link.Hello():
            yield pb.SessionRequest(hello=_hello_to_pb(message))
        case link.WorkerDraining():
            yield pb.SessionRequest(worker_draining=pb.WorkerDraining())
        case link.Lifecycle(handlers):
            yield pb.SessionRequest(lifecycle=pb.Lifecycle(handlers=[_handler_to_pb(one) for one in handlers]))
        case link.Goodbye():
            yield pb.SessionRequest(goodbye=pb.Goodbye())


def from_request(message: pb.SessionRequest) -> link.FromWorker:
    """The worker's message. Raises ProtocolViolation naming the field."""
    kind = message.WhichOneof("message")
    if kind is None:
        raise ProtocolViolation("A message of the worker's stream holds nothing.", {"field": "message"})
    try:
        return _FROM_REQUEST[kind](getattr(message, kind))
    except InvalidArgument as error:
        raise ProtocolViolation(str(error), error.context) from error


def _results(message: pb.Results) -> link.Results:
    if len(message.results) > MAX_RESULTS:
        raise InvalidArgument(f"{len(message.results)} results in one message.", field="results.results")
    granted = _by_role(message.credits.granted, "results.credits.granted") if message.HasField("credits") else {}
    return link.Results([_plain_result(one) or _result(one) for one in message.results], granted)


def _plain_result(message: pb.AttemptResult) -> link.AttemptResult | None:
    """What nearly every result is: `completed`, with small ASCII JSON. None: `_result` is to look closer."""
    token, payload = message.token, message.result
    epoch, data, started_at, finished_at = token.epoch, payload.data, message.started_at, message.finished_at
    if (
        message.status != "completed"
        or not epoch
        or not data
        or len(data) > common.MAX_PAYLOAD
        or payload.encoding
        or not common.is_plain_json(data)
        or started_at < 0
        or finished_at < 0
    ):
        return None
    return link.AttemptResult(
        Token(token.shard, epoch, token.offset, token.item), "completed", Payload(data), None,
        started_at, finished_at,
    )  # fmt: skip


def _result(message: pb.AttemptResult) -> link.AttemptResult:
    if not message.HasField("token"):
        raise InvalidArgument("A result has no token.", field="results.token")
    status = message.status
    if status not in _STATUSES:
        raise InvalidArgument(f"A result's status is {status[:64]!r}.", field="results.status")
    value = NULL
    error = common.failure(message.error) if message.HasField("error") else None
    if message.HasField("result"):
        try:
            value = common.payload(message.result, "result")
        except InvalidArgument as wrong:
            status, error = "failed", _refused(str(wrong))
    if status == "failed" and error is None:
        error = Failure("Error", "The worker gave no error.")
    started_at, finished_at = message.started_at, message.finished_at
    if started_at < 0 or finished_at < 0:
        common.not_negative(started_at, "results.started_at")
        common.not_negative(finished_at, "results.finished_at")
    return link.AttemptResult(
        common.token(message.token), cast("Status", status), value, error, started_at, finished_at
    )


def _results_to_pb(results: Sequence[link.AttemptResult]) -> pb.SessionRequest:
    request = pb.SessionRequest()
    add = request.results.results.add
    for value in results:
        message, token = add(), value.token
        place = message.token
        place.shard = token.shard
        place.epoch = token.epoch
        place.offset = token.offset
        if token.item:
            place.item = token.item
        message.status = value.status
        message.started_at = value.started_at
        message.finished_at = value.finished_at
        given = value.result
        if given is not NULL:
            payload = message.result
            payload.data = given.data
            if given.encoding != JSON:
                payload.encoding = given.encoding
        if value.error is not None:
            message.error.CopyFrom(common.failure_to_pb(value.error))
    return request


def _result_sizes(results: Sequence[link.AttemptResult]) -> list[int]:
    """About how many bytes each takes on the wire."""
    return [
        common.ENTRY
        + len(one.result.data)
        + (0 if one.error is None else len(one.error.message) + len(one.error.traceback))
        for one in results
    ]


def _bounded(value: link.AttemptResult) -> link.AttemptResult:
    """The result itself, or its failure when it is larger than may be sent."""
    if len(value.result.data) <= common.MAX_PAYLOAD:
        return value
    story = f"The result has {len(value.result.data)} bytes; {common.MAX_PAYLOAD} is the most."
    return link.AttemptResult(value.token, "failed", NULL, _refused(story), value.started_at, value.finished_at)


def _refused(story: str) -> Failure:
    return Failure("InvalidArgument", story, code=InvalidArgument.code, retryable=False)


def _hello(message: pb.Hello) -> link.Hello:
    if len(message.handlers) > MAX_HANDLERS:
        raise InvalidArgument(f"{len(message.handlers)} handlers; {MAX_HANDLERS} is the most.", field="hello.handlers")
    if len(message.labels) > MAX_LABELS:
        raise InvalidArgument(f"{len(message.labels)} labels; {MAX_LABELS} is the most.", field="hello.labels")
    handlers = tuple(_handler(one, "hello.handlers") for one in message.handlers)
    return link.Hello(
        worker_id=common.name(message.worker_id, "hello.worker_id"),
        incarnation=common.name(message.incarnation, "hello.incarnation"),
        handlers=handlers,
        slots=_by_role(message.slots, "hello.slots"),
        liveness=common.optional_name(message.liveness, "hello.liveness"),
        build_id=common.optional_name(message.build_id, "hello.build_id"),
        protocol_version=message.protocol_version,
        labels={
            common.name(label, "hello.labels"): common.optional_name(text, "hello.labels")
            for label, text in message.labels.items()
        },
    )


def _handler(message: pb.HandlerInfo, field: str) -> link.HandlerInfo:
    if message.state not in link.NODE_STATES:
        states = ", ".join(link.NODE_STATES[1:])
        raise InvalidArgument(f"A node's state is {message.state[:64]!r}; states are {states}.", field=f"{field}.state")
    return link.HandlerInfo(
        _role(message.role, f"{field}.role"),
        common.name(message.name, f"{field}.name"),
        message.idempotent,
        message.state,
    )


def _handler_to_pb(value: link.HandlerInfo) -> pb.HandlerInfo:
    return pb.HandlerInfo(role=value.role, name=value.name, idempotent=value.idempotent, state=value.state)


def _lifecycle(message: pb.Lifecycle) -> link.Lifecycle:
    if len(message.handlers) > MAX_HANDLERS:
        raise InvalidArgument(
            f"{len(message.handlers)} handlers; {MAX_HANDLERS} is the most.", field="lifecycle.handlers"
        )
    return link.Lifecycle(tuple(_handler(one, "lifecycle.handlers") for one in message.handlers))


def _hello_to_pb(value: link.Hello) -> pb.Hello:
    return pb.Hello(
        protocol_version=value.protocol_version,
        worker_id=value.worker_id,
        incarnation=value.incarnation,
        handlers=[_handler_to_pb(one) for one in value.handlers],
        slots=value.slots,
        liveness=value.liveness,
        build_id=value.build_id,
        labels=value.labels,
        receipts=True,
        shares_tasks=True,
    )


def _held(message: pb.Held) -> link.Held:
    return link.Held(message.shard, message.epoch, [common.token(token) for token in message.running])


def _progress(message: pb.Progress) -> link.Progress:
    if not message.HasField("token"):
        raise InvalidArgument("A progress report has no token.", field="progress.token")
    return link.Progress(common.token(message.token), common.payload_or_null(message, "details", "progress.details"))


def _fed(message: pb.Fed) -> link.Fed:
    if not message.HasField("token"):
        raise InvalidArgument("A word about items has no token.", field="fed.token")
    return link.Fed(common.token(message.token), message.count)


def _by_role(counts: Any, field: str) -> dict[str, int]:
    checked: dict[str, int] = {}
    for role, count in counts.items():
        _role(role, field)
        if count > MAX_SLOTS:
            raise InvalidArgument(f"{field} of {role} is {count}; {MAX_SLOTS} is the most.", field=field)
        checked[role] = count
    return checked


def _role(text: str, field: str) -> link.Role:
    if text not in link.ROLES:
        raise InvalidArgument(
            f"{field}: there is no role {text[:64]!r}; roles are {', '.join(link.ROLES)}.", field=field
        )
    return text


_FROM_REQUEST: Final[dict[str, Callable[[Any], link.FromWorker]]] = {
    "hello": _hello,
    "lifecycle": _lifecycle,
    "credits": lambda message: link.Credits(_by_role(message.granted, "credits.granted")),
    "reclaim": lambda message: link.Reclaim(_by_role(message.wanted, "reclaim.wanted")),
    "results": _results,
    "held": _held,
    "progress": _progress,
    "fed": _fed,
    "worker_draining": lambda _: link.WorkerDraining(),
    "goodbye": lambda _: link.Goodbye(),
    "pong": lambda message: link.Pong(message.nonce),
}
