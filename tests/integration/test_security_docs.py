"""docs/security.md says what is: its table, its policy, and its commands, which are run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import onexflow
from onexflow.config import OrchestratorSettings, WorkerSettings, paths
from onexflow.config.policy import parse_policy
from onexflow.rpc.rights import as_markdown
from onexflow.rpc.tls import ServerTls
from support.security_kit import policy_of, secured

PAGE = (Path(__file__).parents[2] / "docs/security.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_table_of_rights_is_that_of_the_code() -> None:
    assert as_markdown() in PAGE


def test_the_policy_of_the_page_is_one() -> None:
    policy = parse_policy(block("toml"), Path("policy.toml"))
    assert [identity.name for identity in policy.identities] == ["ada", "payment-workers", "orchestrators"]


def test_every_flag_of_the_page_is_one() -> None:
    known = {f"--{path.replace('.', '-').replace('_', '-')}" for tree in (OrchestratorSettings, WorkerSettings)
             for path in paths(tree)} | {"--address"}  # fmt: skip
    assert set(re.findall(r"--[a-z][a-z-]+", block(""))) <= known
    settings = set(re.findall(r"`(tls\.[a-z_]+)`", PAGE))
    assert settings
    assert settings <= paths(OrchestratorSettings).keys()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
async def test_the_certificates_of_the_page_are_made_by_its_commands_and_fit(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("sh")], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=20,
    )  # fmt: skip
    if "copy_extensions" in done.stderr:
        pytest.skip("this openssl is older than 3")
    assert done.returncode == 0, done.stderr
    certificate, key, ca = (str(tmp_path / name) for name in ("orchestrator.pem", "orchestrator.key", "ca.pem"))
    policy = policy_of(
        tmp_path / "policy.toml", block("toml").replace('roles = ["worker"]', 'roles = ["worker", "client"]')
    )
    shown = onexflow.Tls(ca=ca, certificate=str(tmp_path / "worker.pem"), key=str(tmp_path / "worker.key"))
    async with (
        secured(policy, tls=ServerTls(certificate, key, ca)) as server,
        await onexflow.connect(server.address, tls=shown, token="") as client,
    ):
        assert await client.run("echo", 1) == 1
