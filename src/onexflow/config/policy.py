"""The access policy: a TOML file that says who is known and what each may do (docs/security.md).

[[identity]]
name = "billing"
roles = ["client"]
tokens = ["sha256:…"]                                  # made by `onexflow token`

[[identity]]
name = "payment-workers"
roles = ["worker"]
certificates = ["dns:payments.example", "uri:spiffe://example/payments"]
node_roles = ["effect"]
handlers = ["payments.*"]
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from onexflow.core.definition import ROLES, Role
from onexflow.core.errors import InvalidConfiguration
from onexflow.core.identity import AccessRole, Identity, Policy

K = TypeVar("K")

#: What a name may be made of: it travels in metadata, and stands in histories.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
_TOKEN: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CERTIFICATE: Final = re.compile(r"(uri|dns|cn):.+")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    roles: tuple[AccessRole, ...]
    tokens: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    node_roles: tuple[Role, ...] = ROLES
    handlers: tuple[str, ...] = ("*",)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    identity: tuple[_Entry, ...]


def load_policy(file: Path) -> Policy:
    """The policy in `file`. Raises InvalidConfiguration naming the file, the place and the problem, and no secret."""
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise _wrong(file, f"cannot be read: {reason}") from error
    return parse_policy(text, file)


def parse_policy(text: str, file: Path) -> Policy:
    """As load_policy, of the file's text."""
    try:
        content = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(file, f"is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise _wrong(file, str(error).replace("`", "")) from error
    tokens: dict[bytes, Identity] = {}
    certificates: dict[str, Identity] = {}
    identities: list[Identity] = []
    for entry in content.identity:
        _check(entry, file)
        if any(entry.name == other.name for other in identities):
            raise _wrong(file, f"two identities are named {entry.name!r}")
        identity = Identity(entry.name, frozenset(entry.roles), entry.node_roles, entry.handlers)
        identities.append(identity)
        for token in entry.tokens:
            _only_once(tokens, bytes.fromhex(token.removeprefix("sha256:")), identity, "a token", file)
        for name in entry.certificates:
            _only_once(certificates, name, identity, f"the certificate {name}", file)
    return Policy(identities, tokens, certificates)


def _check(entry: _Entry, file: Path) -> None:
    if not _NAME.fullmatch(entry.name):
        raise _wrong(file, f"identity {entry.name!r}: a name has 1 to 128 letters, digits and . _ : / @ -")
    if not entry.roles:
        raise _wrong(file, f"identity {entry.name!r} has no role: give it one, or take it away")
    if not (entry.tokens or entry.certificates):
        raise _wrong(file, f"identity {entry.name!r} has neither tokens nor certificates: nobody could be it")
    for number, token in enumerate(entry.tokens, 1):
        if not _TOKEN.fullmatch(token):  # it may be a token itself: not shown
            problem = f"token {number} is no sha256:… of 64 hexadecimal digits; `onexflow token` makes one"
            raise _wrong(file, f"identity {entry.name!r}: {problem}")
    for name in entry.certificates:
        if not _CERTIFICATE.fullmatch(name):
            raise _wrong(file, f"identity {entry.name!r}: certificate {name!r} begins with none of uri:, dns:, cn:")
    if "worker" not in entry.roles and (entry.node_roles != ROLES or entry.handlers != ("*",)):
        raise _wrong(file, f"identity {entry.name!r} limits node_roles or handlers and is no worker")


def _only_once(known: dict[K, Identity], key: K, identity: Identity, what: str, file: Path) -> None:
    if key in known:
        raise _wrong(file, f"{known[key].name!r} and {identity.name!r} have {what} in common")
    known[key] = identity


def _wrong(file: Path, problem: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"access policy {file}: {problem}", {"setting": "access_policy", "origin": str(file)})
