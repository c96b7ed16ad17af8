"""MemoryStore keeps the store's contract."""

from __future__ import annotations

import pytest

from onexflow.ports.event_store import EventStore
from onexflow.storage.memory import MemoryStore
from onexflow.testing.conformance.event_store import EventStoreSuite
from support.store_clock import SettableClock


class MemoryStores:
    def __init__(self) -> None:
        self._clock = SettableClock()
        self._store = MemoryStore(self._clock)

    def make(self) -> EventStore:
        return self._store

    async def fill(self, store: EventStore) -> None:
        self._store.capacity = 1 << 10

    async def free(self, store: EventStore) -> None:
        self._store.capacity = None

    def set_clock(self, nanoseconds: int) -> None:
        self._clock.value = nanoseconds


class TestMemoryStore(EventStoreSuite):
    @pytest.fixture
    def stores(self) -> MemoryStores:
        return MemoryStores()
