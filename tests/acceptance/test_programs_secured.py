"""The programs with TLS, client certificates and tokens, by flags and by environment, as a user runs them."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import onexflow
from etcd_support import NO_ETCD
from onexflow.registry.etcd.embedded import EmbeddedEtcd, find_etcd
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from postgres_support import new_schema, postgres  # noqa: F401 - a fixture
from support.programs import finished, serving
from support.security_kit import Authority, Pair, identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

HANDLERS = """
    import onexflow

    worker = onexflow.Worker("mine")


    @worker.effect(idempotent=True)
    async def double(contract):
        return contract.number * 2


    @worker.orchestrator
    async def twice(contract, ctx):
        first = await ctx.run("doubling", {"number": contract.number})
        return await ctx.run("doubling", {"number": first})
"""
POLICY = (
    identity("ada", "client")
    + identity("olga", "operator")
    + identity("workers", "worker", "client", more='node_roles = ["effect", "orchestrator"]')
    + identity("limited", "worker", more='handlers = ["other.*"]')
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(textwrap.dedent(HANDLERS))
    (tmp_path / "policy.toml").write_text(POLICY)
    for name in ("ada", "olga", "workers", "limited"):
        (tmp_path / f"{name}.token").write_text(f"token-of-{name}\n")
    return tmp_path


def definition() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow("doubling")
    flow.effect("double")
    return flow.build()


def tls_flags(pair: Pair, *more: str) -> list[str]:
    return [f"--tls-certificate={pair.certificate}", f"--tls-key={pair.key}", *more]


async def test_a_cluster_with_tls_certificates_and_tokens_from_end_to_end(place: Path) -> None:
    ca = Authority(place)
    port, mine = ca.issue("127.0.0.1", file="port"), ca.issue("mine.example", file="mine")
    orchestrator = [
        "--listen=127.0.0.1:0", "--node-id=o1", *tls_flags(port, f"--tls-client-ca={ca.file}"),
        "--access-policy=policy.toml", "--log-format=json",
    ]  # fmt: skip
    shown = tls_flags(mine, f"--tls-ca={ca.file}")
    with serving("onex-orchestrator", *orchestrator, cwd=place) as (server, line):
        address = line.rpartition(" on ")[2]
        worker_flags = ["mine", f"--orchestrators={address}", *shown, "--token-file=workers.token", "--worker-id=w1"]
        with serving("onex-worker", *worker_flags, cwd=place) as (worker, _):
            tls = onexflow.Tls(ca=ca.file, certificate=mine.certificate, key=mine.key)
            async with await onexflow.connect(address, tls=tls, token="token-of-ada") as client:
                await client.register(definition())
                assert await client.run("doubling", {"number": 21}) == 42
                # An orchestration's calls go by the worker's own credentials.
                node = client.node("twice", "orchestrator")
                assert await (await node).execute_orchestration({"number": 3}) == 12

            told = finished(
                "onexflow", "run", "start", "doubling", "--input", '{"number": 4}', "--wait", f"--address={address}",
                *shown, "--token-file=ada.token", cwd=place,
            )  # fmt: skip
            assert (told.returncode, told.stdout.split()[-1]) == (0, "8"), told.stderr
            environment = {
                "ONEXFLOW_ADDRESS": address,
                "ONEXFLOW_TLS__CA": ca.file,
                "ONEXFLOW_TLS__CERTIFICATE": mine.certificate,
                "ONEXFLOW_TLS__KEY": mine.key,
            }
            runs = finished(
                "onexflow", "run", "list", "-o", "json", cwd=place, **environment, ONEXFLOW_TOKEN="token-of-ada"
            )
            assert len([json.loads(line) for line in runs.stdout.splitlines()]) == 5, runs.stderr
            refused = finished(
                "onexflow", "node", "drain", "w1", cwd=place, **environment, ONEXFLOW_TOKEN_FILE="ada.token"
            )
            assert refused.returncode == 1
            assert refused.stderr.splitlines() == [
                "error: ada may not call DrainNode: it needs the role operator. [OXF-1501]",
                "hint: The orchestrators' access policy says who may do what; docs/security.md has the roles.",
            ]
            unknown = finished("onexflow", "node", "list", cwd=place, **environment, ONEXFLOW_TOKEN="token-of-nobody")
            assert unknown.returncode == 1
            assert "No identity has this token, or no longer. [OXF-1502]" in unknown.stderr
            drained = finished(
                "onexflow", "node", "drain", "w1", cwd=place, **environment, ONEXFLOW_TOKEN_FILE="olga.token"
            )
            assert (drained.returncode, drained.stdout) == (0, "draining\n")
            for process in (worker, server):
                process.send_signal(signal.SIGTERM)
                assert process.wait(15) == 0
    written = [json.loads(line) for line in (place / "onex-orchestrator.err").read_text().splitlines()]
    (secured,) = [line for line in written if line["event"] == "port.opened"]
    assert secured["tls"] is True
    assert secured["client_certificates"] == "required"
    assert secured["identities"] == 4
    assert "token-of" not in (place / "onex-orchestrator.err").read_text() + (place / "onex-worker.err").read_text()


@contextmanager
def orchestrator(place: Path, port: Pair) -> Iterator[str]:
    """One with TLS and the policy; its address."""
    flags = ["--listen=127.0.0.1:0", *tls_flags(port), "--access-policy=policy.toml"]
    with serving("onex-orchestrator", *flags, cwd=place) as (_, line):
        yield line.rpartition(" on ")[2]


def look(place: Path, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A call of the command line."""
    given = ("node", "list", f"--address={address}", "--token-file=ada.token", "--connect-timeout=1")
    return finished("onexflow", *given, *more, cwd=place)


