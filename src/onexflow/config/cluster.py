"""The cluster file: which processes `onexflow dev --cluster FILE` starts on one machine (cluster/local.toml, and
cluster/local-three.toml with several orchestrators).

It says what runs, not how: each process takes the rest of its settings from the usual sources.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from onexflow.config.settings import DEFAULT_ADDRESS, StoreSettings
from onexflow.core.address import split_address
from onexflow.core.definition import Role
from onexflow.core.errors import InvalidConfiguration

#: As a cluster's store: a private PostgreSQL, whose data is kept in the cluster's folder.
PRIVATE_POSTGRES: Final = "postgres"


class EtcdProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose etcd: `embedded` starts a private one that forgets everything at its end, else `endpoints` are used."""

    embedded: bool = False
    endpoints: tuple[str, ...] = ()


class OrchestratorProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `onex-orchestrator`."""

    id: str = "orchestrator-1"
    #: host:port; with port 0 any free one is taken, and kept when the process is restarted.
    listen: str = DEFAULT_ADDRESS
    #: As the cluster's own `store`, for a file with one orchestrator.
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
    #: `postgres` (a private one, kept in the data folder), a `store.url`, or empty: a SQLite file in the data folder.
    store: str = ""
    etcd: EtcdProcess | None = None
    #: `[orchestrator]` for one, `[[orchestrator]]` for each of several, which share a PostgreSQL and an etcd.
    orchestrator: tuple[OrchestratorProcess, ...] = (OrchestratorProcess(),)
    worker: tuple[WorkerProcess, ...] = ()

    @property
    def store_url(self) -> str:
        """What is wanted as store, whichever way it was said."""
        return self.store or next((one.store for one in self.orchestrator if one.store), "")

    @property
    def private_postgres(self) -> bool:
        return self.store_url == PRIVATE_POSTGRES


def parse_cluster(text: str, origin: str = "cluster file") -> Cluster:
    """The cluster that `text` (TOML) describes. Raises InvalidConfiguration naming the place and the problem."""
    try:
        content = tomllib.loads(text)
        if isinstance(content.get("orchestrator"), dict):
            content["orchestrator"] = [content["orchestrator"]]
        cluster = msgspec.convert(content, Cluster)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfiguration(f"{origin} is no TOML: {error}", {"origin": origin}) from error
    except msgspec.ValidationError as error:
        raise InvalidConfiguration(f"{origin}: {str(error).replace('`', '')}", {"origin": origin}) from error
    check_cluster(cluster, origin)
    return cluster


def check_cluster(cluster: Cluster, origin: str = "") -> None:
    """Raises InvalidConfiguration with the first thing that makes no sense, after the file's name, if it has one."""
    for problem in _problems(cluster):
        raise InvalidConfiguration(f"{origin}: {problem}" if origin else problem, {"origin": origin})


def load_cluster(file: Path) -> Cluster:
    """As parse_cluster, from a file."""
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"cannot read {file}: {error}", {"origin": str(file)}) from error
    return parse_cluster(text, str(file))


def _problems(cluster: Cluster) -> list[str]:
    found = []
    ids = [*(one.id for one in cluster.orchestrator), *(worker.id for worker in cluster.worker)]
    found += [f"the id {one!r} is given twice" for one in sorted({one for one in ids if ids.count(one) > 1})]
    found += [f"worker {worker.id!r} names no module" for worker in cluster.worker if not worker.modules]
    found += [f"worker {worker.id!r} has count {worker.count}" for worker in cluster.worker if worker.count < 1]
    found += _orchestrator_problems(cluster)
    if cluster.etcd is not None and cluster.etcd.embedded and cluster.etcd.endpoints:
        found.append("etcd is embedded or has endpoints, not both")
    return found


def _orchestrator_problems(cluster: Cluster) -> list[str]:
    orchestrators = cluster.orchestrator
    found = [f"listen {one.listen!r} is not host:port" for one in orchestrators if split_address(one.listen) is None]
    taken = [one.listen for one in orchestrators if not one.listen.endswith(":0")]
    found += [f"{one} is listened on twice" for one in sorted({one for one in taken if taken.count(one) > 1})]
    if not orchestrators:
        found.append("there is no orchestrator")
    elif len({store for store in (cluster.store, *(one.store for one in orchestrators)) if store}) > 1:
        found.append("all orchestrators have one store: say it once, `store = …` above the tables")
    elif not cluster.private_postgres:
        problems = StoreSettings(url=cluster.store_url or "sqlite:file").problems()
        found += [f"store: {problem}" for _, problem in problems]
    if len(orchestrators) > 1:
        several = f"{len(orchestrators)} orchestrators"
        if not cluster.store_url.startswith(("postgres:", "postgresql:")) and not cluster.private_postgres:
            found.append(f"{several} need a store that they can share: postgres, or the postgresql://… of yours")
        if cluster.etcd is None:
            found.append(f"{several} need an etcd to see each other")
    return found
