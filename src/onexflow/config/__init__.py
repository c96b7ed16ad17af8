"""Settings of the binaries: one frozen tree a process, each value with its origin."""

from __future__ import annotations

from onexflow.config.bridge import BridgeSettings, EventSettings, NatsSettings
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
from onexflow.config.policy import load_policy
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
from onexflow.core.secret import Secret

__all__ = [
    "DEFAULT_ADDRESS",
    "PREFIX",
    "PRIVATE_POSTGRES",
    "BridgeSettings",
    "ClientSettings",
    "Cluster",
    "EtcdProcess",
    "EventSettings",
    "LimitSettings",
    "Loaded",
    "LogSettings",
    "NatsSettings",
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
    "check_cluster",
    "load",
    "load_cluster",
    "load_policy",
    "meanings",
    "parse_cluster",
    "paths",
]
