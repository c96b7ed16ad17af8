"""The programs with an etcd that demands TLS and a password, with one that is not there, and with one that goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import onexflow
from onexflow.registry.etcd.access import Access
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.embedded import EmbeddedEtcdCluster
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.testing.conformance.registry import Condition, holds
from support.etcd_access import (
    PASSWORD,
    enable_auth,
    etcdctl,
    make_papers,
    running,
    tls_flags,
)
from support.programs import finished, serving

pytestmark = pytest.mark.slow

HANDLERS = """
import onexflow

worker = onexflow.Worker("numbers")


@worker.compute("add")
async def add(contract: int) -> int:
    return contract + 1
"""


async def until(condition: Condition) -> None:
    async with asyncio.timeout(15):
        while not await holds(condition):
            await asyncio.sleep(0.02)


def test_three_endpoints_and_nobody_there(tmp_path: Path) -> None:
    url = "etcd3://127.0.0.1:7,127.0.0.1:8,127.0.0.1:9?timeout=1"
    for program in (("onex-orchestrator", "--store-url=memory:"), ("onex-worker", "onexflow.examples.greet")):
        done = finished(*program, f"--registry-url={url}", cwd=tmp_path)
        assert done.returncode == 11
        assert "error: etcd does not answer at 127.0.0.1:7, 127.0.0.1:8, 127.0.0.1:9 within 1 s" in done.stderr
        assert "127.0.0.1:7: UNAVAILABLE" in done.stderr
        assert "[OXF-5003]" in done.stderr
        assert "Traceback" not in done.stderr


def start(etcd: EmbeddedEtcdCluster, *flags: str) -> list[str]:
    return ["--listen=127.0.0.1:0", "--store-url=memory:", f"--registry-url={etcd.url}?timeout=2", *flags]


async def kept_out(etcd: EmbeddedEtcdCluster, folder: Path, *flags: str, **variables: str) -> str:
    """Start an orchestrator that cannot start because of etcd; returns what it says."""
    done = await asyncio.to_thread(finished, "onex-orchestrator", *start(etcd, *flags), cwd=folder, **variables)
    assert done.returncode == 11, done.stderr
    assert "[OXF-5003]" in done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr + done.stdout
    return done.stderr


@pytest.mark.timeout(60)
async def test_what_is_wrong_with_tls_is_said(tmp_path: Path) -> None:
    papers = make_papers(tmp_path)
    async with running(3, flags=tls_flags(papers.server), access=Access(ca=papers.ca)) as etcd:
        said = await kept_out(etcd, tmp_path)
        assert "may speak TLS only" in said
        assert "hint: Give in registry.ca" in said
        said = await kept_out(etcd, tmp_path, f"--registry-ca={papers.stranger_ca}")
        assert f"not signed by an authority in {papers.stranger_ca}" in said
        done = await asyncio.to_thread(
            finished, "onex-orchestrator", *start(etcd, "--registry-ca=no.pem"), cwd=tmp_path
        )
        assert done.returncode == 2
        assert "registry.ca: cannot read no.pem" in done.stderr


@pytest.mark.timeout(60)
async def test_what_is_wrong_with_the_login_is_said(tmp_path: Path) -> None:
    async with running(3) as etcd:
        enable_auth(etcd, "/onexflow/guarded/")
        assert "hint: Set registry.user" in await kept_out(etcd, tmp_path)
        wrong = {"ONEXFLOW_REGISTRY__PASSWORD": f"{PASSWORD}-"}
        said = await kept_out(etcd, tmp_path, "--registry-user=onexflow", **wrong)
        assert "does not accept the password of user 'onexflow'" in said
        right = {"ONEXFLOW_REGISTRY__PASSWORD": PASSWORD}
        said = await kept_out(etcd, tmp_path, "--registry-user=onexflow", **right)
        assert "does not let user 'onexflow' read and write the keys under /onexflow/local/" in said
        assert "etcdctl role grant-permission ROLE --prefix=true readwrite /onexflow/local/" in said


@pytest.mark.timeout(60)
async def test_the_right_settings_let_it_in_and_an_outage_is_told(tmp_path: Path) -> None:
    papers = make_papers(tmp_path)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    async with running(3, flags=tls_flags(papers.server), access=Access(ca=papers.ca)) as etcd:
        enable_auth(etcd, "/onexflow/guarded/", ca=papers.ca)
        flags = start(etcd, f"--registry-ca={papers.ca}", "--registry-user=onexflow", "--cluster=guarded")
        secret = {"ONEXFLOW_REGISTRY__PASSWORD_FILE": str(tmp_path / "password")}
        with serving("onex-orchestrator", *flags, cwd=tmp_path, **secret) as (process, line):
            assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
            user = f"onexflow:{PASSWORD}"
            keys = ("get", "--prefix", "/onexflow/guarded/", "--keys-only")
            assert "/orchestrators/" in await asyncio.to_thread(etcdctl, etcd, *keys, user=user, ca=papers.ca)
            async with await onexflow.connect(line.rpartition(" on ")[2]) as client:

                async def trouble() -> str:
                    return (await client.health()).details.get("registry", "")

                async def told() -> bool:
                    return bool(await trouble())

                async def well() -> bool:
                    return not await trouble()

                log = tmp_path / "onex-orchestrator.err"
                assert not await trouble()
                await asyncio.gather(*(etcd.kill(index) for index in range(3)))
                await until(told)
                detail = await trouble()
                assert all(endpoint in detail for endpoint in etcd.endpoints)
                await until(lambda: "registry.lost" in log.read_text())
                await etcd.start()
                await until(lambda: "registry.back" in log.read_text())
                await until(well)
                assert PASSWORD not in log.read_text() + detail


async def test_ten_thousand_tasks_leave_no_trace_in_etcd(tmp_path: Path) -> None:
    """etcd's own revision is the same before and after; renewals are no writes."""
    (tmp_path / "numbers_module.py").write_text(HANDLERS)
    async with running() as etcd:
        ours = EtcdClient(EtcdSettings(endpoints=etcd.endpoints))
        flags = (f"--registry-url={etcd.url}", "--cluster=counted")
        started = ("onex-orchestrator", "--listen=127.0.0.1:0", *flags)
        with (
            serving(*started, cwd=tmp_path) as (_, line),
            serving("onex-worker", "numbers_module", "--worker-id=w1", *flags, cwd=tmp_path),
        ):
            async with await onexflow.connect(line.rpartition(" on ")[2]) as client:
                fan = onexflow.workflow("fan")
                fan.compute("add", map="input")
                await client.register(fan.build())
                chain = onexflow.workflow("chain")
                first = chain.compute("one", handler="add", input="input")
                second = chain.compute("two", handler="add", input=first, depends_on=[first])
                chain.compute("three", handler="add", input=second, depends_on=[second])
                await client.register(chain.build())
                assert await client.run("chain", input=1) == 4

                async def registered() -> bool:
                    keys = [kv.key.decode() for kv in (await ours.range(b"/onexflow/counted/")).kvs]
                    return sum("/shards/" in key or key.endswith("/compute/w1") for key in keys) == 9

                await until(registered)
                before = (await ours.status()).header.revision
                for _ in range(2):
                    added = await client.run("fan", input=list(range(4800)))
                    assert sum(added) == sum(range(1, 4801))
                ended = await asyncio.gather(*(client.run("chain", input=number) for number in range(134)))
                assert ended == [number + 3 for number in range(134)]
                assert (await ours.status()).header.revision - before == 0
        await ours.close()
