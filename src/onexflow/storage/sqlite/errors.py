"""SQLite's errors as ours: no driver's error crosses the port."""

from __future__ import annotations

import sqlite3
from typing import Final

from onexflow.core.errors import Coded, StoreFull, StoreUnavailable

#: Primary result codes after which nothing may be assumed about what is on the disk: the process must end.
_FATAL: Final = frozenset({
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
})  # fmt: skip


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, or 0 for errors that Python's module raises by itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def translate(error: sqlite3.Error, path: str) -> Coded:
    """The error to raise for a failed statement; `context["fatal"]` says that the process must end."""
    code = primary_code(error)
    context = {"store": path, "sqlite_error": getattr(error, "sqlite_errorname", type(error).__name__)}
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"No space left for the store {path}: nothing was stored.", context)
    if code in _FATAL:
        message = f"The store {path} failed: {error}. Restart to recover what is on the disk."
        return StoreUnavailable(message, {**context, "fatal": True})
    if code == sqlite3.SQLITE_INTERRUPT:
        return StoreUnavailable(f"A read of the store {path} took too long and was ended.", context)
    return StoreUnavailable(f"The store {path} did not do what was asked: {error}", context)
