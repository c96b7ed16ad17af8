"""The PostgreSQL store and its server: what is refused, what is lost and found, and who may write."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from onexflow.core.errors import StoreUnavailable, StoreUnusable
from onexflow.ports.event_store import ParkedRecord, Row, RunFilter, ShardAppend
from onexflow.storage.postgres import PostgresStore, reads, schema
from onexflow.storage.postgres import store as store_module
from onexflow.storage.postgres import writer as writer_module
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.storage.postgres.links import READERS
from onexflow.testing.conformance.store_kit import key, one_row, run_record
from onexflow.testing.faults.relay import Relay
from postgres_support import beside, new_schema, postgres, schema_of  # noqa: F401 - a fixture
from support.audited_rows import assert_consistent, define, part_at


@asynccontextmanager
async def opened(url: str, shards: int = 4) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, shards)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def until_stored(store: PostgresStore, batch: list[ShardAppend], within: float = 10.0) -> None:
    """Append as the engine does: the same batch, until it is known to be stored."""
    async with asyncio.timeout(within):
        while True:
            try:
                outcome = await store.append(batch)
            except StoreUnavailable as error:
                if error.context.get("fatal"):
                    raise
                await asyncio.sleep(0.02)
            else:
                for part in batch:
                    assert part.shard in outcome.stored or outcome.refused[part.shard] == (part.epoch, part.next)
                return


async def end_backends(server: EmbeddedPostgres, name: str) -> int:
    """End the connections whose application name has `name` in it."""
    async with beside(server) as connection:
        text = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE $1"
        ended: int = await connection.fetchval(text, f"%{name}%")
        return ended


# -------------------------------------------------------------------------------------------------------------- opening


async def test_many_may_open_a_new_store_at_once(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    stores = [PostgresStore(url, shards) for shards in (4, 4, 8, 16, 4, 4)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.shards for store in stores}) == 1
    claims = await asyncio.gather(*(store.claim(0, 0, f"owner {n}") for n, store in enumerate(stores)))
    assert sum(claim is not None for claim in claims) == 1
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_schema_of_a_newer_release_is_refused(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url):
        pass
    async with beside(postgres, url) as connection:
        await connection.execute("INSERT INTO migrations VALUES (9999, '9999_later', 'x', 1)")
    with pytest.raises(StoreUnusable, match=r"newer release \(schema 9999_later\)"):
        await PostgresStore(url).open()
    async with beside(postgres, url) as connection:
        await connection.execute("DELETE FROM migrations WHERE number = 9999")
        await connection.execute("UPDATE migrations SET checksum = 'other' WHERE number = 1")
    with pytest.raises(StoreUnusable, match="another form of migration 0001_tables"):
        await PostgresStore(url).open()


async def test_a_schema_of_another_program_is_refused(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with beside(postgres) as connection:
        await connection.execute(f"CREATE SCHEMA {schema_of(url)}; CREATE TABLE {schema_of(url)}.shards (a int)")
    with pytest.raises(StoreUnusable, match="tables of another program"):
        await PostgresStore(url).open()


async def test_a_failed_migration_changes_nothing(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = new_schema(postgres)
    ours = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: [*ours, schema.Migration(9, "0009_bad", "NO SQL")])
    with pytest.raises(StoreUnusable):
        await PostgresStore(url).open()
    monkeypatch.undo()
    async with opened(url, 3) as store:
        assert store.shards == 3


async def test_what_cannot_be_opened_is_said_without_the_password(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    wrong = postgres.url.replace(postgres.password, "hunter2")
    with pytest.raises(StoreUnusable, match="password authentication failed") as refused:
        await PostgresStore(wrong).open()
    with pytest.raises(StoreUnusable, match="does not exist"):
        await PostgresStore(postgres.url.removesuffix("onexflow") + "nothing").open()
    with pytest.raises(StoreUnavailable, match="cannot be reached") as away:
        await PostgresStore("postgresql://me:hunter2@127.0.0.1:1/x").open()
    for error in (refused.value, away.value):
        assert "hunter2" not in f"{error}{error.context}"


async def test_the_password_may_stand_beside_the_url(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres).replace(f":{postgres.password}@", "@")
    store = PostgresStore(url, 1, password=postgres.password)
    await store.open()
    assert postgres.password not in store.url
    await store.close()


# ------------------------------------------------------------------------------------------------- answers that are lost


async def test_an_append_whose_answer_is_lost_is_stored_once(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    async with Relay(f"127.0.0.1:{postgres.port}") as relay:
        url = new_schema(postgres).replace(f":{postgres.port}/", f":{relay.port}/")
        async with opened(url) as store:
            await store.claim(0, 0, "me")
            await until_stored(store, [one_row(0, 1, 1)])
            for number in range(2, 7):
                part = one_row(0, 1, number, seq=number)
                relay.hold("to_client")
                asking = asyncio.ensure_future(store.append([part]))
                async with beside(postgres, url) as connection, asyncio.timeout(5):
                    while await connection.fetchval("SELECT head FROM shards WHERE shard = 0") != number + 1:
                        await asyncio.sleep(0.005)
                relay.cut()
                relay.resume()
                with pytest.raises(StoreUnavailable):
                    await asking
                again = await store.append([part])
                assert again.refused == {0: (1, number + 1)}
            assert [row.offset for row in await store.read_shard(0, 1)] == [1, 2, 3, 4, 5, 6]


async def test_a_backend_killed_in_mid_append_has_stored_nothing(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url) as store, beside(postgres, url) as connection:
        await store.claim(0, 0, "me")
        await connection.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NEW; END $$;"
            " CREATE TRIGGER wait BEFORE INSERT ON event_rows FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        await connection.execute("SELECT pg_advisory_lock(77)")
        part = one_row(0, 1, 1)
        asking = asyncio.ensure_future(store.append([part]))
        async with asyncio.timeout(5):
            while not await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await asyncio.sleep(0.01)
        assert await end_backends(postgres, "write") == 1
        with pytest.raises(StoreUnavailable):
            await asking
        assert await store.read_shard(0, 1) == []
        await connection.execute("SELECT pg_advisory_unlock(77)")
        assert (await store.append([part])).stored == {0}
        assert len(await store.read_shard(0, 1)) == 1


async def test_what_a_lost_connection_still_has_to_do_is_never_done_after_what_came_later(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An append without rows moves no head: a late twin of it would undo what was stored since."""
    monkeypatch.setattr(writer_module, "APPEND_SECONDS", 0.3)

    def park(wake_at: int) -> list[ShardAppend]:
        return [ShardAppend(shard=0, epoch=1, head=1, next=1, parked=[ParkedRecord(1, wake_at, "x")])]

    url = new_schema(postgres)
    async with opened(url) as store, beside(postgres, url) as connection:
        await store.claim(0, 0, "me")
        await until_stored(store, park(1))
        backends = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%write'"
        backend = await connection.fetchval(backends)
        os.kill(backend, signal.SIGSTOP)  # it has the statement to read, and is in no hurry
        try:
            with pytest.raises(StoreUnavailable):
                await store.append(park(2))
            later = asyncio.ensure_future(until_stored(store, park(3)))
            await asyncio.wait({later}, timeout=0.5)
        finally:
            os.kill(backend, signal.SIGCONT)
        async with asyncio.timeout(10):
            while backend in [row["pid"] for row in await connection.fetch(backends)]:
                await asyncio.sleep(0.01)
        await later
        assert await store.get_parked(0, 1) == ParkedRecord(1, 3, "x")


