"""Addresses as people write them: `host:port`, an IPv6 host in brackets; and URLs as they may be shown."""

from __future__ import annotations

import ipaddress
from typing import Final

_SECRET: Final = frozenset({"password", "sslpassword"})


def split_address(address: str) -> tuple[str, int] | None:
    """Host (without brackets) and port of `host:port`; None when it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        return None
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether `host:port` can be reached from this machine alone."""
    found = split_address(address)
    if found is None:
        return False
    try:
        return found[0] == "localhost" or ipaddress.ip_address(found[0]).is_loopback
    except ValueError:
        return False


def is_every(address: str) -> bool:
    """Whether `host:port` stands for all addresses of a machine (0.0.0.0, [::]): to listen on, and nowhere to go."""
    found = split_address(address)
    return found is not None and found[0] in ("0.0.0.0", "::")  # noqa: S104 - a comparison


def without_password(url: str) -> str:
    """The URL as it may be shown: whatever stands where a password could be is replaced by three stars."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    place, question, query = rest.partition("?")
    userinfo, at, hosts = place.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    shown = f"{scheme}://{user}{':***' if colon else ''}{at}{hosts}"
    if question:
        parts = (part.partition("=") for part in query.split("&"))
        shown += "?" + "&".join(f"{name}{eq}{'***' if name in _SECRET else text}" for name, eq, text in parts)
    return shown
