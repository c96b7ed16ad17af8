"""From settings to the adapters that they name: stores and registries; and what the programs know of this machine."""

from __future__ import annotations

import socket
import sys

from onexflow.config import RegistrySettings, StoreSettings
from onexflow.ports.clock import Clock
from onexflow.ports.event_store import EventStore
from onexflow.ports.registry import Registry
from onexflow.registry.open import open_registry


def store_of(settings: StoreSettings, clock: Clock) -> EventStore:
    """The store that the settings name, not opened."""
    scheme, _, path = settings.url.partition(":")
    if scheme == "memory":
        from onexflow.storage.memory import MemoryStore

        return MemoryStore(clock, settings.shards)
    from onexflow.storage.sqlite import SqliteStore

    return SqliteStore(path.removeprefix("//") or path, settings.shards, clock)


def registry_of(settings: RegistrySettings, cluster: str, clock: Clock) -> Registry:
    """The registry that the settings name, not started."""
    url = settings.url
    if url.startswith("etcd3:") and "ttl=" not in url:
        url += f"{'&' if '?' in url else '?'}ttl={settings.lease_ttl:g}"
    return open_registry(url, clock=clock, cluster=cluster)


def host() -> str:
    """A short name of this machine."""
    return socket.gethostname().partition(".")[0] or "localhost"


def make_importable(folder: str) -> None:
    """Let modules of `folder` be imported, as `python -m` would."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
