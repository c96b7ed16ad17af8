"""Appending: batches as arrays, one statement a time, and what the answers mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from onexflow.core.errors import StoreFull, StoreUnavailable
from onexflow.ports.event_store import AppendOutcome, Cut, Row, RunRecord, ShardAppend, SnapshotRecord
from onexflow.storage.postgres import statements as sql
from onexflow.storage.postgres.links import Link, Session
from onexflow.storage.postgres.server import Connection

#: Bytes of data a statement, beyond which the next shard goes into another one.
STATEMENT_BYTES: Final = 256 * 1024
#: How long one statement may take, the standby's confirmation included, before it counts as lost.
APPEND_SECONDS: Final = 10.0
#: How long a shard may be locked by somebody else before that is said.
LOCKED_SECONDS: Final = 2.0

Kind = tuple[bytes, bytes]


class Writer:
    """The port's append over one connection."""

    def __init__(self, session: Session, link: Link, shards: int, now: Callable[[], int]) -> None:
        self._session = session
        self._link = link
        self._shards = shards
        self._now = now
        #: Numbers of namespaces and types, as the connection `_known_to` has given them. Another one may come to a
        #: server that has lost them.
        self._kinds: dict[Kind, int] = {}
        self._known_to: Connection | None = None

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        stored: set[int] = set()
        refused: dict[int, tuple[int, int]] = {}
        known: list[ShardAppend] = []
        for part in batch:
            if 0 <= part.shard < self._shards:
                known.append(part)
            else:
                refused[part.shard] = (0, 0)
        for parts in statements_of(known):
            try:
                await self._send(parts, stored, refused)
            except StoreFull as error:
                if stored:  # the same batch again will find only what is missing
                    raise StoreUnavailable(f"{error} Other shards were.", error.context) from error
                raise
        return AppendOutcome(frozenset(stored), refused, self._now())

    async def _send(self, parts: list[ShardAppend], stored: set[int], refused: dict[int, tuple[int, int]]) -> None:
        """Store these parts, of one shard each; those that are locked by somebody else, as soon as they are not."""
        left = {part.shard: part for part in parts}
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + LOCKED_SECONDS, 0.002
        while True:
            sending = list(left.values())
            found = await self._link.run_here(lambda connection: self._store(connection, sending), APPEND_SECONDS)  # noqa: B023 - it is awaited here
            for shard, now in found:
                part = left.pop(shard)
                stored.add(shard)
                self._session.promises.keep(shard, part.epoch, part.next)
                self._session.learn_time(now)
            await self._look(left, refused)
            if not left:
                return
            if loop.time() >= end:
                raise StoreUnavailable(
                    f"Shards are locked by somebody else: {sorted(left)}.", {"store": self._session.settings.shown}
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)

    async def _look(self, left: dict[int, ShardAppend], refused: dict[int, tuple[int, int]]) -> None:
        """Take those out of `left` that do not match, and note what the store has of them."""
        if not left:
            return
        there: set[int] = set()
        found = await self._link.run_here(_fetch(sql.HEADS, list(left)))
        for shard, epoch, head in found:
            part = left[shard]
            if (epoch, head) == (part.epoch, part.head):
                continue  # it was locked
            del left[shard]
            refused[shard] = (epoch, head)
            if (epoch, head) == (part.epoch, part.next):
                there.add(shard)
        if there:
            # It was stored before, by a statement whose answer was lost. The caller takes this for an acknowledgement,
            # and perhaps no standby has it yet: a write of ours waits until it has.
            for shard, epoch, head, now in await self._link.run_here(_fetch(sql.CONFIRM, list(there)), APPEND_SECONDS):
                refused[shard] = (epoch, head)
                self._session.promises.keep(shard, epoch, head)
                self._session.learn_time(now)

    async def _store(self, connection: Connection, parts: Sequence[ShardAppend]) -> Any:
        """One statement; (shard, clock) of the shards that are stored."""
        if connection is not self._known_to:
            self._known_to = connection
            self._kinds.clear()
        await self._know_kinds(connection, parts)
        sections, arguments = Load(parts, self._kinds).arguments()
        return await connection.fetch(sql.append(sections), *arguments)

    async def _know_kinds(self, connection: Connection, parts: Iterable[ShardAppend]) -> None:
        """Give numbers to the namespaces and types of runs that have none. They stay, whatever becomes of the append."""
        new = {kind for part in parts for run in part.runs if (kind := kind_of(run.key)) not in self._kinds}
        if not new:
            return
        digests = [digest_of(*kind) for kind in new]
        found = await connection.fetch(sql.KINDS, digests)
        if len(found) < len(digests):
            await connection.execute(sql.NEW_KINDS, digests, [kind[0] for kind in new], [kind[1] for kind in new])
            found = await connection.fetch(sql.KINDS, digests)
        for kind, namespace, workflow_type in found:
            self._kinds[namespace, workflow_type] = kind


def _fetch(text: str, *arguments: object) -> Callable[[Connection], Any]:
    return lambda connection: connection.fetch(text, *arguments)


def statements_of(parts: Sequence[ShardAppend]) -> Iterator[list[ShardAppend]]:
    """The parts in as few statements as their sizes allow; a shard at most once in each."""
    now: dict[int, ShardAppend] = {}
    size = 0
    for part in parts:
        own = size_of(part)
        if part.shard in now or (now and size + own > STATEMENT_BYTES):
            yield list(now.values())
            now, size = {}, 0
        now[part.shard] = part
        size += own
    if now:
        yield list(now.values())


