"""What a task costs two orchestrators on one PostgreSQL, beside two that have nothing to do with each other.

Where there are cores for them, two do as many times the work of one as a task costs less than twice. On a machine that has
no cores for two a task costs each of them more, whatever they share: so they are compared with two clusters of one at the
same time, each in a database of its own on the one PostgreSQL; and with one that nobody disturbs, which is too much to ask
of such a machine. The former favours the two in so far as a second worker takes more of it than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import asyncpg

from onexflow.client import connect
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.storage.postgres.embedded import EmbeddedPostgres

from .figures import Goal, at_least
from .processes import Cluster, free_port
from .workloads import Load, Onexflow, Sample

#: Going by two apart, and by one that nobody disturbs.
APART, ALONE = "work of two, times that of one, by two apart", "work of two, times that of one, by one alone"
GOALS: Final[dict[str, Goal]] = {f"{how}, {name}": at_least(1.6) for how in (APART, ALONE) for name in ("W1", "W2")}
SETTING: Final = "PostgreSQL on this machine, one client, one worker process a cluster, compute tasks"
RUNS: Final = {"W1": 30_000, "W2": 6_000}
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
    def processes(self) -> dict[str, asyncio.subprocess.Process]:
        return super().processes | {f"orchestrator {n}": one for n, one in enumerate(self._other_processes, 2)}

    async def start_orchestrator(self) -> None:
        await super().start_orchestrator()
        for address in self._others:
            self._other_processes.append(await self._spawn_orchestrator(address))

    async def parted(self) -> None:
        """Return when the shards are parted among all, evenly: who was there first gives up what is not its own only after a
        while, one shard a second, and until then does most of the work alone."""
        connection = await asyncpg.connect(self.store)
        try:
            async with asyncio.timeout(120.0):
                while True:
                    rows = await connection.fetch("SELECT owner, count(*) FROM shards GROUP BY owner")
                    parts = [count for owner, count in rows if owner]
                    is_owned = len(parts) == len(rows) == len(self.addresses)
                    if is_owned and max(parts) - min(parts) <= 1:
                        return
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def _stop(self) -> None:
        await super()._stop()
        for process in self._other_processes:
            await self._end(process)


async def measure() -> dict[str, float]:
    """One round. Who goes first changes from round to round."""
    if next(_TURNS):
        alone, apart = await _measure_apart()
        together = await _measure_together()
    else:
        together = await _measure_together()
        alone, apart = await _measure_apart()
    found: dict[str, float] = {}
    for name in RUNS:
        found |= {
            f"CPU µs/task of one alone, {name}": alone[name].us,
            f"CPU µs/task of two in clusters of their own, {name}": apart[name].us,
            f"CPU µs/task of two in one cluster, {name}": together[name].us,
            f"{APART}, {name}": 2 * apart[name].us / together[name].us,
            f"{ALONE}, {name}": 2 * alone[name].us / together[name].us,
            f"rate of two in one cluster, times that of two apart, on this machine, {name}": (
                together[name].rate / apart[name].rate
            ),
        }
    return found


#: Two apart first?
_TURNS: Final = cycle((True, False))


class _Figures(NamedTuple):
    """CPU of the orchestrators for a task, and tasks a second of all."""

    us: float
    rate: float


async def _measure_apart() -> tuple[dict[str, _Figures], dict[str, _Figures]]:
    """Of one alone, and of it and another that has nothing to do with it."""
    async with _postgres() as store, _load(1, store) as one:
        alone = await _figures([one], 1)
        async with _load(1, await _another_database(store)) as other:
            return alone, await _figures([one, other], 1)


async def _measure_together() -> dict[str, _Figures]:
    async with _postgres() as store, _load(2, store) as both:
        return await _figures([both], 2)


async def _figures(loads: list[Load], count: int) -> dict[str, _Figures]:
    """All loads at the same time, each of so many orchestrators."""
    single = await asyncio.gather(*(load.single(RUNS["W1"] * count, WIDTH * count) for load in loads))
    chain = await asyncio.gather(*(load.chain(RUNS["W2"] * count, WIDTH * count) for load in loads))
    return {"W1": _of_all(single), "W2": _of_all(chain)}


def _of_all(samples: list[Sample]) -> _Figures:
    costs = [
        sum(us for process, us in sample.cpu_us.items() if process.startswith("orchestrator")) for sample in samples
    ]
    return _Figures(sum(costs) / len(costs), sum(sample.rate for sample in samples))


@asynccontextmanager
async def _postgres() -> AsyncIterator[str]:
    """The URL of a database on a server of its own."""
    postgres = EmbeddedPostgres()
    try:
        await postgres.start()
        yield postgres.url
    finally:
        await postgres.stop()


async def _another_database(url: str) -> str:
    """The URL of a second one on the same server."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE DATABASE other")
    finally:
        await connection.close()
    return urlsplit(url)._replace(path="/other").geturl()


@asynccontextmanager
async def _load(count: int, store: str) -> AsyncIterator[Load]:
    """The load of a cluster of so many orchestrators."""
    etcd = EmbeddedEtcd()
    try:
        await etcd.start()
        async with _Orchestrators(store, etcd.url, count) as cluster:
            await cluster.parted()
            client = await connect(",".join(cluster.addresses))
            runner = await Onexflow.of(cluster, client, "compute")
            try:
                load = Load(runner)
                await load.single(2_000)
                yield load
            finally:
                await runner.close()
    finally:
        await etcd.stop()
