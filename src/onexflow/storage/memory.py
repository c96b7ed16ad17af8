"""MemoryStore: the contract of `ports.EventStore` in its plainest form, for tests and for `memory:`.

No I/O and no threads, so the same calls give the same answers. It lives as long as the object does: closing and
opening it again is the restart of a process over the same disk, and several orchestrators may open the same one.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from onexflow.core.errors import InternalError, InvalidArgument, StoreFull, StoreUnavailable
from onexflow.core.ids import RunKey
from onexflow.ports.clock import Clock
from onexflow.ports.event_store import (
    AppendOutcome,
    CheckpointRecord,
    Cut,
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
from onexflow.storage.time import StoreTime


class _Shard:
    """What one shard holds."""

    def __init__(self) -> None:
        self.epoch = 0
        self.owner = ""
        self.head = 1
        self.next_iid = 1
        self.rows: list[Row] = []  #: by offset
        self.runs_rows: dict[int, list[Row]] = {}  #: by sequence
        self.runs: dict[int, RunRecord] = {}
        self.by_key: dict[bytes, int] = {}
        self.requests: dict[tuple[str, str], RequestRecord] = {}
        self.parked: dict[int, ParkedRecord] = {}
        self.snapshots: dict[int, SnapshotRecord] = {}
        self.checkpoint: CheckpointRecord | None = None
        self.registers: dict[str, bytes] = {}
        self.tombstones: dict[tuple[int, int], Tombstone] = {}  #: by (iid, first_seq)


class MemoryStore:
    """`ports.EventStore` in memory. `capacity`, in bytes of rows, snapshots and registers, may be changed at any time: an append
    that would pass it raises StoreFull."""

    def __init__(self, clock: Clock, shards: int = 8, *, capacity: int | None = None) -> None:
        self._time = StoreTime(clock.now, clock.monotonic)
        self._shards = [_Shard() for _ in range(shards)]
        self._definitions: dict[tuple[str, str, int], DefinitionRecord] = {}
        self._opened = 0
        self._bytes = 0
        self.capacity = capacity

    @property
    def shards(self) -> int:
        return len(self._shards)

    async def open(self) -> None:
        self._opened += 1

    async def close(self) -> None:
        self._opened = max(self._opened - 1, 0)

    def now(self) -> int:
        return self._time.now()

    async def owners(self) -> Sequence[tuple[int, int, str]]:
        self._check()
        return [(number, shard.epoch, shard.owner) for number, shard in enumerate(self._shards)]

    async def heads(self) -> dict[int, int]:
        self._check()
        return {number: shard.head for number, shard in enumerate(self._shards)}

    async def claim(self, shard: int, epoch: int, owner: str) -> ShardClaim | None:
        held = self._at(shard)
        if held is None or held.epoch != epoch:
            return None
        held.epoch += 1
        held.owner = owner
        return ShardClaim(shard, held.epoch, held.head, held.next_iid)

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        self._check()
        now = self.now()
        stored: list[tuple[_Shard, ShardAppend]] = []
        refused: dict[int, tuple[int, int]] = {}
        heads: dict[int, tuple[int, int]] = {}
        for part in batch:
            held = self._at(part.shard)
            has = (0, 0) if held is None else heads.get(part.shard, (held.epoch, held.head))
            if held is not None and has == (part.epoch, part.head):
                stored.append((held, part))
                heads[part.shard] = (part.epoch, part.next)
            else:
                refused[part.shard] = has
        size = sum(_size(part) for _, part in stored)
        if self.capacity is not None and stored and self._bytes + size > self.capacity:
            raise StoreFull("No space left for the store: nothing was stored.")
        for held, part in stored:
            _check_keys(held, part.runs)
        for held, part in stored:
            self._bytes += _put(held, part)
        self._bytes += size
        await asyncio.sleep(0)  # a caller that appends in a loop lets others run, as with a disk
        return AppendOutcome(frozenset(part.shard for _, part in stored), refused, now)

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        held = self._at(shard)
        if held is None:
            return []
        start = max(bisect_right(held.rows, offset, key=lambda row: row.offset) - 1, 0)
        if start < len(held.rows) and held.rows[start].offset + held.rows[start].count <= offset:
            start += 1
        return held.rows[start : start + limit]

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        held = self._at(shard)
        if held is None:
            return []
        rows = held.runs_rows.get(iid, [])
        start = max(bisect_right(rows, from_seq, key=lambda row: row.seq) - 1, 0)
        if start < len(rows) and rows[start].seq + rows[start].count <= from_seq:
            start += 1
        return rows[start : start + limit]

    async def find_run(self, shard: int, key: bytes) -> RunRecord | None:
        held = self._at(shard)
        iid = None if held is None else held.by_key.get(key)
        return None if held is None or iid is None else held.runs[iid]

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        held = self._at(shard)
        return [] if held is None else [held.runs[iid] for iid in sorted(set(iids)) if iid in held.runs]

    async def list_runs(self, where: RunFilter, cursor: str = "", limit: int = 100) -> RunPage:
        self._check()
        below = _parse_cursor(cursor) if cursor else None
        limit = max(limit, 1)
        found = sorted(
            (
                (record.created_at, number, record.iid)
                for number, shard in enumerate(self._shards)
                for record in shard.runs.values()
                if _matches(record, where)
            ),
            reverse=True,
        )
        page = [place for place in found if below is None or place < below][: limit + 1]
        rest = "-".join(f"{number:x}" for number in page[limit - 1]) if len(page) > limit else ""
        return RunPage([(number, self._shards[number].runs[iid]) for _, number, iid in page[:limit]], rest)

    async def count_runs(self, where: RunFilter) -> list[RunCount]:
        self._check()
        counts: dict[tuple[str, int, int], tuple[int, int]] = {}
        for shard in self._shards:
            for record in shard.runs.values():
                if _matches(record, where):
                    kind = (RunKey.from_bytes(record.key).workflow_type, record.version, record.state)
                    runs, events = counts.get(kind, (0, 0))
                    counts[kind] = (runs + 1, events + record.head)
        return [RunCount(*kind, runs, events) for kind, (runs, events) in counts.items()]

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        held = self._at(shard)
        found = None if held is None else held.snapshots.get(iid)
        return None if found is None or (max_seq is not None and found.seq > max_seq) else found

    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None:
        held = self._at(shard)
        return None if held is None else held.checkpoint

    async def due_parked(self, shard: int, until: int, limit: int = 1024) -> list[ParkedRecord]:
        held = self._at(shard)
        due = [] if held is None else [entry for entry in held.parked.values() if 0 < entry.wake_at <= until]
        return sorted(due, key=lambda entry: (entry.wake_at, entry.iid))[:limit]

    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None:
        held = self._at(shard)
        return None if held is None else held.parked.get(iid)

    async def read_back(self, shard: int, iids: Sequence[int], limit: int = 64) -> list[StoredRun]:
        return [
            StoredRun(
                record,
                snapshot := await self.load_snapshot(shard, record.iid),
                await self.read_run(shard, record.iid, snapshot.seq + 1 if snapshot is not None else 1, limit),
                await self.get_parked(shard, record.iid),
            )
            for record in await self.get_runs(shard, iids)
        ]

    async def get_register(self, shard: int, name: str) -> bytes | None:
        held = self._at(shard)
        return None if held is None else held.registers.get(name)

    async def list_registers(
        self, shard: int, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[RegisterRecord]:
        held = self._at(shard)
        registers = {} if held is None else held.registers
        begins, behind = _as_bytes(prefix), _as_bytes(after)
        found = sorted(
            (encoded, name)
            for name in registers
            if (encoded := _as_bytes(name)).startswith(begins) and (not after or encoded > behind)
        )
        return [RegisterRecord(name, registers[name]) for _, name in found[:limit]]

    async def find_register(self, name: str) -> list[tuple[int, bytes]]:
        self._check()
        return [(number, shard.registers[name]) for number, shard in enumerate(self._shards) if name in shard.registers]

    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]:
        held = self._at(shard)
        found = [] if held is None else held.tombstones.values()
        return sorted(
            (entry for entry in found if entry.last_offset >= from_offset and iid in (0, entry.iid)),
            key=lambda entry: (entry.last_offset, entry.iid, entry.first_seq),
        )

    async def find_request(self, shard: int, namespace: str, request_id: str) -> RequestRecord | None:
        held = self._at(shard)
        return None if held is None else held.requests.get((namespace, request_id))

    async def forget_requests(self, before: int) -> int:
        self._check()
        total = 0
        for shard in self._shards:
            old = [name for name, request in shard.requests.items() if request.at < before]
            total += len(old)
            for name in old:
                del shard.requests[name]
        return total

    async def save_definition(self, record: DefinitionRecord) -> DefinitionRecord:
        self._check()
        return self._definitions.setdefault((record.namespace, record.workflow_type, record.version), record)

    async def load_definitions(self) -> list[DefinitionRecord]:
        self._check()
        return [self._definitions[names] for names in sorted(self._definitions)]

    async def statistics(self) -> dict[str, int]:
        self._check()
        return {
            "events": sum(shard.head - 1 for shard in self._shards),
            "rows": sum(len(shard.rows) for shard in self._shards),
            "runs": sum(len(shard.runs) for shard in self._shards),
            "parked": sum(len(shard.parked) for shard in self._shards),
            "requests": sum(len(shard.requests) for shard in self._shards),
            "registers": sum(len(shard.registers) for shard in self._shards),
            "cut_events": sum(entry.count for shard in self._shards for entry in shard.tombstones.values()),
            "bytes": self._bytes,
        }

    def _check(self) -> None:
        if not self._opened:
            raise StoreUnavailable("The store is not open.")

    def _at(self, shard: int) -> _Shard | None:
        self._check()
        return self._shards[shard] if 0 <= shard < len(self._shards) else None


def _put(held: _Shard, part: ShardAppend) -> int:
    """Store the part; by how many bytes what is held grew beside the part's own (what it replaces or cuts is less)."""
    for row in part.rows:
        held.rows.append(row)
        held.runs_rows.setdefault(row.iid, []).append(row)
    for record in part.runs:
        before = held.runs.get(record.iid)
        if before is not None:  # the name and the birth of a run never change
            record = msgspec.structs.replace(record, key=before.key, created_at=before.created_at)  # noqa: PLW2901 - the record as it is stored
        held.runs[record.iid] = record
        held.by_key[record.key] = record.iid
    for request in part.requests:
        held.requests.setdefault((request.namespace, request.request_id), request)
    for entry in part.parked:
        if entry.reason:
            held.parked[entry.iid] = entry
        else:
            held.parked.pop(entry.iid, None)
    for snapshot in part.snapshots:
        known = held.snapshots.get(snapshot.iid)
        if known is None or snapshot.seq >= known.seq:
            held.snapshots[snapshot.iid] = snapshot
    if part.checkpoint is not None:
        held.checkpoint = part.checkpoint
    iids = [row.iid for row in part.rows] + [record.iid for record in part.runs]
    held.next_iid = max(held.next_iid, max(iids, default=0) + 1)
    held.head = part.next
    replaced = 0
    for register in part.registers:
        replaced += len(held.registers.pop(register.name, b""))
        if register.data:
            held.registers[register.name] = register.data
    return sum(_cut(held, cut) for cut in part.cuts) - replaced


