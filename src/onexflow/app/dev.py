"""`onexflow dev`: a whole cluster on this machine in one command. For trying things out, not for production."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from onexflow import __version__
from onexflow.app import adapters, exits
from onexflow.app.signals import StopSignals
from onexflow.app.supervisor import Supervisor
from onexflow.client import connect
from onexflow.config import DEFAULT_ADDRESS, Cluster, EtcdProcess, OrchestratorProcess, WorkerProcess, load_cluster
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import InvalidConfiguration
from onexflow.telemetry import logging

#: What `--example` takes.
EXAMPLES: Final = ("greet", "order-processing", "flight-delays")


def dev(
    *modules: str,
    example: list[str] | None = None,
    cluster: Path | None = None,
    listen: str = DEFAULT_ADDRESS,
    data: Path = Path(".onexflow/dev"),
    etcd: str = "auto",
) -> int:
    """Start a whole cluster on this machine: etcd, an orchestrator, workers. Ctrl-C stops it.

    For trying things out: the event log is kept, etcd's content is not, and nothing is encrypted.

    Parameters
    ----------
    modules
        Modules with your handlers and, if they have a `definition()`, your workflows.
    example
        Also run a shipped example: greet, order-processing or flight-delays. May be repeated.
    cluster
        Start the processes of this cluster file instead (see cluster/local.toml).
    listen
        Where the orchestrator serves.
    data
        Folder for the event log and the processes' logs.
    etcd
        auto (a private one, if there is one to be found), none, or host:port,host:port of yours.
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a real stream, not a test's buffer
    adapters.make_importable(os.getcwd())  # noqa: PTH109 - sys.path holds strings
    if cluster is not None and (modules or example):
        raise InvalidConfiguration("--cluster says which modules run: name no module and no --example beside it")
    wanted = load_cluster(cluster) if cluster is not None else _cluster_of(modules, example or [], listen, data, etcd)
    return asyncio.run(_serve(wanted))


def _cluster_of(modules: tuple[str, ...], examples: list[str], listen: str, data: Path, etcd: str) -> Cluster:
    """The cluster that the flags ask for: one orchestrator, and one worker with all handlers."""
    for name in examples:
        if name not in EXAMPLES:
            raise InvalidConfiguration(f"there is no example {name!r}: {', '.join(EXAMPLES)}")
    named = (*modules, *(f"onexflow.examples.{name.replace('-', '_')}" for name in examples))
    wanted = None if etcd == "none" else EtcdProcess(embedded=True)
    if etcd not in ("none", "auto"):
        wanted = EtcdProcess(endpoints=tuple(etcd.removeprefix("etcd3://").split(",")))
    return Cluster(
        name="dev",
        data=str(data),
        etcd=wanted,
        orchestrator=OrchestratorProcess(listen=listen),
        worker=(WorkerProcess(id="worker-1", modules=named),) if named else (),
    )


async def _serve(cluster: Cluster) -> int:
    """Start it, register its workflows, say what to do next, and wait for the stop."""
    logging.configure("warning", "auto")
    supervisor = Supervisor(cluster, report=lambda line: print(f"onexflow dev: {line}"))
    with StopSignals() as stop:
        print(f"onexflow {__version__}: a cluster for trying things out, not for production")
        try:
            await supervisor.start()
            definitions = await _register(cluster, supervisor.address)
            _introduce(supervisor, definitions)
            await stop.requested.wait()
        finally:
            print("onexflow dev: stopping")
            await supervisor.stop()
    return exits.OK


async def _register(cluster: Cluster, address: str) -> list[tuple[WorkflowDefinition, Any]]:
    """Register the `definition()` of each module that has one; with each, the module's EXAMPLE_INPUT."""
    found: dict[str, tuple[WorkflowDefinition, Any]] = {}
    for name in dict.fromkeys(module.partition(":")[0] for worker in cluster.worker for module in worker.modules):
        module = importlib.import_module(name)
        make = getattr(module, "definition", None)
        if callable(make) and isinstance(definition := make(), WorkflowDefinition):
            found[name] = (definition, getattr(module, "EXAMPLE_INPUT", {}))
    if found:
        async with await connect(address, timeout=10.0) as client:
            for definition, _ in found.values():
                await client.register(definition)
    return list(found.values())


def _introduce(supervisor: Supervisor, definitions: list[tuple[WorkflowDefinition, Any]]) -> None:
    """What runs, where its files are, and what to try."""
    orchestrator = supervisor.orchestrator
    assert orchestrator is not None
    private = " (private, forgets everything at its end)" if supervisor.etcd is not None else ""
    lines = [
        ("registry", f"{supervisor.registry_url}{private}"),
        ("orchestrator", f"{supervisor.address} (pid {orchestrator.pid})"),
        *(("worker", f"{worker.name} (pid {worker.pid})") for worker in supervisor.workers),
        *(("workflow", f"{d.workflow_type} version {d.version}") for d, _ in definitions),
        ("files", f"{supervisor.data}/: event log, *.log, processes.json"),
    ]
    print()
    for label, text in lines:
        print(f"  {label:13}{text}")
    if definitions:
        definition, example = definitions[0]
        where = "" if supervisor.address == DEFAULT_ADDRESS else f" --address {supervisor.address}"
        given = f" --input '{json.dumps(example)}'" if example else ""
        print(f"\nNow, in another terminal:\n  onexflow run start {definition.workflow_type}{given} --wait{where}")
    print("\nCtrl-C stops everything.")
