"""The etcd and the PostgreSQL that belong to a cluster on this machine: started with it, kept alive, ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from onexflow.app import adapters
from onexflow.app.processes import RESTART_AFTER, Report
from onexflow.registry.etcd.embedded import EmbeddedEtcd
from onexflow.spi.exceptions import SPIError

#: Seconds between looks whether it is still there.
_LOOK_EVERY: Final = 0.2
#: Connections to PostgreSQL: what an orchestrator has at most, and what is left for people and tools.
_CONNECTIONS_EACH: Final = 6
_CONNECTIONS_BESIDE: Final = 20


class Server(Protocol):
    """What `EmbeddedEtcd` and `EmbeddedPostgres` have in common."""

    @property
    def url(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def running(self) -> bool: ...

    async def stop(self) -> None: ...


class PrivateServer:
    """One of them, under the name that people see. `start` returns when it answers; then it is kept alive until `stop`.

    `begin` starts it, `again` does so after it has died.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        begin: Callable[[], Awaitable[None]],
        again: Callable[[], Awaitable[None]],
        *,
        report: Report,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self._server = server
        self._begin = begin
        self._again = again
        self._report = report
        self._on_change = on_change
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def pid(self) -> int | None:
        """The running process, None while there is none."""
        return self._server.pid if self._is_alive() else None

    def _is_alive(self) -> bool:
        return self._server.running

    async def start(self) -> None:
        """Start it and wait until it answers. Raises what made that impossible."""
        await self._begin()
        self._on_change()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.name}")

    async def stop(self) -> None:
        """End it in good order. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._server.stop()

    async def _keep(self) -> None:
        pause = RESTART_AFTER[0]
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self._is_alive():
                continue
            self._on_change()
            self._report(f"{self.name} (pid {self._server.pid}) ended")
            while not self._is_alive():
                await asyncio.sleep(pause)
                try:
                    await self._again()
                except SPIError as error:
                    self._report(f"{self.name} cannot start: {error}")
                    pause = min(pause * 2, RESTART_AFTER[1])
            pause = RESTART_AFTER[0]
            self._on_change()
            self._report(f"{self.name} runs again (pid {self._server.pid})")


def private_etcd(*, report: Report, on_change: Callable[[], None]) -> PrivateServer:
    """An etcd that comes back empty when it dies: with the old data, the release of the wheel may have lost some."""
    etcd = EmbeddedEtcd()
    return PrivateServer("etcd", etcd, etcd.start, etcd.wipe_and_restart, report=report, on_change=on_change)


def private_postgres(data: Path, orchestrators: int, *, report: Report, on_change: Callable[[], None]) -> PrivateServer:
    """A PostgreSQL for so many orchestrators, with its data in the folder `data`. Raises StoreUnusable when there is no
    driver, StoreUnavailable when there is no server to be run."""
    adapters.need_postgres_driver()
    from onexflow.storage.postgres.embedded import EmbeddedPostgres

    connections = orchestrators * _CONNECTIONS_EACH + _CONNECTIONS_BESIDE
    postgres = EmbeddedPostgres.kept(data, max_connections=str(connections))
    return PrivateServer("postgres", postgres, postgres.start, postgres.start, report=report, on_change=on_change)
