"""The event store on PostgreSQL. The reader's path: `store`, `writer`, `statements`, `links`, the migrations."""

from __future__ import annotations

from onexflow.storage.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
