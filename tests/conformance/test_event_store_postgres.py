"""PostgresStore keeps the store's contract."""

from __future__ import annotations

import pytest

from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.testing.conformance.event_store import EventStoreSuite
from postgres_support import PostgresStores, postgres  # noqa: F401 - a fixture


class TestPostgresStore(EventStoreSuite):
    @pytest.fixture
    def stores(self, postgres: EmbeddedPostgres) -> PostgresStores:  # noqa: F811 - the fixture by its name
        return PostgresStores(postgres)
