"""Settings of the binaries: one frozen tree a process, each value with its origin."""

from __future__ import annotations

from onexflow.config.cluster import (
    Cluster,
    EtcdProcess,
    OrchestratorProcess,
    WorkerProcess,
    load_cluster,
    parse_cluster,
)
from onexflow.config.policy import load_policy
from onexflow.config.secret import Secret
from onexflow.config.settings import (
    DEFAULT_ADDRESS,
    ClientSettings,
    LimitSettings,
    LogSettings,
    OrchestratorSettings,
    RegistrySettings,
    ServerTls,
    Settings,
    SlotSettings,
    StoreSettings,
    Tls,
    WorkerSettings,
)
from onexflow.config.sources import PREFIX, Loaded, load, meanings, paths

__all__ = [
    "DEFAULT_ADDRESS",
    "PREFIX",
    "ClientSettings",
    "Cluster",
    "EtcdProcess",
    "LimitSettings",
    "Loaded",
    "LogSettings",
    "OrchestratorProcess",
    "OrchestratorSettings",
    "RegistrySettings",
    "Secret",
    "ServerTls",
    "Settings",
    "SlotSettings",
    "StoreSettings",
    "Tls",
    "WorkerProcess",
    "WorkerSettings",
    "load",
    "load_cluster",
    "load_policy",
    "meanings",
    "parse_cluster",
    "paths",
]
