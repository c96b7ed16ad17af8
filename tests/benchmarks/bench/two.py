"""What a task costs two orchestrators on one PostgreSQL, beside one: each of both with as much to do as the one alone.

Where there are cores for them, two do as many times the work of one as a task costs less than twice: orchestrators wait for
nothing of each other. So the CPU a task says it on a machine that has no cores for two.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from onexflow.client import connect
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.storage.postgres.embedded import EmbeddedPostgres

from .figures import Goal, at_least
from .processes import Cluster, free_port
from .workloads import Load, Onexflow, Sample

GOALS: Final[dict[str, Goal]] = {
    "work of two, times that of one, W1": at_least(1.6),
    "work of two, times that of one, W2": at_least(1.6),
}
SETTING: Final = "PostgreSQL on this machine, one client, one worker process, compute tasks"
RUNS: Final = {"W1": 10_000, "W2": 2_000}
WIDTH: Final = 200  #: in flight, for each orchestrator
SLOTS: Final = 64  #: of the worker, for each orchestrator: with too few for both it asks one for what the other needs


class _Orchestrators(Cluster):
    """So many of them, and a worker."""

    def __init__(self, store: str, registry: str, count: int) -> None:
        super().__init__(store, SLOTS * count, registry=registry)
        self._others = [f"127.0.0.1:{free_port()}" for _ in range(count - 1)]
        self._other_processes: list[asyncio.subprocess.Process] = []

    @property
    def addresses(self) -> list[str]:
        return [self.address, *self._others]

    @property
    def pids(self) -> dict[str, int]:
        return super().pids | {f"orchestrator {n}": one.pid for n, one in enumerate(self._other_processes, 2)}

    async def start_orchestrator(self) -> None:
        await super().start_orchestrator()
        for address in self._others:
            self._other_processes.append(await self._spawn_orchestrator(address))

    async def parted(self) -> None:
        """Return when the shards are parted among all."""
        connection = await asyncpg.connect(self.store)
        try:
            async with asyncio.timeout(30.0):
                while True:
                    owners = await connection.fetch("SELECT owner, count(*) FROM shards GROUP BY owner")
                    if len(owners) == len(self.addresses) and all(owner for owner, _ in owners):
                        return
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def _stop(self) -> None:
        await super()._stop()
        for process in self._other_processes:
            await self._end(process)


async def measure() -> dict[str, float]:
    """One round."""
    costs = {}
    rates = {}
    for count in (1, 2):
        for name, sample in (await _of(count)).items():
            costs[name, count] = sum(us for process, us in sample.cpu_us.items() if process.startswith("orchestrator"))
            rates[name, count] = sample.rate
    found: dict[str, float] = {}
    for name in RUNS:
        found |= {
            f"CPU µs/task of the orchestrator, {name}": costs[name, 1],
            f"CPU µs/task of both orchestrators, {name}": costs[name, 2],
            f"work of two, times that of one, {name}": 2 * costs[name, 1] / costs[name, 2],
            f"rate of two, times that of one, on this machine, {name}": rates[name, 2] / rates[name, 1],
        }
    return found


async def _of(count: int) -> dict[str, Sample]:
    etcd, postgres = EmbeddedEtcd(), EmbeddedPostgres()
    try:
        await etcd.start()
        await postgres.start()
        async with _Orchestrators(postgres.url, etcd.url, count) as cluster:
            await cluster.parted()
            client = await connect(",".join(cluster.addresses))
            runner = await Onexflow.of(cluster, client, "compute")
            try:
                load = Load(runner)
                await load.single(2_000)
                return {
                    "W1": await load.single(RUNS["W1"] * count, WIDTH * count),
                    "W2": await load.chain(RUNS["W2"] * count, WIDTH * count),
                }
            finally:
                await runner.close()
    finally:
        await postgres.stop()
        await etcd.stop()
