"""One system that is grown and measured: an engine on SQLite in a process of its own, told what to do a line at a time.

    python -m benchmarks.growth.system FOLDER SHARDS WORKERS

A line in is the name of a method of `System` and a number; a line out is the figures as JSON. The first line out says that
a run has ended here, so that who has started this process knows when it serves.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

import structlog

import onexflow
from benchmarks.engine_loop import INPUT, WIDTH, EngineLoop, Load
from onexflow.codec.definitions import dump_definition
from onexflow.core.commands import AssignRun
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import StoreUnavailable
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.orchestrator import Orchestrator
from onexflow.ports.client_link import EventView, RunOutcome, StartOutcome, StartRequest
from onexflow.spi.exceptions import SPIError
from onexflow.storage.sqlite.writer import IDLE_SECONDS

#: Tasks of one part: some 0.3 s.
PART: Final = 10_000
CHAIN: Final = 10
#: Far from now: such a run is idle.
DELAY: Final = 7 * 24 * 3600.0
#: Idle runs that are started a second, as clients over the wire would at most.
STARTED_A_SECOND: Final = 5000
AT_ONCE: Final = 500
#: Seconds after which a store that has nothing to write has made its checkpoint.
SETTLED: Final = IDLE_SECONDS + 0.3


def rss() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def graph(name: str, width: int, depth: int, *, gate: bool = False) -> WorkflowDefinition:
    """`width` chains of `depth` tasks side by side; with a `gate`, all of them behind one task."""
    flow = onexflow.workflow(name)
    first = [flow.compute("gate", handler="noop", input="input")] if gate else []
    for chain in range(width):
        before = first
        for step in range(depth):
            before = [flow.compute(f"t{chain}_{step}", handler="noop", input="input", depends_on=before)]
    return flow.build()


class System:
    """What it can be told."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._orchestrator = loop.orchestrator

    async def chains(self, tasks: int) -> dict[str, float]:
        """Chains of ten, 200 in flight."""
        process, _ = await self._loop.run("chain", tasks // CHAIN)
        return {"us": process / tasks * 1e6}

    async def idle(self, runs: int) -> dict[str, float]:
        """So many more runs that wait for a far time; over when they are paged out."""
        gc.collect()
        before, began = rss(), time.perf_counter()
        await start_idle(self._orchestrator, runs)
        await paged_out(self._orchestrator)
        gc.collect()
        return {"bytes": (rss() - before) / runs, "seconds": time.perf_counter() - began}

    async def open(self, runs: int) -> dict[str, float]:
        """As `idle`, over when they are started."""
        began = time.perf_counter()
        await start_idle(self._orchestrator, runs)
        return {"seconds": time.perf_counter() - began}

    async def finished(self, runs: int) -> dict[str, float]:
        """So many more runs that have ended."""
        began = time.perf_counter()
        await self._loop.run("single", runs)
        return {"seconds": time.perf_counter() - began}

    async def graphs(self, size: int) -> dict[str, float]:
        """Graphs of so many tasks, 200 of all their tasks in flight."""
        width = min(WIDTH, max(1, size // CHAIN))
        name, depth = f"graph-{size}", size // width
        await self._register(graph(name, width, depth))
        runs = PART // (width * depth)
        load = Load(self._orchestrator, name, runs)
        process, _ = await self._loop.measure(self._driven(load, min(runs, WIDTH // width)))
        return {"us": process / (runs * width * depth) * 1e6}

    async def history(self, events: int) -> dict[str, float]:
        """2,000 tasks of a run that has so many events, 200 in flight."""
        width, depth = WIDTH, CHAIN
        await self._register(graph("history", width, depth, gate=True))
        worker = self._loop.workers[0]
        worker.holds = True
        load = Load(self._orchestrator, "history", 1)
        load.start()
        while not (runs := [run for shard in self._orchestrator.shards.values() for run in shard.runs.values()]):
            await asyncio.sleep(0.01)
        run, kernel = runs[0], self._orchestrator._kernel
        for number in range(events):
            kernel.decide(run, AssignRun("" if number % 2 else "nobody"))
            if not number % 100:
                await asyncio.sleep(0)
        await kernel.lane.durable()
        await asyncio.sleep(SETTLED)  # the checkpoint that these events leave to be made is no task's
        process, _ = await self._loop.measure(self._released(load))
        return {"us": process / (width * depth) * 1e6}

    async def fan(self, items: int) -> dict[str, float]:
        """One run of so many items and a reducer that is fed them: what it took, and what its history says."""
        flow = onexflow.workflow("fed-fan")
        item = flow.compute("item", handler="noop", map="input.items")
        flow.reducer("total", handler="count", feed=True, depends_on=[item])
        await self._register(flow.build())
        gc.collect()
        before, most = rss(), 0
        fed = -sum(worker.fed for worker in self._loop.workers)
        run_input = Payload(b'{"items":[%s]}' % b",".join(b"%d" % number for number in range(items)))
        done: asyncio.Future[RunKey] = asyncio.get_running_loop().create_future()

        def started(outcome: StartOutcome | SPIError) -> None:
            assert isinstance(outcome, StartOutcome), outcome
            self._orchestrator.wait_run(outcome.key, ended)

        def ended(outcome: RunOutcome | SPIError) -> None:
            assert isinstance(outcome, RunOutcome), outcome
            assert outcome.state == "completed", outcome
            done.set_result(outcome.key)

        async def work() -> None:
            nonlocal most
            self._orchestrator.start_run(StartRequest(workflow_type="fed-fan", input=run_input), started)
            while not done.done():
                await asyncio.wait([done], timeout=0.02)
                most = max(most, rss())

        process, _ = await self._loop.measure(work())
        fed += sum(worker.fed for worker in self._loop.workers)
        assert fed == items, f"{fed} items were fed"
        events, recorded = await _recorded(self._orchestrator, done.result())
        return {"us": process / items * 1e6, "events": events, "recorded": recorded, "mib": (most - before) / 2**20}

    # ---- helpers

    async def _register(self, definition: WorkflowDefinition) -> None:
        await self._orchestrator.register_definition("default", dump_definition(definition))

    @staticmethod
    async def _driven(load: Load, width: int) -> None:
        for _ in range(width):
            load.start()
        await load.over.wait()

    async def _released(self, load: Load) -> None:
        self._loop.workers[0].let_go()
        await load.over.wait()


async def start_idle(orchestrator: Orchestrator, runs: int) -> None:
    """Runs that wait for a far time: at that rate, so many at once; again while the store cannot be asked."""
    room, began = asyncio.Semaphore(AT_ONCE), time.perf_counter()

    def start(request: StartRequest) -> None:
        def started(outcome: StartOutcome | SPIError) -> None:
            if isinstance(outcome, StoreUnavailable):
                asyncio.get_running_loop().call_later(0.1, start, request)
            else:
                assert isinstance(outcome, StartOutcome), outcome
                room.release()

        orchestrator.start_run(request, started)

    for number in range(runs):
        if not number % 50:
            await asyncio.sleep(max(0.0, began + number / STARTED_A_SECOND - time.perf_counter()))
        await room.acquire()
        request_id = f"{time.time_ns()}-{number}"
        start(StartRequest(workflow_type="bench-chain-compute", input=INPUT, request_id=request_id, delay=DELAY))
    for _ in range(AT_ONCE):
        await room.acquire()


async def paged_out(orchestrator: Orchestrator) -> None:
    """Until no run is in memory, and that is durable."""
    while any(shard.runs for shard in orchestrator.shards.values()):
        await asyncio.sleep(0.1)
    await orchestrator._kernel.lane.durable()


async def _recorded(orchestrator: Orchestrator, key: RunKey) -> tuple[int, int]:
    """(events of the run, items whose outcome is among them)."""
    events, items, page = 0, set[int](), list[EventView]()
    while events == 0 or page:
        page = list(await orchestrator.read_history(key, events + 1))
        events += len(page)
        for event in page:
            if event.type == "task.completed" and event.task == "item":
                items.update(event.data["items"])
    return events, len(items)


async def _serve(folder: str, shards: int, workers: int) -> None:
    def say(figures: dict[str, float]) -> None:
        sys.stdout.write(f"{json.dumps(figures)}\n")
        sys.stdout.flush()

    began = time.perf_counter()
    async with EngineLoop(folder, shards=shards, workers=workers) as loop:
        system = System(loop)
        await loop.run("single", 1)
        say({"seconds": time.perf_counter() - began})
        await system.chains(PART)  # warm
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, number = line.split()
            order: Awaitable[dict[str, float]] = getattr(system, name)(int(number))
            say(await order)


def main() -> None:
    folder, shards, workers = sys.argv[1:]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    sys.setswitchinterval(0.0005)
    asyncio.run(_serve(folder, int(shards), int(workers)))


if __name__ == "__main__":
    main()
