"""The cluster file: which processes `onexflow dev --cluster FILE` starts on one machine (cluster/local.toml).

It says what runs, not how: each process takes the rest of its settings from the usual sources.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from onexflow.config.settings import DEFAULT_ADDRESS
from onexflow.core.definition import Role
from onexflow.core.errors import InvalidConfiguration


class EtcdProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose etcd: `embedded` starts a private one that forgets everything at its end, else `endpoints` are used."""

    embedded: bool = False
    endpoints: tuple[str, ...] = ()


class OrchestratorProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `onex-orchestrator`."""

    id: str = "orchestrator-1"
    listen: str = DEFAULT_ADDRESS
    #: A `store.url`; empty: a file in the cluster's data folder.
    store: str = ""


class WorkerProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `onex-worker`, or `count` of them (their ids then end in -1, -2, …)."""

    id: str
    modules: tuple[str, ...]
    roles: tuple[Role, ...] = ()
    #: Tasks at once, for each of its roles; 0: the role's default.
    slots: int = 0
    count: int = 1
    #: `restart` starts the process again when it dies; `stay-dead` does not.
    when_it_dies: Literal["restart", "stay-dead"] = "restart"


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All processes of one machine's cluster."""

    name: str = "local"
    #: Folder for the store and the processes' logs.
    data: str = ".onexflow/local"
    etcd: EtcdProcess | None = None
    orchestrator: OrchestratorProcess = OrchestratorProcess()
    worker: tuple[WorkerProcess, ...] = ()


def parse_cluster(text: str, origin: str = "cluster file") -> Cluster:
    """The cluster that `text` (TOML) describes. Raises InvalidConfiguration naming the place and the problem."""
    try:
        cluster = msgspec.convert(tomllib.loads(text), Cluster)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfiguration(f"{origin} is no TOML: {error}", {"origin": origin}) from error
    except msgspec.ValidationError as error:
        raise InvalidConfiguration(f"{origin}: {str(error).replace('`', '')}", {"origin": origin}) from error
    for problem in _problems(cluster):
        raise InvalidConfiguration(f"{origin}: {problem}", {"origin": origin})
    return cluster


def load_cluster(file: Path) -> Cluster:
    """As parse_cluster, from a file."""
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"cannot read {file}: {error}", {"origin": str(file)}) from error
    return parse_cluster(text, str(file))


def _problems(cluster: Cluster) -> list[str]:
    found = []
    ids = [cluster.orchestrator.id, *(worker.id for worker in cluster.worker)]
    found += [f"the id {one!r} is given twice" for one in sorted({one for one in ids if ids.count(one) > 1})]
    found += [f"worker {worker.id!r} names no module" for worker in cluster.worker if not worker.modules]
    found += [f"worker {worker.id!r} has count {worker.count}" for worker in cluster.worker if worker.count < 1]
    if cluster.etcd is not None and cluster.etcd.embedded and cluster.etcd.endpoints:
        found.append("etcd is embedded or has endpoints, not both")
    return found
