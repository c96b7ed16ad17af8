"""cluster/tls/make-certificates, run; and the programs with what it made and the policy beside it."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

import onexflow
from onexflow.core.errors import PermissionDenied
from onexflow.examples import greet
from support.programs import environment, serving

TLS = Path(__file__).parents[2] / "cluster" / "tls"

pytestmark = pytest.mark.slow


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TLS / "make-certificates"), str(folder), *arguments],
        capture_output=True, text=True, check=False, timeout=20, env=environment(),
    )  # fmt: skip


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True, timeout=20).stdout


def test_each_kind_has_its_names_its_authority_and_a_key_that_nobody_else_reads(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    done = make(
        folder, "--orchestrator", "o1,10.0.0.1,::1", "--worker", "w", "--etcd", "etcd-1,127.0.0.1",
        "--etcd-client", "onexflow", "--days", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for authority, names in (("ca", ("o1", "w")), ("etcd-ca", ("etcd-1", "onexflow"))):
        openssl("verify", "-CAfile", f"{folder}/{authority}.pem", *(f"{folder}/{name}.pem" for name in names))
    shown = openssl("x509", "-in", f"{folder}/o1.pem", "-noout", "-ext", "subjectAltName,extendedKeyUsage")
    for name in (
        "DNS:o1", "IP Address:10.0.0.1", "IP Address:0:0:0:0:0:0:0:1", "URI:spiffe://onexflow/orchestrator",
        "TLS Web Server Authentication, TLS Web Client Authentication",
    ):  # fmt: skip
        assert name in shown
    assert "Server" not in openssl("x509", "-in", f"{folder}/w.pem", "-noout", "-ext", "extendedKeyUsage")
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*.key")} == {0o600}
    assert {file.name for file in (folder / "ca").iterdir()} == {"ca.key", "etcd-ca.key"}
    assert (folder / "ca").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name something to make a certificate for"),
        (("--worker",), "--worker needs a name"),
        (("--worker", "../w"), "names are letters, digits"),
        (("--client", "ca"), "that name is the authority's"),
        (("--poet", "p"), "unknown option --poet"),
        (("--worker", "w", "--days", "soon"), "--days soon is no number of days"),
        (("--worker", "w", "other"), "one FOLDER, please"),
    ],
)
def test_what_makes_no_sense_is_said_and_nothing_is_made(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = make(tmp_path / "made", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("make-certificates: ")
    assert words in done.stderr
    assert not (tmp_path / "made").exists()


async def test_the_programs_take_what_was_made_and_the_policy_knows_them_by_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert make(made, "--orchestrator", "o1,127.0.0.1", "--worker", "w", "--client", "c").returncode == 0
    with ExitStack() as stack:

        def start(program: str, *arguments: str) -> str:
            folder = tmp_path / program
            folder.mkdir()
            return stack.enter_context(serving(program, *arguments, cwd=folder))[1]

        line = start(
            "onex-orchestrator", "--listen=127.0.0.1:0", "--store-url=memory:", f"--tls-certificate={made}/o1.pem",
            f"--tls-key={made}/o1.key", f"--tls-client-ca={made}/ca.pem", f"--access-policy={TLS}/policy.toml",
        )  # fmt: skip
        address = line.rpartition(" on ")[2]
        shows = [f"--tls-ca={made}/ca.pem", f"--tls-certificate={made}/w.pem", f"--tls-key={made}/w.key"]
        start("onex-worker", "onexflow.examples.greet", f"--orchestrators={address}", "--worker-id=w", *shows)
        await _greets(address, made)
        renewed = (made / "c.pem").read_bytes()
        assert make(made, "--client", "c").returncode == 0
        assert (made / "c.pem").read_bytes() != renewed
        await _greets(address, made)


async def _greets(address: str, made: Path) -> None:
    """With the client's certificate: as a client, and as no operator."""
    tls = onexflow.Tls(ca=f"{made}/ca.pem", certificate=f"{made}/c.pem", key=f"{made}/c.key")
    async with await onexflow.connect(address, tls=tls) as client:
        await client.register(greet.definition())
        assert await client.run("greet", {"name": "Ada"}) == "Hello, Ada!"
        with pytest.raises(PermissionDenied):
            await client.drain("w")
