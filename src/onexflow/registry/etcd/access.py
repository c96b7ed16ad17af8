"""How etcd is spoken to where not everybody may: TLS, and a user with a password.

Both halves of the client (`client.py`, asynchronous; `lease.py`, blocking) hold a `Login` each. A token is asked for
when there is none, shown with every call, and asked for once more when etcd does not know it (any more): tokens end by
their time, with the server that gave them, and whenever users or roles are changed.
"""

from __future__ import annotations

import re
import ssl
import time
from pathlib import Path
from typing import Final

import grpc
import msgspec

from onexflow.core.errors import InvalidConfiguration
from onexflow.core.secret import Secret
from onexflow.registry.etcd.v1 import etcd_pb2 as pb

AUTHENTICATE: Final = "/etcdserverpb.Auth/Authenticate"

Metadata = tuple[tuple[str, str], ...]

#: After etcd has refused the password it is not asked again for so long: each time costs it 85 ms of hashing.
_REFUSED_FOR: Final = 2.0


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What etcd demands of us. Files are PEM."""

    #: Authorities that have signed etcd's certificate. Given, all connections are TLS; without it none is.
    ca: str = ""
    #: Our own certificate and its key, for an etcd that demands one.
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: Secret = Secret("")

    def check(self) -> None:
        """Raises InvalidConfiguration when parts are missing, or the files are not what they should be."""
        if bool(self.certificate) != bool(self.key):
            raise InvalidConfiguration("The registry's certificate needs its key, and the key its certificate.")
        if self.certificate and not self.ca:
            raise InvalidConfiguration("The registry's certificate is of no use without registry.ca: there is no TLS.")
        if bool(self.user) != bool(self.password):
            hint = "The password is in ONEXFLOW_REGISTRY__PASSWORD, or in the file that …PASSWORD_FILE names."
            raise InvalidConfiguration("The registry's user needs a password, and the password a user.", {"hint": hint})
        if self.ca:
            self._check_files()

    def _check_files(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        setting, files = "registry.ca", self.ca
        try:
            context.load_verify_locations(self.ca)
            if self.certificate:
                setting, files = "registry.certificate", f"{self.certificate} and {self.key}"
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError as error:
            why = f"{files}: not PEM, or not a pair ({error.reason or error})"
            raise InvalidConfiguration(f"{setting}: {why}", {"setting": setting}) from error
        except OSError as error:
            raise InvalidConfiguration(
                f"{setting}: cannot read {files}: {error.strerror}", {"setting": setting}
            ) from error

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel; None: without TLS. Reads the files: those that were replaced serve the next channel."""
        if not self.ca:
            return None
        own = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes()) if self.certificate else (None, None)
        return grpc.ssl_channel_credentials(Path(self.ca).read_bytes(), *own)

    def stamp(self) -> tuple[int, ...]:
        """Another one when a file was replaced."""
        found = []
        for file in (self.ca, self.certificate, self.key):
            try:
                found.append(Path(file).stat().st_mtime_ns if file else 0)
            except OSError:  # between two files, perhaps
                found.append(-1)
        return tuple(found)


class EtcdError(Exception):
    """A call failed. Never leaves this package."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        detail = detail.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail

    @property
    def transient(self) -> bool:
        return self.code in TRANSIENT

    @property
    def unknown_token(self) -> bool:
        """Whether a new token would help: there was none, or it is not (any longer) known."""
        return self.code is grpc.StatusCode.UNAUTHENTICATED or (
            self.code is grpc.StatusCode.INVALID_ARGUMENT
            and ("user name is empty" in self.detail or "auth store is old" in self.detail)
        )

    @property
    def refusal(self) -> bool:
        """Whether etcd has said no to who we are. Trying again will not help, until somebody changes something."""
        return self.code is grpc.StatusCode.PERMISSION_DENIED or self.unknown_token or _WRONG_LOGIN in self.detail

    @property
    def is_full(self) -> bool:
        """Whether etcd takes no writes, as its quota is used up."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in self.detail


#: Statuses after which another try may succeed. UNKNOWN and INTERNAL are what etcd and broken connections answer.
TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_WRONG_LOGIN: Final = "authentication failed"
_NOT_ENABLED: Final = "authentication is not enabled"


