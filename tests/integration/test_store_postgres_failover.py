"""Servers of a PostgreSQL store that die, are restarted, replaced, or have settings that lose data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from onexflow.core.errors import StoreUnavailable, StoreUnusable
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres import writer as writer_module
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from postgres_support import Standby, beside, both, follows, new_schema, own_postgres, schema_of
from support.audited_rows import assert_consistent, define, part_at, row_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Load:
    """Appends one event after the other to one shard, as the engine would, and remembers what it was told."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.acknowledged = 0
        self.failures = 0
        self.error: StoreUnavailable | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def reaches(self, count: int, within: float = 20.0) -> None:
        async with asyncio.timeout(within):
            while self.acknowledged < count:
                assert not self._task.done(), self.error
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def fails(self, within: float = 20.0) -> StoreUnavailable:
        async with asyncio.timeout(within):
            await self._task
        assert self.error is not None
        return self.error

    async def _run(self) -> None:
        await define(self.store)
        claim = await self.store.claim(0, 0, "load")
        assert claim is not None
        number = 1
        while True:
            try:
                outcome = await self.store.append([part_at(0, 1, number)])
            except StoreUnavailable as error:
                self.failures += 1
                if error.context.get("fatal"):
                    self.error = error
                    return
                await asyncio.sleep(0.02)
                continue
            assert 0 in outcome.stored or outcome.refused[0] == (1, number + 1), outcome
            self.acknowledged = number
            number += 1


@asynccontextmanager
async def loaded(url: str) -> AsyncIterator[Load]:
    store = PostgresStore(url, 2)
    await store.open()
    load = Load(store)
    try:
        yield load
    finally:
        await load.end()
        await store.close()


async def assert_whole(load: Load) -> None:
    """Each acknowledged event is there, once, and at most the one that was not yet acknowledged beside them."""
    await load.end()
    stored = 0
    while rows := await load.store.read_shard(0, stored + 1):
        for row in rows:
            stored += 1
            assert row == row_at(0, stored, 1, stored, 1)
    assert load.acknowledged <= stored <= load.acknowledged + 1
    await assert_consistent(load.store)


async def test_a_server_killed_under_load_loses_and_doubles_nothing() -> None:
    async with own_postgres() as server, loaded(new_schema(server)) as load:
        for _ in range(3):
            await load.reaches(load.acknowledged + 50)
            failures = load.failures
            await server.kill()
            async with asyncio.timeout(10):
                while load.failures == failures:
                    await asyncio.sleep(0.01)
            await server.start()
        await load.reaches(load.acknowledged + 50)
        await assert_whole(load)


async def test_settings_that_can_lose_what_was_acknowledged_are_refused() -> None:
    safe = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
    async with own_postgres() as server:
        for unsafe in (
            {"fsync": "off"},
            {"full_page_writes": "off"},
            {"synchronous_commit": "off"},
            {"synchronous_commit": "local"},
        ):
            await server.restart(**{**safe, **unsafe})
            [(setting, value)] = unsafe.items()
            with pytest.raises(StoreUnusable, match=f"has {setting}={value}") as raised:
                await PostgresStore(server.url).open()
            assert raised.value.context["setting"] == setting


async def test_a_setting_that_becomes_unsafe_stops_writing_until_it_is_put_right() -> None:
    async with own_postgres() as server, loaded(new_schema(server)) as load:
        await load.reaches(10)
        await server.restart(fsync="off")
        reached = load.acknowledged
        with pytest.raises(StoreUnavailable, match="fsync=off"):
            await load.store.read_shard(0, 1)
        assert load.acknowledged == reached
        await server.restart(fsync="on")
        await load.reaches(reached + 10)
        await assert_whole(load)


async def test_a_reload_makes_no_connection_careless() -> None:
    async with own_postgres() as server, loaded(new_schema(server)) as load:
        await load.reaches(5)
        async with beside(server) as connection:
            await connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            await connection.execute("SELECT pg_reload_conf()")
        async with beside(server) as connection, asyncio.timeout(10):
            while await connection.fetchval("SHOW synchronous_commit") != "off":
                await asyncio.sleep(0.01)
        await load.reaches(load.acknowledged + 5)
        assert await load.store._control(lambda db: db.fetchval("SHOW synchronous_commit")) == "on"


