"""The worker's stream: messages of `ports.worker_link` ↔ `onexflow.v1` SessionRequest and SessionResponse.

Hot: batches of assignments, results and acks; in their loops a token is written into its place field by field, since a
message of its own that is copied, or a call for each, costs twice as much. One message of a port may become several on
the wire (64 entries, 1 MiB). A result that breaks a limit does not end the stream, since it would come again
on the next one: it becomes a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeVar, cast

from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument, ProtocolViolation
from onexflow.core.ids import Token
from onexflow.core.payload import JSON, NULL, Failure, Payload
from onexflow.ports import worker_link as link
from onexflow.v1 import worker_pb2 as pb

MAX_HANDLERS: Final = 10_000
MAX_SLOTS: Final = 100_000
MAX_LABELS: Final = 64
MAX_ACKS: Final = 1024  #: tokens of one Ack or Cancel; they are small

_STATUSES: Final = frozenset({"completed", "failed", "stopped", "returned"})
_ROLES: Final[frozenset[str]] = frozenset(link.ROLES)
_ENTRY: Final = 256  #: bytes of an entry beside its payloads, roughly
_FED_ENTRY: Final = 16  #: the same of an item of a feed
_LARGEST: Final = common.MAX_MESSAGE * 7 // 8  #: an assignment beyond goes without the progress of the attempt before

T = TypeVar("T")
Status = Literal["completed", "failed", "stopped", "returned"]


# ---- worker → orchestrator


def to_requests(message: link.FromWorker) -> Iterator[pb.SessionRequest]:
    """The wire messages of one message of the worker's, in order."""
    match message:
        case link.Results(results, granted):
            for number, batch in enumerate(cut(results, result_size)):
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
    if len(message.results) > MAX_ACKS:
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
    if text not in _ROLES:
        raise InvalidArgument(
            f"{field}: there is no role {text[:64]!r}; roles are {', '.join(link.ROLES)}.", field=field
        )
    return cast("link.Role", text)


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


# ---- orchestrator → worker


def to_responses(message: link.ToWorker) -> Iterator[pb.SessionResponse]:
    """The wire messages of one message of the orchestrator's, in order."""
    match message:
        case link.Assignments(assignments, ack):
            for number, batch in enumerate(cut(assignments, assignment_size)):
                response = _assignments_to_pb(batch)
                if ack is not None and not number:
                    _fill_ack(response.assignments.ack, ack.tokens, ack.discarded, ack.offsets)
                yield response
        case link.Feed():
            yield from _feed_to_pb(message)
        case link.Ack():
            yield from _acks_to_pb(message)
        case link.Cancel(tokens, reason):
            for start in range(0, len(tokens), MAX_ACKS):
                part = _tokens_to_pb(tokens[start : start + MAX_ACKS])
                yield pb.SessionResponse(cancel=pb.Cancel(tokens=part, reason=reason))
        case link.Demand(waiting):
            yield pb.SessionResponse(demand=pb.Demand(waiting=waiting))
        case link.Recall(role, count):
            yield pb.SessionResponse(recall=pb.Recall(role=role, count=count))
        case link.Reclaimed(returned):
            yield pb.SessionResponse(reclaimed=pb.Reclaimed(returned=returned))
        case link.ShardEpoch(shard, epoch):
            yield pb.SessionResponse(shard_epoch=pb.ShardEpoch(shard=shard, epoch=epoch))
        case link.Ping(nonce):
            yield pb.SessionResponse(ping=pb.Ping(nonce=nonce))
        case link.Welcome():
            yield pb.SessionResponse(
                welcome=pb.Welcome(
                    protocol_version=message.protocol_version,
                    orchestrator_id=message.orchestrator_id,
                    epochs=message.epochs,
                    orchestrators=message.orchestrators,
                )
            )
        case link.Drain(reason):
            yield pb.SessionResponse(drain=pb.Drain(reason=reason))


def from_response(message: pb.SessionResponse) -> link.ToWorker:
    """The orchestrator's message. Raises ProtocolViolation when it holds nothing that is known."""
    kind = message.WhichOneof("message")
    if kind is None:
        raise ProtocolViolation("A message of the orchestrator's holds nothing that is known.", {"field": "message"})
    return _FROM_RESPONSE[kind](getattr(message, kind))


def _assignment(message: pb.Assignment) -> link.Assignment:
    role = message.role
    if role not in _ROLES:
        raise ProtocolViolation(f"An assignment has the unknown role {role!r}.", {"field": "assignments.role"})
    token, given = message.token, message.input
    data, encoding = given.data, given.encoding
    return link.Assignment(
        Token(token.shard, token.epoch, token.offset, token.item),
        cast("link.Role", role),
        message.handler,
        message.namespace,
        message.workflow_type,
        message.instance_id,
        message.task,
        message.attempt,
        Payload(data, encoding or JSON) if data or encoding else NULL,
        message.idempotency_key,
        message.timeout,
        message.heartbeat,
        message.trace,
        common.trusted_payload(message.progress) if message.HasField("progress") else None,
        message.fed,
    )


