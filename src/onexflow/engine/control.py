"""Request ids of control calls: the answer is stored with the events, so that a repeated call gets the same answer."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from onexflow.core.errors import InvalidArgument
from onexflow.engine.shard import Shard
from onexflow.ports.client_link import ControlOutcome, ControlRequest
from onexflow.ports.event_store import EventStore, RequestRecord


def _body_hash(request: ControlRequest) -> bytes:
    body = msgspec.structs.replace(request, request_id="", principal="")
    return blake2b(msgspec.msgpack.encode(body), digest_size=16).digest()


async def answered_before(store: EventStore, shard: Shard, request: ControlRequest) -> ControlOutcome | None:
    """The stored answer to this request id. Raises InvalidArgument when it was used with another body."""
    if not request.request_id:
        return None
    pending = shard.pending.requests
    namespace = request.key.namespace
    record = next((r for r in pending if (r.namespace, r.request_id) == (namespace, request.request_id)), None)
    record = record or await store.find_request(shard.id, namespace, request.request_id)
    if record is None:
        return None
    if record.body_hash != _body_hash(request):
        raise InvalidArgument("this request_id was used with another body", field="request_id")
    return msgspec.msgpack.decode(record.response, type=ControlOutcome)


def request_record(request: ControlRequest, outcome: ControlOutcome, now: int) -> RequestRecord | None:
    """What is stored beside the events of the call; None when the caller gave no request id."""
    if not request.request_id:
        return None
    return RequestRecord(
        request.key.namespace, request.request_id, _body_hash(request), msgspec.msgpack.encode(outcome), now
    )
