"""Workers that are killed, stopped and cut off, and streams that are cut all the time, under load."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Awaitable, Callable

from .cluster import LEASE_TTL, ChaosCluster, Node, Wiring
from .figures import Figures
from .load import LONG, ONCE, PURE
from .processes import ports_of
from .stage import Options, Stage
from .trail import Ran

#: Seconds from one kill to the next at least.
ROUND = 3.0
#: Seconds that a worker is stopped or cut off, and after it is back until it is judged.
AWAY = 10.0
BACK = 3.0
#: What may run twice is begun elsewhere at once: a moment of silence and two looks without an answer, 150 ms each.
AT_ONCE = 1.0
#: What runs when a worker goes away takes so long, besides the load: there is something to interrupt.
LASTS = 1.5


async def kill_worker(options: Options) -> Figures:
    """kill -9 of a worker, and its restart: what it ran is begun elsewhere within 300 ms."""
    async with Stage("kill-worker-of-three", options, ChaosCluster()) as stage:
        stage.figures.promise("begun elsewhere after ms", 300.0, "p99")
        turns = itertools.cycle(stage.cluster.workers.values())
        for number in range(options.rounds):
            began = time.monotonic()
            victim = next(turns)
            for kind in (LONG, PURE):
                for _ in range(6):
                    stage.load.add(kind, {"seconds": 0.5})
            await asyncio.sleep(0.25)
            killed_at = await stage.cluster.kill(victim)
            stage.trail.read()
            interrupted = stage.trail.running(victim.pid, killed_at)
            again = await _begun_again(stage, interrupted, killed_at)
            stage.figures.add("interrupted", len(interrupted))
            stage.figures.add("begun elsewhere after ms", *((at - killed_at) / 1e6 for at in again))
            await stage.cluster.start(victim)
            await asyncio.sleep(max(0.5, ROUND - (time.monotonic() - began)))
            stage.told(number)
    return stage.figures


async def freeze_worker(options: Options) -> Figures:
    """SIGSTOP of a worker for ten seconds, and SIGCONT: pure tasks and effects that may run again do so elsewhere, what it
    has done is refused when it wakes; effects that may not wait for it, and its answer is taken."""

    async def away(stage: Stage, victim: Node) -> int:
        return victim.signal(signal.SIGSTOP)

    async def back(stage: Stage, victim: Node) -> int:
        return victim.signal(signal.SIGCONT)

    return await _silent("freeze-worker", options, "direct", away, back)


async def partition_worker(options: Options) -> Figures:
    """The same with its cable pulled: it goes on by itself meanwhile."""

    async def away(stage: Stage, victim: Node) -> int:
        return await stage.cluster.isolate(victim)

    async def back(stage: Stage, victim: Node) -> int:
        return await stage.cluster.rejoin(victim)

    return await _silent("partition-worker", options, "namespaces", away, back)


Act = Callable[[Stage, Node], Awaitable[int]]


async def _silent(name: str, options: Options, wiring: Wiring, away: Act, back: Act) -> Figures:
    async with Stage(name, options, ChaosCluster(wiring), copies=True) as stage:
        figures = stage.figures
        figures.promise("pure task begun elsewhere after s", AT_ONCE)
        figures.promise("effect begun elsewhere after s", LEASE_TTL + 1.0)
        figures.promise("effects not to be run again, begun again", 0)
        turns = itertools.cycle(stage.cluster.workers.values())
        if not options.quick:
            await stage.settled()  # a shard that moves meanwhile keeps its effects waiting for two owners
        for number in range(options.rounds):
            victim = next(turns)
            extra = [stage.load.add(kind, {"seconds": LASTS}) for kind in (ONCE, LONG, PURE) for _ in range(9)]
            await stage.load.acknowledged(extra)
            await asyncio.sleep(0.3)
            gone_at = await away(stage, victim)
            await asyncio.sleep(0.05)  # what it has noted when the signal came
            stage.trail.read()
            held = stage.trail.running(victim.pid, gone_at)
            once = [ran for ran in held if ran.kind == "once"]
            others = [ran for ran in held if ran.kind != "once"]
            again = await _begun_again(stage, others, gone_at)
            for kind, figure in (("compute", "pure task"), ("effect", "effect")):
                figures.add(f"{figure} begun elsewhere after s",
                            *((at - gone_at) / 1e9 for at, ran in zip(again, others, strict=True) if ran.kind == kind))  # fmt: skip
            await asyncio.sleep(max(0.0, AWAY - (time.time_ns() - gone_at) / 1e9))
            await back(stage, victim)
            await asyncio.sleep(LASTS + BACK)
            stage.trail.read()
            figures.add("held", len(held))
            figures.add(
                "effects not to be run again, begun again", sum(len(stage.trail.by_key[ran.key]) > 1 for ran in once)
            )
            done = {one.instance for one in stage.load.started if one.done_ns}
            figures.add("awaited results taken late", sum(ran.instance in done for ran in once))
            # Made twice, and the auditor sees that one is recorded.
            figures.add("results made late, and refused", sum(ran.end_ns > gone_at for ran in others))
            assert all(ran.instance in done for ran in once), "an awaited result was not taken"
            stage.told(number)
    return stage.figures


async def _begun_again(stage: Stage, interrupted: list[Ran], since_ns: int) -> list[int]:
    """Wait until each of these executions has been begun again; returns when, UTC ns."""
    give_up = time.monotonic() + 20.0
    while True:
        stage.trail.read()
        found = [
            min((ran.start_ns for ran in stage.trail.by_key[one.key] if ran.start_ns > since_ns), default=0)
            for one in interrupted
        ]  # fmt: skip
        if all(found):
            return found
        if time.monotonic() > give_up:
            raise TimeoutError(f"{found.count(0)} of {len(found)} tasks were not begun again")
        await asyncio.sleep(0.01)


async def cut_streams(options: Options) -> Figures:
    """Every worker stream, and nothing else, cut every 100 ms for a minute: no effect at the same time twice, of pure tasks at most one more
    a cut."""
    seconds = 5.0 if options.quick else 60.0
    cluster = ChaosCluster("relays")
    async with Stage("cut-worker-streams", options, cluster, direct=True) as stage:
        figures = stage.figures
        figures.promise("pure tasks begun again, a stream that was cut", 1.0)
        figures.promise("begun again by one pure task, a cut that it lived through", 1.0)
        for number in range(options.rounds):
            began_ns = time.time_ns()
            cuts: list[int] = []
            streams = 0
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.sleep(0.1)
                cuts.append(time.time_ns())
                ports = ports_of(node.pid for node in cluster.workers.values())
                for node in cluster.orchestrators.values():
                    streams += node.relays[0].cut(ports)
            stage_done = stage.load.tasks_a_second(began_ns, time.time_ns())
            await asyncio.sleep(3.0)
            stage.trail.read()
            pure = stage.trail.again(frozenset({"compute"}), began_ns)
            effects = stage.trail.again(frozenset({"effect"}), began_ns)
            figures.add("tasks/s while streams are cut", stage_done)
            assert streams > len(cuts), "the streams were cut"
            figures.add("cuts", len(cuts))
            figures.add("streams cut", streams)
            figures.add("pure tasks begun again, a stream that was cut", sum(len(runs) - 1 for runs in pure) / streams)
            figures.add(
                "begun again by one pure task, a cut that it lived through", *(_a_cut(runs, cuts) for runs in pure)
            )
            figures.add("effects begun again", sum(len(runs) - 1 for runs in effects))
            figures.add("effects begun twice at the same time", len(stage.overlaps()))
            stage.told(number)
    return stage.figures


def _a_cut(runs: list[Ran], cuts: list[int]) -> float:
    first, last = runs[0].start_ns, max(ran.start_ns for ran in runs)
    return (len(runs) - 1) / max(1, sum(first <= cut <= last for cut in cuts))
