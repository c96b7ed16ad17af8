"""Print the CPU that an orchestrator uses for one no-op task, without gRPC: engine, wire form, SQLite with its thread.

    PYTHONPATH=tests python tests/benchmarks/engine_loop.py [chain | single] [RUNS] [--calls]

Clients and worker are calls in the same process. What the worker would do for its half of the wire is not counted. It
varies a third as much as `scripts/bench`, so a change of a few µs a task shows: run it in turns with the commit before.
`--calls` prints calls of Python functions on the loop's thread instead: a figure that no other load on the machine moves.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Self

from benchmarks.bench.workloads import definitions
from onexflow.app.system import SystemClock, SystemIds
from onexflow.app.tuning import settle_memory
from onexflow.codec.definitions import dump_definition
from onexflow.codec.payload import JsonCodec
from onexflow.codec.wire.worker_request import from_request, to_requests
from onexflow.codec.wire.worker_response import to_responses
from onexflow.core.ids import Token
from onexflow.core.payload import Payload
from onexflow.engine.orchestrator import Orchestrator
from onexflow.ports.client_link import RunOutcome, StartOutcome, StartRequest
from onexflow.ports.worker_link import (
    Ack,
    Assignment,
    Assignments,
    AttemptResult,
    Credits,
    Fed,
    Feed,
    HandlerInfo,
    Hello,
    Results,
    ToWorker,
    WorkerPeer,
)
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.spi.exceptions import SPIError
from onexflow.storage.sqlite import SqliteStore
from onexflow.v1 import worker_pb2 as pb

BATCH = 64
WIDTH = 200
ROUNDS = 5
INPUT = Payload(b'{"order_id":"ORD-12345","customer_id":"CUST-67890","amount":99.99,"note":"%s"}' % (b"x" * 30))
RESULT = Payload(b'{"ok":true}')


class InstantWorker:
    """A worker's stream whose handlers take no time. `excluded`: CPU seconds of the worker's half of the wire. While it
    `holds`, it answers nothing."""

    def __init__(self) -> None:
        self.peer: WorkerPeer | None = None
        self.excluded = 0.0
        self.holds = False
        self._waiting: list[Assignment] = []
        self._folds: dict[Token, Assignment] = {}
        #: Items that its reducers were fed.
        self.fed = 0

    def send(self, message: ToWorker) -> None:
        if isinstance(message, Assignments | Ack | Feed):
            for one in to_responses(message, shares_tasks=True):
                one.SerializeToString()
        if isinstance(message, Assignments):
            for assignment in message.assignments:
                if assignment.info.fed:
                    self._folds[assignment.token] = assignment
                    asyncio.get_running_loop().call_soon(self._say, Fed(assignment.token, 0))
            self._take([one for one in message.assignments if not one.info.fed])
        elif isinstance(message, Feed):
            self.fed += len(message.items)
            if message.items:
                asyncio.get_running_loop().call_soon(self._say, Fed(message.token, len(message.items)))
            if message.is_last:
                self._take([self._folds.pop(message.token)])

    def _take(self, assignments: list[Assignment]) -> None:
        if not (self._waiting or self.holds):
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting.extend(assignments)

    def let_go(self) -> None:
        """Answer what was held, and what comes."""
        self.holds = False
        self._answer()

    def close(self, reason: str = "") -> None:
        """Nothing is open."""

    def _answer(self) -> None:
        taken, self._waiting = self._waiting, []
        at = time.time_ns()
        for first in range(0, len(taken), BATCH):
            part = taken[first : first + BATCH]
            self._say(Results([AttemptResult(one.token, "completed", RESULT, None, at, at) for one in part]))
        self._say(Credits(Counter(one.info.role for one in taken)))

    def _say(self, message: Results | Credits | Fed) -> None:
        assert self.peer is not None
        began = time.thread_time()
        raw = [one.SerializeToString() for one in to_requests(message)]
        self.excluded += time.thread_time() - began
        for one in raw:
            self.peer.on_message(from_request(pb.SessionRequest.FromString(one)))


class Load:
    """Keeps `WIDTH` runs open until `runs` have ended."""

    def __init__(self, orchestrator: Orchestrator, workflow_type: str, runs: int) -> None:
        self._orchestrator = orchestrator
        self._type = workflow_type
        self._ids = SystemIds()
        self._to_start = self._to_end = runs
        self.over = asyncio.Event()

    def start(self) -> None:
        if self._to_start:
            self._to_start -= 1
            request_id = str(self._ids.uuid())
            self._orchestrator.start_run(
                StartRequest(namespace="default", workflow_type=self._type, input=INPUT, request_id=request_id),
                self._started,
            )

    def _started(self, outcome: StartOutcome | SPIError) -> None:
        if isinstance(outcome, SPIError):
            raise outcome
        self._orchestrator.wait_run(outcome.key, self._ended)

    def _ended(self, outcome: RunOutcome | SPIError) -> None:
        assert isinstance(outcome, RunOutcome), outcome
        assert outcome.state == "completed", outcome
        self._to_end -= 1
        if self._to_end:
            asyncio.get_running_loop().call_soon(self.start)
        else:
            self.over.set()


class EngineLoop:
    """An orchestrator on a store of its own (or in `folder`), with so many workers, ready to run."""

    def __init__(self, folder: str = "", *, shards: int = 8, workers: int = 1) -> None:
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="onexflow-bench-")
        self._path = f"{folder or (self._own.name if self._own else '')}/bench.db"
        self._shards = shards
        self.workers = [InstantWorker() for _ in range(workers)]

    async def __aenter__(self) -> Self:
        clock, ids = SystemClock(), SystemIds()
        self._registry = MemoryRegistry(MemoryRegistryHub(clock))
        await self._registry.start()
        self.orchestrator = orchestrator = Orchestrator(
            SqliteStore(self._path, self._shards, clock), self._registry, clock=clock, ids=ids,
            codec=JsonCodec(), orchestrator_id="o", incarnation="i",
        )  # fmt: skip
        await orchestrator.start()
        for definition in definitions():
            await orchestrator.register_definition("default", dump_definition(definition))
        handlers = (HandlerInfo("compute", "noop", True), HandlerInfo("reducer", "count", True))
        for number, worker in enumerate(self.workers):
            worker.peer = peer = orchestrator.accept_worker(worker)
            name = f"w{number}"
            peer.on_message(
                Hello(worker_id=name, incarnation=name, handlers=handlers, slots={"compute": BATCH, "reducer": 1})
            )
            peer.on_message(Credits({"compute": 5 * BATCH, "reducer": 5}))
        settle_memory()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.orchestrator.stop()
        await self._registry.close()
        if self._own is not None:
            self._own.cleanup()

    async def run(self, shape: str, runs: int) -> tuple[float, float]:
        """(CPU seconds of the process, of the loop's thread) for so many runs, `WIDTH` of them open at a time."""
        load = Load(self.orchestrator, f"bench-{shape}-compute", runs)

        async def work() -> None:
            for _ in range(WIDTH):
                load.start()
            await load.over.wait()

        return await self.measure(work())

    async def measure(self, work: Awaitable[None]) -> tuple[float, float]:
        """(CPU seconds of the process, of the loop's thread) that it takes."""
        excluded = sum(worker.excluded for worker in self.workers)
        process, thread = time.process_time(), time.thread_time()
        await work
        process, thread = time.process_time() - process, time.thread_time() - thread
        excluded = sum(worker.excluded for worker in self.workers) - excluded
        return process - excluded, thread - excluded


async def measure(shape: str, runs: int) -> tuple[float, float]:
    """As `EngineLoop.run`, on a store of its own."""
    async with EngineLoop() as loop:
        return await loop.run(shape, runs)


async def count(shape: str, runs: int) -> tuple[int, int]:
    """(calls of Python functions, of those and of C functions) on the loop's thread, for so many runs."""
    profile = cProfile.Profile()
    async with EngineLoop() as loop:
        await loop.run(shape, WIDTH)  # imports, caches
        profile.enable()
        await loop.run(shape, runs)
        profile.disable()
    entries = profile.getstats()
    python = sum(entry.callcount for entry in entries if not isinstance(entry.code, str))
    return python, sum(entry.callcount for entry in entries)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of the orchestrator for one no-op task, without gRPC")
    parser.add_argument("shape", nargs="?", default="chain", choices=("chain", "single"))
    parser.add_argument("runs", nargs="?", type=int, default=1000)
    parser.add_argument("--calls", action="store_true", help="count calls instead")
    arguments = parser.parse_args()
    shape, runs = arguments.shape, arguments.runs
    tasks = runs * (10 if shape == "chain" else 1)
    sys.setswitchinterval(0.0005)
    if arguments.calls:
        python, every = asyncio.run(count(shape, runs))
        sys.stdout.write(
            f"{shape}: {python / tasks:.1f} calls of Python functions a task, {every / tasks:.1f} of all\n"
        )
        return
    # The best of several rounds: what else runs on the machine only ever adds.
    process, thread = min(asyncio.run(measure(shape, runs)) for _ in range(ROUNDS))
    sys.stdout.write(
        f"{shape}: {process / tasks * 1e6:.0f} µs CPU a task ({thread / tasks * 1e6:.0f} of the loop's thread);"
        f" {tasks} tasks\n"
    )


if __name__ == "__main__":
    main()
