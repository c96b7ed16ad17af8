"""The probe's server: `python -m benchmarks.probe.server LOG SHARDS`. It prints its port when it serves."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from onexflow.app.tuning import loop_factory, poll_directly, settle_memory

from . import wire
from .log import Log, Row

Context = Any


class Run:
    """What is known of one open run. `tasks` counts the reducer of a fan-out, which is its last."""

    __slots__ = ("client", "id", "inputs", "left", "number", "pending", "results", "seq", "shard", "tasks")

    def __init__(self, number: int, shard: int, start: wire.Start, client: Outbox) -> None:
        self.number = number
        self.id, self.tasks, self.inputs = start
        self.shard = shard
        self.client = client
        self.seq = 1
        self.left = self.tasks
        self.results: list[bytes] = [b""] * (self.tasks - 1) if self.is_fan else []
        self.pending: list[wire.Event] = []

    @property
    def is_fan(self) -> bool:
        return len(self.inputs) > 1


class Outbox:
    """Of one stream: what leaves with the next write."""

    def __init__(self) -> None:
        self.tasks: list[wire.Task] = []
        self.acks: list[bytes] = []
        self.ends: list[tuple[bytes, bytes]] = []
        self._wake = asyncio.Event()

    def mark(self) -> None:
        self._wake.set()

    async def write(self, context: Context) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.tasks:
                messages = [wire.encode(part) for part in wire.parts(self.tasks)]
                self.tasks.clear()
                for message in messages:
                    await context.write(message)
            if self.acks or self.ends:
                message = wire.encode((self.acks, self.ends))
                self.acks.clear()
                self.ends.clear()
                await context.write(message)


class Server:
    def __init__(self, log: Log, shards: int) -> None:
        self._log = log
        self._runs: dict[int, Run] = {}
        self._numbers = 0
        self._heads = [1] * shards
        self._worker = Outbox()
        self._changed: list[Run] = []
        self._after: list[Callable[[], None]] = []
        self._outboxes: set[Outbox] = {self._worker}
        self._is_busy = self._is_marked = False

    # ---- what comes in

    async def client(self, requests: AsyncIterator[bytes], context: Context) -> None:
        outbox = Outbox()
        self._outboxes.add(outbox)
        writer = asyncio.ensure_future(outbox.write(context))
        async for message in requests:
            for start in wire.starts.decode(message):
                self._start(start, outbox)
        writer.cancel()
        self._outboxes.discard(outbox)

    async def worker(self, requests: AsyncIterator[bytes], context: Context) -> None:
        writer = asyncio.ensure_future(self._worker.write(context))
        async for message in requests:
            for number, step, payload in wire.results.decode(message):
                self._complete(number, step, payload)
        writer.cancel()

    def _start(self, start: wire.Start, client: Outbox) -> None:
        self._numbers += 1
        number = self._numbers
        run = self._runs[number] = Run(number, number % len(self._heads), start, client)
        inputs = run.inputs
        events: list[wire.Event] = [(wire.CREATED, 0, wire.encode(inputs) if run.is_fan else inputs[0])]
        events += [(wire.SCHEDULED, step, b"") for step in range(len(inputs))]

        def durable() -> None:
            client.acks.append(run.id)
            self._worker.tasks += [(number, step, given) for step, given in enumerate(inputs)]

        self._record(run, events, durable)

    def _complete(self, number: int, step: int, payload: bytes) -> None:
        run = self._runs[number]
        events: list[wire.Event] = [(wire.STARTED, step, b""), (wire.COMPLETED, step, payload)]
        run.left -= 1
        after = None
        if run.left == 0:
            events.append((wire.FINISHED, 0, payload))
            del self._runs[number]
            after = partial(run.client.ends.append, (run.id, payload))
        elif not run.is_fan:
            events.append((wire.SCHEDULED, step + 1, b""))
            after = partial(self._worker.tasks.append, (number, step + 1, run.inputs[0]))
        else:
            run.results[step] = payload
            if run.left == 1:
                events.append((wire.SCHEDULED, run.tasks - 1, b""))
                after = partial(self._worker.tasks.append, (number, run.tasks - 1, wire.encode(run.results)))
        self._record(run, events, after)

    # ---- group commit

    def _record(self, run: Run, events: list[wire.Event], after: Callable[[], None] | None) -> None:
        if not run.pending:
            self._changed.append(run)
        run.pending += events
        if after is not None:
            self._after.append(after)
        if not self._is_busy and not self._is_marked:
            self._is_marked = True
            asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        self._is_marked = False
        self._is_busy = True
        changed, self._changed = self._changed, []
        after, self._after = self._after, []
        rows: list[Row] = []
        heads = self._heads
        for run in changed:
            events, run.pending = run.pending, []
            count, shard = len(events), run.shard
            rows.append((shard, heads[shard], count, run.number, run.seq, wire.encode(events)))
            heads[shard] += count
            run.seq += count
        self._log.append(rows, lambda: self._durable(after))

    def _durable(self, after: list[Callable[[], None]]) -> None:
        self._is_busy = False
        for release in after:
            release()
        for outbox in self._outboxes:
            if outbox.tasks or outbox.acks or outbox.ends:
                outbox.mark()
        if self._changed:
            self._commit()


async def main(path: str, shards: int) -> None:
    log = Log(path)
    service = Server(log, shards)
    server = grpc.aio.server()
    methods: dict[str, Any] = {
        wire.CLIENT: grpc.stream_stream_rpc_method_handler(service.client),
        wire.WORKER: grpc.stream_stream_rpc_method_handler(service.worker),
    }
    server.add_generic_rpc_handlers([_Handlers(methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settle_memory()
    print(port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)
    log.stop()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


if __name__ == "__main__":
    poll_directly()
    sys.setswitchinterval(0.0005)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
