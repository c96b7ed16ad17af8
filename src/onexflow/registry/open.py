"""From a URL to a registry."""

from __future__ import annotations

from onexflow.core.errors import InvalidConfiguration
from onexflow.ports.clock import Clock
from onexflow.ports.registry import Registry
from onexflow.registry.etcd.access import Access
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.registry.etcd.url import parse_etcd_url
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub


def open_registry(
    url: str,
    *,
    clock: Clock,
    cluster: str = "default",
    access: Access | None = None,
    hub: MemoryRegistryHub | None = None,
) -> Registry:
    """The registry of a URL, not started: `etcd3://host:port,host:port?ttl=5` or `memory:`.

    `access` is for etcd: TLS, user and password, as far as the URL does not say. In-memory registries see each other when they are given the same hub. Raises InvalidConfiguration.
    """
    if url.startswith("memory:"):
        if url != "memory:":
            raise InvalidConfiguration(f"The registry URL {url} cannot be used. `memory:` takes nothing more.")
        return MemoryRegistry(hub or MemoryRegistryHub(clock))
    if not url.startswith("etcd3:"):
        raise InvalidConfiguration(
            f"The registry URL {url} cannot be used. It is etcd3://host:port,host:port or memory:.", {"url": url}
        )
    settings = parse_etcd_url(url, cluster=cluster, access=access)
    settings.access.check()
    return EtcdRegistry(settings)