def _assignments_to_pb(assignments: Sequence[link.Assignment]) -> pb.SessionResponse:
    response = pb.SessionResponse()
    add = response.assignments.assignments.add
    for value in assignments:
        message, token, given = add(), value.token, value.input
        place = message.token
        place.shard = token.shard
        place.epoch = token.epoch
        place.offset = token.offset
        if token.item:
            place.item = token.item
        message.role = value.role
        message.handler = value.handler
        message.namespace = value.namespace
        message.workflow_type = value.workflow_type
        message.instance_id = value.instance_id
        message.task = value.task
        message.attempt = value.attempt
        if value.idempotency_key:
            message.idempotency_key = value.idempotency_key
        payload = message.input
        payload.data = given.data
        if given.encoding != JSON:
            payload.encoding = given.encoding
        if value.timeout:
            message.timeout = value.timeout
        if value.heartbeat:
            message.heartbeat = value.heartbeat
        if value.trace:
            message.trace = value.trace
        if value.fed:
            message.fed = True
        if value.progress is not None and assignment_size(value) <= _LARGEST:
            common.fill_payload(message.progress, value.progress)
    return response


def _feed_to_pb(value: link.Feed) -> Iterator[pb.SessionResponse]:
    batches = list(cut(value.items, _fed_size)) or [[]]
    for number, batch in enumerate(batches, 1):
        response = pb.SessionResponse()
        feed = response.feed
        feed.token.CopyFrom(common.token_to_pb(value.token))
        for item in batch:
            message = feed.items.add()
            message.index = item.index
            common.fill_payload(message.payload, item.payload)
        feed.is_last = value.is_last and number == len(batches)
        yield response


def _fed_size(item: link.FedItem) -> int:
    return _FED_ENTRY + len(item.payload.data)


def _feed(message: pb.Feed) -> link.Feed:
    items = [
        link.FedItem(one.index, common.trusted_payload(one.payload) if one.HasField("payload") else NULL)
        for one in message.items
    ]
    return link.Feed(common.token(message.token), items, message.is_last)


def _acks_to_pb(value: link.Ack) -> Iterator[pb.SessionResponse]:
    tokens, discarded = value.tokens, value.discarded
    for start in range(0, max(len(tokens), len(discarded), 1), MAX_ACKS):
        part = slice(start, start + MAX_ACKS)
        response = pb.SessionResponse()
        _fill_ack(response.ack, tokens[part], discarded[part], value.offsets)
        yield response


def _fill_ack(message: pb.Ack, tokens: Sequence[Token], discarded: Sequence[Token], offsets: dict[int, int]) -> None:
    message.SetInParent()
    message.offsets.update(offsets)
    _fill_tokens(message.tokens, tokens)
    _fill_tokens(message.discarded, discarded)


def _ack(message: pb.Ack) -> link.Ack:
    offsets = message.offsets
    # Not `dict(offsets)`, which asks for each value by way of a view that is written in Python.
    durable = {shard: offsets[shard] for shard in offsets}
    return link.Ack(_tokens(message.tokens), _tokens(message.discarded), durable)


def _fill_tokens(messages: Any, tokens: Sequence[Token]) -> None:
    add = messages.add
    for token in tokens:
        message = add()
        message.shard = token.shard
        message.epoch = token.epoch
        message.offset = token.offset
        if token.item:
            message.item = token.item


def _tokens_to_pb(tokens: Sequence[Token]) -> list[Any]:
    return [common.token_to_pb(token) for token in tokens]


def _tokens(messages: Any) -> list[Token]:
    return [Token(one.shard, one.epoch, one.offset, one.item) for one in messages]


_FROM_RESPONSE: Final[dict[str, Callable[[Any], link.ToWorker]]] = {
    "welcome": lambda message: link.Welcome(
        orchestrator_id=message.orchestrator_id,
        epochs=dict(message.epochs),
        orchestrators=tuple(message.orchestrators),
        protocol_version=message.protocol_version,
    ),
    "shard_epoch": lambda message: link.ShardEpoch(message.shard, message.epoch),
    "assignments": lambda message: link.Assignments(
        [_assignment(one) for one in message.assignments], _ack(message.ack) if message.HasField("ack") else None
    ),
    "feed": _feed,
    "ack": _ack,
    "cancel": lambda message: link.Cancel(_tokens(message.tokens), message.reason),
    "reclaimed": lambda message: link.Reclaimed(dict(message.returned)),
    "recall": lambda message: link.Recall(message.role, message.count),
    "demand": lambda message: link.Demand(dict(message.waiting)),
    "drain": lambda message: link.Drain(message.reason),
    "ping": lambda message: link.Ping(message.nonce),
}


# ---- batches


def cut(entries: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """The entries in batches of at most 64 and, unless one alone is larger, 1 MiB."""
    start = room = 0
    if sum(map(size, entries)) <= common.MAX_BATCH_BYTES:
        for start in range(0, len(entries), common.MAX_BATCH):
            yield entries[start : start + common.MAX_BATCH]
        return
    for position, entry in enumerate(entries):
        needed = size(entry)
        if position > start and (position - start == common.MAX_BATCH or room + needed > common.MAX_BATCH_BYTES):
            yield entries[start:position]
            start, room = position, 0
        room += needed
    if entries:
        yield entries[start:]


def assignment_size(value: link.Assignment) -> int:
    """About how many bytes it takes on the wire."""
    progress, size = value.progress, _ENTRY + len(value.input.data)
    return size if progress is None else size + len(progress.data)


def result_size(value: link.AttemptResult) -> int:
    """About how many bytes it takes on the wire."""
    error, size = value.error, _ENTRY + len(value.result.data)
    return size if error is None else size + len(error.message) + len(error.traceback)
