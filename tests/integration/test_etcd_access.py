"""An etcd that does not let everybody in: TLS both ways, users and passwords, rights on our prefix alone.

What is wrong with the settings is told in words, at once where trying again cannot help; what ends later (tokens,
certificates) is renewed without anybody noticing; and no password is shown to anyone.
"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
import structlog

from etcd_support import EtcdHarness, etcd_harness
from onexflow.core.errors import InvalidConfiguration, RegistryUnavailable
from onexflow.core.secret import Secret
from onexflow.ports.registry import Assignment, MemberEvent, ShardAnnouncement
from onexflow.registry.etcd.access import Access
from onexflow.registry.etcd.registry import EtcdRegistry
from onexflow.testing.conformance.registry import node, run_key
from support.etcd_access import AS_ROOT, LOGIN, PASSWORD, Papers, enable_auth, etcdctl, make_papers, running, tls_flags

pytestmark = pytest.mark.chaos


@pytest.fixture(name="papers", scope="module")
def _papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


async def one_pin(registry: EtcdRegistry) -> bool:
    return len(await registry.assignments()) == 1


async def refused(harness: EtcdHarness, access: Access) -> RegistryUnavailable:
    registry = await harness.open(access=access, start_timeout=2.0)
    with pytest.raises(RegistryUnavailable) as caught:
        await registry.start()
    assert PASSWORD not in f"{caught.value}{caught.value.context}{registry.health()}"
    return caught.value


# --------------------------------------------------------------------------------------------------- TLS
async def test_over_tls_with_a_certificate_of_our_own(papers: Papers) -> None:
    access = Access(ca=papers.ca, certificate=papers.client[0], key=papers.client[1])
    async with (
        running(3, flags=tls_flags(papers.server, papers.ca), access=access) as cluster,
        etcd_harness(*cluster.endpoints, access=access) as harness,
    ):
        one, two = await harness.started(), await harness.started()
        await one.register(node())
        await harness.until(lambda: [record.node_id for record in two.members()] == ["w1"])
        until = time.monotonic() + 1.5 * harness.settings.ttl
        await harness.until(lambda: time.monotonic() > until)
        assert [record.node_id for record in two.members()] == ["w1"]
        assert one.health().connected


async def test_what_is_wrong_with_tls_is_told(papers: Papers) -> None:
    access = Access(ca=papers.ca)
    async with (
        running(3, flags=tls_flags(papers.server), access=access) as cluster,
        etcd_harness(*cluster.endpoints) as harness,
    ):
        started = await harness.started(access=access)
        assert started.health().connected
        error = await refused(harness, Access(ca=papers.stranger_ca))
        assert f"not signed by an authority in {papers.stranger_ca}" in str(error)
        error = await refused(harness, Access())
        assert "TLS only" in str(error)
        assert "registry.ca" in error.context["hint"]
        for endpoint in cluster.endpoints:
            assert endpoint in str(error)


async def test_a_certificate_for_another_host_is_not_accepted(papers: Papers, tmp_path: Path) -> None:
    """etcd reads its own for each connection: by the time of ours it has been given another one."""
    pair = str(tmp_path / "server.pem"), str(tmp_path / "server.key")

    def give(theirs: tuple[str, str]) -> None:
        for ours, file in zip(pair, theirs, strict=True):
            Path(ours).write_bytes(Path(file).read_bytes())

    give(papers.server)
    async with (
        running(flags=tls_flags(pair), access=Access(ca=papers.ca)) as cluster,
        etcd_harness(*cluster.endpoints) as harness,
    ):
        give(papers.elsewhere)
        error = await refused(harness, Access(ca=papers.ca))
        assert "not for the host" in str(error)


async def test_etcd_demands_a_certificate(papers: Papers) -> None:
    access = Access(ca=papers.ca, certificate=papers.client[0], key=papers.client[1])
    async with (
        running(flags=tls_flags(papers.server, papers.ca), access=access) as cluster,
        etcd_harness(*cluster.endpoints) as harness,
    ):
        error = await refused(harness, Access(ca=papers.ca))
        assert "may demand a certificate" in str(error)
        stranger = Access(ca=papers.ca, certificate=papers.stranger[0], key=papers.stranger[1])
        error = await refused(harness, stranger)
        assert f"may not accept {papers.stranger[0]}" in str(error)


async def test_tls_where_there_is_none(papers: Papers) -> None:
    async with running() as cluster, etcd_harness(*cluster.endpoints) as harness:
        error = await refused(harness, Access(ca=papers.ca))
        assert "something else than TLS" in str(error)


def test_files_and_parts_are_checked_before_anything_is_tried(papers: Papers, tmp_path: Path) -> None:
    nothing, no_pem = tmp_path / "nothing.pem", tmp_path / "no.pem"
    no_pem.write_text("not a certificate")
    pair = {"certificate": papers.client[0], "key": papers.client[1]}
    for access, said in (
        (Access(ca=str(nothing)), f"registry.ca: cannot read {nothing}: No such file"),
        (Access(ca=str(no_pem)), f"registry.ca: {no_pem}: not PEM"),
        (Access(ca=papers.ca, certificate=papers.client[0], key=papers.server[1]), "not a pair"),
        (Access(ca=papers.ca, certificate=papers.client[0]), "needs its key"),
        (Access(**pair), "registry.ca"),
        (Access(user="somebody"), "needs a password"),
        (Access(password=Secret("x")), "the password a user"),
    ):
        with pytest.raises(InvalidConfiguration, match=re.escape(said)):
            access.check()
    Access(ca=papers.ca, **pair).check()


async def test_files_that_are_replaced_serve_the_next_connection(papers: Papers, tmp_path: Path) -> None:
    """The wrong authority first, the right one in its place: no restart is needed."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Path(papers.stranger_ca).read_bytes())
    async with (
        running(flags=tls_flags(papers.server), access=Access(ca=papers.ca)) as cluster,
        etcd_harness(*cluster.endpoints, start_timeout=8.0) as harness,
    ):
        registry = await harness.open(access=Access(ca=str(ca)))
        starting = asyncio.get_running_loop().create_task(registry.start())
        await harness.until(lambda: "CERTIFICATE_VERIFY_FAILED" in str(registry._watcher.failure))
        ca.write_bytes(Path(papers.ca).read_bytes())
        await starting
        await registry.register(node())
        await harness.until(lambda: len(registry.members()) == 1)


