"""Who calls, and what that identity may do. Values only: how a caller proves who it is belongs to `rpc`."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Final, Literal, get_args

import msgspec

from onexflow.core.definition import ROLES

#: What an identity may be to the cluster. Not the role of a node: that is `core.definition.Role`.
AccessRole = Literal["client", "worker", "operator", "member"]
ACCESS_ROLES: Final[tuple[AccessRole, ...]] = get_args(AccessRole)

#: What else a role may do. A member passes on the calls of both.
_ALSO: Final[Mapping[str, frozenset[str]]] = {
    "operator": frozenset({"client"}),
    "member": frozenset({"client", "operator"}),
}


class Identity(msgspec.Struct, frozen=True):
    """A name, what it may be, and, of a worker, which handlers it may register. `ANYBODY` when nobody is asked."""

    name: str
    roles: frozenset[str]
    #: Roles of the nodes that it may register.
    node_roles: tuple[str, ...] = ROLES
    #: Names of the handlers that it may register; a `*` at the end stands for any rest.
    handlers: tuple[str, ...] = ("*",)

    def has(self, role: str) -> bool:
        """May it do what that role may?"""
        return role in self.roles or any(role in _ALSO.get(own, ()) for own in self.roles)

    def refused(self, handlers: Iterable[tuple[str, str]]) -> list[str]:
        """Those of the handlers (role, name) that it may not register, in words."""
        return [
            f"{role} {name}"
            for role, name in handlers
            if role not in self.node_roles or not any(_matches(pattern, name) for pattern in self.handlers)
        ]


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


#: The caller where no policy says who may do what: it may do anything, and nothing is written down about it.
ANYBODY: Final = Identity("", frozenset({"client", "worker", "operator"}))


def passed_on(name: str, roles: Iterable[str]) -> Identity:
    """The identity that another orchestrator asks for. It cannot be an orchestrator itself: one hop is all there is."""
    return Identity(name, frozenset(role for role in roles if role in ACCESS_ROLES and role != "member"))


#: Whose call is being handled.
CALLER: ContextVar[Identity] = ContextVar("onexflow-caller", default=ANYBODY)
#: For whom another orchestrator is being asked; None: on this orchestrator's own account.
ON_BEHALF: ContextVar[Identity | None] = ContextVar("onexflow-on-behalf", default=None)


class Policy:
    """Who is known, by what: hashes of tokens, and names in certificates (`uri:…`, `dns:…`, `cn:…`)."""

    #: Bytes of a hash by which it is looked up. The rest is compared in constant time.
    _INDEX: Final = 8

    def __init__(
        self, identities: Sequence[Identity], tokens: Mapping[bytes, Identity], certificates: Mapping[str, Identity]
    ) -> None:
        """`tokens`: by the SHA-256 of the token."""
        self.identities = tuple(identities)
        self._tokens = {digest[: self._INDEX]: (digest, identity) for digest, identity in tokens.items()}
        self._certificates = dict(certificates)

    def by_token(self, digest: bytes) -> Identity | None:
        """The identity whose token has that SHA-256."""
        known = self._tokens.get(digest[: self._INDEX])
        if known is None or not hmac.compare_digest(known[0], digest):
            return None
        return known[1]

    def by_certificate(self, names: Iterable[str]) -> Identity | None:
        """The identity of the first of a certificate's names that is known."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)