async def test_what_is_remembered_of_a_server_is_asked_anew_of_the_next(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    """Numbers of run types may be lost with a server that has every acknowledged event."""
    url = new_schema(postgres)
    async with opened(url) as store, beside(postgres, url) as connection:
        await store.claim(0, 0, "me")
        batch = [ShardAppend(shard=0, epoch=1, head=1, next=1, runs=[run_record(1)])]
        await store.append(batch)
        await connection.execute("DELETE FROM kinds; DELETE FROM runs")
        await end_backends(postgres, "write")
        await until_stored(store, batch)
        assert await store.find_run(0, key(1)) == run_record(1)
        assert len((await store.list_runs(RunFilter("default"))).runs) == 1


async def test_a_role_without_any_privilege_but_its_schema_is_enough(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    schema_name = schema_of(new_schema(postgres))
    async with beside(postgres) as connection:
        await connection.execute(f"CREATE ROLE {schema_name} LOGIN PASSWORD 'plain'")
        await connection.execute(f"CREATE SCHEMA {schema_name} AUTHORIZATION {schema_name}")
    place = postgres.url.rpartition("@")[2]
    url = f"postgresql://{schema_name}:plain@{place}?schema={schema_name}"
    async with opened(url) as store, opened(url) as other:
        await store.claim(0, 0, "me")
        assert (await store.append([one_row(0, 1, 1)])).stored == {0}
        assert await other.claim(0, 1, "other") is not None
        await end_backends(postgres, "write")
        await until_stored(other, [one_row(0, 2, 2, seq=2)])


async def test_reads_outlive_their_connections(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    async with opened(new_schema(postgres)) as store:
        await store.claim(1, 0, "me")
        await store.append([one_row(1, 1, 1)])
        for _ in range(3):
            assert len(await store.read_shard(1, 1)) == 1
            assert await end_backends(postgres, "read") >= 1


async def test_a_frozen_server_is_said_in_time_and_come_back_to(
    monkeypatch: pytest.MonkeyPatch,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    monkeypatch.setattr(writer_module, "APPEND_SECONDS", 0.3)
    async with opened(new_schema(postgres)) as store:
        await store.claim(0, 0, "me")
        await until_stored(store, [one_row(0, 1, 1)])
        part = one_row(0, 1, 2, seq=2)
        postgres.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.append([part])
            assert time.monotonic() - began < 2
        finally:
            postgres.thaw()
        await until_stored(store, [part])
        assert len(await store.read_shard(0, 1)) == 2


async def test_a_cancelled_append_is_done_all_the_same_and_closing_waits_for_it(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url) as store:
        await store.claim(0, 0, "me")
        asking = asyncio.ensure_future(store.append([one_row(0, 1, 1)]))
        await asyncio.sleep(0)
        asking.cancel()
    async with opened(url) as store:
        assert len(await store.read_shard(0, 1)) == 1


# ---------------------------------------------------------------------------------------------------------- who may write


async def test_large_batches_go_in_several_statements_and_one_shard_in_one(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    async with opened(new_schema(postgres), 16) as store:
        parts = []
        for shard in range(16):
            await store.claim(shard, 0, "me")
            rows = [Row(1 + n, 1, 1, 1, 1 + n, bytes(5000)) for n in range(20)]
            parts.append(ShardAppend(shard=shard, epoch=1, head=1, next=21, rows=rows))
        assert len(list(writer_module.statements_of(parts))) > 4
        assert (await store.append(parts)).stored == set(range(16))
        assert len(await store.read_shard(15, 1)) == 20


async def test_two_owners_that_steal_from_each_other_leave_dense_logs(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    ends = time.monotonic() + 3
    told: dict[tuple[int, int], int] = {}  # (shard, offset) → epoch, of what an owner was told is stored

    async def own(store: PostgresStore, name: str) -> None:
        held: dict[int, tuple[int, int]] = {}
        turn = 0
        while time.monotonic() < ends:
            turn += 1
            if turn % 4 == 0 or not held:
                for shard, epoch, _ in await store.owners():
                    if (shard + turn) % 3 == 0:
                        claim = await store.claim(shard, epoch, name)
                        if claim is not None:
                            held[shard] = (claim.epoch, claim.head)
            batch = [part_at(shard, epoch, head) for shard, (epoch, head) in held.items()]
            outcome = await store.append(batch)
            for part in batch:
                if part.shard in outcome.stored:
                    assert told.setdefault((part.shard, part.head), part.epoch) == part.epoch
                    held[part.shard] = (part.epoch, part.next)
                else:
                    assert outcome.refused[part.shard][0] > part.epoch
                    del held[part.shard]

    async with opened(url, 6) as one, opened(url) as two, opened(url) as three:
        await define(one)
        await asyncio.gather(own(one, "one"), own(two, "two"), own(three, "three"))
        stored = 0
        for shard in range(6):
            rows = []
            at = 1
            while page := await one.read_shard(shard, at):
                rows += page
                at = page[-1].offset + 1
            assert [row.offset for row in rows] == list(range(1, len(rows) + 1))
            assert [row.epoch for row in rows] == sorted(row.epoch for row in rows)
            assert all(told[shard, row.offset] == row.epoch for row in rows if (shard, row.offset) in told)
            stored += len(rows)
        assert stored == len(told) > 100
        await assert_consistent(one)


@pytest.mark.slow
async def test_a_frozen_owner_that_holds_the_lock_is_deposed_within_two_seconds(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url) as frozen, opened(url) as successor:
        for shard in range(4):
            await frozen.claim(shard, 0, "frozen")
        await frozen.append([one_row(0, 1, 1), one_row(1, 1, 1)])
        async with beside(postgres, url) as connection:
            session = await connection.fetchval("SELECT session FROM shards WHERE shard = 0")
        async with beside(postgres, url, application_name=f"onexflow {session} write-stuck") as stuck:
            await stuck.execute("BEGIN")
            await stuck.execute("SELECT * FROM shards WHERE shard = 0 FOR UPDATE")
            began = time.monotonic()
            # the lock of one shard holds up no other: neither an append nor a claim
            assert (await frozen.append([one_row(1, 1, 2, seq=2)])).stored == {1}
            assert await successor.claim(2, 1, "successor") is not None
            assert time.monotonic() - began < store_module.POLITE_SECONDS
            claim = await successor.claim(0, 1, "successor")
            assert time.monotonic() - began < 2
            assert claim is not None
            assert (claim.epoch, claim.head) == (2, 2)
        assert (await successor.append([one_row(0, 2, 2, seq=2)])).stored == {0}
        outcome = await frozen.append([one_row(0, 1, 2, seq=2)])
        assert (outcome.stored, outcome.refused) == (frozenset(), {0: (2, 3)})


@pytest.mark.slow
async def test_a_frozen_owner_that_holds_every_lock_is_deposed_within_two_seconds(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url, 12) as frozen, opened(url) as successor:
        await asyncio.gather(*(frozen.claim(shard, 0, "frozen") for shard in range(12)))
        async with beside(postgres, url) as connection:
            session = await connection.fetchval("SELECT session FROM shards WHERE shard = 0")
        async with beside(postgres, url, application_name=f"onexflow {session} write-stuck") as stuck:
            await stuck.execute("BEGIN")
            await stuck.execute("SELECT * FROM shards FOR UPDATE")
            began = time.monotonic()
            claims = await asyncio.gather(*(successor.claim(shard, 1, "successor") for shard in range(12)))
            assert time.monotonic() - began < 2
            assert [claim and claim.epoch for claim in claims] == [2] * 12


async def test_a_claim_that_waits_for_a_connection_of_its_own_ends_nobody(
    monkeypatch: pytest.MonkeyPatch,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    """Many claims at a time share a few connections: that is not the owner's fault, who may have handed over and live."""
    url = new_schema(postgres)
    async with opened(url) as owner, opened(url) as successor, beside(postgres, url) as connection:
        await owner.claim(0, 0, "owner")
        session = await connection.fetchval("SELECT session FROM shards WHERE shard = 0")
        query = "SELECT pid FROM pg_stat_activity WHERE starts_with(application_name, $1) ORDER BY pid"
        before = await connection.fetch(query, f"onexflow {session}")
        busy = 3 * store_module.POLITE_SECONDS
        monkeypatch.setattr(reads, "owners", lambda db: db.fetch("SELECT pg_sleep($1)", busy))
        slow = [asyncio.ensure_future(successor.owners()) for _ in range(READERS)]
        await asyncio.sleep(0)  # they are first
        claim = await successor.claim(0, 1, "successor")
        await asyncio.gather(*slow)
        assert claim is not None
        assert claim.epoch == 2
        assert before
        assert await connection.fetch(query, f"onexflow {session}") == before


async def test_a_shard_that_stays_locked_is_unavailable_and_the_others_are_stored(
    monkeypatch: pytest.MonkeyPatch,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    monkeypatch.setattr(writer_module, "LOCKED_SECONDS", 0.2)
    url = new_schema(postgres)
    async with opened(url) as store, beside(postgres, url) as connection:
        await store.claim(0, 0, "me")
        await store.claim(1, 0, "me")
        await connection.execute("BEGIN")
        await connection.execute("SELECT * FROM shards WHERE shard = 0 FOR UPDATE")
        batch = [one_row(0, 1, 1), one_row(1, 1, 1)]
        with pytest.raises(StoreUnavailable, match="locked by somebody else"):
            await store.append(batch)
        assert len(await store.read_shard(1, 1)) == 1
        await connection.execute("ROLLBACK")
        outcome = await store.append(batch)
        assert (set(outcome.stored), outcome.refused) == ({0}, {1: (1, 2)})


# --------------------------------------------------------------------------------------------------- servers that forget


async def test_a_server_that_has_lost_what_it_acknowledged_is_never_written_over(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url) as store:
        await store.claim(0, 0, "me")
        await store.claim(1, 0, "me")
        await store.append([one_row(0, 1, 1), one_row(1, 1, 1)])
        async with beside(postgres, url) as connection:
            await connection.execute(
                "DELETE FROM event_rows WHERE shard = 0; UPDATE shards SET head = 1 WHERE shard = 0"
            )
        await end_backends(postgres, "onexflow ")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="has lost acknowledged events") as raised:
                await until_stored(store, [one_row(1, 1, 2, seq=2)])
            assert raised.value.context["fatal"] is True
            assert (raised.value.context["shard"], raised.value.context["head"]) == (0, 1)
        with pytest.raises(StoreUnavailable):
            await store.claim(1, 1, "me")
        async with beside(postgres, url) as connection:
            assert await connection.fetchval("SELECT count(*) FROM event_rows") == 1


async def test_a_store_whose_tables_are_gone_is_no_longer_used(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    url = new_schema(postgres)
    async with opened(url) as store:
        await store.claim(0, 0, "me")
        async with beside(postgres) as connection:
            await connection.execute(f"DROP SCHEMA {schema_of(url)} CASCADE")
        with pytest.raises(StoreUnavailable) as raised:
            await store.append([one_row(0, 1, 1)])
        assert raised.value.context["fatal"] is True
