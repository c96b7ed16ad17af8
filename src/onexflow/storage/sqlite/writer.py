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
from onexflow.ports.event_store import AppendOutcome, Cut, RunRecord, ShardAppend
from onexflow.storage.sqlite import statements as sql
from onexflow.storage.sqlite.errors import translate

#: Estimated pages in the WAL: above the first a checkpoint runs when idle, above the second at once. It holds the commits
#: up, for some 3 ms then where an fsync takes 0.2 (it makes two); eight times as seldom it is 15 ms. (The size of the file
#: does not tell: it is kept and written over, because growing a file makes each fsync dearer.)
IDLE_CHECKPOINT: Final = 256
FORCED_CHECKPOINT: Final = 1024
_PAGES_A_COMMIT: Final = 16
#: Seconds without a commit after which an idle checkpoint runs.
IDLE_SECONDS: Final = 0.2


class Job(NamedTuple):
    """Work for the thread; the answer goes to `answer` in its own loop."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Owns the writing connection. `submit` is called on an event loop, all else happens in the thread."""

    #: Used by the thread alone.
    connection: sqlite3.Connection

    def __init__(self, connection: sqlite3.Connection, path: Path, shards: int, store_now: Callable[[], int]) -> None:
        self.connection = connection
        self._path = path
        self._shards = shards
        #: Of the last row. Grows with the commit.
        self._number: int = connection.execute(sql.LAST_NUMBER).fetchone()[0]
        self._store_now = store_now
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        #: By namespace and type as a run's key ends with them.
        self._kinds: dict[bytes, int] = {
            namespace + b"\0" + workflow_type: kind
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
        load = Load(batch, self._number, self._store_now())
        outcome = None
        if all(0 <= part.shard < self._shards for part in batch):
            outcome = self._try(load, batch, {})
        if outcome is None:  # some shard does not match: find out which, and store the others
            matching, refused = self.transaction(lambda: self._compare(batch))
            outcome = self._try(Load(matching, self._number, load.now), matching, refused)
        if outcome is None:
            raise InternalError("The heads of shards moved between two transactions of the one writer.")
        return outcome

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_SECONDS if self._backlog > IDLE_CHECKPOINT else None)
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

    def _try(
        self, load: Load, batch: Sequence[ShardAppend], refused: dict[int, tuple[int, int]]
    ) -> AppendOutcome | None:
        """Store all of the batch, or nothing and return None when a shard's epoch or head does not match."""
        new_kinds: dict[bytes, int] = {}
        if batch:
            try:
                self.transaction(lambda: self._put(load, new_kinds))
            except _Moved:
                return None
            self._kinds.update(new_kinds)
            self._number += load.row_count
            self._backlog += _PAGES_A_COMMIT + load.data_bytes // 2048
        return AppendOutcome(frozenset(part.shard for part in batch), refused, load.now)

    def _compare(self, batch: Sequence[ShardAppend]) -> tuple[list[ShardAppend], dict[int, tuple[int, int]]]:
        """The parts that match, and what the store has of the others."""
        held: dict[int, tuple[int, int]] = {}
        text: str = self.connection.execute(sql.READ_HEADS).fetchone()[0]
        for entry in text.split(","):
            shard, epoch, head = entry.split(" ")
            held[int(shard)] = (int(epoch), int(head))
        matching: list[ShardAppend] = []
        refused: dict[int, tuple[int, int]] = {}
        for part in batch:
            has = held.get(part.shard)
            if has == (part.epoch, part.head):
                matching.append(part)
                held[part.shard] = (part.epoch, part.next)
            else:
                refused[part.shard] = has or (0, 0)
        return matching, refused

    def _put(self, load: Load, new_kinds: dict[bytes, int]) -> None:
        db = self.connection
        if sql.put(db, sql.HEADS, load.heads) != len(load.heads) // sql.HEADS[1]:
            raise _Moved
        sql.put_rows(db, load.rows, self._number + 1)
        for form, values in (
            (sql.PARTS, load.parts), (sql.RUNS, self._with_kinds(load, new_kinds)),
            (sql.REQUESTS, load.requests), (sql.SNAPSHOTS, load.snapshots), (sql.CHECKPOINTS, load.checkpoints),
            (sql.UNPARK, load.unparked), (sql.PARK, load.parked),
            (sql.REGISTERS, load.registers),
        ):  # fmt: skip
            if values:
                sql.put(db, form, values)
        for shard, names in load.unregistered.items():
            sql.put(db, sql.UNREGISTER, names, shard)
        for base, cut in load.cuts:
            self._cut(base, cut)

    def _cut(self, base: int, cut: Cut) -> None:
        """Cut a run's history. Done a second time, it finds nothing to do."""
        db = self.connection
        grave = cut.tombstone
        run = base | grave.iid
        db.execute(sql.CUT_PARTS, (run, cut.before_seq))
        db.execute(sql.CUT_ROWS, (run, cut.before_seq))
        if cut.rest is not None:
            rest = cut.rest
            db.execute(
                sql.CUT_REST,
                (run, cut.before_seq, base | rest.offset, rest.count, rest.epoch, rest.seq, rest.data),
            )
        db.execute(
            sql.TOMBSTONE,
            (
                run, grave.first_seq, grave.last_seq, grave.first_offset, base | grave.last_offset, grave.count,
                grave.hash, grave.at,
            ),
        )  # fmt: skip

    def _with_kinds(self, load: Load, new_kinds: dict[bytes, int]) -> list[Any]:
        """Values of the runs with the numbers of their namespace and type, which are stored when they are new."""
        values = load.runs
        for place, tail in zip(range(2, len(values), sql.RUNS[1]), load.run_names, strict=True):
            kind = self._kinds.get(tail) or new_kinds.get(tail)
            if kind is None:
                namespace, _, workflow_type = tail.partition(b"\0")
                kind = self.connection.execute(sql.NEW_KIND, (namespace, workflow_type)).lastrowid or 0
                new_kinds[tail] = kind
            values[place] = kind
        return values


