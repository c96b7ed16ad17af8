"""Connecting, and what a server must be before it may hold a store.

A connection looks after itself while we are frozen or cut off: the server ends it when it idles in a transaction or
its peer is gone, and bounds each statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from onexflow.core.errors import StoreUnavailable, StoreUnusable
from onexflow.storage.postgres.url import PostgresSettings

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

#: client_connection_check_interval.
_OLDEST: Final = 140000
#: What a server may have; another value can lose what was acknowledged.
_SAFE: Final = {
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "remote_apply", "remote_write"),
}
STATEMENT_SECONDS: Final = 15
_SERVER_SETTINGS: Final = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "2s",
    "tcp_user_timeout": "10s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "default_transaction_isolation": "read committed",
    "jit": "off",
}
_LOOK: Final = """
SELECT current_setting('server_version_num')::int AS version,
  current_setting('fsync') AS fsync,
  current_setting('full_page_writes') AS full_page_writes,
  current_setting('synchronous_commit') AS synchronous_commit,
  pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS read_only,
  (SELECT system_identifier FROM pg_control_system()) AS system,
  CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline
"""


class Server(NamedTuple):
    """Which server it is: `system` is one life of a database cluster, `timeline` counts its promotions."""

    version: int
    system: int
    timeline: str


async def connect(settings: PostgresSettings, name: str) -> Connection:
    """A connection that says `name` on the server, to the member that takes writes. Raises the driver's errors."""
    return await asyncpg.connect(
        settings.dsn,
        timeout=settings.connect_timeout,
        target_session_attrs=SessionAttribute.primary,
        statement_cache_size=256,
        max_cached_statement_lifetime=0,
        server_settings={**_SERVER_SETTINGS, "application_name": name, "search_path": f"{settings.schema}, pg_temp"},
    )


async def look_at(connection: Connection, settings: PostgresSettings) -> Server:
    """Raises StoreUnusable when the server's version or settings cannot be relied on, StoreUnavailable when it does not
    take writes (now). What a reload of its configuration could change for this connection stays as it is."""
    found: Any = await connection.fetchrow(_LOOK, timeout=settings.connect_timeout)
    context = {"store": settings.shown}
    if found["version"] < _OLDEST:
        version = f"{found['version'] // 10000}.{found['version'] % 10000}"
        raise StoreUnusable(f"The store {settings.shown} is PostgreSQL {version}: 14 or later is needed.", context)
    for setting, values in _SAFE.items():
        if found[setting] not in values:
            raise StoreUnusable(
                f"The store {settings.shown} has {setting}={found[setting]}, which can lose what was acknowledged. "
                f"Set it to {values[0]}.",
                {**context, "setting": setting, "value": found[setting]},
            )
    if found["read_only"]:
        raise StoreUnavailable(f"The store {settings.shown} takes no writes: it is a standby or read-only.", context)
    await connection.execute(
        f"SET synchronous_commit = {found['synchronous_commit']}", timeout=settings.connect_timeout
    )
    return Server(found["version"], found["system"], found["timeline"])
