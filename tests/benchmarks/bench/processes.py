"""The processes under measurement: one orchestrator and one worker, with what /proc says of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from onexflow.client import Client, connect
from onexflow.ports.client_link import NodeView
from onexflow.registry.etcd.member import free_ports

TICKS = os.sysconf("SC_CLK_TCK")
START_WITHIN: Final = 20.0  #: seconds


def free_port() -> int:
    """A port that nobody listens on now, nor will by chance."""
    return free_ports(1)[0]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its ended children, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def memory_mib(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of a process in MiB."""
    sizes = dict.fromkeys(("Rss", "Pss"), 0.0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) / 1024
    return sizes["Rss"], sizes["Pss"]


async def spawn(
    module: str, *arguments: str, stdin: int | None = None, stdout: int | None = None, **more: str
) -> asyncio.subprocess.Process:
    """Start `python -m module`, which can import what this process can. `more` is added to its environment."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdin=stdin, stdout=stdout,
        env={**os.environ, "PYTHONPATH": path, **more},
    )  # fmt: skip


class Cluster:
    """An orchestrator on SQLite (synchronous=FULL) and a worker, as subprocesses of the shipped binaries. `shards` 0: as many
    as a new store has. `environment` is added to the orchestrator's."""

    def __init__(
        self,
        store: str = "",
        slots: int = 64,
        *,
        shards: int = 0,
        registry: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._folder = tempfile.TemporaryDirectory(prefix="onexflow-bench-")
        self.store = store or f"sqlite:{self._folder.name}/bench.db"
        self._slots = slots
        self._shards = shards
        self._registry = ("--registry-url", registry) if registry else ()
        self._environment = environment or {}
        self.orchestrator: asyncio.subprocess.Process | None = None
        self.worker: asyncio.subprocess.Process | None = None

    @property
    def processes(self) -> dict[str, asyncio.subprocess.Process]:
        """Those that were started, by name."""
        both = (("orchestrator", self.orchestrator), ("worker", self.worker))
        return {name: process for name, process in both if process is not None}

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes.items()}

    @property
    def ended(self) -> dict[str, int]:
        """The exit codes of those that are no more; below 0: the signal that ended it."""
        return {name: one.returncode for name, one in self.processes.items() if one.returncode is not None}

    async def start_orchestrator(self) -> None:
        self.orchestrator = await self._spawn_orchestrator(self.address)

    async def _spawn_orchestrator(self, address: str) -> asyncio.subprocess.Process:
        return await self._spawn(
            "orchestrator", "--listen", address, "--store-url", self.store,
            "--store-shards", str(self._shards), "--log-level", "warning", **self._environment,
        )  # fmt: skip

    async def start_worker(self) -> None:
        slots = str(self._slots)
        self.worker = await self._spawn(
            "worker", "benchmarks.bench.handlers", "--orchestrators", self.address, "--log-level", "warning",
            "--slots-compute", slots, "--slots-effect", slots, "--slots-reducer", "4",
        )  # fmt: skip

    async def _spawn(self, binary: str, *arguments: str, **more: str) -> asyncio.subprocess.Process:
        return await spawn(f"onexflow.app.{binary}", *arguments, *self._registry, stdout=subprocess.DEVNULL, **more)

    async def __aenter__(self) -> Self:
        try:
            await self.start_orchestrator()
            await self.start_worker()
            async with await connect(self.address, timeout=START_WITHIN) as client:
                await self._worker_connected(client)
        except BaseException:
            await self._stop()
            raise
        return self

    async def _worker_connected(self, client: Client) -> None:
        nodes: Sequence[NodeView] = ()
        try:
            async with asyncio.timeout(START_WITHIN):
                while not any(node.kind != "orchestrator" and node.connected for node in nodes):
                    await asyncio.sleep(0.02)
                    nodes = await client.nodes()
        except TimeoutError as error:
            raise TimeoutError(f"no worker after {START_WITHIN:g} s; ended: {self.ended}, nodes: {nodes}") from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for process in (self.worker, self.orchestrator):
            if process is not None:
                await self._end(process)
        self._folder.cleanup()

    @staticmethod
    async def _end(process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 15.0)
            except TimeoutError:
                process.kill()
                await process.wait()
