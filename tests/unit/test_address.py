"""Addresses: what is host:port, and which of them are this machine's alone."""

from __future__ import annotations

import pytest

from onexflow.core.address import is_every, is_loopback, split_address


@pytest.mark.parametrize(
    ("text", "parts", "loopback"),
    [
        ("127.0.0.1:7411", ("127.0.0.1", 7411), True),
        ("localhost:0", ("localhost", 0), True),
        ("[::1]:7411", ("::1", 7411), True),
        ("0.0.0.0:7411", ("0.0.0.0", 7411), False),
        ("example.org:80", ("example.org", 80), False),
        ("127.0.0.1", None, False),
        (":7411", None, False),
        ("127.0.0.1:65536", None, False),
        ("127.0.0.1:²", None, False),
        ("127.0.0.1:-1", None, False),
    ],
)
def test_addresses(text: str, parts: tuple[str, int] | None, loopback: bool) -> None:
    assert split_address(text) == parts
    assert is_loopback(text) is loopback


@pytest.mark.parametrize(
    ("text", "every"),
    [("0.0.0.0:7411", True), ("[::]:0", True), ("127.0.0.1:0", False), ("[::1]:0", False), ("10.0.0.1:7", False)],
)
def test_addresses_to_listen_on_and_not_to_go_to(text: str, every: bool) -> None:
    assert is_every(text) is every
