"""Persistence port: states, snapshots and cuts of histories. The engine answers (`engine.records`), and so does a client over
gRPC; `engine.protocols.persistence` makes the specification's object of them. Every answer is durable.

A run's events, and the state that follows from them, are its orchestrator's to write: nothing here can change them.
"""

from __future__ import annotations

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
    """What a cut has left: `deleted` events went, the earliest that can be read is number `earliest`."""

    deleted: int
    earliest: int


class PersistenceService(Protocol):
    """One orchestrator's records."""

    async def save_state(self, record: StateRecord) -> bool:
        """External streams: stored, unless a newer one is (then False). Runs: True when it says what is so, else raises
        InvalidTransition."""

    async def load_state(self, key: RunKey) -> RunView | StateRecord | None: ...

    async def save_event(self, event: EventRecord) -> bool:
        """As `EventService.publish_event` without a topic; True also when the very same event was there."""

    async def create_snapshot(self, key: RunKey, sequence: int) -> bool:
        """Fold up to `sequence` and keep that. False beyond the head. Raises UnknownRun, OutOfRange."""

    async def load_snapshot(self, key: RunKey) -> SnapshotView | None:
        """The newest that was made."""

    async def cut_history(self, key: RunKey, before: int) -> CutView:
        """Make a snapshot at `before - 1`, then delete the events strictly below `before`, but none that a group or a
        projection still has to read. The tombstone is written in the same transaction. Raises UnknownRun."""
