"""A whole cluster on this machine: the processes of a cluster file, started in order and kept alive."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from onexflow.app.processes import ChildProcess
from onexflow.config import Cluster, WorkerProcess
from onexflow.core.definition import ROLES
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd

#: Seconds that a process has to stop, beyond its own drain time.
STOP_GRACE: Final = 5.0
DRAIN: Final = 5.0


class Supervisor:
    """Starts and stops the processes of `cluster`. `processes.json` in its data folder always says which run."""

    def __init__(self, cluster: Cluster, *, report: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.data = Path(cluster.data)
        self.registry_url = "memory:"
        self.etcd: EmbeddedEtcd | None = None
        self.orchestrator: ChildProcess | None = None
        self.workers: list[ChildProcess] = []
        self._report = report

    @property
    def address(self) -> str:
        """Where the orchestrator serves."""
        assert self.orchestrator is not None, "address comes after start"
        return self.orchestrator.served_at

    async def start(self) -> None:
        """etcd, then the orchestrator, then the workers, each serving before the next begins. Raises StartFailed."""
        self.data.mkdir(parents=True, exist_ok=True)
        await self._start_etcd()
        self.orchestrator = self._child("orchestrator", self.cluster.orchestrator.id, self._orchestrator_flags())
        await self.orchestrator.start()
        for process in self.cluster.worker:
            for number in range(process.count):
                name = process.id if process.count == 1 else f"{process.id}-{number + 1}"
                worker = self._child(
                    "worker", name, self._worker_flags(process, name), restart=process.when_it_dies == "restart"
                )
                self.workers.append(worker)
                await worker.start()

    async def stop(self) -> None:
        """Workers first, so that they can hand back what they have; etcd last. Idempotent."""
        for worker in self.workers:
            await worker.stop(DRAIN + STOP_GRACE)
        if self.orchestrator is not None:
            await self.orchestrator.stop(DRAIN + STOP_GRACE)
        if self.etcd is not None:
            await self.etcd.stop()
        (self.data / "processes.json").unlink(missing_ok=True)

    async def _start_etcd(self) -> None:
        wanted = self.cluster.etcd
        if wanted is None:
            return
        if wanted.endpoints:
            self.registry_url = f"etcd3://{','.join(wanted.endpoints)}"
        elif find_etcd() is None:
            self._report("no etcd here (none on PATH, onexflow[embedded] is not installed): the registry is in memory")
        else:
            self.etcd = EmbeddedEtcd()
            await self.etcd.start()
            self.registry_url = self.etcd.url

    def _orchestrator_flags(self) -> list[str]:
        orchestrator = self.cluster.orchestrator
        return [
            f"--listen={orchestrator.listen}",
            f"--node-id={orchestrator.id}",
            "--reflection",
        ]

    def _worker_flags(self, process: WorkerProcess, name: str) -> list[str]:
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
        return flags

    def _child(self, program: str, name: str, flags: list[str], *, restart: bool = True) -> ChildProcess:
        environment = {}
        if program == "orchestrator":  # not as a flag: it may hold a password, and flags are there for all to read
            default = f"sqlite:{self.data / 'onexflow.db'}"
            environment["ONEXFLOW_STORE__URL"] = self.cluster.orchestrator.store or default
        return ChildProcess(
            name,
            [
                f"onexflow.app.{program}",
                *flags,
                f"--registry-url={self.registry_url}",
                f"--cluster={self.cluster.name}",
                "--log-format=json",
            ],
            log=self.data / f"{name}.log",
            restart=restart,
            report=self._report,
            on_change=self._write_processes,
            environment=environment,
        )

    def _write_processes(self) -> None:
        """For scripts: who runs where. Replaced at once, so that a reader never sees half of it."""
        children = [child for child in (self.orchestrator, *self.workers) if child is not None]
        running = {child.name: child.pid for child in children if child.pid is not None}
        if self.etcd is not None and self.etcd.pid is not None:
            running["etcd"] = self.etcd.pid
        content = {
            "supervisor": os.getpid(),
            "address": self.orchestrator.served_at if self.orchestrator is not None else "",
            "registry": self.registry_url,
            "processes": running,
        }
        target = self.data / "processes.json"
        draft = target.with_suffix(".new")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.replace(target)
