"""`scripts/bench overload`: three times what the cluster can do, for a while. What becomes of it?

First a closed loop of 200 single-task runs finds the peak, then an open loop starts three times as many a second. The load
comes over one plain generated stub, not the client library, so that refusals are seen and not repeated. Beside it unary
calls, one every half second, show what a plain stub is told. A latency is that of one start with wait: from the moment at
which it is handed to the stream until its run's result is here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from onexflow.client import connect
from onexflow.codec.payload import encode_value
from onexflow.codec.wire.common import MAX_BATCH, payload_to_pb
from onexflow.v1 import workflow_pb2 as pb
from onexflow.v1 import workflow_pb2_grpc

from .machine import machine
from .processes import Cluster, cpu_seconds
from .workloads import PAYLOAD, Onexflow

WIDTH: Final = 200  #: of the closed loop
TIMES: Final = 3
#: Seconds: of the closed loop before, between starts of the open loop, after its end, and between looks at the memory.
CLOSED_SECONDS: Final = 8.0
TICK: Final = 0.002
AFTER_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.2
UNARY_SECONDS: Final = 0.5


class Refusals(NamedTuple):
    """How starts were refused: how many with each code, and the pauses that were asked for."""

    codes: Counter[str]
    pauses: list[float]


class Stream:
    """The plain stub's stream: starts leave in batches, `on_answer` is told of each answer."""

    def __init__(self, call: Any, start: pb.StartWorkflowRequest) -> None:
        self._call = call
        self._start = start
        self._last = 0
        self._queue: list[int] = []
        self._wake = asyncio.Event()
        self.open: dict[int, float] = {}
        self.latencies: list[float] = []
        self.refusals = Refusals(Counter(), [])
        self.failed: Counter[str] = Counter()
        self.on_answer: Callable[[], None] = lambda: None

    def start(self, count: int) -> None:
        """So many runs, now."""
        now = time.perf_counter()
        for _ in range(count):
            self._last += 1
            self.open[self._last] = now
            self._queue.append(self._last)
        self._wake.set()

    async def write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                ids, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
                request = pb.ConnectRequest()
                for call_id in ids:
                    request.batch.starts.add(call_id=call_id, start=self._start)
                await self._call.write(request)

    async def read(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            for answer in message.batch.answers:
                self._answered(answer)

    def _answered(self, answer: pb.Answer) -> None:
        began = self.open.pop(answer.call_id)
        if answer.WhichOneof("answer") == "ended":
            self.latencies.append(time.perf_counter() - began)
            if answer.ended.state != "completed":
                self.failed[answer.ended.state] += 1
        else:
            self.refusals.codes[answer.error.code] += 1
            self.refusals.pauses.append(answer.error.retry_after)
        self.on_answer()

    def forget(self) -> None:
        """Count anew."""
        self.latencies, self.refusals, self.failed = [], Refusals(Counter(), []), Counter()


@contextlib.asynccontextmanager
async def stream(address: str, start: pb.StartWorkflowRequest) -> AsyncIterator[Stream]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = workflow_pb2_grpc.WorkflowServiceStub(channel).Connect()
        await call.write(pb.ConnectRequest(hello=pb.ConnectHello(protocol_version=1, client_id="overload")))
        await call.read()
        found = Stream(call, start)
        tasks = [asyncio.create_task(found.write()), asyncio.create_task(found.read())]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def closed(load: Stream, seconds: float) -> float:
    """WIDTH runs in flight, always. Returns runs a second."""
    load.forget()
    ends = time.perf_counter() + seconds
    over = asyncio.Event()

    def answered() -> None:
        if time.perf_counter() < ends:
            load.start(1)
        elif not load.open:
            over.set()

    load.on_answer = answered
    began = time.perf_counter()
    load.start(WIDTH)
    await over.wait()
    load.on_answer = lambda: None
    return len(load.latencies) / (time.perf_counter() - began)


async def opened(load: Stream, rate: float, seconds: float) -> float:
    """So many starts a second, whatever becomes of them. Returns how many a second there were."""
    load.forget()
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        due = int(passed * rate)
        load.start(due - done)
        done = due
        await asyncio.sleep(TICK)
    took = time.perf_counter() - began
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(AFTER_SECONDS):
            while load.open:
                await asyncio.sleep(0.05)
    return done / took


async def watch_memory(pid: int, seen: list[float]) -> None:
    """RSS in MiB, every so often."""
    while True:
        seen.append(rss_mib(pid))
        await asyncio.sleep(LOOK_SECONDS)


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def ask_alone(address: str, start: pb.StartWorkflowRequest, told: Counter[str]) -> None:
    """A unary start every so often, over a plain stub without retries: the status, and whether RetryInfo came with it."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        while True:
            try:
                await stub.StartWorkflow(start, timeout=30.0)
                told["OK"] += 1
            except grpc.aio.AioRpcError as error:
                told[f"{error.code().name}{' with RetryInfo' if has_retry_info(error) else ''}"] += 1
            await asyncio.sleep(UNARY_SECONDS)


def has_retry_info(error: grpc.aio.AioRpcError) -> bool:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            info = error_details_pb2.RetryInfo()
            status = status_pb2.Status.FromString(value)
            return any(
                detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.retry_delay.ToNanoseconds() > 0
                for detail in status.details
            )
    return False


class Cpu:
    """CPUs that each process has used since the last look."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.shown = ""
        self._at, self._used = time.perf_counter(), self._read()

    def _read(self) -> dict[str, float]:
        return {**{name: cpu_seconds(pid) for name, pid in self._pids.items()}, "load": time.process_time()}

    def look(self) -> str:
        at, used = time.perf_counter(), self._read()
        shown = ", ".join(f"{name} {(used[name] - self._used[name]) / (at - self._at):.2f}" for name in used)
        self._at, self._used = at, used
        return shown


async def measure(seconds: float) -> tuple[str, bool]:
    """The table, and whether everything held."""
    async with Cluster() as cluster:
        runner = await Onexflow.open(cluster, "compute")
        await runner.close()
        kind, payload = "bench-single-compute", payload_to_pb(encode_value(PAYLOAD))
        start = pb.StartWorkflowRequest(workflow_type=kind, input=payload, wait=True)
        async with stream(cluster.address, start) as load:
            await closed(load, 2.0)  # warm
            cpu = Cpu(cluster.pids)
            peak = await closed(load, CLOSED_SECONDS)
            cpu_closed = cpu.look()
            normal = sorted(load.latencies)
            before = await _runs(cluster.address, kind)
            memory: list[float] = []
            told: Counter[str] = Counter()
            alone = pb.StartWorkflowRequest(workflow_type=kind, input=payload)
            beside = [
                asyncio.create_task(watch_memory(cluster.pids["orchestrator"], memory)),
                asyncio.create_task(ask_alone(cluster.address, alone, told)),
            ]
            cpu.look()
            offered = await opened(load, peak * TIMES, seconds)
            cpu_open = cpu.look()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            accepted = sorted(load.latencies)
            refused = load.refusals
            lost = len(load.open)
            stored = await _runs(cluster.address, kind) - before
        ratio = _at(accepted, 0.99) / _at(normal, 0.99)
        pauses = f"{min(refused.pauses):.2f} to {max(refused.pauses):.2f}" if refused.pauses else "none"
        rows = [
            ("closed loop of 200", f"{peak:,.0f} runs/s, p50 / p99 {_ms(normal, 0.5)} / {_ms(normal, 0.99)} ms"),
            ("CPUs in it", cpu_closed),
            ("open loop", f"{offered:,.0f} starts/s offered for {seconds:.0f} s, {peak * TIMES:,.0f} wanted"),
            ("CPUs in it", cpu_open),
            ("accepted", f"{len(accepted):,} ({len(accepted) / seconds:,.0f}/s), of these failed: {sum(load.failed.values())}"),
            ("refused", f"{sum(refused.codes.values()):,}, codes {dict(refused.codes)}, RetryInfo {pauses} s"),
            ("unary starts", ", ".join(f"{name}: {count}" for name, count in sorted(told.items()))),
            ("lost: never answered", f"{lost}"),
            ("runs in the store", f"{stored:,} = accepted and unary OK {len(accepted) + told['OK']:,}"),
            ("accepted, p50 / p99", f"{_ms(accepted, 0.5)} / {_ms(accepted, 0.99)} ms"),
            ("p99 to that of the closed loop", f"{ratio:.2f} (at most 2)"),
            ("RSS of the orchestrator", f"{memory[0]:.0f} MiB before, {memory[-1]:.0f} after, {max(memory):.0f} at most"),
        ]  # fmt: skip
        held = not lost and ratio <= 2 and stored == len(accepted) + told["OK"] and set(refused.codes) == {"OXF-1201"}
        lines = ["| what | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return "\n".join(lines), held


async def _runs(address: str, kind: str) -> int:
    """Runs of that type in the store."""
    async with await connect(address, timeout=20.0) as client:
        return sum((await client.metrics(kind)).by_state.values())


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _ms(ordered: list[float], share: float) -> str:
    return f"{_at(ordered, share) * 1e3:.0f}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("scripts/bench overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the overload lasts [10]")
    parser.add_argument("--write", metavar="FILE", help="write the table to FILE as well (docs/measured/…)")
    given = parser.parse_args(arguments)
    heading = f"{machine()}; SQLite synchronous=FULL, one orchestrator, one worker process"
    sys.stderr.write(f"{heading}\n")
    table, held = asyncio.run(measure(given.seconds))
    text = f"{heading}\n\n{table}\n\nEverything held: {'yes' if held else 'no'}.\n"
    sys.stdout.write(text)
    if given.write:
        Path(given.write).write_text(f"# Overload\n\n{text}")
    return 0 if held else 1
