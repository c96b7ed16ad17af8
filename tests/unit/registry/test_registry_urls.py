"""Registry URLs: what is meant is understood, what is wrong is named."""

from __future__ import annotations

import pytest

from onexflow.core.errors import InvalidConfiguration
from onexflow.core.secret import Secret
from onexflow.ports.clock import Clock
from onexflow.registry.etcd.access import Access
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.registry.etcd.url import parse_etcd_url
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.registry.open import open_registry


class _Clock:
    def now(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


def test_endpoints_and_options() -> None:
    settings = parse_etcd_url("etcd3://a:2379,[::1]:2380?ttl=10&timeout=2.5", cluster="prod-1")
    assert settings.endpoints == ("a:2379", "[::1]:2380")
    assert (settings.ttl, settings.start_timeout, settings.prefix) == (10.0, 2.5, "/onexflow/prod-1/")
    assert parse_etcd_url("etcd3://a:1").ttl == 5.0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("etcd://a:1", "scheme"),
        ("etcd3://", "host:port"),
        ("etcd3://a", "'a' is not host:port"),
        ("etcd3://a:1,b:x", "'b:x' is not host:port"),
        ("etcd3://a:99999", "not host:port"),
        ("etcd3://a:1/x", "path"),
        ("etcd3://a:1?tll=3", "'tll'; there are: ca, certificate, key, timeout, ttl, user"),
        ("etcd3://a:1?ttl=soon", "'soon'"),
        ("etcd3://a:1?ttl=nan", "'nan'"),
        ("etcd3://a:1?ttl=0", "'0'"),
    ],
)
def test_what_is_wrong_is_named(url: str, said: str) -> None:
    with pytest.raises(InvalidConfiguration, match=said.replace("?", r"\?")) as caught:
        parse_etcd_url(url)
    assert caught.value.context["url"] == url


@pytest.mark.parametrize("url", ["etcd3://me:hunter2@a:1", "etcd3://a:1?user=me&Password=hunter2"])
def test_secrets_are_not_repeated(url: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"registry\.password") as caught:
        parse_etcd_url(url)
    assert "hunter2" not in f"{caught.value}{caught.value.context}"


def test_access_in_the_url_comes_before_that_of_the_settings() -> None:
    given = Access(ca="a.pem", user="me", password=Secret("hunter2"))
    assert parse_etcd_url("etcd3://a:1", access=given).access == given
    found = parse_etcd_url("etcd3://a:1?user=you&ca=%2Fetc%2Fb.pem&certificate=c.pem&key=k.pem", access=given)
    assert found.access == Access(
        ca="/etc/b.pem", certificate="c.pem", key="k.pem", user="you", password=Secret("hunter2")
    )
    assert "hunter2" not in repr(found)
    with pytest.raises(InvalidConfiguration, match="The option ca is empty"):
        parse_etcd_url("etcd3://a:1?ca=")


@pytest.mark.parametrize("cluster", ["", "a/b", "../x", "a b"])
def test_a_cluster_name_is_a_name(cluster: str) -> None:
    with pytest.raises(InvalidConfiguration, match="cluster"):
        parse_etcd_url("etcd3://a:1", cluster=cluster)


async def test_a_url_opens_its_registry() -> None:
    clock: Clock = _Clock()
    hub = MemoryRegistryHub(clock)
    assert isinstance(open_registry("memory:", clock=clock, hub=hub), MemoryRegistry)
    assert isinstance(open_registry("etcd3://a:1", clock=clock), EtcdRegistry)
    for bad in ("memory:x", "zk://a:1", "localhost:2379"):
        with pytest.raises(InvalidConfiguration):
            open_registry(bad, clock=clock)
