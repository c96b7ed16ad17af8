"""The writer: one thread, one connection, one transaction an append.

Checkpoints of the WAL run in this thread too, between commits and after the answer to the last one has left: when
the queue is idle and the WAL has some size, or at once when it is large. They never overlap a commit, on purpose:
SQLite before 3.51.3 can corrupt a database whose WAL is reset by a commit while another connection checkpoints.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from onexflow.core.errors import Coded, InternalError, StoreUnavailable
from onexflow.ports.event_store import AppendOutcome, ShardAppend
from onexflow.storage.sqlite import statements as sql
from onexflow.storage.sqlite.errors import translate

#: Estimated pages in the WAL: above the first a checkpoint runs when idle, above the second at once. (The size of the
#: file does not tell: it is kept and written over, because growing a file makes each fsync dearer.)
IDLE_CHECKPOINT: Final = 256
FORCED_CHECKPOINT: Final = 8192
_PAGES_A_COMMIT: Final = 16
_IDLE_SECONDS: Final = 0.2


class Job(NamedTuple):
    """Work for the thread; the answer goes to `answer` in its own loop."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Owns the writing connection. `submit` is called on an event loop, all else happens in the thread."""

    #: Used by the thread alone.
    connection: sqlite3.Connection

    def __init__(self, connection: sqlite3.Connection, path: Path, store_now: Callable[[], int]) -> None:
        self.connection = connection
        self._path = path
        self._store_now = store_now
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._kinds: dict[tuple[bytes, bytes], int] = {
            (namespace, workflow_type): kind
            for kind, namespace, workflow_type in connection.execute("SELECT kind, namespace, workflow_type FROM kinds")
        }
        self._backlog = 0
        #: Set when the disk has failed: from then on everything is refused.
        self.failed: Coded | None = None
        self._thread = threading.Thread(target=self._run, name="onexflow-store", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Queue `work` for the thread. Cancelling the future does not undo it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._jobs.put(Job(work, answer, loop))
        return answer

    def stop(self) -> None:
        """Finish what is queued, checkpoint, and end the thread. Blocks."""
        self._jobs.put(None)
        self._thread.join()

    def transaction(self, work: Callable[[], Any]) -> Any:
        """Run `work` in one transaction; durable when it returns, undone when it raises."""
        if self.failed is not None:
            raise StoreUnavailable(str(self.failed), self.failed.context)
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            result = work()
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._translated(error) from error
        except BaseException:
            self._roll_back()
            raise
        return result

    def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        """The port's append, in the thread."""
        new_kinds: list[tuple[bytes, bytes]] = []
        try:
            outcome: AppendOutcome = self.transaction(lambda: self._append(batch, new_kinds))
        except BaseException:
            for names in new_kinds:
                self._kinds.pop(names, None)
            raise
        return outcome

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS if self._backlog > IDLE_CHECKPOINT else None)
            except queue.Empty:
                self._checkpoint("PASSIVE")
                continue
            if job is None:
                break
            self._do(job)
            if self._backlog > FORCED_CHECKPOINT:
                self._checkpoint("PASSIVE")
        if self.failed is None:
            self._checkpoint("TRUNCATE")
        with suppress(sqlite3.Error):
            self.connection.close()

    def _do(self, job: Job) -> None:
        try:
            result, error = job.work(), None
        except BaseException as raised:  # noqa: BLE001 - it goes to the caller
            result, error = None, raised
        with suppress(RuntimeError):  # the caller's loop is closed: nobody waits
            job.loop.call_soon_threadsafe(_settle, job.answer, result, error)

    def _checkpoint(self, mode: str) -> None:
        """Move the WAL into the database. A full disk is no harm: it is tried again later."""
        self._backlog = 0
        try:
            self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            self._note(translate(error, str(self._path)))

    def _roll_back(self) -> None:
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._note(translate(error, str(self._path)), fatal=True)

    def _translated(self, error: sqlite3.Error) -> Coded:
        if isinstance(error, sqlite3.IntegrityError):
            return InternalError(f"Two records that exclude each other were to be stored: {error}.")
        return self._note(translate(error, str(self._path)))

    def _note(self, error: Coded, *, fatal: bool = False) -> Coded:
        if fatal:
            error.context["fatal"] = True
        if error.context.get("fatal"):
            self.failed = error
        return error

    # ------------------------------------------------------------------------------------------------ one append

    def _append(self, batch: Sequence[ShardAppend], new_kinds: list[tuple[bytes, bytes]]) -> AppendOutcome:
        held = self._heads()
        now = self._store_now()
        stored: list[ShardAppend] = []
        refused: dict[int, tuple[int, int]] = {}
        for part in batch:
            has = held.get(part.shard, (0, 0))
            if has == (part.epoch, part.head):
                stored.append(part)
                held[part.shard] = (part.epoch, part.next)
            else:
                refused[part.shard] = has
        if stored:
            self._put(stored, new_kinds, now)
        return AppendOutcome(frozenset(part.shard for part in stored), refused, now)

    def _heads(self) -> dict[int, tuple[int, int]]:
        text: str = self.connection.execute(sql.READ_HEADS).fetchone()[0]
        heads = {}
        for entry in text.split(","):
            shard, epoch, head = entry.split(" ")
            heads[int(shard)] = (int(epoch), int(head))
        return heads

    def _put(self, parts: list[ShardAppend], new_kinds: list[tuple[bytes, bytes]], now: int) -> None:
        rows: list[Any] = []
        runs: list[Any] = []
        requests: list[Any] = []
        snapshots: list[Any] = []
        checkpoints: list[Any] = []
        heads: list[Any] = []
        parked: dict[int, tuple[int, int, str]] = {}
        data_bytes = 0
        for part in parts:
            shard = part.shard
            base = shard << sql.SHARD_BITS
            top = 0
            for offset, count, epoch, iid, seq, data in part.rows:
                rows += (base | offset, count, epoch, base | iid, seq, data)
                data_bytes += len(data)
                top = max(top, iid)
            for iid, key, state, created_at, updated_at, start_hash, head, version in part.runs:
                kind = self._kind(key, new_kinds)
                runs += (base | iid, key[:16], kind, state, created_at, updated_at, start_hash, head, version)
                top = max(top, iid)
            for namespace, request_id, body_hash, response, at in part.requests:
                requests += (shard, as_bytes(namespace), as_bytes(request_id), body_hash, response, at)
            for iid, wake_at, reason in part.parked:
                parked[base | iid] = (shard, wake_at, reason)
            for iid, seq, data in part.snapshots:
                snapshots += (base | iid, seq, data)
                data_bytes += len(data)
            if part.checkpoint is not None:
                checkpoints += (shard, base | part.checkpoint.offset, part.checkpoint.data)
                data_bytes += len(part.checkpoint.data)
            heads += (shard, part.next, top + 1, len(part.rows), now, 0, b"")
        for form, values in (
            (sql.ROWS, rows), (sql.RUNS, runs), (sql.REQUESTS, requests), (sql.SNAPSHOTS, snapshots),
            (sql.CHECKPOINTS, checkpoints), (sql.HEADS, heads),
        ):  # fmt: skip
            if values:
                sql.put(self.connection, form, values)
        if parked:
            self._park(parked)
        self._backlog += _PAGES_A_COMMIT + data_bytes // 2048

    def _park(self, parked: dict[int, tuple[int, int, str]]) -> None:
        kept: list[Any] = []
        gone: list[int] = []
        for run, (shard, wake_at, reason) in parked.items():
            if reason:
                kept += (run, shard, wake_at, as_bytes(reason))
            else:
                gone.append(run)
        if gone:
            sql.put(self.connection, sql.UNPARK, gone)
        if kept:
            sql.put(self.connection, sql.PARK, kept)

    def _kind(self, key: bytes, new_kinds: list[tuple[bytes, bytes]]) -> int:
        """Number of the namespace and type in a run's key, stored when it is new."""
        namespace, _, workflow_type = key[16:].partition(b"\0")
        names = (namespace, workflow_type)
        kind = self._kinds.get(names)
        if kind is None:
            kind = self.connection.execute("INSERT INTO kinds (namespace, workflow_type) VALUES (?,?)", names).lastrowid
            if kind is None:
                raise InternalError("SQLite gave no row id.")
            self._kinds[names] = kind
            new_kinds.append(names)
        return kind


def as_bytes(text: str) -> bytes:
    """Any str as bytes, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
