"""StoreImage port: a whole store that nobody works on, to be copied into another one.

Beside `ports.event_store.EventStore`, which it extends: what cannot be listed there, and a target that has its name only
when it is complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

from onexflow.ports.event_store import EventStore

#: What a store holds of one run each, or of one call: RunRecord, ParkedRecord, SnapshotRecord, RequestRecord.
Kind = Literal["runs", "parked", "snapshots", "requests"]
KINDS: Final[tuple[Kind, ...]] = ("runs", "parked", "snapshots", "requests")


class ShardState(NamedTuple):
    """A shard without its content."""

    shard: int
    epoch: int
    owner: str
    head: int
    next_iid: int
    now: int


class StoreImage(EventStore, Protocol):
    """Errors as EventStore's. Whoever opens it has it alone."""

    async def open(self) -> None:
        """Open the store that is there. Raises StoreUnusable when there is none, StoreLocked when it is in use."""

    async def draft(self, shards: int) -> None:
        """Open a new, empty store that does not have its name yet. What an earlier draft has left is removed. Raises
        StoreUnusable when a store of that name exists."""

    async def publish(self) -> None:
        """Close the draft and give it its name: from then on it is a store like any other."""

    async def states(self) -> list[ShardState]: ...

    async def adopt(self, states: Sequence[ShardState]) -> None:
        """Set what a copy cannot append: the shards' epochs, owners, heads, next run numbers and clocks."""

    def every(self, kind: Kind, shard: int) -> AsyncIterator[list[Any]]:
        """All records of a kind in a shard, in pages, in any order."""