# --------------------------------------------------------------------------------------------------- users
async def test_a_user_with_rights_on_our_prefix_alone_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    """Everything that a registry does, and it says the password to nobody."""
    async with running(3) as cluster, etcd_harness(*cluster.endpoints, access=LOGIN) as harness:
        enable_auth(cluster, harness.settings.prefix)
        one, two = await harness.started(), await harness.started()
        await one.register(node())
        await one.announce([ShardAnnouncement(shard=3, owner="w1", epoch=1)])
        await two.assign(Assignment(key=run_key(), node_id="w1"))
        await harness.until(lambda: [record.node_id for record in two.members()] == ["w1"])
        await harness.until(lambda: b"shards/00003" in two.view.shown)
        assert [item.shard for item in await two.announcements()] == [3]
        await harness.until(lambda: one_pin(one))
        await two.revoke(node())
        await harness.until(lambda: b"nodes/effect/w1" in one.view.actual and one._lease != 0)
        await one.close()
        await harness.until(lambda: not two.members())
        assert PASSWORD not in f"{LOGIN} {harness.settings} {two.health()} {two._settings!r}"
    assert PASSWORD not in caplog.text


async def test_what_is_wrong_with_the_login_is_told_at_once() -> None:
    async with running(3) as cluster, etcd_harness(*cluster.endpoints) as harness:
        enable_auth(cluster, harness.settings.prefix)
        began = time.monotonic()
        error = await refused(harness, Access(user="onexflow", password=Secret(f"{PASSWORD}-")))
        assert "does not accept the password of user 'onexflow'" in str(error)
        error = await refused(harness, Access(user="nobody", password=Secret(PASSWORD)))
        assert "'nobody'" in str(error)
        error = await refused(harness, Access())
        assert "asks for a user and a password" in str(error)
        assert "ONEXFLOW_REGISTRY__PASSWORD" in error.context["hint"]
        assert time.monotonic() - began < 5.0


