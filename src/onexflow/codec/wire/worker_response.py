"""The worker's stream, orchestrator → worker: messages of `ports.worker_link` ↔ `onexflow.v1` SessionResponse.

Hot: batches of assignments and acks; in their loops a token is written into its place field by field, since a message of
its own that is copied, or a call for each, costs twice as much. One message of the port may become several on the wire
(64 entries, 1 MiB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from onexflow.codec.wire import common
from onexflow.core.errors import ProtocolViolation
from onexflow.core.ids import Token
from onexflow.core.payload import JSON, NULL, Payload
from onexflow.ports import worker_link as link
from onexflow.v1 import worker_pb2 as pb

MAX_TOKENS: Final = 1024  #: of one Ack or Cancel; they are small

_FED_ENTRY: Final = 16  #: bytes of an item of a feed beside its payload, roughly
_LARGEST: Final = common.MAX_MESSAGE * 7 // 8  #: an assignment beyond goes without the progress of the attempt before


def to_responses(message: link.ToWorker, *, shares_tasks: bool) -> Iterator[pb.SessionResponse]:
    """The wire messages of one message of the orchestrator's, in order. `shares_tasks`: as the worker's Hello has it."""
    match message:
        case link.Assignments(assignments, ack):
            for number, batch in enumerate(common.cut(assignments, _assignment_sizes(assignments))):
                response = _assignments_to_pb(batch, shares_tasks)
                if ack is not None and not number:
                    _fill_ack(response.assignments.ack, ack.tokens, ack.discarded, ack.offsets)
                yield response
        case link.Feed():
            yield from _feed_to_pb(message)
        case link.Ack():
            yield from _acks_to_pb(message)
        case link.Cancel(tokens, reason):
            for start in range(0, len(tokens), MAX_TOKENS):
                part = _tokens_to_pb(tokens[start : start + MAX_TOKENS])
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


def _assignments(message: pb.Assignments) -> link.Assignments:
    tasks = [_info(one) for one in message.tasks]
    return link.Assignments(
        [_assignment(one, tasks) for one in message.assignments], _ack(message.ack) if message.HasField("ack") else None
    )


def _assignment(message: pb.Assignment, tasks: Sequence[link.TaskInfo]) -> link.Assignment:
    token, given, shared = message.token, message.input, message.shared
    data, encoding = given.data, given.encoding
    if shared > len(tasks):
        raise ProtocolViolation(f"An assignment is of task {shared} of {len(tasks)}.", {"field": "assignments.shared"})
    return link.Assignment(
        Token(token.shard, token.epoch, token.offset, token.item),
        tasks[shared - 1] if shared else _info(message),
        message.namespace,
        message.instance_id,
        message.attempt,
        Payload(data, encoding or JSON) if data or encoding else NULL,
        message.idempotency_key,
        message.trace,
        common.trusted_payload(message.progress) if message.HasField("progress") else None,
    )


def _info(message: pb.TaskInfo | pb.Assignment) -> link.TaskInfo:
    role = message.role
    if role not in link.ROLES:
        raise ProtocolViolation(f"An assignment has the unknown role {role!r}.", {"field": "assignments.role"})
    return link.TaskInfo(
        message.workflow_type, message.task, role, message.handler, message.timeout, message.heartbeat, message.fed
    )


def _fill_info(message: pb.TaskInfo | pb.Assignment, value: link.TaskInfo) -> None:
    message.role = value.role
    message.handler = value.handler
    message.workflow_type = value.workflow_type
    message.task = value.name
    message.timeout = value.timeout
    message.heartbeat = value.heartbeat
    message.fed = value.fed


def _assignments_to_pb(assignments: Sequence[link.Assignment], shares_tasks: bool) -> pb.SessionResponse:
    response = pb.SessionResponse()
    batch = response.assignments
    numbers: dict[link.TaskInfo, int] = {}
    add = batch.assignments.add
    for value in assignments:
        message, token, given = add(), value.token, value.input
        place = message.token
        place.shard = token.shard
        place.epoch = token.epoch
        place.offset = token.offset
        if token.item:
            place.item = token.item
        info = value.info
        if not shares_tasks:
            _fill_info(message, info)
        elif info in numbers:
            message.shared = numbers[info]
        else:
            message.shared = numbers[info] = len(numbers) + 1
            _fill_info(batch.tasks.add(), info)
        message.namespace = value.namespace
        message.instance_id = value.instance_id
        message.attempt = value.attempt
        if value.idempotency_key:
            message.idempotency_key = value.idempotency_key
        payload = message.input
        payload.data = given.data
        if given.encoding != JSON:
            payload.encoding = given.encoding
        if value.trace:
            message.trace = value.trace
        progress = value.progress
        if progress is not None and common.ENTRY + len(given.data) + len(progress.data) <= _LARGEST:
            common.fill_payload(message.progress, progress)
    return response


def _assignment_sizes(assignments: Sequence[link.Assignment]) -> list[int]:
    """About how many bytes each takes on the wire."""
    return [
        common.ENTRY + len(one.input.data) + (0 if one.progress is None else len(one.progress.data))
        for one in assignments
    ]


def _feed_to_pb(value: link.Feed) -> Iterator[pb.SessionResponse]:
    batches = list(common.cut(value.items, [_FED_ENTRY + len(item.payload.data) for item in value.items])) or [[]]
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


def _feed(message: pb.Feed) -> link.Feed:
    items = [
        link.FedItem(one.index, common.trusted_payload(one.payload) if one.HasField("payload") else NULL)
        for one in message.items
    ]
    return link.Feed(common.token(message.token), items, message.is_last)


def _acks_to_pb(value: link.Ack) -> Iterator[pb.SessionResponse]:
    tokens, discarded = value.tokens, value.discarded
    for start in range(0, max(len(tokens), len(discarded), 1), MAX_TOKENS):
        part = slice(start, start + MAX_TOKENS)
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
    "assignments": _assignments,
    "feed": _feed,
    "ack": _ack,
    "cancel": lambda message: link.Cancel(_tokens(message.tokens), message.reason),
    "reclaimed": lambda message: link.Reclaimed(dict(message.returned)),
    "recall": lambda message: link.Recall(message.role, message.count),
    "demand": lambda message: link.Demand(dict(message.waiting)),
    "drain": lambda message: link.Drain(message.reason),
    "ping": lambda message: link.Ping(message.nonce),
}
