"""Connections that come back. One statement at a time on each; what hangs is cut off, and its outcome is unknown.

Nothing is ever cancelled on the server: a commit that waits for its standby would answer a cancel with success.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from onexflow.core.errors import Coded, StoreUnavailable, StoreUnusable
from onexflow.storage.postgres import statements as sql
from onexflow.storage.postgres.errors import DriverError, is_lost, is_passing, translate
from onexflow.storage.postgres.promises import Promises
from onexflow.storage.postgres.server import Connection, connect, look_at
from onexflow.storage.postgres.url import PostgresSettings

T = TypeVar("T")
_log = structlog.get_logger("onexflow.store")

READERS: Final = 4
READ_SECONDS: Final = 5.0
#: How long a statement waits for a server that is away, before it says so.
CONNECT_SECONDS: Final = 1.5
_CLOSE_SECONDS: Final = 2.0
_TERMINATE_MS: Final = 2000


class Session:
    """What the connections of one open store share. Its name is in each connection's application_name, so that a
    successor can end them all."""

    def __init__(self, settings: PostgresSettings, learn_time: Callable[[int], None]) -> None:
        self.settings = settings
        self.id = secrets.token_hex(8)
        self.promises = Promises(settings.shown)
        #: Set when the server cannot be trusted: from then on everything is refused.
        self.failed: Coded | None = None
        self.learn_time = learn_time

    def name(self, role: str) -> str:
        return f"{names_of(self.id)}{role}"

    def check(self) -> None:
        if self.failed is not None:
            raise StoreUnavailable(str(self.failed), self.failed.context)

    def note(self, error: Coded) -> Coded:
        if error.context.get("fatal"):
            self.failed = error
        return error

    async def vet(self, connection: Connection) -> None:
        """Let a new connection be used only if its server is safe, is the one we know, and has all we were told."""
        limit = self.settings.connect_timeout
        promised = self.promises.current()
        self.promises.recognise(await look_at(connection, self.settings))
        found = await connection.fetch(sql.HEADS, list(promised), timeout=limit)
        self.promises.hold_against([tuple(row) for row in found], promised)
        self.learn_time(await connection.fetchval(sql.CLOCK, timeout=limit))


def names_of(session: str) -> str:
    """What the application names of a session's connections begin with."""
    return f"onexflow {session} "


class Link:
    """One connection, made when it is needed and again when it was lost."""

    def __init__(self, session: Session, role: str, connection: Connection | None = None) -> None:
        self._session = session
        self._role = role
        self._connection = connection
        self._used = connection is not None
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        #: Loop time at which it could not be made last, and why.
        self._unreached: tuple[float, StoreUnavailable] | None = None

    async def run(self, work: Callable[[Connection], Awaitable[T]], seconds: float = READ_SECONDS) -> T:
        """Do `work`, undisturbed by what becomes of the caller. Raises errors of ours alone."""
        task = asyncio.get_running_loop().create_task(self.run_here(work, seconds), name=f"store-{self._role}")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is under way, then say goodbye."""
        if self._running:
            await asyncio.wait(self._running)
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=_CLOSE_SECONDS)
            except DriverError:
                connection.terminate()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have left

    async def run_here(self, work: Callable[[Connection], Awaitable[T]], seconds: float = READ_SECONDS) -> T:
        """As `run`, for a caller that is not cancelled."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._lock:
            self._session.check()
            self.check_reached(asked)
            try:
                connection = await self._connected()
            except StoreUnavailable as error:
                self._unreached = loop.time(), error
                raise
            overdue = asyncio.get_running_loop().call_later(seconds, connection.terminate)
            try:
                return await work(connection)
            except DriverError as error:
                shown = self._session.settings.shown
                if connection.is_closed() or is_lost(error):
                    self._drop()
                if overdue.when() <= asyncio.get_running_loop().time():
                    message = f"The store {shown} did not answer within {seconds:g} s."
                    raise StoreUnavailable(message, {"store": shown, "overdue": True}) from error
                raise self._session.note(translate(error, shown)) from error
            finally:
                overdue.cancel()

    def check_reached(self, since: float) -> None:
        """Raises when it was tried in vain since then, for somebody who was before in the line."""
        if self._unreached is not None and self._unreached[0] > since:
            raise StoreUnavailable(str(self._unreached[1]), self._unreached[1].context)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._connection = None
        shown = self._session.settings.shown
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_delay(CONNECT_SECONDS),
                wait=wait_random_exponential(multiplier=0.02, max=0.25),
                retry=retry_if_exception(_may_pass),
                reraise=True,
            ):
                with attempt:
                    self._connection = await self._connect()
        except DriverError as error:
            raise self._session.note(translate(error, shown)) from error
        except StoreUnusable as error:  # it was usable when it was opened: somebody may put it right
            raise StoreUnavailable(str(error), error.context) from error
        except StoreUnavailable as error:
            raise self._session.note(error) from error
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(f"The store {shown} cannot be reached.", {"store": shown})
        if self._used:
            _log.info("store.reconnected", store=shown, connection=self._role)
        self._used = True
        return connection

    async def _connect(self) -> Connection:
        session = self._session
        name = session.name(self._role)
        connection = await connect(session.settings, name)
        try:
            await session.vet(connection)
            if self._used:
                await self._end_predecessor(connection, name)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _end_predecessor(self, connection: Connection, name: str) -> None:
        """The connection that was lost may still have a statement of ours to do. It must not do it after the next."""
        limit = self._session.settings.connect_timeout
        if not await connection.fetchval(sql.TERMINATE, name, _TERMINATE_MS, timeout=limit):
            raise StoreUnavailable(f"The store {self._session.settings.shown} still does what was asked before.")


class Readers:
    """A few links for reads. A read whose connection breaks is done again on another, once."""

    def __init__(self, session: Session) -> None:
        self._links = [Link(session, f"read-{number}") for number in range(READERS)]
        self._free: asyncio.LifoQueue[Link] = asyncio.LifoQueue()
        for link in reversed(self._links):
            self._free.put_nowait(link)

    async def run(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await self.once(read)
        except StoreUnavailable as error:
            if not _broke(error):
                raise
        return await self.once(read)

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links))

    async def once(self, work: Callable[[Connection], Awaitable[T]], seconds: float = READ_SECONDS) -> T:
        """On any free connection, and not again."""
        asked = asyncio.get_running_loop().time()
        link = await self._free.get()
        try:
            link.check_reached(asked)
            return await link.run(work, seconds)
        finally:
            self._free.put_nowait(link)


def _broke(error: StoreUnavailable) -> bool:
    """Whether it was the connection that failed, and not the store."""
    known = error.context.get("fatal") or error.context.get("overdue")
    return not known and isinstance(error.__cause__, DriverError) and is_lost(error.__cause__)


def _may_pass(error: BaseException) -> bool:
    return is_passing(error) or (isinstance(error, StoreUnavailable) and not error.context.get("fatal"))
