"""Settings: precedence, provenance, and errors that name the setting and its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onexflow.config import OrchestratorSettings, Secret, Settings, WorkerSettings, load
from onexflow.core.errors import InvalidConfiguration


def refused(tree: type[Settings] = OrchestratorSettings, **sources: Any) -> InvalidConfiguration:
    with pytest.raises(InvalidConfiguration) as caught:
        load(tree, **sources)
    return caught.value


def toml(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "onexflow.toml"
    file.write_text(text)
    return file


def test_without_sources_everything_is_a_default() -> None:
    loaded = load(OrchestratorSettings)
    assert loaded.settings == OrchestratorSettings()
    assert loaded.settings.listen == "127.0.0.1:7411"
    assert loaded.settings.store.url == "sqlite:./onexflow.db"
    assert loaded.settings.limits.payload == 2 * 1024 * 1024
    assert {origin for _, _, origin in loaded.rows()} == {"default"}


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, 'listen = "127.0.0.1:1"\ndrain_timeout = 3\n[store]\nurl = "sqlite:a.db"\nshards = 2\n')
    loaded = load(
        OrchestratorSettings,
        file=file,
        environment={"ONEXFLOW_LISTEN": "127.0.0.1:2", "ONEXFLOW_STORE__URL": "sqlite:b.db"},
        flags={"listen": "127.0.0.1:3", "node_id": None},
    )
    assert loaded.settings.listen == "127.0.0.1:3"
    assert loaded.settings.store.url == "sqlite:b.db"
    assert loaded.settings.store.shards == 2
    assert loaded.settings.drain_timeout == 3.0
    assert loaded.origins == {
        "listen": "flag --listen",
        "store.url": "environment ONEXFLOW_STORE__URL",
        "store.shards": f"file {file}",
        "drain_timeout": f"file {file}",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("yes", True), ("on", True), ("1", True), ("false", False), ("OFF", False), ("0", False)],
)
def test_booleans_of_the_environment(text: str, expected: bool) -> None:
    assert load(OrchestratorSettings, environment={"ONEXFLOW_REFLECTION": text}).settings.reflection is expected


def test_lists_of_the_environment_are_parted_by_commas() -> None:
    settings = load(
        WorkerSettings,
        environment={"ONEXFLOW_MODULES": "one, two:worker", "ONEXFLOW_ROLES": "effect,compute"},
        flags={"orchestrators": ("127.0.0.1:1",)},
    ).settings
    assert settings.modules == ("one", "two:worker")
    assert settings.roles == ("effect", "compute")
    assert settings.endpoints() == ("127.0.0.1:1",)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ONEXFLOW_STORE__SHARDS": "many"}, "store.shards (environment ONEXFLOW_STORE__SHARDS): Expected int"),
        ({"ONEXFLOW_STORE__SHARDS": "-1"}, "store.shards (environment ONEXFLOW_STORE__SHARDS): -1 is not within"),
        ({"ONEXFLOW_STORE__ULR": "x"}, "store.ulr (environment ONEXFLOW_STORE__ULR): no such setting, did you mean "),
        ({"ONEXFLOW_LISTN": "x"}, "listn (environment ONEXFLOW_LISTN): no such setting, did you mean 'listen'?"),
        ({"ONEXFLOW_LISTEN": "7411"}, "listen (environment ONEXFLOW_LISTEN): '7411' is not host:port"),
        ({"ONEXFLOW_LISTEN": "127.0.0.1:99999"}, "is not host:port"),
        (
            {"ONEXFLOW_STORE__URL": "mysql://x:secret@y/z"},
            "'mysql://x:***@y/z' is neither sqlite:PATH nor postgresql://",
        ),
        ({"ONEXFLOW_STORE__URL": "postgresql:db"}, "needs a server"),
        ({"ONEXFLOW_STORE__URL": "sqlite:"}, "needs a path"),
        ({"ONEXFLOW_REGISTRY__URL": "consul://host"}, "is neither etcd3://host:port"),
        ({"ONEXFLOW_LOG__LEVEL": "loud"}, "log.level (environment ONEXFLOW_LOG__LEVEL): Invalid enum value 'loud'"),
        ({"ONEXFLOW_LIMITS__PAYLOAD": "99999999"}, "limits.payload (environment ONEXFLOW_LIMITS__PAYLOAD)"),
        ({"ONEXFLOW_DRAIN_TIMEOUT": "-1"}, "drain_timeout (environment ONEXFLOW_DRAIN_TIMEOUT): -1.0 is below 0"),
        ({"ONEXFLOW_REGISTRY__LEASE_TTL": "nan"}, "registry.lease_ttl"),
    ],
)
def test_a_bad_value_is_refused_with_its_origin(environment: dict[str, str], message: str) -> None:
    error = refused(environment=environment)
    assert message in str(error)
    assert error.context["origin"] == f"environment {next(iter(environment))}"
    assert error.code == "OXF-5006"


def test_variables_of_others_are_left_alone() -> None:
    environment = {"ONEXFLOW_FLIGHTS": "a.csv", "ONEXFLOW_ADDRESS": "x:1", "ONEXFLOW_MODULES": "m", "PATH": "/bin"}
    assert load(OrchestratorSettings, environment=environment).origins == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisen = 'x'", "lisen (file {file}): no such setting, did you mean 'listen'?"),
        ("[store]\nuri = 'x'", "store.uri (file {file}): no such setting, did you mean 'store.url'?"),
        ("[stor]\nurl = 'x'", "stor (file {file}): no such setting"),
        ("store = 'x'", "store (file {file}): no such setting"),
        ("listen = 7411", "listen (file {file}): Expected str, got int: 7411"),
        ("insecure = 'yes'", "insecure (file {file}): Expected bool, got str: 'yes'"),
        ("listen = ", "{file} is no TOML"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = toml(tmp_path, text)
    assert message.format(file=file) in str(refused(file=file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(refused(file=tmp_path / "gone.toml")).startswith("cannot read ")


@pytest.mark.parametrize("address", ["0.0.0.0:7411", "10.0.0.1:7411", "[::]:7411", "example.org:7411"])
def test_listening_beyond_this_machine_must_be_said(address: str) -> None:
    assert "can be reached from other machines" in str(refused(flags={"listen": address}))
    assert load(OrchestratorSettings, flags={"listen": address, "insecure": True}).settings.listen == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.3.2.1:80", "localhost:7411", "[::1]:7411"])
def test_listening_on_loopback_needs_no_word(address: str) -> None:
    assert load(OrchestratorSettings, flags={"listen": address}).settings.listen == address


@pytest.mark.parametrize("every", ["0.0.0.0:7411", "[::]:7411"])
def test_nobody_is_told_to_go_to_every_address(every: str) -> None:
    flags = {"listen": every, "insecure": True, "registry.url": "etcd3://e:1"}
    assert "say which host:port they are to use" in str(refused(flags=flags))
    assert load(OrchestratorSettings, flags={**flags, "advertise": "o1:7411"}).settings.listen == every
    assert "stands for every address" in str(refused(flags={**flags, "advertise": every}))
    assert "stands for every address" in str(refused(flags={"liveness": every}))
    assert "stands for every address" in str(refused(WorkerSettings, flags={"modules": ("m",), "liveness": every}))


def test_a_worker_needs_a_module_and_knows_where_to_go() -> None:
    assert "no module is named" in str(refused(WorkerSettings))
    flags = {"modules": ("m",)}
    assert load(WorkerSettings, flags=flags).settings.endpoints() == ("127.0.0.1:7411",)
    etcd = load(WorkerSettings, flags={**flags, "registry.url": "etcd3://a:1,b:2"}).settings
    assert etcd.endpoints() == ()


class WithSecret(Settings, frozen=True, kw_only=True):
    password: Secret = Secret("")


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    loaded = load(WithSecret, environment={"ONEXFLOW_PASSWORD_FILE": str(file)})
    assert loaded.settings.password.reveal() == "hunter2"
    assert "hunter2" not in repr(loaded) + str(list(loaded.rows()))
    assert loaded.settings.password == Secret("hunter2")
    assert not Secret("")


def test_a_secrets_missing_file_and_wrong_type_are_named(tmp_path: Path) -> None:
    error = refused(WithSecret, environment={"ONEXFLOW_PASSWORD_FILE": str(tmp_path / "gone")})
    assert "password (environment ONEXFLOW_PASSWORD_FILE): cannot read" in str(error)
    assert "expected text" in str(refused(WithSecret, file=toml(tmp_path, "password = 7")))


def test_a_password_in_a_url_is_not_shown() -> None:
    loaded = load(OrchestratorSettings, environment={"ONEXFLOW_STORE__URL": "postgresql://me:hunter2@db/x"})
    rows = {path: value for path, value, _ in loaded.rows()}
    assert rows["store.url"] == "postgresql://me:***@db/x"
    assert "hunter2" not in str(rows)
