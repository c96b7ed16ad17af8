"""Addresses as people write them: `host:port`, an IPv6 host in brackets."""

from __future__ import annotations

import ipaddress


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
