"""What happens to a cluster without anybody's fault: rolling restarts, and a slow network, under load."""

from __future__ import annotations

import asyncio
import signal
import time

from .cluster import ChaosCluster, Node
from .figures import Figures
from .stage import Options, Stage


async def rolling_restart(options: Options) -> Figures:
    """Orchestrators, workers and etcd members are told to end and are started again, one by one: no client notices."""
    async with Stage("rolling-restart", options, ChaosCluster()) as stage:
        stage.figures.promise("errors seen by clients", 0)
        stage.figures.promise("effects begun again", 0)
        cluster = stage.cluster
        for number in range(options.rounds):
            round_ns = began_ns = time.time_ns()
            seen = len(stage.load.failures)
            for node in cluster.nodes:
                await _restart(cluster, node)
                stage.figures.add(f"restart of one {node.kind} s", (time.time_ns() - began_ns) / 1e9)
                began_ns = time.time_ns()
            for index in range(len(cluster.etcd.members)):
                await _restart_etcd(cluster, index)
            stage.trail.read()
            stage.figures.add("effects begun again", len(stage.trail.again(frozenset({"effect"}), round_ns)))
            new = stage.load.failures[seen:]
            stage.figures.add("client failures in the round", len(new))
            for failure in new[:5]:
                print(f"a client saw: {failure}")
            stage.figures.add("chain done after ms", *stage.load.latencies_ms(round_ns))
            stage.told(number)
    return stage.figures


async def _restart(cluster: ChaosCluster, node: Node) -> None:
    await cluster.end(node)
    await cluster.start(node)
    await asyncio.sleep(1.0)  # of load with all of them


async def _restart_etcd(cluster: ChaosCluster, index: int) -> None:
    member = cluster.etcd.members[index]
    member.signal(signal.SIGTERM)
    async with asyncio.timeout(10.0):
        while member.running:
            await asyncio.sleep(0.02)
    await cluster.etcd.start_member(index)
    await asyncio.sleep(1.0)


async def delayed_orchestrator(options: Options) -> Figures:
    """One orchestrator behind 100 and then 250 ms of delay, in each direction and to everybody: at least half of the work
    is done in that time, and no shard moves."""
    seconds = 8.0 if options.quick else 20.0
    cluster = ChaosCluster("relays")
    async with Stage("delayed-orchestrator", options, cluster) as stage:
        figures = stage.figures
        slow = cluster.orchestrators["o2"]
        for number in range(options.rounds):
            for delay in (100, 250):
                figures.promise(f"tasks/s with {delay} ms", stage.load.rate * 3 / 2, "min")
                figures.promise(f"shards moved with {delay} ms", 0)
                before = await stage.settled()
                for relay in slow.relays:
                    relay.delay(delay / 1000)
                began_ns = time.time_ns()
                await asyncio.sleep(seconds)
                after = await stage.owners()
                figures.add(f"tasks/s with {delay} ms", stage.load.tasks_a_second(began_ns, time.time_ns()))
                figures.add(f"shards moved with {delay} ms", sum(after[shard][0] != before[shard] for shard in before))
                for relay in slow.relays:
                    relay.delay(0.0)
                await asyncio.sleep(2.0)
                figures.add(f"chain with {delay} ms done after ms", *stage.load.latencies_ms(began_ns, time.time_ns()))
            stage.told(number)
    return stage.figures
