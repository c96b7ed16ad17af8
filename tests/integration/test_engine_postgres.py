"""The engine over PostgreSQL: the same kit on a real loop, with orchestrators and servers that die."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.app.system import SystemClock, SystemIds
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.ids import RunKey
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.testing import Cluster, FaultyStore
from postgres_support import new_schema, own_postgres, postgres  # noqa: F401 - a fixture
from support.engine_kit import Script, ready


def chain(length: int = 5) -> WorkflowBuilder:
    flow = workflow("chain")
    before = flow.effect("t0", handler="charge", input="input")
    for number in range(1, length):
        before = flow.effect(f"t{number}", handler="charge", depends_on=[before])
    return flow


def cluster_on(store: PostgresStore) -> Cluster:
    return Cluster(store=FaultyStore(store), clock=SystemClock(), ids=SystemIds())


async def assert_all_done_once(cluster: Cluster, script: Script, keys: list[RunKey]) -> None:
    assert [await cluster.result(key) for key in keys] == list(range(len(keys)))
    assert script.count("charge") == len(keys) * 5
    for key in keys:
        events = await cluster.history(key)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_runs_survive_crashes_of_the_orchestrator_on_postgres(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    script, url = Script(), new_schema(postgres)
    async with cluster_on(PostgresStore(url)) as cluster:
        await ready(cluster, script, chain(), workers=2)
        keys = [(await cluster.start("chain", number)).key for number in range(40)]
        for _ in range(3):
            await asyncio.sleep(0.01)
            await cluster.crash_orchestrator()
            cluster.store = FaultyStore(PostgresStore(url))
            await cluster.restart_orchestrator()
        await assert_all_done_once(cluster, script, keys)


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_server_that_is_killed_and_comes_back_loses_and_doubles_nothing() -> None:
    script = Script()
    async with own_postgres() as server, cluster_on(PostgresStore(server.url)) as cluster:
        await ready(cluster, script, chain(), workers=2)
        keys: list[RunKey] = []
        for _ in range(3):
            keys += [(await cluster.start("chain", len(keys) + more)).key for more in range(10)]
            await server.kill()
            starting = asyncio.ensure_future(cluster.start("chain", len(keys)))  # it waits, and is not lost
            await asyncio.sleep(0.3)
            assert not starting.done()
            await server.start()
            async with asyncio.timeout(5):
                keys.append((await starting).key)
        await assert_all_done_once(cluster, script, keys)
        assert cluster.fatal is None


async def test_an_orchestrator_whose_shard_was_claimed_ends_and_writes_nothing_more(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture
    script, url = Script(), new_schema(postgres)
    async with cluster_on(PostgresStore(url, 4)) as cluster:
        await ready(cluster, script, chain(), workers=1)
        gate = script.gate("charge")
        key = (await cluster.start("chain", 0)).key
        await script.called("charge")
        usurper = PostgresStore(url)
        await usurper.open()
        heads = {}
        for shard, epoch, _ in await usurper.owners():
            claim = await usurper.claim(shard, epoch, "usurper")
            assert claim is not None
            heads[shard] = claim.head
        gate.set()
        async with asyncio.timeout(5):
            while cluster.fatal is None:
                await asyncio.sleep(0.01)
        for shard, epoch, owner in await usurper.owners():
            assert owner == "usurper"
            claim = await usurper.claim(shard, epoch, "usurper")
            assert claim is not None
            assert claim.head == heads[shard]
        await usurper.close()
        await cluster.crash_orchestrator()
        cluster.store = FaultyStore(PostgresStore(url))
        await cluster.restart_orchestrator()
        assert await cluster.result(key) == 0
