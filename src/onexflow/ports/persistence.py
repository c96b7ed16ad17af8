"""Persistence port: states, snapshots and cuts of histories. The engine answers (`engine.records`), and so does a client over
gRPC; `engine.protocols.persistence` makes the specification's object of them. Every answer is durable.

A run's events, and the state that follows from them, are its orchestrator's to write: nothing here can change them.
What stands under the name of no run is an external stream: its user's, events and state.

Errors of all calls: InvalidArgument, Unavailable (a store that does not confirm within seconds is StoreUnavailable: what
was asked may still happen), StoreFull.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from onexflow.core.ids import RunKey
from onexflow.core.payload import NULL, Payload
from onexflow.ports.client_link import RunView
from onexflow.ports.events import EventRecord


class StateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an external stream as its user saved it."""

    key: RunKey
    state: str  #: a LiteralWorkflowState
    sequence: int
    data: Payload = NULL  #: the rest of it, a JSON object
    saved_at: int = 0


class SnapshotView(msgspec.Struct, frozen=True, kw_only=True):
    """A run folded up to and including `view.sequence`, or (`record`) an external stream's saved state."""

    view: RunView | None = None
    record: StateRecord | None = None
    created_at: int = 0


class CutView(msgspec.Struct, frozen=True, kw_only=True):
    """What a cut has left: `deleted` events went by it, the earliest that can be read is number `earliest`."""

    deleted: int
    earliest: int


class PersistenceService(Protocol):
    """One orchestrator's records."""

    async def save_state(self, record: StateRecord) -> bool:
        """External streams: stored, unless one of a higher sequence number is (then False). Runs: True when it says what
        is so, else raises InvalidTransition."""

    async def load_state(self, key: RunKey) -> RunView | StateRecord | None:
        """A run as it stands; the saved state of an external stream; None when there is neither."""

    async def save_event(self, event: EventRecord) -> bool:
        """As `EventService.publish_event` without a topic; True also when the very same event was there."""

    async def load_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        """As `EventService.read_events`, but empty for a name that nothing stands under. Raises OutOfRange."""

    async def create_snapshot(self, key: RunKey, sequence: int) -> bool:
        """Keep the run's state folded up to `sequence`; of an external stream its saved state, if that is of this
        sequence number. False beyond the head, and when the stream's saved state is of another number. Raises
        UnknownRun, OutOfRange (below what a cut has left)."""

    async def load_snapshot(self, key: RunKey) -> SnapshotView | None:
        """The one of the highest sequence number that was made, by `create_snapshot` or by a cut."""

    async def cut_history(self, key: RunKey, before: int, request_id: str = "") -> CutView:
        """Make a snapshot at `before - 1`, then delete the events strictly below `before`, but none that a group or a
        projection still has to read. What goes leaves a tombstone in the same transaction. Of an external stream only
        what its saved state covers goes. Under the same request id again: the same answer. Raises UnknownRun."""
