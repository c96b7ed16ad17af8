"""Whatever is cut out of whose history, whenever: the run ends as it would have, and what is left gives its state."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from onexflow.codec.definitions import dump_definition
from onexflow.codec.rows import decode_snapshot, encode_snapshot, split_row
from onexflow.core.errors import OutOfRange, RunFailed
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey
from onexflow.core.state import RunState
from onexflow.engine.kernel import Kernel
from onexflow.engine.recovery import fold, read_rows, read_run
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import Row
from onexflow.ports.persistence import CutView, StateRecord
from onexflow.testing import Cluster
from onexflow.testing.clock import run_virtual
from onexflow.worker.handlers import Worker
from support.bus_kit import publish, stream
from support.random_graphs import INPUT, graphs, sagas


class CutRun:
    """One run of a cluster, and all that was ever in its history."""

    def __init__(self, cluster: Cluster, key: RunKey, graph: Graph, seed: int) -> None:
        self.graph = graph
        self.cluster = cluster
        self.key = key
        self.chance = random.Random(seed)
        self.archive: dict[int, Row] = {}
        self.earliest = 1

    @property
    def kernel(self) -> Kernel:
        return self.cluster.engine._kernel

    @property
    def shard(self) -> Shard:
        return self.kernel.shard_of(self.key)

    async def iid(self) -> int:
        record = await self.cluster.store.find_run(self.shard.id, self.key.to_bytes())
        assert record is not None
        return record.iid

    async def keep(self) -> None:
        """Take what is stored into the archive, event by event."""
        await self.kernel.lane.durable()
        for row in await read_rows(self.cluster.store, self.shard.id, await self.iid()):
            rest: Row | None = row
            while rest is not None:
                first, left = split_row(rest.data, 1) if rest.count > 1 else (rest.data, b"")
                self.archive.setdefault(rest.seq, msgspec.structs.replace(rest, count=1, data=first))
                rest = msgspec.structs.replace(
                    rest, offset=rest.offset + 1, count=rest.count - 1, seq=rest.seq + 1, data=left
                ) if rest.count > 1 else None  # fmt: skip

    def replayed(self, to: int | None = None) -> RunState:
        """The state by the whole history."""
        return fold(self.kernel.catalog, None, [self.archive[seq] for seq in sorted(self.archive)], to)[1]

    async def step(self) -> None:
        action = self.chance.choice(("wait", "wait", "cut", "cut", "crash", "park", "snapshot", "pause"))
        note(action)
        match action:
            case "wait":
                await asyncio.sleep(self.chance.choice((0.0, 0.01, 0.3, 2.0)))
            case "cut":
                await self.cut()
            case "crash":
                await self.cluster.crash_orchestrator()
                await self.cluster.restart_orchestrator()
            case "park":
                await asyncio.sleep(15)
            case "snapshot":
                await self.snapshot()
            case "pause":
                view = await self.cluster.state(self.key)
                if view.state in {"running", "compensating"} and self.chance.random() < 0.3:
                    await self.cluster.control(self.key, "cancel")
                elif view.state in {"running", "paused"}:
                    await self.cluster.control(self.key, "resume" if view.state == "paused" else "pause")

    async def cut(self) -> None:
        await self.keep()
        before = self.chance.randint(0, max(self.archive) + 3)
        left = await self.cluster.engine.records.cut_history(self.key, before)
        await self.keep()
        note(f"cut before {before} of {max(self.archive)}: {left}")
        assert left.deleted == max(0, left.earliest - self.earliest)
        assert self.earliest <= left.earliest <= max(before, self.earliest)
        self.earliest = left.earliest

    async def snapshot(self) -> None:
        await self.keep()
        wanted = self.chance.randint(1, max(self.archive))
        if wanted < self.earliest - 1:
            with pytest.raises(OutOfRange) as raised:
                await self.cluster.engine.records.create_snapshot(self.key, wanted)
            assert raised.value.context["earliest"] == self.earliest
            return
        assert await self.cluster.engine.records.create_snapshot(self.key, wanted)
        view = await self.cluster.engine.records.load_snapshot(self.key)
        assert view is not None
        assert view.view is not None
        whole, graph = self.replayed(view.view.sequence), self.graph
        assert (whole.status, whole.result) == (view.view.state, view.view.result)
        statuses = [task.status for task in whole.tasks]
        assert statuses[: len(graph)] == [task.state for task in view.view.tasks[: len(graph)]]
        undoing = {graph.names[n]: status for n, status in enumerate(statuses) if graph.is_undo(n)}
        assert all(undoing[task.name] == task.state for task in view.view.tasks[len(graph) :])

    async def check(self) -> None:
        """Snapshot and tail give what the whole history does, and so does what the engine has in memory."""
        await self.keep()
        assert sorted(self.archive) == list(range(1, max(self.archive) + 1))
        whole = encode_snapshot(self.replayed())
        record = await self.cluster.store.find_run(self.shard.id, self.key.to_bytes())
        assert record is not None
        read = await read_run(self.cluster.store, self.kernel.catalog, self.shard, record)
        assert encode_snapshot(read.state) == whole
        known = await self.kernel.find(self.key)
        assert known.state.seq >= read.state.seq
        if known.state.seq == read.state.seq:
            assert encode_snapshot(known.state) == whole
        snapshot = await self.cluster.store.load_snapshot(self.shard.id, record.iid)
        if snapshot is not None:
            assert encode_snapshot(self.replayed(snapshot.seq)) == snapshot.data
            assert decode_snapshot(snapshot.data) is not None


def worker(chance: random.Random, graph: Graph) -> Worker:
    """Handlers of all its tasks, that take their time and fail at random."""
    made = Worker("w")

    async def handle(contract: Any) -> Any:
        await asyncio.sleep(chance.choice((0.0, 0.3, 3.0, 30.0)))
        if chance.random() < 0.15:
            raise ValueError("it broke")
        return contract

    for role, handler in dict.fromkeys((spec.role, spec.handler) for spec in graph.specs):
        if role == "effect":
            made.effect(handler, idempotent=chance.random() < 0.8)(handle)
        else:
            getattr(made, role)(handler)(handle)
    return made


async def _go(graph: Graph, seed: int, steps: int) -> None:
    chance = random.Random(seed)
    async with Cluster(seed=seed) as cluster:
        await cluster.engine.register_definition("default", dump_definition(graph.definition))
        await cluster.add_worker(worker(chance, graph), "w1")
        key = cluster.key(graph.definition.workflow_type, UUID(int=seed))
        with contextlib.suppress(RunFailed):  # at once: a mapping over what is no list
            await cluster.start(key.workflow_type, INPUT, instance_id=key.instance_id)
        run = CutRun(cluster, key, graph, seed)
        for _ in range(steps):
            await run.step()
            await run.check()
        if (await cluster.state(run.key)).state == "paused":
            await cluster.control(run.key, "resume")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(cluster.wait(run.key), 150)
        await run.check()
        view = await cluster.state(run.key)
        if view.completed_at:
            await run.cut()
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
            await run.check()
            outcome = await cluster.wait(run.key)
            assert (outcome.state, outcome.result) == (view.state, view.result)
            assert (await cluster.state(run.key)).tasks == view.tasks
        else:  # an effect of unknown outcome waits for somebody: nothing else may keep a run open
            assert any(task.state == "waiting_for_input" for task in view.tasks), view


@given(st.one_of(graphs(), sagas()), st.integers(0, 2**32), st.integers(1, 12))
def test_a_run_is_what_its_whole_history_says(graph: Graph, seed: int, steps: int) -> None:
    run_virtual(_go(graph, seed, steps))


async def _stream(seed: int, steps: int) -> None:
    chance = random.Random(seed)
    key = stream()
    kept: list[int] = []
    saved = head = deleted = 0
    async with Cluster(seed=seed) as cluster:
        for _ in range(steps):
            records = cluster.engine.records
            action = chance.choice(("publish", "publish", "publish", "save", "cut", "crash", "read"))
            note(action)
            match action:
                case "publish":
                    gap = chance.choice((0, 0, 1, 1, 2, 7))  # 0: the bus numbers it
                    number = (await publish(cluster.engine.events, key, "x", sequence=gap and head + gap)).sequence
                    assert number == head + max(1, gap)
                    head = number
                    kept.append(number)
                case "save":
                    number = chance.randint(0, head + 2)
                    assert await records.save_state(
                        StateRecord(key=key, state="running", sequence=number)
                    ) is (number >= saved)  # fmt: skip
                    saved = max(saved, number)
                case "cut" if head:
                    before = chance.randint(0, head + 3)
                    gone = [number for number in kept if number < min(before, saved + 1)]
                    kept = [number for number in kept if number not in gone]
                    deleted += len(gone)
                    left = await records.cut_history(key, before)
                    assert left == CutView(deleted=len(gone), earliest=kept[0] if deleted and kept else left.earliest)
                    assert kept or left.earliest == head + 1
                case "crash":
                    await cluster.crash_orchestrator()
                    await cluster.restart_orchestrator()
                case "read" if head:
                    first, last = chance.randint(0, head + 2), chance.choice((None, chance.randint(0, head + 2)))
                    earliest = kept[0] if kept else head + 1
                    if deleted and max(1, first) < earliest:
                        with pytest.raises(OutOfRange) as raised:
                            await records.load_events(key, first, last)
                        assert raised.value.context["earliest"] == earliest
                    else:
                        found = [event.sequence for event in await records.load_events(key, first, last)]
                        assert found == [n for n in kept if first <= n and (last is None or n <= last)]


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_a_stream_is_what_was_published_less_what_was_cut(seed: int, steps: int) -> None:
    run_virtual(_stream(seed, steps))