class Login:
    """The token of one half of the client. Says what to ask and what the answers mean; asking is the half's affair."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._token = ""
        #: etcd asks for no password: for now.
        self._not_needed = False
        self._refused: EtcdError | None = None
        self._refused_until = 0.0

    @property
    def due(self) -> bool:
        """Whether a token must be had before anything else. Raises EtcdError while the last refusal still stands."""
        if not self._access.user or self._token or self._not_needed:
            return False
        if self._refused is not None and time.monotonic() < self._refused_until:
            raise self._refused
        return True

    @property
    def metadata(self) -> Metadata:
        return (("token", self._token),) if self._token else ()

    def request(self) -> pb.AuthenticateRequest:
        return pb.AuthenticateRequest(name=self._access.user, password=self._access.password.reveal())

    def succeeded(self, answer: pb.AuthenticateResponse) -> None:
        self._token = answer.token
        self._refused = None

    def failed(self, error: EtcdError) -> None:
        """Raises the error, unless it says that there is nothing to log in to."""
        if _NOT_ENABLED in error.detail:
            self._not_needed = True
            return
        if error.refusal:
            self._refused = error
            self._refused_until = time.monotonic() + _REFUSED_FOR
        raise error

    def forget(self, metadata: Metadata) -> bool:
        """The token shown was not accepted. Returns whether another one may be."""
        if metadata == self.metadata:
            self._token = ""
            self._not_needed = False
        return bool(self._access.user)


def explain(error: Exception, access: Access, prefix: str) -> tuple[str, str] | None:
    """What a failure means in words, and what to do; None when it says all there is to say."""
    if not isinstance(error, EtcdError):
        return None
    user = f"user {access.user!r}" if access.user else "somebody without a user's name"
    if _WRONG_LOGIN in error.detail:
        cause = f"etcd does not accept the password of {user}, or has no such user."
        return cause, "Check registry.user and ONEXFLOW_REGISTRY__PASSWORD."
    if error.code is grpc.StatusCode.PERMISSION_DENIED:
        cause = f"etcd does not let {user} read and write the keys under {prefix}."
        return cause, f"Grant it: etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}"
    if error.unknown_token:
        cause = "etcd asks for a user and a password."
        return cause, "Set registry.user and ONEXFLOW_REGISTRY__PASSWORD (or …PASSWORD_FILE)."
    if error.is_full:
        cause = "etcd has used up its quota and takes no writes."
        return cause, "Compact and defragment it, then: etcdctl alarm disarm"
    return _explain_tls(error.detail, access)


def _explain_tls(detail: str, access: Access) -> tuple[str, str] | None:
    """The TLS library tells of what it saw, not of what is wrong with the settings."""
    give_ca = "Give in registry.ca the authority that signed etcd's certificate."
    if not access.ca:
        if not re.search("closed|reset|end of TCP stream", detail, re.IGNORECASE):
            return None
        return "The connection ends as soon as it is made: etcd may speak TLS only there.", give_ca
    if re.search("not in peer certificate|hostname verification", detail, re.IGNORECASE):
        cause = "etcd's certificate is not for the host that the endpoint names."
        return cause, "Name the endpoints as the certificate does (its subject alternative names)."
    if "CERTIFICATE_VERIFY_FAILED" in detail:
        return f"etcd's certificate is not signed by an authority in {access.ca}, or its time is over.", give_ca
    if "ALERT" in detail and access.certificate:
        cause = f"etcd ends the connection during TLS: it may not accept {access.certificate}."
        return cause, "Check that etcd's --trusted-ca-file has the authority that signed our certificate."
    if "ALERT" in detail:
        cause = "etcd ends the connection during TLS: it may demand a certificate of us."
        return cause, "Give registry.certificate and registry.key, if etcd runs with --client-cert-auth."
    if re.search("handshake|WRONG_VERSION_NUMBER", detail, re.IGNORECASE):
        return "There is something else than TLS.", "Leave registry.ca out, or give endpoints that have TLS."
    return None


def _no_password() -> str:
    raise ssl.SSLError(0, "the key has a password")
