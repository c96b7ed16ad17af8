"""The probe's client and its processes, with the same workloads as the benchmark's."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import grpc

from . import wire
from .log import check


class Probe:
    """A server and a worker as subprocesses, and the client's stream to them."""

    def __init__(self, shards: int) -> None:
        """`shards`: as many as the log of the project beside it has."""
        self._shards = shards
        self._folder = tempfile.TemporaryDirectory(prefix="onexflow-probe-")
        self._path = f"{self._folder.name}/probe.db"
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._acked: set[bytes] = set()
        self._starts: list[wire.Start] = []
        self._wake = asyncio.Event()
        self._runs = 0

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    async def run(self, tasks: int, inputs: list[bytes]) -> bytes:
        """One run, from its start to its result."""
        run_id = uuid4().bytes
        self._waiting[run_id] = ended = asyncio.get_running_loop().create_future()
        self._starts.append((run_id, tasks, inputs))
        self._wake.set()
        result: bytes = await ended
        return result

    async def __aenter__(self) -> Self:
        port = await self._spawn("orchestrator", "server", self._path, str(self._shards))
        await self._spawn("worker", "worker", port)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._call: Any = self._channel.stream_stream(wire.CLIENT)()
        await self._call.wait_for_connection()
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]
        return self

    async def _spawn(self, name: str, module: str, *arguments: str) -> str:
        """Returns what the process says when it is ready."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"benchmarks.probe.{module}",
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        self._processes[name] = process
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), 20.0)
        assert said, f"the probe's {module} did not start"
        return said.decode().strip()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            starts, self._starts = self._starts, []
            for part in wire.parts(starts):
                await self._call.write(wire.encode(part))

    async def _read(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            acks, ends = wire.told.decode(message)
            self._acked.update(acks)
            for run_id, result in ends:
                assert run_id in self._acked, "a run ended whose start was not acknowledged"
                self._acked.discard(run_id)
                self._runs += 1
                self._waiting.pop(run_id).set_result(result)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._channel.close()
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
            await process.wait()
        try:
            if error is None:
                assert check(self._path) == self._runs, "the probe's log does not hold what it acknowledged"
        finally:
            self._folder.cleanup()