async def test_rights_on_another_prefix_are_not_enough() -> None:
    async with running() as cluster, etcd_harness(*cluster.endpoints) as harness:
        enable_auth(cluster, "/onexflow/another/")
        error = await refused(harness, LOGIN)
        assert f"does not let user 'onexflow' read and write the keys under {harness.settings.prefix}" in str(error)
        command = error.context["hint"].partition("etcdctl ")[2].replace("ROLE", "onexflow").split()
        etcdctl(cluster, *command, user=AS_ROOT)
        registry = await harness.started(access=LOGIN)
        assert registry.health().connected


async def test_a_password_that_is_not_asked_for_hurts_nobody() -> None:
    """And it serves as soon as it is asked for: whoever turns authentication on need not restart anything."""
    async with running() as cluster, etcd_harness(*cluster.endpoints, access=LOGIN) as harness:
        one = await harness.started()
        enable_auth(cluster, harness.settings.prefix)
        await one.register(node())
        two = await harness.started()
        await harness.until(lambda: [record.node_id for record in two.members()] == ["w1"])
        until = time.monotonic() + 1.5 * harness.settings.ttl
        await harness.until(lambda: time.monotonic() > until)
        assert [record.node_id for record in two.members()] == ["w1"]


async def test_tokens_that_ended_are_renewed_and_nobody_notices() -> None:
    """etcd forgets tokens when it restarts and when their time is over; and it calls them old after any change of
    users and roles."""
    async with (
        running(flags=["--auth-token-ttl", "1"]) as cluster,
        etcd_harness(*cluster.endpoints, access=LOGIN) as harness,
    ):
        enable_auth(cluster, harness.settings.prefix)
        one, two = await harness.started(), await harness.started()
        events: list[MemberEvent] = []
        two.subscribe(events.append)
        until = time.monotonic() + 2.5
        await harness.until(lambda: time.monotonic() > until)
        await one.register(node(slots=1))
        await harness.until(lambda: len(events) == 1)
        etcdctl(cluster, "role", "add", "another", user=AS_ROOT)
        await one.register(node(slots=2))
        await harness.until(lambda: len(events) == 2)
        await cluster.kill(0)
        await harness.until(lambda: not two.health().connected)
        await cluster.start()
        await harness.until(lambda: two.health().connected and one.health().connected)
        await one.register(node(slots=3))
        await harness.until(lambda: len(events) == 3)
        assert [(event.type, event.record.slots) for event in events] == [("up", 1), ("changed", 2), ("changed", 3)]


async def test_a_right_that_is_taken_away_shows_in_the_health_and_comes_back() -> None:
    async with running() as cluster, etcd_harness(*cluster.endpoints, access=LOGIN) as harness:
        enable_auth(cluster, harness.settings.prefix)
        registry = await harness.started()
        etcdctl(cluster, "user", "revoke-role", "onexflow", "onexflow", user=AS_ROOT)
        await cluster.kill(0)
        await cluster.start()
        await harness.until(lambda: "does not let user 'onexflow'" in registry.health().detail)
        assert not registry.health().connected
        etcdctl(cluster, "user", "grant-role", "onexflow", "onexflow", user=AS_ROOT)
        await harness.until(lambda: registry.health().connected)


async def test_who_may_only_read_any_more_is_told_and_writes_when_it_may_again() -> None:
    async with running() as cluster, etcd_harness(*cluster.endpoints, access=LOGIN) as harness:
        prefix = harness.settings.prefix
        enable_auth(cluster, prefix)
        registry = await harness.started()
        etcdctl(cluster, "role", "revoke-permission", "onexflow", "--prefix=true", prefix, user=AS_ROOT)
        etcdctl(cluster, "role", "grant-permission", "onexflow", "--prefix=true", "read", prefix, user=AS_ROOT)
        with structlog.testing.capture_logs() as logs:
            await registry.register(node())
            await harness.until(lambda: "does not let user 'onexflow'" in registry.health().detail)
        assert not registry.health().connected
        assert [line["log_level"] for line in logs if line["event"] == "registry.refused"] == ["warning"]
        etcdctl(cluster, "role", "grant-permission", "onexflow", "--prefix=true", "readwrite", prefix, user=AS_ROOT)
        await harness.until(lambda: registry.health().connected and len(registry.members()) == 1)
