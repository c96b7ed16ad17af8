"""From settings to the adapters that they name: stores and registries."""

from __future__ import annotations

import importlib.util
import sys
from typing import Final

from onexflow.config import RegistrySettings, StoreSettings
from onexflow.core.errors import StoreUnusable
from onexflow.ports.clock import Clock
from onexflow.ports.event_store import EventStore
from onexflow.ports.registry import Registry
from onexflow.registry.etcd.access import Access
from onexflow.registry.open import open_registry

#: Of a store that one orchestrator has to itself.
LOCAL_SHARDS: Final = 8
_POSTGRES: Final = frozenset({"postgresql", "postgres"})


def store_of(settings: StoreSettings, clock: Clock) -> EventStore:
    """The store that the settings name, not opened."""
    scheme, _, path = settings.url.partition(":")
    if scheme == "memory":
        from onexflow.storage.memory import MemoryStore

        return MemoryStore(clock, settings.shards or LOCAL_SHARDS)
    if scheme in _POSTGRES:
        return postgres_store(settings.url, settings.shards, clock, password=settings.password.reveal())
    from onexflow.storage.sqlite import SqliteStore

    return SqliteStore(path.removeprefix("//") or path, settings.shards or LOCAL_SHARDS, clock)


def postgres_store(
    url: str, shards: int = 0, clock: Clock | None = None, *, password: str = "", make: bool = True
) -> EventStore:
    """A store on PostgreSQL, not opened. Raises StoreUnusable when its driver is not installed."""
    need_postgres_driver()
    from onexflow.storage.postgres import PostgresStore
    from onexflow.storage.postgres.store import DEFAULT_SHARDS

    return PostgresStore(url, shards or DEFAULT_SHARDS, clock, password=password, make=make)


def need_postgres_driver() -> None:
    """Raises StoreUnusable when there is none."""
    if importlib.util.find_spec("asyncpg") is None:
        message = "A store on PostgreSQL needs asyncpg, which is not installed."
        raise StoreUnusable(message, {"hint": "Install it: pip install 'onexflow[postgres]'."})


def is_shared(settings: StoreSettings) -> bool:
    """May several orchestrators own shards of the store that the settings name?"""
    return settings.url.partition(":")[0] in _POSTGRES


def registry_of(settings: RegistrySettings, cluster: str, clock: Clock) -> Registry:
    """The registry that the settings name, not started."""
    url = settings.url
    if url.startswith("etcd3:") and "ttl=" not in url:
        url += f"{'&' if '?' in url else '?'}ttl={settings.lease_ttl:g}"
    access = Access(
        ca=settings.ca,
        certificate=settings.certificate,
        key=settings.key,
        user=settings.user,
        password=settings.password,
    )
    return open_registry(url, clock=clock, cluster=cluster, access=access)


def make_importable(folder: str) -> None:
    """Let modules of `folder` be imported, as `python -m` would."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
