"""Print the CPU that a worker's runtime uses for one no-op task: batches of 64 in, results and credits out.

    python tests/benchmarks/worker_loop.py [BATCHES]

Everything but the wire is in it: books, credits, decoding and encoding of a small contract, results, acknowledgements.
The goal of a worker, with its wire, is 30 µs a task.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time

from onexflow.core.ids import Token
from onexflow.core.payload import Payload
from onexflow.ports.worker_link import (
    Ack,
    Assignment,
    Assignments,
    Credits,
    Demand,
    FromWorker,
    Results,
    TaskInfo,
    Welcome,
)
from onexflow.worker.handlers import Worker
from onexflow.worker.peers import OrchestratorPeer
from onexflow.worker.runtime import WorkerRuntime

BATCH = 64
ROUNDS = 7
NOOP = TaskInfo("bench", "noop", "effect", "noop")


class RealClock:
    """Clock port over the system's clocks."""

    now = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class CountingLink:
    """Acknowledges each result, and says when a batch is done and the next may come."""

    def __init__(self) -> None:
        self.peer: OrchestratorPeer | None = None
        self.results = 0
        self.messages = 0
        self.credits = 0
        self.target = 0
        self.reached = asyncio.Event()

    def send(self, message: FromWorker) -> None:
        self.messages += 1
        if isinstance(message, Results):
            self.results += len(message.results)
            assert self.peer is not None
            assert all(result.status == "completed" for result in message.results)
            self.peer.on_message(Ack([result.token for result in message.results]))
        elif isinstance(message, Credits):
            self.credits += message.granted["effect"]
        if self.results >= self.target and self.credits >= BATCH:
            self.reached.set()

    def close(self) -> None:
        return None


def assignments(first: int) -> Assignments:
    """One batch, with tokens of its own."""
    return Assignments(
        [
            Assignment(
                token=Token(0, 1, first + n), info=NOOP, namespace="default",
                instance_id="0192d3a0-0000-7000-8000-000000000000", attempt=1,
                input=Payload(b'{"order": 17, "items": [1, 2, 3], "note": "a small contract"}'),
            )
            for n in range(BATCH)
        ]
    )  # fmt: skip


async def measure(batches: int) -> tuple[float, int]:
    """CPU seconds of `batches` batches, and the messages that were sent."""
    worker = Worker("bench")

    @worker.effect("noop")
    async def noop(contract: object) -> object:
        return {"ok": True}

    async with WorkerRuntime(
        worker, worker_id="w", incarnation="i", clock=RealClock(), slots={"effect": 2 * BATCH}
    ) as runtime:
        link = CountingLink()
        link.peer = runtime.attach(link)
        link.peer.on_message(Welcome(orchestrator_id="o", epochs={0: 1}))
        used = 0.0
        for batch in range(batches):
            message = assignments(batch * BATCH)
            link.target += BATCH
            link.reached.clear()
            before = time.process_time()
            link.credits -= BATCH
            link.peer.on_message(Demand({"effect": BATCH}))
            link.peer.on_message(message)
            await link.reached.wait()
            used += time.process_time() - before
        return used, link.messages


def main() -> None:
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    gc.freeze()
    # The best of several rounds: what else runs on the machine only ever adds.
    used, messages = min(asyncio.run(measure(batches)) for _ in range(ROUNDS))
    tasks = batches * BATCH
    sys.stdout.write(f"{used / tasks * 1e6:.1f} µs CPU a task; {tasks} tasks, {messages} messages\n")


if __name__ == "__main__":
    main()
