"""What was saved, kept and cut is the same in a store that is opened again."""

from __future__ import annotations

from pathlib import Path

import pytest

from onexflow.app.system import SystemClock
from onexflow.core.errors import OutOfRange
from onexflow.engine.protocols import WorkflowOrchestrator, WorkflowPersistence
from onexflow.spi import WorkflowState
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from support.bus_kit import stream


@pytest.mark.parametrize("crash", [False, True])
async def test_a_store_that_is_opened_again_has_it_all(tmp_path: Path, crash: bool) -> None:
    clock = SystemClock()
    external = stream()
    state = WorkflowState(
        workflow_type="ext", instance_id=external.instance_id, state="paused", sequence_number=4, context={"n": 4}
    )
    script = Script()
    gate = script.gate("payment_processing")
    async with Cluster(store=SqliteStore(tmp_path / "log.db", clock=clock), clock=clock) as cluster:
        for definition in definitions():
            await cluster.register(definition)
        await cluster.add_worker(script.worker())
        persistence = WorkflowPersistence(cluster.engine)
        key = (await cluster.start("order-processing", {"a": 1})).key
        async for event in cluster.follow(key):
            if event.type == "task.completed":
                break
        last = (await cluster.state(key)).sequence
        ins = (key.workflow_type, key.instance_id)
        deleted = await persistence.cleanup_old_events(*ins, last)
        assert deleted == last - 1
        assert await persistence.create_snapshot(*ins, last)
        before = await persistence.load_snapshot(*ins)
        assert await persistence.save_workflow_state("ext", external.instance_id, state)
        if crash:
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
    async with Cluster(store=SqliteStore(tmp_path / "log.db", clock=clock), clock=clock) as cluster:
        persistence = WorkflowPersistence(cluster.engine)
        assert await persistence.load_snapshot(*ins) == before
        assert await persistence.load_workflow_state("ext", external.instance_id) == state
        with pytest.raises(OutOfRange) as raised:
            await persistence.load_workflow_events(*ins)
        assert raised.value.context["earliest"] == last
        gate.set()
        await cluster.add_worker(script.worker())
        assert (await cluster.wait(key)).state == "completed"
        head = (await cluster.state(key)).sequence
        events = await persistence.load_workflow_events(*ins, last)
        assert [event.sequence_number for event in events] == list(range(last, head + 1))
        again = await WorkflowOrchestrator(cluster.engine).start_workflow(*ins, {"a": 1})
        assert again.state == "completed"