async def test_a_synchronous_standby_has_all_that_was_acknowledged() -> None:
    async with own_postgres() as primary, standby_of(primary) as standby:
        schema = schema_of(new_schema(primary))
        await primary.restart(synchronous_standby_names="standby")
        await follows(primary, "sync")
        async with loaded(both(primary, standby, schema)) as load:
            await load.reaches(200)
            await primary.kill()
            await standby.promote()
            await load.reaches(load.acknowledged + 100)
            await assert_whole(load)


async def test_nothing_is_acknowledged_before_the_synchronous_standby_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append whose answer does not come is asked for again, and is then found in the primary: that is not enough."""
    monkeypatch.setattr(writer_module, "APPEND_SECONDS", 0.4)
    async with own_postgres() as primary, standby_of(primary) as standby:
        schema = schema_of(new_schema(primary))
        async with loaded(both(primary, standby, schema)) as load:
            await load.reaches(10)
            await primary.restart(synchronous_standby_names="standby")
            await follows(primary, "sync")
            await load.reaches(load.acknowledged + 10)
            standby.freeze()
            failures = load.failures
            async with asyncio.timeout(30):
                while load.failures < failures + 4:
                    await asyncio.sleep(0.02)
            reached = load.acknowledged
            async with beside(primary) as connection:
                written = await connection.fetchval(f"SELECT head - 1 FROM {schema}.shards WHERE shard = 0")
            assert written == reached + 1  # it stands in the primary, and nobody was told
            await primary.kill()
            standby.thaw()
            await standby.promote()
            await load.reaches(reached + 20)
            await assert_whole(load)


async def test_a_standby_that_lagged_is_never_written_to() -> None:
    async with own_postgres() as primary, standby_of(primary) as standby:
        schema = schema_of(new_schema(primary))
        async with loaded(both(primary, standby, schema)) as load:
            await follows(primary, "async")
            async with beside(standby) as connection, asyncio.timeout(20):
                while await connection.fetchval("SELECT to_regclass($1)", f"{schema}.shards") is None:
                    await asyncio.sleep(0.02)
                while await connection.fetchval(f"SELECT head FROM {schema}.shards WHERE shard = 0") < 20:
                    await asyncio.sleep(0.02)
            await standby.kill()
            await load.reaches(load.acknowledged + 50)
            await primary.kill()
            await standby.start()
            await standby.promote()
            error = await load.fails()
            assert "has lost acknowledged events" in str(error)
            assert error.context["promised"][1] > error.context["head"]
            with pytest.raises(StoreUnavailable) as raised:
                await load.store.claim(1, 0, "load")
            assert raised.value.context["fatal"] is True
            async with beside(standby) as connection:
                rows = await connection.fetchval(f"SELECT count(*) FROM {schema}.event_rows")
                assert rows == await connection.fetchval(f"SELECT head - 1 FROM {schema}.shards WHERE shard = 0")
                assert rows < load.acknowledged


async def test_another_database_at_the_same_place_is_not_taken_for_ours() -> None:
    async with own_postgres() as ours:
        url = new_schema(ours)
        async with loaded(url) as load:
            await load.reaches(5)
            await ours.wipe()
            await ours.start()
            error = await load.fails()
            assert "is another database than before" in str(error)


@asynccontextmanager
async def standby_of(primary: EmbeddedPostgres) -> AsyncIterator[Standby]:
    standby = Standby(primary)
    try:
        await standby.start()
        yield standby
    finally:
        await standby.stop()


async def test_who_stands_in_line_for_a_server_that_is_gone_does_not_wait_for_each_before_it() -> None:
    async with own_postgres() as server:
        store = PostgresStore(new_schema(server), 4)
        await store.open()
        try:
            await server.kill()
            async with asyncio.timeout(15.0):  # alone, each takes 1.5 s
                answers = await asyncio.gather(*(store.get_runs(0, [1]) for _ in range(30)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreUnavailable}
            await server.start()
            assert await store.get_runs(0, [1]) == []
        finally:
            await store.close()
