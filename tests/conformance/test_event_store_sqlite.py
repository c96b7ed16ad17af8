"""SqliteStore keeps the store's contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from onexflow.ports.event_store import EventStore
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing.conformance.event_store import EventStoreSuite
from support.store_clock import SettableClock


class SqliteStores:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "store.db"
        self._clock = SettableClock()

    def make(self) -> EventStore:
        return SqliteStore(self._path, clock=self._clock)

    async def fill(self, store: EventStore) -> None:
        assert isinstance(store, SqliteStore)
        await store.pragma("max_page_count=1")  # SQLite takes the size it has for the least

    async def free(self, store: EventStore) -> None:
        assert isinstance(store, SqliteStore)
        await store.pragma("max_page_count=1000000")

    def set_clock(self, nanoseconds: int) -> None:
        self._clock.value = nanoseconds


class TestSqliteStore(EventStoreSuite):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> SqliteStores:
        return SqliteStores(tmp_path)
