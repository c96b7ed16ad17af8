"""PostgreSQL that dies or has no room, under load: nothing acknowledged is lost, clients are told, and it goes on."""

from __future__ import annotations

import asyncio
import time

from onexflow.core.errors import StoreFull

from .cluster import ChaosCluster
from .figures import Figures
from .load import CHAIN
from .plain import Answer, check_codes, plain_start
from .servers import SmallDisk
from .stage import Options, Stage

#: Seconds that PostgreSQL is away.
AWAY = 10.0


async def kill_postgres(options: Options) -> Figures:
    """PostgreSQL killed and restarted after ten seconds: nothing is lost, work goes on within two seconds of its return,
    and meanwhile clients get UNAVAILABLE with RetryInfo."""
    away = 4.0 if options.quick else AWAY
    async with Stage("kill-postgres", options, ChaosCluster()) as stage:
        figures = stage.figures
        figures.promise("work goes on after its return s", 2.0)
        figures.promise("plain calls that hung", 0)
        figures.promise("plain calls refused without RetryInfo", 0)
        for number in range(options.rounds):
            killed = time.monotonic()
            await stage.cluster.postgres.kill()
            await asyncio.sleep(0.5)
            plain = await _plain_starts(stage)
            await asyncio.sleep(max(0.0, away - (time.monotonic() - killed)))
            await stage.cluster.postgres.start()
            back_ns = time.time_ns()
            await stage.connect()
            figures.add("work goes on after its return s", await _next_result(stage, back_ns))
            await asyncio.sleep(3.0)
            _plain(figures, plain)
            stage.told(number)
    return stage.figures


async def fill_disk(options: Options) -> Figures:
    """PostgreSQL's disk is full for ten seconds: new starts are refused with a code that says so, what runs is safe, and
    all goes on when there is room again, without a restart."""
    away = 5.0 if options.quick else AWAY
    disk = SmallDisk()
    why = await disk.mount()
    if why:
        print(f"fill-disk is left out: {why}")
        return Figures()
    try:
        async with Stage("fill-disk", options, ChaosCluster(disk=disk.folder)) as stage:
            figures = stage.figures
            figures.promise("work goes on after there is room s", 3.0)
            figures.promise("plain calls that hung", 0)
            figures.promise("starts refused for want of room", 1, "min")
            pids = [node.pid for node in stage.cluster.nodes]
            for number in range(options.rounds):
                full_ns = time.time_ns()
                plain = []
                until = time.monotonic() + away
                while time.monotonic() < until:
                    disk.fill()
                    plain += await _plain_starts(stage)
                    await asyncio.sleep(0.2)
                disk.empty()
                room_ns = time.time_ns()
                figures.add("work goes on after there is room s", await _next_result(stage, room_ns))
                await asyncio.sleep(3.0)
                figures.add("tasks/s while it is full", stage.load.tasks_a_second(full_ns, room_ns))
                figures.add("starts refused for want of room", sum(answer.code == StoreFull.code for answer in plain))
                _plain(figures, plain)
                assert pids == [node.pid for node in stage.cluster.nodes if node.lives], "a process ended"
                stage.told(number)
        return stage.figures
    finally:
        await disk.unmount()


async def _plain_starts(stage: Stage) -> list[Answer]:
    """At each orchestrator one."""
    nodes = stage.cluster.orchestrators.values()
    return list(await asyncio.gather(*(plain_start(node.listen, CHAIN) for node in nodes)))


def _plain(figures: Figures, answers: list[Answer]) -> None:
    refused = [answer for answer in answers if answer.is_refused]
    figures.add("plain calls answered after s", *(answer.seconds for answer in answers))
    figures.add("plain calls refused", len(refused))
    figures.add("plain calls that hung", sum(answer.code == "hung" for answer in answers))
    figures.add("plain calls refused without RetryInfo", sum(answer.again == 0 for answer in refused))
    check_codes(answers)


async def _next_result(stage: Stage, since_ns: int, seconds: float = 30.0) -> float:
    """Seconds until the first task that was begun after that time."""
    async with asyncio.timeout(seconds):
        while True:
            starts = [ran.start_ns for ran in stage.trail.read() if ran.start_ns > since_ns]
            if starts:
                return (min(starts) - since_ns) / 1e9
            await asyncio.sleep(0.02)
