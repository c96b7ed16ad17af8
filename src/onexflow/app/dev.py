"""`onexflow dev`: a whole cluster on this machine in one command. For trying things out, not for production."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from onexflow import __version__
from onexflow.app import adapters, exits
from onexflow.app.signals import StopSignals
from onexflow.app.supervisor import Supervisor
from onexflow.client import connect
from onexflow.config import (
    DEFAULT_ADDRESS,
    Cluster,
    EtcdProcess,
    OrchestratorProcess,
    WorkerProcess,
    check_cluster,
    load_cluster,
)
from onexflow.core.address import split_address, without_password
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import InvalidConfiguration
from onexflow.telemetry import logging

DATA: Final = Path(".onexflow/dev")
#: Orchestrators, and workers: a machine for trying things out has no use for more.
MOST: Final = 32
#: What `--example` takes.
EXAMPLES: Final = ("greet", "order-processing", "flight-delays")


def dev(
    *modules: str,
    example: list[str] | None = None,
    orchestrators: int = 1,
    workers: int = 1,
    store: str = "sqlite",
    etcd: str = "auto",
    listen: str = DEFAULT_ADDRESS,
    data: Path = DATA,
    cluster: Path | None = None,
) -> int:
    """Start a whole cluster on this machine: etcd, orchestrators, workers. Ctrl-C stops it.

    For trying things out: the event log is kept, etcd's content is not, and nothing is encrypted.

    Parameters
    ----------
    modules
        Modules with your handlers and, if they have a `definition()`, your workflows.
    example
        Also run a shipped example: greet, order-processing or flight-delays. May be repeated.
    orchestrators
        How many; several need `--store postgres` and an etcd.
    workers
        How many, each with all handlers.
    store
        sqlite (a file in the data folder), postgres (a private server, its data in the data folder), or a URL of yours.
    etcd
        auto (a private one, if there is one to be found), none, or host:port,host:port of yours.
    listen
        Where the first orchestrator serves, the others on the next ports. With port 0 each takes any free one.
    data
        Folder for the event log and the processes' logs.
    cluster
        Start the processes of this cluster file instead (cluster/local.toml, cluster/local-three.toml).
    """
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a real stream, not a test's buffer
    adapters.make_importable(os.getcwd())  # noqa: PTH109 - sys.path holds strings
    if cluster is None:
        wanted = _cluster_of(modules, example or [], orchestrators, workers, store, etcd, listen, data)
    else:
        asked = (modules, example or [], orchestrators, workers, store, etcd, listen, data)
        if asked != ((), [], 1, 1, "sqlite", "auto", DEFAULT_ADDRESS, DATA):
            raise InvalidConfiguration("--cluster says what runs and where: give no module and no other flag beside it")
        wanted = load_cluster(cluster)
    return asyncio.run(_serve(wanted))


def _cluster_of(
    modules: tuple[str, ...],
    examples: list[str],
    orchestrators: int,
    workers: int,
    store: str,
    etcd: str,
    listen: str,
    data: Path,
) -> Cluster:
    """The cluster that the flags ask for: orchestrators, and workers with all handlers."""
    for name in examples:
        if name not in EXAMPLES:
            raise InvalidConfiguration(f"there is no example {name!r}: {', '.join(EXAMPLES)}")
    for flag, number in (("--orchestrators", orchestrators), ("--workers", workers)):
        if not 1 <= number <= MOST:
            raise InvalidConfiguration(f"{flag} {number} is not within 1 and {MOST}")
    named = (*modules, *(f"onexflow.examples.{name.replace('-', '_')}" for name in examples))
    if workers > 1 and not named:
        raise InvalidConfiguration(f"{workers} workers of what? Name a module with handlers, or --example NAME")
    wanted = None if etcd == "none" else EtcdProcess(embedded=True)
    if etcd not in ("none", "auto"):
        wanted = EtcdProcess(endpoints=tuple(etcd.removeprefix("etcd3://").split(",")))
    worker_id = "worker-1" if workers == 1 else "worker"  # of several the numbers are added
    cluster = Cluster(
        name="dev",
        data=str(data),
        store="" if store == "sqlite" else store,
        etcd=wanted,
        orchestrator=_orchestrators(listen, orchestrators),
        worker=(WorkerProcess(id=worker_id, modules=named, count=workers),) if named else (),
    )
    check_cluster(cluster)
    return cluster


def _orchestrators(listen: str, number: int) -> tuple[OrchestratorProcess, ...]:
    """So many of them, on ports that follow each other, or any if the first may have any."""
    found = split_address(listen)
    if found is None:
        raise InvalidConfiguration(f"--listen {listen!r} is not host:port")
    first = found[1]
    host = listen.rpartition(":")[0]
    return tuple(
        OrchestratorProcess(id=f"orchestrator-{index + 1}", listen=f"{host}:{first + index if first else 0}")
        for index in range(number)
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
    etcd = " (private, forgets everything at its end)" if supervisor.etcd is not None else ""
    postgres = " (private, kept)" if supervisor.postgres is not None else ""
    groups = [
        ("registry", [f"{supervisor.registry_url}{etcd}"]),
        ("store", [f"{_shown_store(supervisor.store_url)}{postgres}"]),
        ("orchestrator", [f"{one.name}  {one.served_at}  (pid {one.pid})" for one in supervisor.orchestrators]),
        ("worker", [f"{worker.name}  (pid {worker.pid})" for worker in supervisor.workers]),
        ("workflow", [f"{d.workflow_type} version {d.version}" for d, _ in definitions]),
        ("files", [f"{supervisor.data}/: event log, *.log, processes.json"]),
    ]
    print()
    for label, lines in groups:
        for number, line in enumerate(lines):
            print(f"  {'' if number else label:13}{line}")
    elsewhere = supervisor.address != DEFAULT_ADDRESS
    if elsewhere or definitions:
        print("\nNow, in another terminal:")
    if elsewhere:
        print(f"  export ONEXFLOW_ADDRESS={supervisor.address}")
    if definitions:
        definition, example = definitions[0]
        given = f" --input '{json.dumps(example)}'" if example else ""
        print(f"  onexflow run start {definition.workflow_type}{given} --wait")
    print("\nCtrl-C stops everything.")


def _shown_store(url: str) -> str:
    """Without a password, with the names of files as they are seen from here."""
    return without_password(unquote(url)).replace(f"={Path.cwd()}{os.sep}", "=")
