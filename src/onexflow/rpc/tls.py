"""Certificates: those of the port that is served, what a client shows and checks by, and why two ends do not agree."""

from __future__ import annotations

import re
import ssl
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import grpc

from onexflow.core.address import is_loopback
from onexflow.core.errors import InvalidConfiguration, NotSecured
from onexflow.rpc.followed import Followed


class Pems(NamedTuple):
    """Contents of files. `certificate` holds the chain; empty: none."""

    certificate: bytes = b""
    key: bytes = b""
    ca: bytes = b""


def read_pems(certificate: str, key: str, ca: str, names: tuple[str, str, str]) -> Pems:
    """Read and check the files, those that are named. Raises InvalidConfiguration naming the setting (`names`) and the
    file: it cannot be read, holds no certificate, or the key is not that of the certificate."""
    found = Pems(*(_read(file, name) for file, name in zip((certificate, key, ca), names, strict=True)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if found.ca:
        try:
            context.load_verify_locations(cadata=found.ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise _wrong(names[2], f"{ca} holds no certificates in PEM form") from error
        if not context.cert_store_stats()["x509"]:
            raise _wrong(names[2], f"{ca} holds no certificates in PEM form")
    if found.certificate:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise _wrong(
                names[0], f"{certificate} and {key} are no certificate and its key: {_reason(error)}"
            ) from error
    return found


def _no_password() -> str:
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error)
    return str(reason).replace("_", " ").lower()


def _read(file: str, name: str) -> bytes:
    if not file:
        return b""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise _wrong(name, f"cannot read {file}: {error.strerror}") from error


def _wrong(name: str, problem: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"{name}: {problem}", {"setting": name})


# ---- the port that is served


class ServerTls:
    """The certificate of the port, and whose certificates clients must show. `refresh` follows the files: connections
    that are open stay, the next one gets what is new."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Raises InvalidConfiguration. With `client_ca` every client must show a certificate."""
        names = ("tls.certificate", "tls.key", "tls.client_ca")
        files = [Path(file) for file in (certificate, key, client_ca) if file]
        self._pems = Followed("tls", files, lambda: read_pems(certificate, key, client_ca, names))
        self.wants_certificates = bool(client_ca)

    def refresh(self) -> bool:
        """As Followed.refresh."""
        return self._pems.refresh()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`. gRPC asks for the certificate at each connection, on a thread of its own."""
        given = self._pems.version

        def newer() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given == self._pems.version:
                return None
            given = self._pems.version
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), cast("Any", newer), require_client_authentication=self.wants_certificates
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pems = self._pems.value
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca or None)


# ---- what a client shows, and what it checks by


class ClientSecurity:
    """TLS and the token of calls to orchestrators. Both follow their files: a token at each call, certificates at each
    new connection. Without a `ca` nothing is encrypted, without a token nothing is said."""

    def __init__(
        self,
        *,
        ca: str = "",
        certificate: str = "",
        key: str = "",
        server_name: str = "",
        token: str = "",
        token_file: str = "",
    ) -> None:
        """Raises InvalidConfiguration."""
        if bool(certificate) != bool(key):
            raise _wrong("tls.certificate" if key else "tls.key", "a certificate and its key belong together")
        if certificate and not ca:
            raise _wrong("tls.ca", "without it there is no TLS, and no certificate is shown")
        names = ("tls.certificate", "tls.key", "tls.ca")
        files = [Path(file) for file in (certificate, key, ca) if file]
        self._pems = Followed("tls", files, lambda: read_pems(certificate, key, ca, names))
        self._server_name = server_name
        self._given = _checked_token(token, "token")
        self._token = Followed("token", [Path(token_file)], lambda: _token_in(token_file)) if token_file else None

    def __repr__(self) -> str:
        return f"ClientSecurity(tls={self.encrypts}, token={'***' if self.has_token else 'none'})"

    @property
    def encrypts(self) -> bool:
        return bool(self._pems.value.ca)

    @property
    def has_token(self) -> bool:
        return self._token is not None or bool(self._given)

    def version(self) -> int:
        """Changes when the certificates have."""
        self._pems.refresh()
        return self._pems.version

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is said with each call."""
        token = self._given
        if self._token is not None:
            self._token.refresh()
            token = self._token.value
        return (("authorization", f"Bearer {token}"),) if token else ()

    def check(self, address: str) -> None:
        """Raises InvalidConfiguration when a token would travel to that address in the clear."""
        if self.has_token and not self.encrypts and not is_loopback(address):
            raise _wrong("token", f"it would travel to {address} in the clear: give the cluster's authority (tls.ca)")

    def open(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel with the certificates of now. Raises as `check`."""
        self.check(address)
        if not self.encrypts:
            return grpc.aio.insecure_channel(address, options=options)
        self._pems.refresh()
        pems = self._pems.value
        if self._server_name:
            options = [*options, ("grpc.ssl_target_name_override", self._server_name)]
        credentials = grpc.ssl_channel_credentials(pems.ca, pems.key or None, pems.certificate or None)
        return grpc.aio.secure_channel(address, credentials, options=options)


def _token_in(file: str) -> str:
    token = _read(file, "token_file").decode(errors="replace").strip()
    if not token:
        raise _wrong("token_file", f"{file} is empty")
    return _checked_token(token, "token_file")


def _checked_token(token: str, name: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:  # not shown: it is a secret all the same
        raise _wrong(name, "a token is printable ASCII without spaces")
    return token


# ---- why two ends do not agree

#: Part of what gRPC says of a connection that was not made; what that means, and what to do.
_HANDSHAKES: Final = (
    (
        "certificate has expired",
        "the orchestrator's certificate has expired",
        "Replace the orchestrator's certificate (tls.certificate, tls.key): it is read again without a restart.",
    ),
    (
        "certificate is not yet valid",
        "the orchestrator's certificate is not valid yet",
        "Compare the clocks of the two machines.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the orchestrator's certificate is not signed by the authority that was given",
        "Give the file with the authority of the orchestrators' certificates (tls.ca, --tls-ca).",
    ),
    (
        "Hostname Verification Check failed",
        "the orchestrator's certificate is for another name",
        "Use the name or IP address that the certificate is for, or say which it is (tls.server_name).",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "the orchestrator does not speak TLS",
        "Give the orchestrator a certificate (tls.certificate, tls.key), or take tls.ca away here.",
    ),
    ("handshake failed", "no TLS connection could be made", NotSecured.hint),
)
_NOT_CONNECTED: Final = "failed to connect to all addresses"
_CLOSED: Final = ("Socket closed", "Connection reset by peer", "Broken pipe")
_PLACE: Final = re.compile(r"ipv[46]:(\S+?):? ")


def not_secured(text: str) -> NotSecured | None:
    """The error that gRPC's words for a connection that was not made tell of, if TLS is what kept it from being made."""
    if not text.startswith(_NOT_CONNECTED):
        return None
    place = _PLACE.search(text)
    address = f"{urllib.parse.unquote(place[1])}: " if place is not None else ""
    for sign, meaning, hint in _HANDSHAKES:
        if sign.lower() in text.lower():
            return NotSecured(f"{address}{meaning}", {"hint": hint, "said": text})
    if any(sign in text for sign in _CLOSED):
        return NotSecured(
            f"{address}the connection was closed as it was opened",
            {
                "hint": "If TLS is spoken there, give its authority (tls.ca, --tls-ca). If it is given: a certificate is "
                "demanded there that is valid and signed by the authority that it knows (tls.certificate, tls.key).",
                "said": text,
            },
        )
    return None
