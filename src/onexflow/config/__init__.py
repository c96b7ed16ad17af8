"""Settings of the binaries: one frozen tree a process, each value with its origin."""

from __future__ import annotations

from onexflow.config.bridge import BridgeSettings, EventSettings, NatsSettings
from onexflow.config.cluster import (
    Cluster,
    EtcdProcess,
    OrchestratorProcess,
    WorkerProcess,
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
    "BridgeSettings",
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
    "Settings",
    "SlotSettings",
    "StoreSettings",
    "WorkerProcess",
    "WorkerSettings",
    "load",
    "load_cluster",
    "meanings",
    "parse_cluster",
    "paths",
]