def _cut(held: _Shard, cut: Cut) -> int:
    """Cut a run's history; the change in bytes. A second time there is nothing to cut, and the tombstone is known."""
    iid, before = cut.tombstone.iid, cut.before_seq
    rows = held.runs_rows.get(iid, [])
    kept: list[Row] = []
    for row in rows:
        if row.seq >= before or (row.seq + row.count > before and cut.rest is None):
            kept.append(row)
        elif row.seq + row.count > before and cut.rest is not None:
            kept.append(cut.rest)
    change = sum(len(row.data) for row in kept) - sum(len(row.data) for row in rows)
    if kept != rows:
        held.runs_rows[iid] = kept
        places = {row.offset for row in rows}
        others = [row for row in held.rows if row.offset not in places]
        held.rows = sorted(others + kept, key=lambda row: row.offset)
    held.tombstones.setdefault((iid, cut.tombstone.first_seq), cut.tombstone)
    return change


def _check_keys(held: _Shard, runs: Iterable[RunRecord]) -> None:
    named: dict[bytes, int] = {}
    for record in runs:
        known = held.by_key.get(record.key, named.setdefault(record.key, record.iid))
        if known != record.iid and record.iid not in held.runs:
            raise InternalError("Two runs with one key were to be stored.", {"iids": [known, record.iid]})


def _size(part: ShardAppend) -> int:
    return (
        sum(len(row.data) for row in part.rows)
        + sum(len(snapshot.data) for snapshot in part.snapshots)
        + sum(len(register.data) for register in part.registers)
    )


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _matches(record: RunRecord, where: RunFilter) -> bool:
    key = RunKey.from_bytes(record.key)
    return (
        key.namespace == where.namespace
        and (not where.workflow_type or key.workflow_type == where.workflow_type)
        and (not where.states or record.state in where.states)
    )


def _parse_cursor(cursor: str) -> tuple[int, int, int]:
    try:
        created_at, shard, iid = (int(number, 16) for number in cursor.split("-"))
    except ValueError as error:
        raise InvalidArgument("The cursor is not one of ours.", field="cursor") from error
    return created_at, shard, iid
