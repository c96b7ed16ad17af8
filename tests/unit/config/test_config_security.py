"""Settings of TLS and tokens, the access policy's file, and what of all that is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from onexflow.client.security import client_security
from onexflow.config import ClientSettings, OrchestratorSettings, Secret, Tls, WorkerSettings, load
from onexflow.config.policy import load_policy, parse_policy
from onexflow.core.errors import InvalidConfiguration
from onexflow.core.identity import ANYBODY, Identity, passed_on
from support.security_kit import Authority, hashed, identity

FILE = Path("policy.toml")


# ---- identities


def test_an_operator_may_do_what_a_client_may_and_a_member_what_both_may() -> None:
    may = {
        role: {
            other for other in ("client", "worker", "operator", "member") if Identity("x", frozenset({role})).has(other)
        }
        for role in ("client", "worker", "operator", "member")
    }
    assert may == {
        "client": {"client"},
        "worker": {"worker"},
        "operator": {"operator", "client"},
        "member": {"member", "operator", "client"},
    }
    assert not ANYBODY.has("member")


def test_who_is_passed_on_is_no_member_and_has_no_role_that_there_is_not() -> None:
    assert passed_on("ada", ["client", "member", "king", ""]).roles == {"client"}


@pytest.mark.parametrize(
    ("patterns", "name", "may"),
    [
        (("charge",), "charge", True),
        (("charge",), "charge.card", False),
        (("pay.*",), "pay.card", True),
        (("pay.*",), "pay", False),
        (("pay.*", "refund"), "refund", True),
        (("*",), "", True),
        ((), "charge", False),
        (("p*y",), "pay", False),  # a star is one at the end
    ],
)
def test_a_handler_is_named_or_falls_under_a_star(patterns: tuple[str, ...], name: str, may: bool) -> None:
    worker = Identity("w", frozenset({"worker"}), ("effect",), patterns)
    assert worker.refused([("effect", name)]) == ([] if may else [f"effect {name}"])
    assert worker.refused([("compute", name)]) == [f"compute {name}"]


# ---- the policy's file


def test_a_policy_knows_tokens_by_their_hash_and_certificates_by_their_names() -> None:
    text = identity("app", "client", "operator") + identity(
        "w", "worker", certificates=("dns:w.example", "cn:w"), more='node_roles = ["effect"]\nhandlers = ["pay.*"]'
    )
    policy = parse_policy(text, FILE)
    app = policy.by_token(bytes.fromhex(hashed("token-of-app")[7:]))
    assert app == Identity("app", frozenset({"client", "operator"}))
    for other in (hashed("token-of-ap"), hashed("token-of-app")[:-2] + "00"):
        assert policy.by_token(bytes.fromhex(other[7:])) is None
    worker = Identity("w", frozenset({"worker"}), ("effect",), ("pay.*",))
    assert policy.by_certificate(["dns:other", "cn:w"]) == worker
    assert policy.by_certificate(["dns:w"]) is None
    assert policy.by_certificate([]) is None


TOKEN = "a-real-token-by-mistake"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field identity"),
        ("identity = 3", "Expected array, got int"),
        ("[[identity]", "is no TOML"),
        (identity("a", "king"), "Invalid enum value 'king'"),
        (identity("a", "client", more="role = 1"), "unknown field role"),
        (identity("a"), "identity 'a' has no role"),
        (identity("a b", "client"), "identity 'a b': a name has 1 to 128"),
        (identity("a", "client") * 2, "two identities are named 'a'"),
        (identity("a", "client", token="t") + identity("b", "client", token="t"), "'a' and 'b' have a token in common"),
        (
            identity("a", "client", certificates=("cn:x",)) + identity("b", "client", certificates=("cn:x",)),
            "'a' and 'b' have the certificate cn:x in common",
        ),
        (identity("a", "client", certificates=("x",)), "certificate 'x' begins with none of uri:, dns:, cn:"),
        ('[[identity]]\nname = "a"\nroles = ["client"]\n', "has neither tokens nor certificates"),
        (f'[[identity]]\nname = "a"\nroles = ["client"]\ntokens = ["{TOKEN}"]\n', "token 1 is no sha256:"),
        (identity("a", "client", more='handlers = ["x"]'), "limits node_roles or handlers and is no worker"),
        (identity("a", "worker", more='node_roles = ["boss"]'), "Invalid enum value 'boss'"),
    ],
)  # fmt: skip
def test_a_policy_that_is_wrong_says_what_and_where_and_shows_no_token(text: str, words: str) -> None:
    with pytest.raises(InvalidConfiguration) as told:
        parse_policy(text, FILE)
    assert words in str(told.value)
    assert str(told.value).startswith("access policy policy.toml: ")
    assert TOKEN not in str(told.value)


def test_a_policy_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"access policy .*none: cannot be read: No such file"):
        load_policy(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfiguration, match="cannot be read: it is no text"):
        load_policy(tmp_path / "bytes")


# ---- settings


@pytest.mark.parametrize(
    ("tree", "flags", "words"),
    [
        (OrchestratorSettings, {"tls.certificate": "c"}, "tls.key (default): the certificate needs its key"),
        (OrchestratorSettings, {"tls.key": "k"}, "tls.certificate (default): the key needs its certificate"),
        (OrchestratorSettings, {"tls.client_ca": "ca"}, "tls.client_ca (flag --tls-client-ca): without tls.certificate"),
        (OrchestratorSettings, {"listen": "0.0.0.0:1"}, "give it a certificate (tls.certificate), or say `insecure"),
        (OrchestratorSettings, {"token": "t", "token_file": "f"}, "token_file (flag --token-file): a token is given as well"),
        (WorkerSettings, {"modules": "m", "tls.certificate": "c", "tls.key": "k"}, "without tls.ca there is no TLS"),
        (WorkerSettings, {"modules": "m", "tls.server_name": "n"}, "tls.server_name (flag --tls-server-name): without tls.ca"),
        (ClientSettings, {"tls.certificate": "c", "tls.ca": "a"}, "tls.key (default): the certificate needs its key"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(tree: type, flags: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidConfiguration) as told:
        load(tree, flags=flags)
    assert words in str(told.value)


def test_with_a_certificate_any_address_may_be_listened_on() -> None:
    flags = {"listen": "0.0.0.0:7411", "tls.certificate": "c", "tls.key": "k"}
    assert load(OrchestratorSettings, flags=flags).settings.listen == "0.0.0.0:7411"


def test_a_token_is_hidden_wherever_settings_are_shown() -> None:
    loaded = load(WorkerSettings, environment={"ONEXFLOW_TOKEN": "hush"}, flags={"modules": "m"})
    assert loaded.settings.token == Secret("hush")
    assert "hush" not in repr(loaded)
    assert "hush" not in str(list(loaded.rows()))


def test_a_client_is_secured_by_what_it_is_given_else_by_the_environment(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("x")
    (tmp_path / "token").write_text("from-file\n")
    environment = {
        "ONEXFLOW_TLS__CA": ca.file,
        "ONEXFLOW_TLS__CERTIFICATE": pair.certificate,
        "ONEXFLOW_TLS__KEY": pair.key,
        "ONEXFLOW_TOKEN": "from-environment",
        "ONEXFLOW_NO__SUCH__THING": "of another program",
    }

    def said(**given: object) -> tuple[bool, str]:
        security = client_security(environment=environment, **given)
        return security.encrypts, dict(security.metadata()).get("authorization", "")

    assert said() == (True, "Bearer from-environment")
    assert said(token="mine") == (True, "Bearer mine")
    assert said(token="") == (True, "")
    assert said(token_file=tmp_path / "token") == (True, "Bearer from-file")
    assert said(tls=Tls()) == (False, "Bearer from-environment")
    environment |= {"ONEXFLOW_TOKEN": "", "ONEXFLOW_TOKEN_FILE": str(tmp_path / "token")}
    assert said() == (True, "Bearer from-file")
    environment |= {"ONEXFLOW_TOKEN": "too"}
    with pytest.raises(InvalidConfiguration, match="environment ONEXFLOW_TOKEN_FILE"):
        said()
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidConfiguration, match=r"token_file: .*empty is empty"):
        said(token_file=tmp_path / "empty")
