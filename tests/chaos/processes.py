"""A cluster of real processes that scenarios kill: etcd, an orchestrator, workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.bench.processes import free_port
from onexflow.audit import audit
from onexflow.client import Client, connect
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.storage.sqlite.archive import SqliteArchive

DEADLINE = 60.0


async def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Wait for a condition, with a deadline that says what was waited for."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(0.005)


def ports_of(pids: Iterable[int]) -> set[int]:
    """The local TCP ports of these processes."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it was closed as we looked
                sockets.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path("/proc/net", table).read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in sockets}


class Processes:
    """One cluster in a folder of its own. `workers` is by id."""

    def __init__(self, *, seconds: float = 0.02, through: str = "", program: str = "onexflow.app.orchestrator") -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="onexflow-chaos-")
        self.folder = Path(self._temporary.name)
        # Made before the workers that write to it: changing to WAL is refused while another connection is open.
        with closing(sqlite3.connect(self.folder / "ledger.db")) as ledger:
            ledger.execute("PRAGMA journal_mode=WAL")
            ledger.execute("CREATE TABLE charge (key TEXT PRIMARY KEY, token TEXT) WITHOUT ROWID")
        self.address = f"127.0.0.1:{free_port()}"
        #: Where the workers connect, when that is not the orchestrator itself (a relay).
        self.through = through
        self.seconds = seconds
        #: The module that is run as the orchestrator.
        self.program = program
        self.etcd = EmbeddedEtcd()
        self.orchestrator: asyncio.subprocess.Process | None = None
        self.workers: dict[str, asyncio.subprocess.Process] = {}

    async def spawn(self, name: str, module: str, *arguments: str) -> asyncio.subprocess.Process:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            "ONEXFLOW_CHAOS_FOLDER": str(self.folder),
            "ONEXFLOW_CHAOS_SECONDS": str(self.seconds),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments, env=environment, stdout=log, stderr=log
            )

    async def start_orchestrator(self) -> None:
        self.orchestrator = await self.spawn(
            "orchestrator", self.program, "--listen", self.address, "--registry-url", self.etcd.url,
            "--store-url", f"sqlite:{self.folder}/store.db", "--node-id", "o1",
        )  # fmt: skip

    async def start_worker(self, name: str, slots: int = 16, *flags: str) -> None:
        self.workers[name] = await self.spawn(
            name, "onexflow.app.worker", "chaos.chaos_handlers", "--worker-id", name,
            "--orchestrators", self.through or self.address, "--registry-url", self.etcd.url,
            "--slots-effect", str(slots), "--slots-compute", str(slots), *flags,
        )  # fmt: skip

    async def client(self) -> Client:
        return await connect(self.address, timeout=30.0)

    async def wait_for_workers(self, client: Client, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while True:
                nodes = await client.nodes()
                if len({node.node_id for node in nodes if node.kind != "orchestrator" and node.connected}) >= count:
                    return
                await asyncio.sleep(0.02)

    def kill(self, process: asyncio.subprocess.Process | None) -> int:
        """`kill -9`; returns the time, UTC ns."""
        assert process is not None
        process.send_signal(signal.SIGKILL)
        return time.time_ns()

    def logs(self) -> str:
        """The end of every process's log, for a failure's report."""
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in sorted(self.folder.glob("*.log"))
                         if not file.name.startswith("trace"))  # fmt: skip

    async def __aenter__(self) -> Self:
        await self.etcd.start()
        await self.start_orchestrator()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.logs(), file=sys.stderr)
        for process in (*self.workers.values(), self.orchestrator):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
        await self.etcd.stop()
        try:
            if error is None:
                await self._audit()
        finally:
            self._temporary.cleanup()

    async def _audit(self) -> None:
        """Whatever was killed: the log that is left tells one consistent story."""
        archive = SqliteArchive(self.folder / "store.db")
        await archive.open()
        try:
            report = await audit(archive)
        finally:
            archive.close()
        assert report.is_consistent, "\n".join(map(str, report.findings[:20]))
        assert report.runs