#: What satisfies a table whose rows have an owner already.
_NOBODY: Final = bytearray()


class _Moved(Exception):
    """A shard's epoch or head is not as the append expects."""


class Load:
    """A batch as flat lists of values, one for each statement.

    Blobs of which there are thousands a second (rows, listing entries, heads) go as `bytearray`: for each `bytes` Python
    3.11 looks for an adapter, in vain, while the event loop waits for the interpreter. Later ones look as well, at no price
    that shows."""

    def __init__(self, batch: Sequence[ShardAppend], number: int, now: int) -> None:
        self.now = now
        self.heads: list[Any] = []
        self.parts: list[Any] = []
        self.rows: list[Any] = []
        self.runs: list[Any] = []  #: with 0 for the kind
        self.run_names: list[bytes] = []  #: namespace and type of each
        self.requests: list[Any] = []
        self.snapshots: list[Any] = []
        self.checkpoints: list[Any] = []
        self.parked: list[Any] = []
        self.unparked: list[Any] = []
        self.registers: list[Any] = []
        self.unregistered: dict[int, list[bytes]] = {}
        self.cuts: list[tuple[int, Cut]] = []
        data_bytes = 0
        first, add_row = number, self.rows.extend
        parked: dict[int, tuple[int, int, bytes]] = {}
        registers: dict[tuple[int, bytes], bytes] = {}
        for part in batch:
            shard, base = part.shard, part.shard << sql.SHARD_BITS
            if part.rows:
                self.parts += (base | part.rows[0].offset, number + 1, len(part.rows))
            top = 0
            number += len(part.rows)
            for row in part.rows:
                iid = row.iid
                add_row((base | row.offset, row.count, row.epoch, base | iid, row.seq, bytearray(row.data)))
                if iid > top:  # noqa: PLR1730 - max() is a call for each row
                    top = iid
            for record in part.runs:
                self._add_run(base, record)
                top = max(top, record.iid)
            for namespace, request_id, body_hash, response, at in part.requests:
                self.requests += (shard, as_bytes(namespace), as_bytes(request_id), body_hash, response, at)
            for iid, wake_at, reason in part.parked:
                parked[base | iid] = (shard, wake_at, as_bytes(reason))
            for iid, seq, data in part.snapshots:
                self.snapshots += (base | iid, seq, data)
                data_bytes += len(data)
            if part.checkpoint is not None:
                self.checkpoints += (shard, base | part.checkpoint.offset, part.checkpoint.data)
                data_bytes += len(part.checkpoint.data)
            for name, data in part.registers:
                registers[shard, as_bytes(name)] = data
                data_bytes += len(data)
            self.cuts += ((base, cut) for cut in part.cuts)
            self.heads += (shard, part.epoch, part.head, part.next, top + 1, now, _NOBODY)
        self.row_count = number - first
        self.data_bytes = data_bytes + sum(map(len, self.rows[sql.ROW_WIDTH - 1 :: sql.ROW_WIDTH]))
        for run, (shard, wake_at, reason_bytes) in parked.items():
            if reason_bytes:
                self.parked += (run, shard, wake_at, reason_bytes)
            else:
                self.unparked.append(run)
        for (shard, encoded), value in registers.items():
            if value:
                self.registers += (shard, encoded, value)
            else:
                self.unregistered.setdefault(shard, []).append(encoded)

    def _add_run(self, base: int, record: RunRecord) -> None:
        key = record.key
        self.run_names.append(key[16:])
        self.runs += (
            base | record.iid, bytearray(key[:16]), 0, record.state, record.created_at, record.updated_at,
            bytearray(record.start_hash), record.head, record.version,
        )  # fmt: skip


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
