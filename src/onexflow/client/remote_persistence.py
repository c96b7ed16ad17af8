"""Persistence at the other end of a client (`ports.persistence.PersistenceService`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from onexflow.client.ids import new_request_id
from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire import events as wire_events
from onexflow.codec.wire import persistence as wire
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.ports.client_link import RunView
from onexflow.ports.events import EventRecord
from onexflow.ports.persistence import CutView, SnapshotView, StateRecord
from onexflow.v1 import persistence_pb2 as pb

if TYPE_CHECKING:
    from onexflow.client.client import Client

#: What the wire can say of a number.
_MOST: Final = (1 << 63) - 1


class RemotePersistence:
    """Implements `PersistenceService` over the client that `source` gives. Calls may be repeated without a second effect."""

    def __init__(self, source: Callable[[], Awaitable[Client]]) -> None:
        self._source = source

    async def save_state(self, record: StateRecord) -> bool:
        if not 0 <= record.sequence <= _MOST:
            raise InvalidArgument(f"the sequence number is {record.sequence}: that is none", field="sequence")
        request = pb.SaveStateRequest(state=wire.state_to_pb(msgspec.structs.replace(record, saved_at=0)))
        return bool((await self._unary("SaveState", request)).saved)

    async def load_state(self, key: RunKey) -> RunView | StateRecord | None:
        return wire.loaded(await self._unary("LoadState", pb.LoadStateRequest(key=wire_common.key_to_pb(key))))

    async def save_event(self, event: EventRecord) -> bool:
        if event.event_id is None and not event.idempotency_key:
            # The call may be repeated: its id makes it the same event.
            event = msgspec.structs.replace(event, event_id=UUID(new_request_id()))
        if not 0 <= event.sequence <= _MOST:
            raise InvalidArgument(f"the sequence number is {event.sequence}: that is none", field="sequence_number")
        request = pb.SaveEventRequest(event=wire_events.event_to_pb(event))
        return bool((await self._unary("SaveEvent", request)).saved)

    async def load_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        """As many of them, from the first, as fit into a message."""
        request = pb.LoadEventsRequest(
            key=wire_common.key_to_pb(key),
            from_sequence=min(max(0, from_sequence), _MOST),
            to_sequence=None if to_sequence is None else _number(to_sequence, "to_sequence"),
            limit=max(1, min(limit, 1000)),
        )
        return [wire_events.event(event) for event in (await self._unary("LoadEvents", request)).events]

    async def create_snapshot(self, key: RunKey, sequence: int) -> bool:
        request = pb.CreateSnapshotRequest(key=wire_common.key_to_pb(key), sequence=_number(sequence, "sequence"))
        return bool((await self._unary("CreateSnapshot", request)).created)

    async def load_snapshot(self, key: RunKey) -> SnapshotView | None:
        request = pb.LoadSnapshotRequest(key=wire_common.key_to_pb(key))
        return wire.snapshot(await self._unary("LoadSnapshot", request))

    async def cut_history(self, key: RunKey, before: int, request_id: str = "") -> CutView:
        request = pb.CutHistoryRequest(
            key=wire_common.key_to_pb(key),
            before=_number(before, "before"),
            request_id=request_id or new_request_id(),
        )
        return wire.cut(await self._unary("CutHistory", request))

    async def _unary(self, method: str, request: Any) -> Any:
        client = await self._source()
        return await client._unary(
            lambda seconds: getattr(client._channels.persistence, method)(request, timeout=seconds)
        )


def _number(value: int, field: str) -> int:
    if value < 0:
        raise InvalidArgument(f"{field} must not be negative", field=field)
    return min(value, _MOST)
