"""The event store on SQLite. The reader's path: `store`, `writer`, `statements`, the migrations."""

from __future__ import annotations

from onexflow.storage.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
