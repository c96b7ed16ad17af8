"""Of random graphs, on a store whose commits take their time: what must not leave before its event is durable does not.

Looked at from outside: each assignment is looked up in the store at the moment at which it is put on a worker's stream."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.codec.definitions import dump_definition
from onexflow.codec.rows import decode_row
from onexflow.core.definition import ROLES
from onexflow.core.errors import RunFailed
from onexflow.core.graph import Graph
from onexflow.ports.event_store import AppendOutcome, ShardAppend
from onexflow.ports.worker_link import Assignment, Assignments, FromWorker, ToWorker
from onexflow.testing import Cluster, VirtualClock, run_virtual
from onexflow.testing.links import InProcessStream
from onexflow.worker.handlers import Worker
from support.random_graphs import INPUT, graphs
from support.slow_store import SlowStore


class _Watched(SlowStore):
    """Commits take chance's time, and what is stored is remembered by (shard, epoch, offset): the event's type."""

    def __init__(self, clock: VirtualClock, chance: random.Random) -> None:
        super().__init__(clock, 0.0)
        self._chance = chance
        self.durable: dict[tuple[int, int, int], str] = {}

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        self.seconds = self._chance.choice((0.0, 0.001, 0.05, 0.5))
        outcome = await super().append(batch)
        for part in batch:
            if part.shard in outcome.stored:
                for row in part.rows:
                    _, events, _ = decode_row(row.data)
                    for number, event in enumerate(events):
                        self.durable[part.shard, part.epoch, row.offset + number] = event.type
        return outcome


def _worker(graph: Graph) -> Worker:
    async def echo(contract: Any) -> Any:
        return contract

    worker = Worker("w")
    for role in ROLES:
        names = {spec.handler or spec.name for spec in graph.specs if spec.role == role}
        names |= {spec.compensation.handler for spec in graph.specs if spec.compensation and role == "effect"}
        for name in sorted(names):
            getattr(worker, role)(name)(echo)
    return worker


async def _run(graph: Graph, seed: int, *, speculation: bool) -> list[tuple[Assignment, str]]:
    """(assignment, type of its event if that was durable when it left) of everything that was sent."""
    clock = VirtualClock()
    store = _Watched(clock, random.Random(seed))
    sent: list[tuple[Assignment, str]] = []
    put = InProcessStream.put

    def watched(stream: InProcessStream, message: FromWorker | ToWorker, *, down: bool) -> None:
        if isinstance(message, Assignments):
            for one in message.assignments:
                token = one.token
                sent.append((one, store.durable.get((token.shard, token.epoch, token.offset), "")))
        put(stream, message, down=down)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessStream, "put", watched)
        async with Cluster(store=store, clock=clock, speculation=speculation) as cluster:
            await cluster.engine.register_definition("default", dump_definition(graph.definition))
            await cluster.add_worker(_worker(graph), "w1")
            with contextlib.suppress(RunFailed):
                await cluster.run("random", INPUT)
    return sent


@given(graphs(), st.integers(0, 2**16), st.booleans())
def test_no_effect_leaves_before_its_event_is_durable(graph: Graph, seed: int, speculation: bool) -> None:
    sent = run_virtual(_run(graph, seed, speculation=speculation))
    for one, durable in sent:
        if one.info.role == "effect":
            assert durable == "task.started", f"{one.info.name} left, and the store holds {durable or 'nothing'} there"
        elif one.info.role == "orchestrator" or not speculation:
            assert durable == "task.scheduled", (
                f"{one.info.name} left, and the store holds {durable or 'nothing'} there"
            )
