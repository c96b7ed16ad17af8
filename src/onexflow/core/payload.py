"""Payloads: opaque bytes with the name of their encoding. Only mappings and conditions ever look inside."""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

JSON: Final = "json"


class Payload(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bytes and how they are encoded. `json` is UTF-8 JSON text; any other encoding is passed on unread."""

    data: bytes = b"null"
    encoding: str = JSON


NULL: Final = Payload()


class PayloadCodec(Protocol):
    """How the core reads and writes the payloads that a mapping or a condition needs. Pure: no I/O."""

    def decode(self, payload: Payload) -> Any:
        """The value of `payload`. Raises InvalidArgument when it cannot be read."""

    def encode(self, value: Any) -> Payload:
        """A payload of `value`. Raises InvalidArgument when it has no JSON form."""


class Failure(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why an attempt, a task or a run failed, as data: it crosses processes and is stored."""

    #: Class name of the error, matched against `retryable` and `non_retryable` of a retry policy.
    type: str
    message: str
    #: Text of the traceback, cut to 16 KiB.
    traceback: str = ""
    #: Stable error code (docs/errors.md), empty for the user's own exceptions.
    code: str = ""
    #: False when the handler said that another attempt is of no use.
    retryable: bool = True
    #: Further facts, for example the workers that were lost.
    context: dict[str, Any] | None = None
