"""Settings of the binaries: one frozen tree a process, each value with its origin."""

from __future__ import annotations

from onexflow.config.cluster import (
    PRIVATE_POSTGRES,
    Cluster,
    EtcdProcess,
    OrchestratorProcess,
    WorkerProcess,
    check_cluster,
    load_cluster,
    parse_cluster,
)
from onexflow.config.secret import Secret
from onexflow.config.settings import (
    DEFAULT_ADDRESS,
    LimitSettings,
    LogSettings,
    OrchestratorSettings,
    RegistrySettings,
    Settings,
    SlotSettings,
    StoreSettings,
    WorkerSettings,
)
from onexflow.config.sources import Loaded, load, meanings, paths

__all__ = [
    "DEFAULT_ADDRESS",
    "PRIVATE_POSTGRES",
    "Cluster",
    "EtcdProcess",
    "LimitSettings",
    "Loaded",
    "LogSettings",
    "OrchestratorProcess",
    "OrchestratorSettings",
    "RegistrySettings",
    "Secret",
    "Settings",
    "SlotSettings",
    "StoreSettings",
    "WorkerProcess",
    "WorkerSettings",
    "check_cluster",
    "load",
    "load_cluster",
    "meanings",
    "parse_cluster",
    "paths",
]