def size_of(part: ShardAppend) -> int:
    """About how many bytes of data a part has."""
    return (
        sum(len(row.data) for row in part.rows)
        + sum(len(snapshot.data) for snapshot in part.snapshots)
        + sum(len(register.data) for register in part.registers)
        + sum(len(request.response) for request in part.requests)
        + (len(part.checkpoint.data) if part.checkpoint is not None else 0)
    )


class Load:
    """Parts as columns, one list each, for each section of the append statement."""

    def __init__(self, parts: Iterable[ShardAppend], kinds: dict[Kind, int]) -> None:
        self._want: list[tuple[object, ...]] = []
        self._rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in sql.SECTIONS}
        self._kinds = kinds
        for part in parts:
            self._add(part)

    def arguments(self) -> tuple[tuple[str, ...], list[Sequence[object]]]:
        """The names of the sections that are needed, and the statement's parameters."""
        sections = tuple(name for name, rows in self._rows.items() if rows)
        columns: list[Sequence[object]] = [*zip(*self._want, strict=True)]
        for name in sections:
            columns += zip(*self._rows[name], strict=True)
        return sections, columns

    def _add(self, part: ShardAppend) -> None:
        shard, put = part.shard, self._rows
        top = max(max((row.iid for row in part.rows), default=0), max((run.iid for run in part.runs), default=0))
        self._want.append((shard, part.epoch, part.head, part.next, top + 1))
        for row in _after_cuts(part.rows, part.cuts):
            put["rows"].append((shard, row.offset, row.epoch, row.iid, row.seq, row.count, row.data))
        for run in _last_of_each(part.runs):
            kind = self._kinds[kind_of(run.key)]
            iid, _, *others = run
            put["runs"].append((shard, iid, run.key[:16], kind, *others))
        for namespace, request_id, body_hash, response, at in part.requests:
            names = as_bytes(namespace), as_bytes(request_id)
            put["requests"].append((shard, digest_of(*names), *names, body_hash, response, at))
        for iid, (wake_at, reason) in {iid: (wake_at, reason) for iid, wake_at, reason in part.parked}.items():
            if reason:
                put["parked"].append((shard, iid, wake_at, as_bytes(reason)))
            else:
                put["unparked"].append((shard, iid))
        for snapshot in _newest_of_each(part.snapshots):
            put["snapshots"].append((shard, *snapshot))
        if part.checkpoint is not None:
            put["checkpoints"].append((shard, *part.checkpoint))
        for name, data in dict(part.registers).items():
            raw = as_bytes(name)
            if data:
                put["registers"].append((shard, digest_of(raw), raw[:256], raw, data))
            else:
                put["unregistered"].append((shard, digest_of(raw)))
        for cut in _widest_of_each(part.cuts):
            rest = cut.rest or Row(0, 0, 0, cut.tombstone.iid, 0, b"")
            put["cuts"].append(
                (shard, cut.tombstone.iid, cut.before_seq, cut.rest is not None, rest.offset, rest.epoch, rest.seq,
                 rest.count, rest.data)
            )  # fmt: skip
        for grave in {
            (cut.tombstone.iid, cut.tombstone.first_seq): cut.tombstone for cut in reversed(part.cuts)
        }.values():
            put["tombstones"].append((shard, *grave))


def _last_of_each(runs: Sequence[RunRecord]) -> Iterable[RunRecord]:
    """Each run once: its last record, with the name and the birth of its first."""
    last: dict[int, RunRecord] = {}
    for run in runs:
        first = last.get(run.iid)
        last[run.iid] = (
            run if first is None else msgspec.structs.replace(run, key=first.key, created_at=first.created_at)
        )
    return last.values()


def _newest_of_each(snapshots: Sequence[SnapshotRecord]) -> Iterable[SnapshotRecord]:
    newest: dict[int, SnapshotRecord] = {}
    for snapshot in snapshots:
        known = newest.get(snapshot.iid)
        if known is None or snapshot.seq >= known.seq:
            newest[snapshot.iid] = snapshot
    return newest.values()


def _widest_of_each(cuts: Sequence[Cut]) -> Iterable[Cut]:
    """Each run's cut that goes farthest: what a nearer one leaves of a row, it takes away or cuts anew."""
    widest: dict[int, Cut] = {}
    for cut in cuts:
        known = widest.get(cut.tombstone.iid)
        if known is None or cut.before_seq > known.before_seq:
            widest[cut.tombstone.iid] = cut
    return widest.values()


def _after_cuts(rows: Sequence[Row], cuts: Sequence[Cut]) -> Iterable[Row]:
    """The rows that the part's own cuts leave: in the store both happen at once."""
    for cut in cuts:
        kept = []
        for row in rows:
            if row.iid != cut.tombstone.iid or row.seq >= cut.before_seq:
                kept.append(row)
            elif row.seq + row.count > cut.before_seq:
                kept.append(cut.rest or row)
        rows = kept
    return rows


def kind_of(key: bytes) -> Kind:
    """Namespace and type in a run's key."""
    namespace, _, workflow_type = key[16:].partition(b"\0")
    return namespace, workflow_type


def digest_of(*texts: bytes) -> bytes:
    """What stands for these texts in an index: none of them has a limit."""
    digest = blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big"))
        digest.update(text)
    return digest.digest()


def as_bytes(text: str) -> bytes:
    """Any str as bytes, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