def test_what_does_not_fit_is_said_in_words_by_the_command_line(place: Path) -> None:
    ca, other = Authority(place), Authority(place, "other")
    with orchestrator(place, ca.issue("127.0.0.1", file="port")) as address:
        for more, words, hint in (
            ([f"--tls-ca={other.file}"], "is not signed by the authority that was given", "tls.ca, --tls-ca"),
            ([f"--tls-ca={ca.file}", "--tls-server-name=nobody.example"], "is for another name", "tls.server_name"),
            ([], "the connection was closed as it was opened", "If TLS is spoken there, give its authority"),
        ):
            told = look(place, address, *more)
            assert told.returncode == 4
            error, help_ = told.stderr.splitlines()
            assert words in error
            assert error.endswith("[OXF-1105]")
            assert hint in help_


async def test_a_worker_beyond_its_rights_says_so_in_its_log(place: Path) -> None:
    ca = Authority(place)
    with orchestrator(place, ca.issue("127.0.0.1", file="port")) as address:
        limited = ["mine", f"--orchestrators={address}", f"--tls-ca={ca.file}", "--token-file=limited.token"]
        with serving("onex-worker", *limited, "--log-format=json", cwd=place) as (worker, _):
            await said(place / "onex-worker.err", "limited may not register effect double, orchestrator twice.")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0


async def test_a_certificate_that_has_expired_is_said_and_replaced_while_the_orchestrator_runs(place: Path) -> None:
    ca = Authority(place)
    with orchestrator(place, ca.issue("127.0.0.1", file="port", expired=True)) as address:
        told = await asyncio.to_thread(look, place, address, f"--tls-ca={ca.file}")
        assert "the orchestrator's certificate has expired" in told.stderr
        ca.issue("127.0.0.1", file="port")
        await said(place / "onex-orchestrator.err", "files.reloaded")
        told = await asyncio.to_thread(look, place, address, f"--tls-ca={ca.file}")
        assert told.returncode == 0, told.stderr


@pytest.mark.timeout(120)
async def test_two_orchestrators_know_each_other_by_their_certificates_and_pass_on_who_asked(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    place: Path,
) -> None:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    ca = Authority(place)
    port, mine = ca.issue("127.0.0.1", "orchestrator.example", file="port"), ca.issue("mine.example", file="mine")
    (place / "policy.toml").write_text(
        POLICY + identity("orchestrators", "member", certificates=("dns:orchestrator.example",))
    )
    etcd = EmbeddedEtcd()
    await etcd.start()
    common = (f"--registry-url={etcd.url}", "--cluster=secured")
    orchestrator = (
        *common, "--listen=127.0.0.1:0", f"--store-url={new_schema(postgres)}", "--store-shards=8",
        *tls_flags(port, f"--tls-client-ca={ca.file}"), "--access-policy=policy.toml",
    )  # fmt: skip
    worker = (*common, "mine", *tls_flags(mine, f"--tls-ca={ca.file}"), "--token-file=workers.token")
    tls = onexflow.Tls(ca=ca.file, certificate=mine.certificate, key=mine.key)
    try:
        with ExitStack() as stack:
            lines = [
                stack.enter_context(serving("onex-orchestrator", *orchestrator, f"--node-id={name}", cwd=place))[1]
                for name in ("o1", "o2")
            ]
            stack.enter_context(serving("onex-worker", *worker, cwd=place))
            async with await onexflow.connect(lines[0].rpartition(" on ")[2], tls=tls, token="token-of-ada") as client:
                await client.register(definition())
                owners: set[str] = set()
                async with asyncio.timeout(60):  # until one of the runs is the other's
                    while owners != {"o1", "o2"}:
                        handle = await client.start("doubling", {"number": 2})
                        assert await handle.result() == 4
                        owners.add((await handle.state()).owner)
                        created = (await handle.history())[0]
                        assert created.data["principal"] == "ada"
    finally:
        await etcd.stop()


async def said(log: Path, words: str, times: int = 1) -> None:
    """Wait until the log says it so often."""
    async with asyncio.timeout(15):
        while log.read_text().count(words) < times:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("onex-orchestrator", ["--tls-certificate=x"], "tls.key (default): the certificate needs its key"),
        ("onex-orchestrator", ["--tls-certificate=x", "--tls-key=y"], "tls.certificate: cannot read x: No such file"),
        ("onex-orchestrator", ["--access-policy=none.toml"], "access policy none.toml: cannot be read: No such file"),
        ("onex-orchestrator", ["--token-file=none"], "token_file: cannot read none: No such file"),
        ("onex-worker", ["mine", "--tls-ca=none.pem"], "tls.ca: cannot read none.pem: No such file"),
        ("onex-worker", ["mine", "--token-file=ada.token", "--orchestrators=192.0.2.1:7411"], "in the clear"),
        ("onexflow", ["run", "list", "--token-file=none"], "token_file: cannot read none: No such file"),
        ("onexflow", ["run", "list", "--tls-certificate=x"], "tls.key (default): the certificate needs its key"),
        ("onexflow", ["run", "list", "--token-file=ada.token", "-a=192.0.2.1:1"], "would travel to 192.0.2.1:1 in the clear"),
    ],
)  # fmt: skip
def test_files_that_are_not_there_and_secrets_that_would_be_seen_are_refused_at_the_start(
    place: Path, program: str, arguments: list[str], words: str
) -> None:
    done = finished(program, *arguments, cwd=place)
    assert words in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
