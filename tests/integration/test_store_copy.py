"""A whole store is copied, in both directions, and the copy goes on where the store was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onexflow.app import store_copy
from onexflow.app.store_copy import CopyReport, census, copy_store, image_of
from onexflow.app.system import SystemClock, SystemIds
from onexflow.cli.main import main
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.errors import InvalidArgument, StoreLocked, StoreUnusable
from onexflow.core.ids import RunKey
from onexflow.ports.event_store import (
    CheckpointRecord,
    Cut,
    DefinitionRecord,
    EventStore,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunFilter,
    ShardAppend,
    SnapshotRecord,
    Tombstone,
)
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster, FaultyStore
from onexflow.testing.conformance.store_kit import ODD_TEXTS, key, one_row, run_record
from postgres_support import beside, in_thread, new_schema, postgres, schema_of  # noqa: F401 - a fixture
from support.engine_kit import Script, ready


def cluster_on(store: EventStore) -> Cluster:
    return Cluster(store=FaultyStore(store), clock=SystemClock(), ids=SystemIds())


def chain() -> WorkflowBuilder:
    flow = workflow("chain")
    before = flow.effect("t0", handler="charge", input="input")
    for number in range(1, 4):
        before = flow.effect(f"t{number}", handler="charge", depends_on=[before])
    return flow


async def copied(source: str, target: str) -> CopyReport:
    return await copy_store(image_of(source), image_of(target))


async def fill(store: EventStore) -> None:
    """Histories of an engine, some of them open, and what it never writes."""
    script = Script()
    async with cluster_on(store) as cluster:
        await ready(cluster, script, chain(), workers=2)
        done = [(await cluster.start("chain", number)).key for number in range(20)]
        for key in done:
            await cluster.result(key)
        script.gate("charge")
        for number in range(20, 25):
            await cluster.start("chain", number)
        await script.called("charge", 85)
        await cluster.crash_orchestrator()
    await store.open()
    for shard, epoch, _ in await store.owners():
        claim = await store.claim(shard, epoch, "odd \ud800")
        assert claim is not None
    await store.close()


async def test_a_store_goes_to_postgres_and_back_and_its_open_runs_go_on(
    tmp_path: Path,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    first, second, third = f"sqlite:{tmp_path}/first.db", new_schema(postgres), f"sqlite:{tmp_path}/third.db"
    await fill(SqliteStore(tmp_path / "first.db", clock=SystemClock()))
    there = await copied(first, second)
    back = await copied(second, third)
    assert there.contents == back.contents
    assert there.shards == 8
    for kind in ("rows", "runs", "definitions", "shards"):
        assert there.contents[kind].records > 0, kind
    assert there.audit.is_consistent
    assert not list(tmp_path.glob("*copying*"))
    for store in (PostgresStore(second), SqliteStore(tmp_path / "third.db", clock=SystemClock())):
        script = Script()
        async with cluster_on(store) as cluster:
            await ready(cluster, script, chain(), workers=2)
            page = await cluster.store.list_runs(RunFilter("default", "chain"))
            keys = [RunKey.from_bytes(record.key) for _, record in page.runs]
            assert sorted([await cluster.result(key) for key in keys]) == list(range(25))


async def test_every_kind_of_record_and_every_text_is_copied(
    tmp_path: Path,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    source = image_of(f"sqlite:{tmp_path}/odd.db")
    await source.draft(3)
    for shard in range(3):
        await source.claim(shard, 0, "x")
        rows = [Row(1 + 2 * n, 2, 1, 1 + n % 7, 1 + 2 * (n // 7), bytes(3000)) for n in range(1200)]
        part = ShardAppend(shard=shard, epoch=1, head=1, next=2401, rows=rows)
        part.runs = [run_record(1 + n, name=key(shard * 1000 + n), state=n % 5) for n in range(700)]
        part.requests = [RequestRecord(text, f"{text}{n}", b"h", b"r", n) for n in range(80) for text in ODD_TEXTS]
        part.parked = [ParkedRecord(1 + n, n, text) for n, text in enumerate(ODD_TEXTS) if text]
        part.snapshots = [SnapshotRecord(1 + n, 3, b"s" * n) for n in range(600)]
        part.registers = [RegisterRecord(f"{text}/{n}", b"v") for n in range(150) for text in ODD_TEXTS]
        part.checkpoint = CheckpointRecord(7, b"c")
        part.cuts = [Cut(5, Tombstone(3, 1, 4, 5, 20, 4, b"h", 9))]
        assert (await source.append([part])).stored == {shard}
    for text in ODD_TEXTS:
        await source.save_definition(DefinitionRecord(text, text, 1, text, b"{}", 1))
    states = [one._replace(epoch=77, now=12345, next_iid=5000) for one in await source.states()]
    await source.adopt(states)
    counted = await census(source, states)
    assert {kind: entry.records for kind, entry in counted.items()} == {
        "shards": 3, "rows": 3594, "runs": 2100, "parked": 24, "snapshots": 1800, "requests": 2160,
        "registers": 4050, "tombstones": 3, "checkpoints": 3, "definitions": 9,
    }  # fmt: skip
    await source.publish()

    url = new_schema(postgres)
    target = image_of(url)
    await source.open()
    await target.draft(3)
    for state in states:
        await store_copy._copy_shard(source, target, state)
    for definition in await source.load_definitions():
        await target.save_definition(definition)
    await target.adopt(states)
    assert await census(target, await target.states()) == counted
    await source.close()
    await target.publish()
    store = PostgresStore(url)
    await store.open()
    claim = await store.claim(1, 77, "me")
    assert claim is not None
    assert (claim.epoch, claim.head, claim.next_iid) == (78, 2401, 5000)
    await store.close()


async def test_what_cannot_be_copied_is_refused_and_leaves_nothing(
    tmp_path: Path,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    url = new_schema(postgres)
    with pytest.raises(StoreUnusable, match="There is no store"):
        await copied(f"sqlite:{tmp_path}/gone.db", url)
    with pytest.raises(StoreUnusable, match="There is no store"):
        await copied(url, f"sqlite:{tmp_path}/new.db")
    for bad in ("memory:", "sqlite:", "mysql://me:hunter2@x/y"):
        with pytest.raises(InvalidArgument) as raised:
            image_of(bad)
        assert "hunter2" not in str(raised.value)
    store = SqliteStore(tmp_path / "a.db", 2)
    await store.open()
    with pytest.raises(StoreLocked):
        await copied(f"sqlite:{tmp_path}/a.db", url)
    await store.close()
    await copied(f"sqlite:{tmp_path}/a.db", url)
    with pytest.raises(StoreUnusable, match="already"):
        await copied(f"sqlite:{tmp_path}/a.db", url)
    busy = PostgresStore(url)
    await busy.open()
    await busy.claim(0, 0, "busy")
    with pytest.raises(StoreLocked, match=r"in use by 1 process"):
        await copied(url, f"sqlite:{tmp_path}/new.db")
    await busy.append([one_row(0, 1, 1, data=b"no event")])
    await busy.close()
    with pytest.raises(StoreUnusable, match="is not consistent"):
        await copied(url, f"sqlite:{tmp_path}/new.db")
    with pytest.raises(StoreUnusable, match="already"):
        await copied(f"sqlite:{tmp_path}/a.db", f"sqlite:{tmp_path}/a.db")
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["a.db", "a.db.lock"]


def test_the_command_copies_and_tells(
    tmp_path: Path,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = new_schema(postgres)

    async def make() -> None:
        store = SqliteStore(tmp_path / "a.db", 2)
        await store.open()
        await store.close()

    in_thread(make)
    assert main(["store", "copy", f"sqlite:{tmp_path}/a.db", url]) == 0
    assert "2 shards, 0 events: consistent" in capsys.readouterr().out
    assert main(["store", "copy", url, f"sqlite:{tmp_path}/b.db", "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["shards"] == 2
    assert shown["contents"]["shards"]
    assert main(["store", "copy", url, f"sqlite:{tmp_path}/b.db"]) == 16
    error = capsys.readouterr().err
    assert "already" in error
    assert postgres.password not in error


async def test_an_interrupted_copy_is_no_store_and_may_be_done_again(
    tmp_path: Path,
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    store = SqliteStore(tmp_path / "a.db", 2)
    await store.open()
    await store.close()
    place = new_schema(postgres)
    for url in (place, f"sqlite:{tmp_path}/b.db"):
        target = image_of(url)
        await target.draft(2)
        await target.claim(0, 0, "x")
        await target.close()
        with pytest.raises(StoreUnusable, match="There is no store"):
            await image_of(url).open()
        report = await copied(f"sqlite:{tmp_path}/a.db", url)
        assert report.shards == 2
    async with beside(postgres) as connection:
        assert await connection.fetchval("SELECT to_regnamespace($1)", f"{schema_of(place)}_copying") is None


def test_a_store_on_postgres_is_audited_and_none_is_made_by_it(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = new_schema(postgres)
    assert main(["audit", url]) == 16
    assert "There is no store in the schema" in capsys.readouterr().err

    async def make() -> None:
        store = PostgresStore(url, 2)
        await store.open()
        await store.close()

    in_thread(make)
    assert main(["audit", url]) == 0
    assert "consistent" in capsys.readouterr().out
