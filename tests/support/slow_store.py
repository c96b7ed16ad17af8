"""A store whose commits take their time, and what a run of ten tasks waits for on it, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.ports.event_store import AppendOutcome, ShardAppend
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore, VirtualClock
from support.engine_kit import Script, ready

STEPS = 10


class SlowStore(FaultyStore):
    """Each append takes `seconds`, and is stored at their end."""

    def __init__(self, clock: VirtualClock, seconds: float) -> None:
        super().__init__(MemoryStore(clock))
        self.seconds = seconds

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        await asyncio.sleep(self.seconds)
        return await super().append(batch)


class Waited(NamedTuple):
    """What one run has waited for: nothing else takes time, so its latency is commits."""

    seconds: float
    commits: float


def chain(role: str) -> WorkflowBuilder:
    """Ten tasks of one role, each after the one before."""
    flow = workflow("chain")
    before = None
    for number in range(STEPS):
        before = getattr(flow, role)(
            f"t{number}",
            handler="send" if role == "effect" else "calc",
            input="input",
            depends_on=[before] if before else [],
        )
    return flow


async def waited(role: str, commit: float, *, speculation: bool) -> Waited:
    """Run one chain, start with wait, on a store whose commits take so many seconds."""
    clock = VirtualClock()
    async with Cluster(store=SlowStore(clock, commit), clock=clock, speculation=speculation) as cluster:
        await ready(cluster, Script(), chain(role))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        key = (await cluster.start("chain", 5, wait=True)).key
        assert await cluster.result(key) == 5
        seconds = asyncio.get_running_loop().time() - began
        return Waited(seconds, seconds / commit)
