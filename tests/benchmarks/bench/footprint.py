"""W5: what a cluster takes when nothing happens, how soon it is there, and how soon again after `kill -9`.

Everything is started at the same time: etcd, orchestrator, worker and a client. Killed processes are started again at once,
as a supervisor would; a recovery ends with the first new completion that the client sees, start of the process included.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from typing import Final

import onexflow
from onexflow.client import Client, connect
from onexflow.registry.etcd.embedded import EmbeddedEtcd

from .figures import Goal, at_most
from .processes import Cluster, cpu_seconds, memory_mib, spawn
from .workloads import CHAIN, PAYLOAD

GOALS: Final[dict[str, Goal]] = {
    "cold start, s": at_most(1.0),
    "idle RSS of both, MiB": at_most(110.0),
    "idle PSS of both, MiB": at_most(100.0),
    "recovery of the worker, s": at_most(0.5),
    "recovery of the orchestrator, s": at_most(1.5),
}
IN_FLIGHT: Final = 200  #: chains, while something is killed
REST_SECONDS: Final = 2.0  #: before memory is read, and then while CPU is
FLOW_SECONDS: Final = 1.0  #: of load before each kill
#: What the client has received is read within so long after a kill; no Python can be started and serve in that time.
IN_PIPES_SECONDS: Final = 0.05


async def measure(store: str) -> dict[str, float]:
    """One round on a new cluster; `store` "": a SQLite of its own."""
    etcd = EmbeddedEtcd()
    began = time.perf_counter()
    answering = asyncio.create_task(etcd.start())
    try:
        while etcd.pid is None and not answering.done():
            await asyncio.sleep(0.001)
        cluster = Cluster(store, registry=etcd.url)
        try:
            found = {"cold start, s": await _first_result(cluster) - began}
            await answering
            found |= await _idle(cluster, etcd.pid or 0)
            found |= await _recoveries(cluster)
        finally:
            await cluster.__aexit__(None, None, None)
    finally:
        await asyncio.gather(answering, return_exceptions=True)
        await etcd.stop()
    return found


async def _first_result(cluster: Cluster) -> float:
    """Start the rest; when the first result was there."""
    await cluster.start_orchestrator()
    await cluster.start_worker()
    client = await spawn("benchmarks.bench.first_result", cluster.address, stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert await asyncio.wait_for(client.stdout.readline(), 60.0), "the client had no result"
    at = time.perf_counter()
    await client.wait()
    return at


async def _idle(cluster: Cluster, etcd: int) -> dict[str, float]:
    await asyncio.sleep(REST_SECONDS)
    before = {name: cpu_seconds(pid) for name, pid in cluster.pids.items()}
    await asyncio.sleep(REST_SECONDS)
    shares = {name: (cpu_seconds(pid) - before[name]) / REST_SECONDS * 100 for name, pid in cluster.pids.items()}
    sizes = {name: memory_mib(pid) for name, pid in cluster.pids.items()}
    return {
        "idle RSS of the orchestrator, MiB": sizes["orchestrator"][0],
        "idle RSS of the worker, MiB": sizes["worker"][0],
        "idle RSS of both, MiB": sum(rss for rss, _ in sizes.values()),
        "idle PSS of both, MiB": sum(pss for _, pss in sizes.values()),
        "idle RSS of etcd (not counted), MiB": memory_mib(etcd)[0],
        "idle CPU of the orchestrator, %": shares["orchestrator"],
        "idle CPU of the worker, %": shares["worker"],
    }


class Flow:
    """Chains without an end, `IN_FLIGHT` at a time: when each ended, and which worker did its last task."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_over = False
        self.ends: list[tuple[float, int]] = []
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(IN_FLIGHT)]

    async def _lane(self) -> None:
        while not self._is_over:
            worker = await self._client.run("bench-whose", input=PAYLOAD)
            self.ends.append((time.perf_counter(), worker))

    async def first(self, is_new: Callable[[float, int], bool]) -> float:
        """When the first chain ended for which that is so."""
        seen = 0
        async with asyncio.timeout(60.0):
            while True:
                for at, worker in self.ends[seen:]:
                    if is_new(at, worker):
                        return at
                seen = len(self.ends)
                await asyncio.sleep(0.001)

    def give_up(self) -> None:
        for lane in self._lanes:
            lane.cancel()

    async def end(self) -> None:
        """Every chain comes to its end: a failed or lost one is raised here."""
        self._is_over = True
        async with asyncio.timeout(60.0):
            await asyncio.gather(*self._lanes)


async def _recoveries(cluster: Cluster) -> dict[str, float]:
    flow = onexflow.workflow("bench-whose")
    task = None
    for number in range(CHAIN):
        task = flow.compute(f"step{number}", handler="whose", input="input", depends_on=[task] if task else [])
    async with await connect(cluster.address) as client:
        await client.register(flow.build())
        load = Flow(client)
        try:
            return await _kill_each(cluster, load)
        except TimeoutError as error:
            raise TimeoutError(f"nothing was completed after a kill; ended: {cluster.ended}") from error
        finally:
            load.give_up()


async def _kill_each(cluster: Cluster, load: Flow) -> dict[str, float]:
    """The worker, and then the orchestrator."""
    found = {}
    assert cluster.worker is not None
    killed = cluster.worker.pid
    for name, restart, process in (
        ("worker", cluster.start_worker, cluster.worker),
        ("orchestrator", cluster.start_orchestrator, cluster.orchestrator),
    ):
        await asyncio.sleep(FLOW_SECONDS)
        assert process is not None
        at = time.perf_counter()
        process.kill()
        await process.wait()
        await restart()
        is_new = _after(at + IN_PIPES_SECONDS) if name == "orchestrator" else _by_another(killed)
        found[f"recovery of the {name}, s"] = await load.first(is_new) - at
    await asyncio.sleep(FLOW_SECONDS)
    await load.end()
    return found


def _by_another(killed: int) -> Callable[[float, int], bool]:
    """There has been no other worker before the one that was killed."""
    return lambda _, worker: worker != killed


def _after(moment: float) -> Callable[[float, int], bool]:
    return lambda at, _: at > moment
