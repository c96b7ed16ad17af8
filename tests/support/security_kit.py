"""Certificates in files, policies, and a server that asks for them: what the tests of security share."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import trustme

from onexflow.config import load_policy
from onexflow.core.identity import Policy
from onexflow.rpc.followed import Followed
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.tls import ClientSecurity, ServerTls
from support.rpc_kit import FakeService

LONG_AGO = (dt.datetime(2019, 1, 1, tzinfo=dt.UTC), dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


class Pair(NamedTuple):
    """Files of a certificate and its key."""

    certificate: str
    key: str


class Authority:
    """A CA whose certificates are in files of `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.file = str(folder / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, file: str = "", common_name: str | None = None, expired: bool = False) -> Pair:
        """A certificate for these names, in files called `file`."""
        dates = {"not_before": LONG_AGO[0], "not_after": LONG_AGO[1]} if expired else {}
        made = self._ca.issue_cert(*names, common_name=common_name, **dates)
        stem = file or names[0]
        pair = Pair(str(self._folder / f"{stem}.crt"), str(self._folder / f"{stem}.key"))
        Path(pair.certificate).write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        made.private_key_pem.write_to_path(pair.key)
        return pair


def hashed(token: str) -> str:
    return f"sha256:{sha256(token.encode()).hexdigest()}"


def identity(name: str, *roles: str, token: str = "", certificates: tuple[str, ...] = (), more: str = "") -> str:
    """An identity of a policy file. Its token is `token-of-NAME` unless it has another, or certificates."""
    tokens = [hashed(token or f"token-of-{name}")] if token or not certificates else []
    lines = [
        "[[identity]]",
        f'name = "{name}"',
        f"roles = {list(roles)}",
        f"tokens = {tokens}",
        f"certificates = {list(certificates)}",
        more,
    ]
    return "\n".join(lines) + "\n"


#: An identity for each role, and a token for each: `token-of-` and its name.
EVERY_ROLE = "".join(identity(f"the-{role}", role) for role in ("client", "worker", "operator", "member"))


def policy_of(file: Path, text: str = EVERY_ROLE) -> Followed[Policy]:
    file.write_text(text)
    return Followed("access policy", [file], lambda: load_policy(file))


def shows(name: str, ca: str = "") -> ClientSecurity:
    """The credentials of an identity of `identity`; "": none."""
    return ClientSecurity(token=f"token-of-{name}" if name else "", ca=ca)


@asynccontextmanager
async def secured(
    policy: Followed[Policy] | None = None, *, tls: ServerTls | None = None, service: Any = None
) -> AsyncIterator[GrpcServer]:
    """A server that asks who calls."""
    server = GrpcServer(service or FakeService(), "127.0.0.1:0", policy=policy, tls=tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0.2)
