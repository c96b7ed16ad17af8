"""What the parts of the event store's suite share: how a store is made, and small appends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol
from uuid import UUID

import pytest

from onexflow.core.ids import RunKey
from onexflow.ports.event_store import Cut, EventStore, RegisterRecord, Row, RunRecord, ShardAppend, Tombstone

ODD_TEXTS = ("", "\0", "a\0b", "naïve", "\ud800", "𝄞", "'; DROP TABLE runs; --", "\u202e", "x" * 3000)


class Stores(Protocol):
    """How a suite makes a store and handles what the port does not offer."""

    def make(self) -> EventStore:
        """A store with 8 shards, not yet open. Called again, it gives the same content (another process)."""

    async def fill(self, store: EventStore) -> None:
        """Leave no space: the next append of 1 MiB raises StoreFull."""

    async def free(self, store: EventStore) -> None:
        """Give the space back."""

    def set_clock(self, nanoseconds: int) -> None:
        """What the clock under the store says from now on."""


def key(number: int, namespace: str = "default", workflow_type: str = "orders") -> bytes:
    return RunKey(namespace, workflow_type, UUID(int=number)).to_bytes()


def run_record(
    iid: int, *, name: bytes | None = None, state: int = 2, created_at: int = 0, head: int = 1, version: int = 1
) -> RunRecord:
    created = created_at or iid
    return RunRecord(iid, name or key(iid), state, created, created, b"start", head, version)


def one_row(
    shard: int, epoch: int, head: int, *, iid: int = 1, seq: int = 1, count: int = 1, data: bytes = b"data"
) -> ShardAppend:
    """An append of one row."""
    return ShardAppend(
        shard=shard, epoch=epoch, head=head, next=head + count, rows=[Row(head, count, epoch, iid, seq, data)]
    )


def registers(shard: int, head: int, *records: tuple[str, bytes], epoch: int = 1) -> ShardAppend:
    """An append of registers alone."""
    named = [RegisterRecord(*record) for record in records]
    return ShardAppend(shard=shard, epoch=epoch, head=head, next=head, registers=named)


def a_cut(iid: int, seqs: tuple[int, int], offsets: tuple[int, int], rest: Row | None = None) -> Cut:
    """Cut the events of a run with numbers from `seqs[0]` to `seqs[1]`."""
    first, last = seqs
    return Cut(last + 1, Tombstone(iid, first, last, *offsets, last - first + 1, b"h" * 16, 7 + last), rest)


class StoreSuite:
    """A part of the suite: its tests get an open store."""

    @pytest.fixture
    async def store(self, stores: Stores) -> AsyncIterator[EventStore]:
        store = stores.make()
        await store.open()
        yield store
        await store.close()

    @staticmethod
    async def claimed(store: EventStore, *shards: int) -> None:
        for shard in shards or range(store.shards):
            assert await store.claim(shard, 0, "me") is not None
