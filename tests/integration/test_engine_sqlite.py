"""The engine over the real disk: the same kit on a real loop, with the SQLite store."""

from __future__ import annotations

import asyncio
from pathlib import Path

from onexflow.app.system import SystemClock, SystemIds
from onexflow.core.builder import workflow
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster, FaultyStore
from support.engine_kit import Script, ready


async def test_runs_survive_crashes_of_the_orchestrator_on_sqlite(tmp_path: Path) -> None:
    script = Script()
    flow = workflow("chain")
    before = flow.effect("t0", handler="charge", input="input")
    for number in range(1, 5):
        before = flow.effect(f"t{number}", handler="charge", depends_on=[before])

    def store() -> FaultyStore:
        return FaultyStore(SqliteStore(tmp_path / "store.db", clock=SystemClock()))

    async with Cluster(store=store(), clock=SystemClock(), ids=SystemIds()) as cluster:
        await ready(cluster, script, flow, workers=2)
        keys = [(await cluster.start("chain", number)).key for number in range(40)]
        for _ in range(3):
            await asyncio.sleep(0.01)
            await cluster.crash_orchestrator()
            cluster.store = store()
            await cluster.restart_orchestrator()
        assert [await cluster.result(key) for key in keys] == list(range(40))
        assert script.count("charge") == 40 * 5
        for key in keys:
            events = await cluster.history(key)
            assert [e.sequence for e in events] == list(range(1, len(events) + 1))
