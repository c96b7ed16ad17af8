"""What an orchestrator makes of its settings of security, and what it says of them when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from onexflow.app import security
from onexflow.config import OrchestratorSettings, Secret, load
from onexflow.core.errors import InvalidConfiguration
from support.security_kit import EVERY_ROLE, Authority


def told(*, shared: bool = False, **flags: Any) -> tuple[dict[str, Any], list[str]]:
    """What the line of the start says, and the warnings after it."""
    settings = load(OrchestratorSettings, flags=flags).settings
    with capture_logs() as logs:
        security.tell(settings, security.access_policy(settings), "127.0.0.1:1", shared=shared)
    first, *rest = logs
    assert first["event"] == "port.opened"
    assert {line["log_level"] for line in rest} <= {"warning"}
    return first, [line["event"] for line in rest]


def test_on_this_machine_alone_nothing_need_be_on_and_that_is_said() -> None:
    line, warnings = told()
    assert (line["tls"], line["identities"]) == (False, 0)
    assert "everybody who connects may do anything" in line["access_policy"]
    assert warnings == []


def test_what_is_missing_where_others_reach_the_port_is_a_warning(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("x")
    files = {"tls.certificate": pair.certificate, "tls.key": pair.key}
    policy = tmp_path / "policy.toml"
    policy.write_text(EVERY_ROLE)
    there = {"listen": "0.0.0.0:7411"}
    assert told(**there, insecure="true")[1] == ["port.unencrypted", "port.unguarded"]
    assert told(**there, **files)[1] == ["port.unguarded"]
    assert told(**there, **files, **{"tls.client_ca": str(tmp_path / "ca.pem")})[1] == []
    line, warnings = told(**there, **files, access_policy=str(policy))
    assert (line["tls"], line["identities"], warnings) == (True, 4, [])


def test_one_that_the_others_cannot_know_as_a_member_is_told_so(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(EVERY_ROLE)
    assert told(shared=True, access_policy=str(policy))[1] == ["member.unknown"]
    assert told(shared=True, access_policy=str(policy), token=Secret("t").reveal())[1] == []


def test_those_that_share_a_store_need_an_authority_for_each_other(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("x")
    flags = {"tls.certificate": pair.certificate, "tls.key": pair.key}
    settings = load(OrchestratorSettings, flags=flags).settings
    with pytest.raises(InvalidConfiguration, match=r"tls\.ca: the store is shared"):
        security.peer_security(settings, shared=True)
    assert not security.peer_security(settings, shared=False).encrypts
    for name in ("tls.ca", "tls.client_ca"):
        settings = load(OrchestratorSettings, flags={**flags, name: ca.file}).settings
        assert security.peer_security(settings, shared=True).encrypts
    alone = load(OrchestratorSettings, flags={"tls.ca": ca.file}).settings  # meant for clients in this environment
    assert not security.peer_security(alone, shared=True).encrypts
