"""etcd in trouble, under load: work goes on, who dies meanwhile is replaced, and the registry is right soon after."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

from onexflow.registry.etcd.access import EtcdError
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.spi.exceptions import SPIError

from .cluster import CLUSTER, LEASE_TTL, ChaosCluster, Node
from .figures import Figures
from .stage import Options, Stage

#: Seconds without a quorum.
QUORUM_LOST = 30.0
Fault = Callable[[Stage], Awaitable[None]]


async def kill_etcd_leader(options: Options) -> Figures:
    """kill -9 of etcd's leader, and its return: nothing moves."""

    async def fault(stage: Stage) -> None:
        etcd = stage.cluster.etcd
        leader = await etcd.leader()
        await etcd.kill(leader)
        await etcd.leader()
        await asyncio.sleep(1.0)
        await etcd.start_member(leader)

    return await _trouble("kill-etcd-leader", options, fault)


async def lose_etcd_quorum(options: Options) -> Figures:
    """Two of three members away for 30 s; an orchestrator and a worker die meanwhile."""
    away = 8.0 if options.quick else QUORUM_LOST

    async def fault(stage: Stage) -> None:
        etcd = stage.cluster.etcd
        for index in (0, 1):
            await etcd.kill(index)
        await _deaths(stage, away)
        await asyncio.gather(etcd.start_member(0), etcd.start_member(1))

    return await _trouble("lose-etcd-quorum", options, fault, dies=True)


async def restart_etcd(options: Options) -> Figures:
    """All members killed, and back after 5 s with what they had; an orchestrator and a worker die meanwhile."""

    async def fault(stage: Stage) -> None:
        etcd = stage.cluster.etcd
        await asyncio.gather(*(etcd.kill(index) for index in range(3)))
        await _deaths(stage, 5.0)
        await etcd.start()

    return await _trouble("restart-etcd", options, fault, dies=True)


async def wipe_etcd(options: Options) -> Figures:
    """All members come back empty: another etcd on the same ports; an orchestrator and a worker die meanwhile."""

    async def fault(stage: Stage) -> None:
        await stage.cluster.etcd.lose_data()
        await _deaths(stage, 5.0)
        await stage.cluster.etcd.start()

    return await _trouble("wipe-etcd-members", options, fault, dies=True)


async def compact_etcd(options: Options) -> Figures:
    """An orchestrator that etcd is cut off from while workers change, and all of that history is compacted."""

    async def fault(stage: Stage) -> None:
        etcd = stage.cluster.etcd
        watcher = stage.cluster.orchestrators["o1"]
        relays = [relay for relay in watcher.relays if relay.target in etcd.endpoints]
        for relay in relays:
            await relay.refuse()
        worker = stage.cluster.workers["w1"]
        await stage.cluster.kill(worker)
        await stage.cluster.start(worker)
        client = EtcdClient(EtcdSettings(endpoints=etcd.endpoints))
        try:
            await client.compact((await client.range(b"/onexflow/")).header.revision)
        finally:
            await client.close()
        for relay in relays:
            await relay.listen()

    return await _trouble("compact-etcd", options, fault, relayed=True)


async def _deaths(stage: Stage, seconds: float) -> None:
    """So many seconds of outage, in whose first half an orchestrator and a worker die."""
    began = time.monotonic()
    await asyncio.sleep(min(2.0, seconds / 4))
    victim = await stage.most_loaded()
    shards = {shard for shard, (_, owner) in (await stage.owners()).items() if owner == victim.name}
    killed_at = await stage.cluster.kill(victim)
    await stage.cluster.kill(stage.cluster.workers["w3"])
    taken_at, epochs = await stage.taken_from(victim.name, shards)
    runs = [one for one in stage.load.open_at(killed_at) if one.shard in shards]
    stage.figures.add("orchestrator that died replaced after s", (taken_at - killed_at) / 1e9)
    stage.figures.add("its runs went on after s", *(at / 1000 for at in await stage.resumed(runs, killed_at, epochs)))
    await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))


async def _trouble(name: str, options: Options, fault: Fault, *, dies: bool = False, relayed: bool = False) -> Figures:
    cluster = ChaosCluster("relays" if relayed else "direct")
    async with Stage(name, options, cluster, direct=relayed) as stage:
        figures = stage.figures
        figures.promise("living members right after s", 3.0)
        if dies:
            figures.promise("dead members gone after s", LEASE_TTL + 2.0)
            figures.promise("orchestrator that died replaced after s", 3.0)
        figures.promise("longest pause of all work s", 3.0)
        for number in range(options.rounds):
            began_ns = time.time_ns()
            before = {shard: epoch for shard, (epoch, _) in (await stage.owners()).items()}
            await fault(stage)
            back = time.monotonic()
            dead = [node for node in cluster.nodes if not node.lives]
            figures.add("living members right after s", await _registered(stage, back, dead, gone=False))
            if dies:
                figures.add("dead members gone after s", await _registered(stage, back, dead, gone=True))
            else:
                moved = sum(before[shard] != epoch for shard, (epoch, _) in (await stage.owners()).items())
                figures.add("shards moved", moved)
            figures.add("longest pause of all work s", longest_pause(stage, began_ns))
            for node in dead:
                await cluster.start(node)
            await asyncio.sleep(3.0)
            stage.told(number)
    return stage.figures


async def _registered(stage: Stage, since: float, dead: list[Node], *, gone: bool, seconds: float = 20.0) -> float:
    """Wait until etcd, and every living orchestrator, has all living members registered (`gone`: and none that is dead).
    Returns the seconds since then."""
    living = {node.name for node in stage.cluster.nodes if node.lives}
    names = {node.name for node in dead}
    etcd = EtcdClient(EtcdSettings(endpoints=stage.cluster.etcd.endpoints))
    try:
        async with asyncio.timeout(seconds):
            while True:
                views = [await _stored(etcd)]
                views += [await _view(stage, name) for name in living & set(stage.cluster.orchestrators)]
                if all(living <= view and not (gone and names & view) for view in views):
                    return time.monotonic() - since
                await asyncio.sleep(0.05)
    finally:
        await etcd.close()


async def _stored(etcd: EtcdClient) -> set[str]:
    """Who is registered, as etcd has it."""
    try:
        found = await etcd.range(f"/onexflow/{CLUSTER}/".encode())
    except EtcdError:
        return set()
    keys = [kv.key.decode().split("/") for kv in found.kvs]
    return {key[-1] for key in keys if "nodes" in key or "orchestrators" in key}


async def _view(stage: Stage, orchestrator: str) -> set[str]:
    """Who is registered, as this orchestrator sees it."""
    try:
        nodes = await stage.at(orchestrator).nodes()
    except SPIError:
        return set()
    return {node.node_id for node in nodes if node.registered}


def longest_pause(stage: Stage, since_ns: int) -> float:
    """Seconds between the ends of two executions that follow each other, at most."""
    stage.trail.read()
    ends = sorted(
        ran.end_ns for runs in stage.trail.by_instance.values() for ran in runs if ran.end_ns > since_ns
    )  # fmt: skip
    return max(((after - before) / 1e9 for before, after in itertools.pairwise(ends)), default=0.0)
