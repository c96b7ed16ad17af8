"""How long a takeover takes of an owner that had many open idle runs, on PostgreSQL: from the moment its death is known."""

from __future__ import annotations

import asyncio
import time

from benchmarks.bench.workloads import definitions
from benchmarks.growth.system import paged_out, start_idle
from onexflow.app.system import SystemClock, SystemIds
from onexflow.codec.definitions import dump_definition
from onexflow.codec.payload import JsonCodec
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres


class Member:
    """One of two orchestrators, in this process."""

    def __init__(self, name: str, url: str, hub: MemoryRegistryHub) -> None:
        clock = SystemClock()
        self.registry = MemoryRegistry(hub)
        self.orchestrator = Orchestrator(
            PostgresStore(url, clock=clock), self.registry, clock=clock, ids=SystemIds(), codec=JsonCodec(),
            orchestrator_id=name, incarnation=name, shared=True,
        )  # fmt: skip

    async def start(self) -> None:
        await self.registry.start()
        await self.orchestrator.start()
        await self.orchestrator.announce(f"{self.orchestrator.orchestrator_id}:1")

    async def serves(self, shards: int) -> None:
        """Until so many shards are owned and read back."""
        owned = self.orchestrator.shards
        while len(owned) < shards or any(shard.early is not None for shard in owned.values()):
            await asyncio.sleep(0.005)


async def measure(runs: int) -> float:
    """Seconds until the other owns and serves all shards."""
    server = EmbeddedPostgres()
    await server.start()
    try:
        hub = MemoryRegistryHub(SystemClock())
        first, second = Member("first", server.url, hub), Member("second", server.url, hub)
        await first.start()
        shards = first.orchestrator.whereabouts.shard_count
        await first.serves(shards)
        for definition in definitions():
            await first.orchestrator.register_definition("default", dump_definition(definition))
        await start_idle(first.orchestrator, runs)
        await paged_out(first.orchestrator)
        await second.start()
        await asyncio.sleep(1.0)  # each knows the other; none has been there long enough to be given shards
        await first.orchestrator.abandon()
        began = time.perf_counter()
        await first.registry.close()
        await second.serves(shards)
        taken = time.perf_counter() - began
        await second.orchestrator.stop()
        await second.registry.close()
        return taken
    finally:
        await server.stop()
