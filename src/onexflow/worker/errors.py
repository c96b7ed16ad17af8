"""What a handler may raise, and how any exception becomes a `Failure`: data that crosses processes and is stored."""

from __future__ import annotations

import traceback
from typing import Any, Final

import msgspec

from onexflow.core.payload import Failure
from onexflow.spi.exceptions import SPIError

MESSAGE_LIMIT: Final = 64 * 1024
TRACEBACK_LIMIT: Final = 16 * 1024


class Fatal(Exception):
    """Raised by a handler: this attempt failed, and another one is of no use. No retry policy overrides it."""


class Retry(Exception):
    """Raised by a handler: try again, not before `after` seconds. Counts as a failed attempt.

    The wish travels as `retry_after` in the failure's context. The retry policy still decides whether there is another attempt.
    """

    def __init__(self, message: str = "the handler asked for another attempt", *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class Cancelled(BaseException):
    """Raised by `ctx.raise_if_cancelled()`. Not an `Exception`, so that `except Exception` lets it pass."""


class ContractError(Exception):
    """The input does not fit the handler's annotation, or the result has no payload form. Never retried."""


def failure_of(error: BaseException) -> Failure:
    """`error` as data: class name, message (64 KiB at most), the end of its traceback (16 KiB at most)."""
    retryable = not isinstance(error, Fatal | ContractError)
    return Failure(
        type=type(error).__name__,
        message=clip(_message(error), MESSAGE_LIMIT),
        traceback=_traceback(error),
        code=str(getattr(error, "code", "")) if isinstance(error, SPIError) else "",
        retryable=retryable,
        context=_context(error),
    )


def clip(text: str, limit: int) -> str:
    """`text` within `limit` bytes of UTF-8, saying so when something was cut. Lone surrogates are replaced."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    note = f"… [{len(raw)} bytes, cut]"
    return raw[: limit - len(note.encode())].decode("utf-8", "ignore") + note


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 — a broken __str__ of the user's must not hide that the handler failed
        return f"{type(error).__name__} (its __str__ raises)"


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 — as above
        return ""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= TRACEBACK_LIMIT:
        return raw.decode()
    # The end names the place that raised, so the end is what is kept.
    note = f"[{len(raw)} bytes, cut] …"
    return note + raw[len(raw) - TRACEBACK_LIMIT + len(note.encode()) :].decode("utf-8", "ignore")


def _context(error: BaseException) -> dict[str, Any] | None:
    if isinstance(error, Retry):
        return {"retry_after": error.after} if error.after > 0 else None
    facts = getattr(error, "context", None) if isinstance(error, SPIError) else None
    if not facts:
        return None
    try:
        known: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(facts, enc_hook=str))
    except Exception:  # noqa: BLE001 — context is an extra; what has no JSON form is left out
        return None
    return known
