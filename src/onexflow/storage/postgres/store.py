"""PostgresStore: the event store for many orchestrators. Every append is one statement, fenced shard by shard.

`url` says where, `server` what it must be, `schema` makes the tables, `links` are the connections, `promises` what a
server must still have after a failover, `writer` appends, `reads` reads; this module is what the port sees. Nothing
here assumes to be alone: who owns a shard is in the table `shards`, and each append proves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any, Final, TypeVar

import structlog

from onexflow.core.errors import InternalError, StoreUnavailable, StoreUnusable
from onexflow.ports.clock import Clock
from onexflow.ports.event_store import (
    AppendOutcome,
    CheckpointRecord,
    DefinitionRecord,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunCount,
    RunFilter,
    RunPage,
    RunRecord,
    ShardAppend,
    ShardClaim,
    SnapshotRecord,
    StoredRun,
    Tombstone,
)
from onexflow.storage.postgres import reads, schema
from onexflow.storage.postgres import statements as sql
from onexflow.storage.postgres.errors import DriverError, unusable
from onexflow.storage.postgres.links import Link, Readers, Session, names_of
from onexflow.storage.postgres.server import Connection, connect, look_at
from onexflow.storage.postgres.url import parse_postgres_url
from onexflow.storage.postgres.writer import Writer, as_bytes, digest_of
from onexflow.storage.time import StoreTime

T = TypeVar("T")
_log = structlog.get_logger("onexflow.store")

DEFAULT_SHARDS: Final = 64
MAX_SHARDS: Final = 4096
#: How long a claim waits for the shard's lock before the connections of its owner so far are ended.
POLITE_SECONDS: Final = 0.2
_CLAIM_SECONDS: Final = 5.0
_TERMINATE_MS: Final = 500
_FORGET_AT_ONCE: Final = 1000


class PostgresStore:
    """`ports.EventStore` on PostgreSQL. `shards` counts only for a store that does not exist yet.

    `url` is as `parse_postgres_url` takes it. Without `make` only a store that exists with this release's tables is
    opened, and nothing is made or migrated. Beside the port's errors `open` raises StoreUnavailable when the server cannot be reached (now)."""

    def __init__(
        self,
        url: str,
        shards: int = DEFAULT_SHARDS,
        clock: Clock | None = None,
        *,
        password: str = "",
        make: bool = True,
    ) -> None:
        if not 1 <= shards <= MAX_SHARDS:
            raise StoreUnusable(f"A store has 1 to {MAX_SHARDS} shards, not {shards}.")
        self._settings = parse_postgres_url(url, password)
        self._shards = shards
        self._make = make
        # The server's clock counts; between two of its answers our own monotonic one.
        self._time = StoreTime(lambda: 0, time.monotonic if clock is None else clock.monotonic)
        self._opened: _Opened | None = None

    @property
    def shards(self) -> int:
        return self._shards

    @property
    def url(self) -> str:
        """Without the password."""
        return self._settings.shown

    async def open(self) -> None:
        if self._opened is not None:
            return
        session = Session(self._settings, self._learn_time)
        try:
            connection = await connect(self._settings, session.name("control"))
        except DriverError as error:
            raise unusable(error, self.url) from error
        try:
            await look_at(connection, self._settings)
            prepare = schema.migrate if self._make else schema.check
            self._shards = await prepare(connection, self._settings, schema.migrations(), self._shards)
            await session.vet(connection)
        except DriverError as error:
            connection.terminate()
            raise unusable(error, self.url) from error
        except BaseException:
            connection.terminate()
            raise
        self._opened = _Opened(session, connection, self._shards, self.now)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await asyncio.shield(opened.close())

    def now(self) -> int:
        return self._time.now()

    async def owners(self) -> Sequence[tuple[int, int, str]]:
        # Not in the line of the reads: who cannot ask it for some seconds gives up what it owns.
        return await self._control(reads.owners)

    async def heads(self) -> dict[int, int]:
        return await self._read(reads.heads)

    async def claim(self, shard: int, epoch: int, owner: str) -> ShardClaim | None:
        opened = self._held()
        if not 0 <= shard < self._shards:
            return None
        return await opened.claim(shard, epoch, owner)

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        return await self._held().append(batch)

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        return await self._read_of(shard, lambda db: reads.shard_rows(db, shard, offset, limit), [])

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        return await self._read_of(shard, lambda db: reads.run_rows(db, shard, iid, from_seq, limit), [])

    async def find_run(self, shard: int, key: bytes) -> RunRecord | None:
        return await self._read_of(shard, lambda db: reads.find_run(db, shard, key), None)

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        return await self._read_of(shard, lambda db: reads.get_runs(db, shard, iids), [])

    async def list_runs(self, where: RunFilter, cursor: str = "", limit: int = 100) -> RunPage:
        return await self._read(lambda db: reads.list_runs(db, where, cursor, max(limit, 1)))

    async def count_runs(self, where: RunFilter) -> list[RunCount]:
        return await self._read(lambda db: reads.count_runs(db, where))

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        return await self._read_of(shard, lambda db: reads.snapshot(db, shard, iid, max_seq), None)

    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None:
        return await self._read_of(shard, lambda db: reads.checkpoint(db, shard), None)

    async def due_parked(self, shard: int, until: int, limit: int = 1024) -> list[ParkedRecord]:
        return await self._read_of(shard, lambda db: reads.due_parked(db, shard, until, limit), [])

    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None:
        return await self._read_of(shard, lambda db: reads.get_parked(db, shard, iid), None)

    async def read_back(self, shard: int, iids: Sequence[int], limit: int = 64) -> list[StoredRun]:
        return await self._read_of(shard, lambda db: reads.read_back(db, shard, iids, limit), [])

    async def get_register(self, shard: int, name: str) -> bytes | None:
        return await self._read_of(shard, lambda db: reads.get_register(db, shard, name), None)

    async def list_registers(
        self, shard: int, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[RegisterRecord]:
        return await self._read_of(shard, lambda db: reads.list_registers(db, shard, prefix, after, limit), [])

    async def find_register(self, name: str) -> list[tuple[int, bytes]]:
        return await self._read(lambda db: reads.find_register(db, name))

    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]:
        return await self._read_of(shard, lambda db: reads.tombstones(db, shard, from_offset, iid), [])

    async def find_request(self, shard: int, namespace: str, request_id: str) -> RequestRecord | None:
        return await self._read_of(shard, lambda db: reads.find_request(db, shard, namespace, request_id), None)

    async def forget_requests(self, before: int) -> int:
        total = 0
        while True:  # in small transactions, so that appends pass between them
            done = await self._control(lambda db: db.execute(sql.FORGET, before, _FORGET_AT_ONCE))
            gone = int(done.rpartition(" ")[2])  # "DELETE 12"
            total += gone
            if gone < _FORGET_AT_ONCE:
                return total

    async def save_definition(self, record: DefinitionRecord) -> DefinitionRecord:
        namespace, workflow_type = as_bytes(record.namespace), as_bytes(record.workflow_type)
        digest = digest_of(namespace, workflow_type, b"%d" % record.version)

        async def save(connection: Connection) -> Any:
            await connection.execute(
                sql.SAVE_DEFINITION,
                *(digest, namespace, workflow_type, record.version),
                *(as_bytes(record.hash), record.data, record.registered_at),
            )
            return await connection.fetchrow(sql.DEFINITION, digest)

        return reads.definition(await self._control(save))

    async def load_definitions(self) -> list[DefinitionRecord]:
        return await self._read(reads.definitions)

    async def statistics(self) -> dict[str, int]:
        return await self._read(reads.statistics)

    # ----------------------------------------------------------------------------------------------------- inside

    def _held(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailable(f"The store {self.url} is not open.", {"store": self.url})
        return self._opened

    async def _read(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._held().readers.run(read)

    async def _read_of(self, shard: int, read: Callable[[Connection], Awaitable[T]], nothing: T) -> T:
        opened = self._held()
        return await opened.readers.run(read) if 0 <= shard < self._shards else nothing

    async def _control(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._held().control.run(work)

    def _learn_time(self, stored: int) -> None:
        self._time.now()  # time until now has passed already: it is not to be added to what the server says
        self._time.not_below(stored)


class _Opened:
    """What an open store has: its connections, and one append under way."""

    def __init__(self, session: Session, connection: Connection, shards: int, now: Callable[[], int]) -> None:
        self.session = session
        self.control = Link(session, "control", connection)
        self.readers = Readers(session)
        self._write = Link(session, "write")
        self._writer = Writer(session, self._write, shards, now)
        self._appending = asyncio.Lock()
        self._appends: set[asyncio.Task[AppendOutcome]] = set()

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        self.session.check()
        task = asyncio.get_running_loop().create_task(self._append(list(batch)), name="store-append")
        self._appends.add(task)
        task.add_done_callback(self._appended)
        return await asyncio.shield(task)  # cancelling the caller does not undo it

    async def _append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        async with self._appending:
            return await self._writer.append(batch)

    def _appended(self, task: asyncio.Task[AppendOutcome]) -> None:
        self._appends.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have left

    async def claim(self, shard: int, epoch: int, owner: str) -> ShardClaim | None:
        """Compare and set. The deposed owner may be frozen with the shard locked: then its connections are ended.

        Several may run at once, each on one of the readers' connections; the one that ends owners is never taken."""
        arguments = (shard, epoch, as_bytes(owner), self.session.id)
        loop = asyncio.get_running_loop()
        asked_at = inf  # not while it waits for a connection of ours: then nobody is in its way

        async def claim(connection: Connection) -> Any:
            nonlocal asked_at
            asked_at = loop.time()
            return await connection.fetchrow(sql.CLAIM, *arguments)

        claiming = loop.create_task(self.readers.once(claim, _CLAIM_SECONDS), name="store-claim")
        try:
            while not (await asyncio.wait({claiming}, timeout=POLITE_SECONDS))[0]:
                if loop.time() - asked_at >= POLITE_SECONDS / 2:
                    await self._end_owner(shard)
        finally:
            await asyncio.wait({claiming})  # it ends by its own limit, and must not be left behind
        found = claiming.result()
        if found is None:
            return None
        _, at, head, next_iid, now = found
        self.session.learn_time(now)
        self.session.promises.keep(shard, at, head)
        return ShardClaim(shard, at, head, next_iid)

    async def _end_owner(self, shard: int) -> None:
        async def end(connection: Connection) -> str:
            session: str = await connection.fetchval(sql.SESSION, shard)
            if session in {"", self.session.id}:
                return ""
            await connection.fetchval(sql.TERMINATE, names_of(session), _TERMINATE_MS)
            return session

        try:
            session = await self.control.run(end)
        except (StoreUnavailable, InternalError) as error:
            _log.warning("owner.not_ended", shard=shard, error=str(error))
        else:
            if session:
                _log.warning("owner.ended", shard=shard, session=session, why="it held the shard's lock")

    async def close(self) -> None:
        if self._appends:
            await asyncio.wait(self._appends)
        await asyncio.gather(self._write.close(), self.control.close(), self.readers.close())
