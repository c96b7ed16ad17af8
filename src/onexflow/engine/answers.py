"""Request ids of control calls: the answer is stored with the events, so that a repeated call gets the same answer."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

import msgspec

from onexflow.core.errors import InvalidArgument
from onexflow.engine.shard import Shard
from onexflow.ports.client_link import ControlOutcome, ControlRequest
from onexflow.ports.event_store import EventStore, RequestRecord


def _body_hash(request: ControlRequest) -> bytes:
    body = msgspec.structs.replace(request, request_id="", principal="")
    return blake2b(msgspec.msgpack.encode(body), digest_size=16).digest()


class Answers:
    """The answers given under request ids. All are in the store; those of late are here too, as they may not be durable."""

    LIMIT = 10_000

    def __init__(self, store: EventStore) -> None:
        self._store = store
        #: With the shard that the answer is written to: what a lost one did not store was never answered.
        self._recent: OrderedDict[tuple[str, str], tuple[RequestRecord, Shard]] = OrderedDict()

    def recent(self, request: ControlRequest) -> ControlOutcome | None:
        """The answer lately given to this request id. Not to be told before it is durable.

        Raises InvalidArgument when the id was used with another body."""
        record, shard = self._recent.get((request.key.namespace, request.request_id), (None, None))
        return _outcome(request, record if shard is not None and shard.moved is None else None)

    async def stored(self, shard: Shard, request: ControlRequest) -> ControlOutcome | None:
        """As `recent`, of any age."""
        if not request.request_id:
            return None
        return _outcome(request, await self._store.find_request(shard.id, request.key.namespace, request.request_id))

    def keep(self, shard: Shard, request: ControlRequest, outcome: ControlOutcome) -> bool:
        """Write the answer with the next append. False when the caller gave no request id."""
        if not request.request_id:
            return False
        namespace, request_id = request.key.namespace, request.request_id
        response = msgspec.msgpack.encode(outcome)
        record = RequestRecord(namespace, request_id, _body_hash(request), response, self._store.now())
        shard.answer(record)
        self._recent[namespace, request_id] = record, shard
        if len(self._recent) > self.LIMIT:
            self._recent.popitem(last=False)
        return True


def _outcome(request: ControlRequest, record: RequestRecord | None) -> ControlOutcome | None:
    if record is None:
        return None
    if record.body_hash != _body_hash(request):
        raise InvalidArgument("this request_id was used with another body", field="request_id")
    return msgspec.msgpack.decode(record.response, type=ControlOutcome)
