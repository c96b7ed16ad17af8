"""TLS on the port: who agrees with whom, what is said when two ends do not, and certificates that are replaced."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import onexflow
from onexflow.config import Tls
from onexflow.core.errors import InvalidConfiguration, NotSecured, PermissionDenied, Unauthenticated
from onexflow.ports import worker_link as wl
from onexflow.rpc.followed import Followed
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.tls import ClientSecurity, ServerTls, not_secured
from onexflow.rpc.worker_connection import WorkerConnections
from support.rpc_kit import FakeService
from support.security_kit import Authority, Pair, identity, policy_of, secured


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def served_by(pair: Pair, client_ca: str = "") -> ServerTls:
    return ServerTls(pair.certificate, pair.key, client_ca)


async def refusal(server: GrpcServer, tls: Tls, **options: str) -> NotSecured:
    """The error of a client that cannot connect, and what a worker says of the same."""
    with pytest.raises(NotSecured) as told:
        await onexflow.connect(server.address, tls=tls, token="", timeout=0.5)
    assert server.address in str(told.value)
    assert told.value.context["hint"]
    connections = worker(server, ClientSecurity(ca=tls.ca, certificate=tls.certificate, key=tls.key,
                                                server_name=tls.server_name))  # fmt: skip
    async with connections:
        with pytest.raises(NotSecured) as heard:
            await connections.wait_connected(0.5)
    assert str(heard.value) in str(told.value)
    return told.value


def worker(server: GrpcServer, security: ClientSecurity) -> WorkerConnections:
    return WorkerConnections(_Runtime(), server.address, security=security)


class _Runtime:
    """Takes a stream, and is told nothing on it."""

    def attach(self, link: object) -> _Runtime:
        return self

    def on_message(self, message: object) -> None:
        raise AssertionError(message)

    def on_close(self, reason: str) -> None:
        assert reason


async def test_a_client_that_knows_the_authority_talks_to_a_port_with_tls(ca: Authority) -> None:
    async with (
        secured(tls=served_by(ca.issue("127.0.0.1"))) as server,
        await onexflow.connect(server.address, tls=Tls(ca=ca.file)) as client,
    ):
        assert await client.run("echo", {"a": 1}) == {"a": 1}


async def test_a_worker_looks_for_the_host_that_it_was_given_in_the_certificate(ca: Authority) -> None:
    class Heard(_Runtime):
        def attach(self, link: Any) -> _Runtime:
            link.send(wl.Hello(worker_id="w", incarnation="w.1", slots={}, handlers=(), liveness="", build_id=""))
            return self

        def on_message(self, message: object) -> None:
            assert isinstance(message, wl.Welcome)

    async with secured(tls=served_by(ca.issue("localhost"))) as server:
        port = server.address.rpartition(":")[2]
        security = ClientSecurity(ca=ca.file)
        async with WorkerConnections(Heard(), f" localhost:{port}", security=security) as connections:
            await connections.wait_connected(5)


async def test_another_authority_is_told(ca: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    async with secured(tls=served_by(ca.issue("127.0.0.1"))) as server:
        error = await refusal(server, Tls(ca=other.file))
    assert "is not signed by the authority that was given" in str(error)
    assert "tls.ca" in error.context["hint"]


async def test_a_certificate_that_has_expired_is_told(ca: Authority) -> None:
    async with secured(tls=served_by(ca.issue("127.0.0.1", expired=True))) as server:
        assert "the orchestrator's certificate has expired" in str(await refusal(server, Tls(ca=ca.file)))


async def test_a_certificate_of_another_name_is_told_and_the_name_can_be_said(ca: Authority) -> None:
    async with secured(tls=served_by(ca.issue("orchestrator.example"))) as server:
        error = await refusal(server, Tls(ca=ca.file))
        assert "is for another name" in str(error)
        assert "tls.server_name" in error.context["hint"]
        named = Tls(ca=ca.file, server_name="orchestrator.example")
        async with await onexflow.connect(server.address, tls=named) as client:
            assert await client.run("echo", 1) == 1


async def test_tls_on_one_side_alone_is_told(ca: Authority) -> None:
    async with secured() as server:
        assert "the orchestrator does not speak TLS" in str(await refusal(server, Tls(ca=ca.file)))
    async with secured(tls=served_by(ca.issue("127.0.0.1"))) as server:
        error = await refusal(server, Tls())
        assert "--tls-ca" in error.context["hint"]


async def test_a_port_that_demands_certificates_takes_those_of_its_authority_alone(
    ca: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    good, bad, old = ca.issue("c", file="good"), other.issue("c", file="bad"), ca.issue("c", file="old", expired=True)
    async with secured(tls=served_by(ca.issue("127.0.0.1"), ca.file)) as server:
        async with await onexflow.connect(
            server.address, tls=Tls(ca=ca.file, certificate=good.certificate, key=good.key)
        ) as client:
            assert await client.run("echo", 1) == 1
        for pair in (None, bad, old):
            tls = Tls(ca=ca.file) if pair is None else Tls(ca=ca.file, certificate=pair.certificate, key=pair.key)
            error = await refusal(server, tls)
            assert "a certificate is demanded there" in error.context["hint"]


async def test_a_certificate_is_an_identity_by_its_names(ca: Authority, tmp_path: Path) -> None:
    policy = policy_of(
        tmp_path / "policy.toml",
        identity("by-dns", "client", certificates=("dns:app.example",))
        + identity("by-cn", "worker", certificates=("cn:worker-7",)),
    )
    dns, cn, unknown = ca.issue("app.example"), ca.issue("w.example", common_name="worker-7"), ca.issue("x.example")
    service = FakeService()
    async with secured(policy, tls=served_by(ca.issue("127.0.0.1"), ca.file), service=service) as server:
        async with await onexflow.connect(
            server.address, tls=Tls(ca=ca.file, certificate=dns.certificate, key=dns.key), token=""
        ) as client:
            await client.start("echo")
        assert [start.principal for start in service.starts] == ["by-dns"]
        with pytest.raises(PermissionDenied, match="by-cn may not call Connect: it needs the role client"):
            await onexflow.connect(
                server.address, tls=Tls(ca=ca.file, certificate=cn.certificate, key=cn.key), token=""
            )
        with pytest.raises(Unauthenticated, match=r"No identity has a certificate of dns:x\.example"):
            await onexflow.connect(
                server.address, tls=Tls(ca=ca.file, certificate=unknown.certificate, key=unknown.key), token=""
            )


# ---- files that are replaced


async def certificate_of(server: GrpcServer, ca: Authority) -> bytes:
    """What a new connection is shown (DER)."""
    context = ssl.create_default_context(cafile=ca.file)
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
    assert isinstance(shown, bytes)
    return shown


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_certificate_that_is_replaced_is_that_of_the_next_connection_and_open_ones_stay(ca: Authority) -> None:
    async with (
        secured(tls=served_by(ca.issue("127.0.0.1", file="port"))) as server,
        await onexflow.connect(server.address, tls=Tls(ca=ca.file)) as client,
    ):
        first = await certificate_of(server, ca)
        assert await certificate_of(server, ca) == first
        with capture_logs() as logs:
            ca.issue("127.0.0.1", file="port")
            await until(lambda: any(line["event"] == "files.reloaded" for line in logs))  # by the server itself
        second = await certificate_of(server, ca)
        assert second != first
        assert second == ssl.PEM_cert_to_DER_cert(Path(ca.file).with_name("port.crt").read_text())
        assert await client.run("echo", 1) == 1


@pytest.mark.parametrize("broken", ["garbage", "gone", "the key of another", "a key with a password"])
async def test_files_that_do_not_fit_leave_the_certificate_as_it_was_and_are_told(ca: Authority, broken: str) -> None:
    pair = ca.issue("127.0.0.1", file="port")
    async with secured(tls=served_by(pair)) as server:
        first = await certificate_of(server, ca)
        key = Path(pair.key)
        with capture_logs() as logs:
            match broken:
                case "garbage":
                    Path(pair.certificate).write_text("garbage")
                case "gone":
                    key.unlink()
                case "the key of another":
                    key.write_bytes(Path(ca.issue("x").key).read_bytes())
                case _:
                    key.write_text(encrypted(key.read_bytes()))
            server.refresh_security()
        assert [line["event"] for line in logs] == ["files.refused"]
        assert "tls." in logs[0]["error"]
        assert "PRIVATE" not in str(logs)
        server.refresh_security()  # it is told once
        assert await certificate_of(server, ca) == first
        ca.issue("127.0.0.1", file="port")
        server.refresh_security()
        assert await certificate_of(server, ca) != first


def encrypted(pem: bytes) -> str:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pem, None)
    form, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    return key.private_bytes(encoding, form, serialization.BestAvailableEncryption(b"secret")).decode()


async def test_a_client_shows_a_new_certificate_when_its_connection_had_to_be_made_anew(
    ca: Authority, tmp_path: Path
) -> None:
    policy = policy_of(
        tmp_path / "policy.toml",
        identity("old", "client", certificates=("dns:old.example",))
        + identity("new", "client", certificates=("dns:new.example",)),
    )
    tls, service = served_by(ca.issue("127.0.0.1"), ca.file), FakeService()
    mine = ca.issue("old.example", file="mine")
    async with secured(policy, tls=tls, service=service) as server:
        address = server.address
        client = await onexflow.connect(
            address, tls=Tls(ca=ca.file, certificate=mine.certificate, key=mine.key), token=""
        )
        await client.start("echo")
    ca.issue("new.example", file="mine")
    server = GrpcServer(service, address, policy=policy, tls=tls)
    await server.start()
    try:
        async with client:
            await client.start("echo")
    finally:
        await server.stop(0.2)
    assert [start.principal for start in service.starts] == ["old", "new"]


def test_files_are_checked_when_they_are_named_and_the_error_names_the_setting(ca: Authority, tmp_path: Path) -> None:
    pair, other = ca.issue("a"), ca.issue("b")
    garbage = tmp_path / "garbage"
    garbage.write_text("no PEM")
    for tls, words in (
        (lambda: ServerTls(str(tmp_path / "none"), pair.key), "tls.certificate: cannot read .*none: No such file"),
        (lambda: ServerTls(str(garbage), pair.key), "tls.certificate: .* no certificate and its key"),
        (lambda: ServerTls(pair.certificate, other.key), "tls.certificate: .*key values mismatch"),
        (lambda: ServerTls(pair.certificate, pair.key, str(garbage)), "tls.client_ca: .* holds no certificates"),
        (lambda: ClientSecurity(ca=str(garbage)), "tls.ca: .* holds no certificates"),
        (lambda: ClientSecurity(ca=ca.file, certificate=pair.certificate), "tls.key: .* belong together"),
        (lambda: ClientSecurity(certificate=pair.certificate, key=pair.key), "tls.ca: without it there is no TLS"),
    ):
        with pytest.raises(InvalidConfiguration, match=words):
            tls()


async def test_the_name_of_a_uri_comes_from_the_certificate_too(ca: Authority, tmp_path: Path) -> None:
    """trustme makes no URIs: a certificate with one is made by hand."""
    pair = with_uri(tmp_path, "spiffe://example/orders")
    policy = policy_of(
        tmp_path / "policy.toml", identity("orders", "client", certificates=("uri:spiffe://example/orders",))
    )
    service = FakeService()
    tls = served_by(ca.issue("127.0.0.1"), str(tmp_path / "uri-ca.pem"))
    async with (
        secured(policy, tls=tls, service=service) as server,
        await onexflow.connect(
            server.address, tls=Tls(ca=ca.file, certificate=pair.certificate, key=pair.key), token=""
        ) as client,
    ):
        await client.start("echo")
    assert service.starts[0].principal == "orders"


def with_uri(folder: Path, uri: str) -> Pair:
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "uri authority")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().issuer_name(name).not_valid_before(now - dt.timedelta(hours=1))
    builder = builder.not_valid_after(now + dt.timedelta(hours=1))
    authority = (
        builder.subject_name(name).public_key(root.public_key()).serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root, hashes.SHA256())
    )  # fmt: skip
    leaf = (
        builder.subject_name(x509.Name([])).public_key(own.public_key()).serial_number(2)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .sign(root, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "uri-ca.pem").write_bytes(authority.public_bytes(pem))
    (folder / "uri.crt").write_bytes(leaf.public_bytes(pem))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "uri.key").write_bytes(own.private_bytes(pem, form, none))
    return Pair(str(folder / "uri.crt"), str(folder / "uri.key"))


def test_other_words_of_a_connection_that_was_not_made_are_left_alone() -> None:
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connection refused"
    assert not_secured(refused) is None
    assert not_secured("Socket closed") is None  # a connection that was there
    told = not_secured(
        "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:7: Tls handshake failed (X): odd"
    )
    assert told is not None
    assert str(told) == "[::1]:7: no TLS connection could be made"


def test_a_followed_value_that_cannot_be_made_at_first_is_an_error(tmp_path: Path) -> None:
    def fails() -> int:
        raise InvalidConfiguration("no")

    with pytest.raises(InvalidConfiguration):
        Followed("thing", [tmp_path / "f"], fails)
