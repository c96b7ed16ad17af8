"""Orchestrators that are killed, stopped and cut off, under load: what they owned goes on elsewhere."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from .cluster import LEASE_TTL, ChaosCluster, Node, Wiring
from .figures import Figures
from .load import LONG
from .stage import EFFECTS, Options, Stage

#: Seconds from one kill to the next at least.
ROUND = 5.0
#: Seconds that an owner is stopped or cut off, and after it is back until it is judged.
AWAY = 10.0
BACK = 3.0


async def kill_orchestrator(options: Options) -> Figures:
    """kill -9 of the orchestrator that owns most, and its restart: its runs go on within a second, nothing that ran on a
    living worker runs again."""
    async with Stage("kill-orchestrator", options, ChaosCluster()) as stage:
        stage.figures.promise("runs go on after ms", 1000.0, "p99")
        stage.figures.promise("effects run twice", 0)
        for number in range(options.rounds):
            began = time.monotonic()
            victim = await stage.most_loaded()
            owners = await stage.owners()
            shards = {shard for shard, (_, owner) in owners.items() if owner == victim.name}
            killed_at = await stage.cluster.kill(victim)
            stage.trail.read()
            running = {ran.key for ran in stage.trail.running(at=killed_at) if ran.kind in EFFECTS}
            taken_at, epochs = await stage.taken_from(victim.name, shards)
            runs = [one for one in stage.load.open_at(killed_at) if one.shard in shards]
            stage.figures.add("shards", len(shards))
            stage.figures.add("all shards taken after ms", (taken_at - killed_at) / 1e6)
            stage.figures.add("runs go on after ms", *await stage.resumed(runs, killed_at, epochs))
            await stage.cluster.start(victim)
            await asyncio.sleep(max(0.5, ROUND - (time.monotonic() - began)))
            stage.trail.read()
            twice = [runs for runs in stage.trail.again(EFFECTS, killed_at) if runs[0].key in running]
            stage.figures.add("effects running at the kill", len(running))
            stage.figures.add("effects run twice", len(twice))
            seen = stage.load.latencies_ms(killed_at, killed_at + 1_000_000_000)
            stage.figures.add("chain due in the second after it, done after ms", *seen)
            stage.told(number)
    return stage.figures


async def freeze_orchestrator(options: Options) -> Figures:
    """SIGSTOP of an orchestrator for ten seconds, and SIGCONT: others take over, and it writes and sends nothing more."""

    async def away(stage: Stage, victim: Node) -> int:
        return victim.signal(signal.SIGSTOP)

    async def back(stage: Stage, victim: Node) -> int:
        return victim.signal(signal.SIGCONT)

    return await _deposed("freeze-orchestrator", options, "direct", away, back)


async def freeze_orchestrator_unfenced(options: Options) -> Figures:
    """The same with orchestrators that never look whether their shards are still theirs: the store refuses them.

    Each is replaced at the end of its round: it would believe for ever that it owns what it has lost."""

    async def away(stage: Stage, victim: Node) -> int:
        return victim.signal(signal.SIGSTOP)

    async def back(stage: Stage, victim: Node) -> int:
        return victim.signal(signal.SIGCONT)

    return await _deposed("freeze-orchestrator-unfenced", options, "direct", away, back, unfenced=True)


async def partition_orchestrator(options: Options) -> Figures:
    """An orchestrator's cable pulled for ten seconds: workers, peers, etcd and the store are gone for it, silently."""

    async def away(stage: Stage, victim: Node) -> int:
        return await stage.cluster.isolate(victim)

    async def back(stage: Stage, victim: Node) -> int:
        return await stage.cluster.rejoin(victim)

    return await _deposed("partition-orchestrator", options, "namespaces", away, back)


Act = Callable[[Stage, Node], Awaitable[int]]


async def _deposed(
    name: str, options: Options, wiring: Wiring, away: Act, back: Act, *, unfenced: bool = False
) -> Figures:
    cluster = ChaosCluster(wiring)
    if unfenced:
        for node in cluster.orchestrators.values():
            node.module = "chaos.unfenced_orchestrator"
    async with Stage(name, options, cluster) as stage:
        figures = stage.figures
        figures.promise("all shards taken after s", LEASE_TTL + 1.0)
        figures.promise("events appended by the old owner", 0)
        figures.promise("effects authorised by the old owner", 0)
        if unfenced:
            figures.promise("appends refused", 1, "min")
        for number in range(options.rounds):
            victim = await stage.most_loaded()
            owners = await stage.owners()
            shards = {shard for shard, (_, owner) in owners.items() if owner == victim.name}
            # Timers that are due while it is away: it wakes with something to write at once.
            timers = [stage.load.add(LONG, delay=LEASE_TTL - 0.5, shard=shard) for shard in sorted(shards)[:8]]
            await stage.load.acknowledged(timers)
            victim.mark()
            stage.load.avoid = {victim.name}
            gone_at = await away(stage, victim)
            taken_at, epochs = await stage.taken_from(victim.name, shards)
            appended = await stage.rows_below(epochs)
            runs = [one for one in stage.load.open_at(gone_at) if one.shard in shards and one not in timers]
            resumed = await stage.resumed(runs, gone_at, epochs)
            await asyncio.sleep(max(0.0, AWAY - (time.time_ns() - gone_at) / 1e9))
            await back(stage, victim)
            await asyncio.sleep(BACK)
            stage.load.avoid = set()
            assert victim.lives, f"{victim.name} ended"
            stage.trail.read()
            late = [
                ran for shard_runs in stage.trail.by_key.values() for ran in shard_runs
                if ran.kind in EFFECTS and ran.start_ns > taken_at and ran.epoch < epochs.get(ran.shard, 0)
            ]  # fmt: skip
            figures.add("shards", len(shards))
            figures.add("all shards taken after s", (taken_at - gone_at) / 1e9)
            figures.add("runs go on after s", *(at / 1000 for at in resumed))
            figures.add("events appended by the old owner", await stage.rows_below(epochs) - appended)
            figures.add("effects authorised by the old owner", len(late))
            figures.add("appends refused", victim.logged("shard.fenced"))
            if unfenced:
                await cluster.kill(victim)
                await cluster.start(victim)
            stage.told(number)
    return stage.figures
