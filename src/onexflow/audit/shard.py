"""One pass over each shard's rows, in the order of their offsets: what holds of the shard, and every run's story on the way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from sys import maxsize
from typing import Final, Protocol

import msgspec

from onexflow.audit.report import Finding, Report
from onexflow.audit.run import Plan, RunStory
from onexflow.audit.snapshot import difference
from onexflow.codec.rows import decode_row, decode_snapshot
from onexflow.core.errors import StoreUnusable
from onexflow.core.events import Event, WorkflowCreated
from onexflow.core.ids import RunKey
from onexflow.ports.event_store import (
    CheckpointRecord,
    DefinitionRecord,
    ParkedRecord,
    Row,
    RunRecord,
    SnapshotRecord,
    Tombstone,
)

PAGE: Final = 1024
#: How often a shard is read whose histories are cut meanwhile.
TRIES: Final = 5
#: In the order in which listings number them.
STATES: Final = (
    "pending", "initializing", "running", "paused", "completed", "failed",
    "cancelled", "timeout", "retrying", "waiting_for_dependency", "compensating", "compensated",
)  # fmt: skip
#: A parked run may be woken so much later than it should, in ns: timers are looked at every few seconds.
LATE: Final = 5_000_000_000


class Source(Protocol):
    """What an audit reads: a part of `ports.event_store.EventStore`."""

    @property
    def shards(self) -> int: ...
    async def owners(self) -> Sequence[tuple[int, int, str]]: ...
    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]: ...
    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]: ...
    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]: ...
    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None: ...
    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None: ...
    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None: ...
    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]: ...
    async def load_definitions(self) -> list[DefinitionRecord]: ...


async def audit(source: Source) -> Report:
    """Read everything and judge it. The store may be at work meanwhile: what is appended after a shard's turn has begun
    is left to the next audit. Raises what the source raises."""
    report = Report()
    plans = Plans(await source.load_definitions())
    for shard, epoch, _ in await source.owners():
        report.join(await _audit_shard(source, shard, epoch, plans))
    return report


async def _audit_shard(source: Source, shard: int, epoch: int, plans: Plans) -> Report:
    tries = 0
    while True:
        found = Report(shards=1)
        tombstones = await source.tombstones(shard)
        await ShardAudit(source, shard, epoch, plans, found).run(tombstones)
        tries += 1
        if found.is_consistent or tries == TRIES or await source.tombstones(shard) == tombstones:
            return found
        # A history was cut while it was read.


class Plans:
    """Definitions by hash, each read once."""

    def __init__(self, records: Sequence[DefinitionRecord]) -> None:
        self._records = {record.hash: record.data for record in records}
        self._plans: dict[str, Plan] = {}

    def of(self, digest: str) -> Plan | None:
        if digest not in self._plans and digest in self._records:
            self._plans[digest] = Plan(self._records[digest])
        return self._plans.get(digest)


class _Entity:
    """What has events in the shard."""

    def __init__(self, record: RunRecord | None, tombstones: list[Tombstone], snapshot: SnapshotRecord | None) -> None:
        self.record = record
        self.tombstones = tombstones
        self.snapshot = snapshot
        self.key = RunKey.from_bytes(record.key) if record is not None else None
        self.next_seq = max((stone.last_seq for stone in tombstones), default=0) + 1
        self.last_offset = 0
        self.story: RunStory | None = None
        #: It cannot be told, and that was said.
        self.is_untold = False

    @property
    def name(self) -> str:
        return str(self.key) if self.key is not None else "a run that is not listed"

    @property
    def is_run(self) -> bool:
        return self.key is not None and not self.key.workflow_type.startswith("$")


class ShardAudit:
    """One shard."""

    def __init__(self, source: Source, shard: int, epoch: int, plans: Plans, report: Report) -> None:
        self._source = source
        self._shard = shard
        self._epoch = epoch
        self._plans = plans
        self._report = report
        self._entities: dict[int, _Entity] = {}
        #: First and last offset of each stretch that no row covers.
        self._gaps: list[tuple[int, int]] = []

    def _complain(self, rule: str, story: str, entity: _Entity | None = None, seq: int = 0) -> None:
        self._report.add(Finding(rule, self._shard, entity.name if entity is not None else "", seq, story))

    async def run(self, tombstones: Sequence[Tombstone]) -> None:
        checkpoint = await self._source.load_checkpoint(self._shard)
        next_offset, epoch, at = 1, 0, 0
        while rows := await self._source.read_shard(self._shard, next_offset, PAGE):
            await self._meet(rows, tombstones)
            for row in rows:
                self._check_place(row, next_offset)
                if row.epoch > self._epoch:  # taken over meanwhile?
                    self._epoch = next(now for shard, now, _ in await self._source.owners() if shard == self._shard)
                if row.epoch < epoch or row.epoch > self._epoch:
                    story = f"epoch {row.epoch} at offset {row.offset} follows {epoch}; the shard's is {self._epoch}"
                    self._complain("epochs", story)
                epoch = max(epoch, row.epoch)
                at = self._read(row, at)
                next_offset = max(next_offset, row.offset + row.count)
        # What a checkpoint speaks of was there; and a cut may take the shard's last rows.
        behind = max((stone.last_offset + 1 for stone in tombstones), default=1)
        behind = max(behind, checkpoint.offset if checkpoint is not None else 1)
        if behind > next_offset:
            self._gaps.append((next_offset, behind - 1))
        self._check_cuts(tombstones)
        await self._judge(checkpoint)
        await self._check_cut_away(tombstones)

    def _check_place(self, row: Row, next_offset: int) -> None:
        if row.offset < next_offset:
            self._complain("offsets", f"offset {row.offset} stands twice")
        elif row.offset > next_offset:
            self._gaps.append((next_offset, row.offset - 1))

    def _check_cuts(self, tombstones: Sequence[Tombstone]) -> None:
        """Every missing offset is one that a tombstone tells of, and the tombstones of a run leave no event out."""
        told = sum(stone.count for stone in tombstones)
        self._report.cut_events += told
        missing = sum(last - first + 1 for first, last in self._gaps)
        if missing != told:
            self._complain("offsets", f"{missing} events are missing, tombstones tell of {told}")
        graves = _joined((stone.first_offset, stone.last_offset) for stone in tombstones)
        for first, last in self._gaps:
            index = bisect_right(graves, (first, maxsize)) - 1
            if index < 0 or graves[index][1] < last:
                self._complain("offsets", f"{first} to {last} are missing, and no tombstone is of that place")
        seqs: dict[int, int] = {}
        for stone in sorted(tombstones, key=lambda one: (one.iid, one.first_seq)):
            if stone.first_seq != seqs.get(stone.iid, 0) + 1:
                story = f"a tombstone of run {stone.iid} begins with event {stone.first_seq}, after {seqs.get(stone.iid, 0)}"
                self._complain("tombstone", story)
            if not stone.last_seq - stone.first_seq + 1 == stone.count <= stone.last_offset - stone.first_offset + 1:
                self._complain(
                    "tombstone", f"a tombstone of run {stone.iid} tells of {stone.count} events and has no room"
                )
            seqs[stone.iid] = stone.last_seq

    async def _check_cut_away(self, tombstones: Sequence[Tombstone]) -> None:
        """What was cut is in a snapshot; and of what is listed there are events, or were."""
        cut: dict[int, int] = {}
        for stone in tombstones:
            cut[stone.iid] = max(cut.get(stone.iid, 0), stone.last_seq)
        for iid, seq in cut.items():
            snapshot = await self._source.load_snapshot(self._shard, iid)
            if snapshot is None or snapshot.seq < seq:
                self._complain(
                    "tombstone", f"events of run {iid} up to {seq} were cut, and no snapshot has what they made"
                )
        known = {*self._entities, *cut}
        unknown = [iid for iid in range(1, max(known, default=0)) if iid not in known]
        for first in range(0, len(unknown), PAGE):
            for record in await self._source.get_runs(self._shard, unknown[first : first + PAGE]):
                self._complain("listing", f"{RunKey.from_bytes(record.key)} is listed and has no events")

    async def _meet(self, rows: Sequence[Row], tombstones: Sequence[Tombstone]) -> None:
        """Ask once for each run of the page that is new."""
        new = sorted({row.iid for row in rows} - set(self._entities))
        records = {record.iid: record for record in await self._source.get_runs(self._shard, new)} if new else {}
        for iid in new:
            entity = _Entity(
                records.get(iid),
                [stone for stone in tombstones if stone.iid == iid],
                await self._source.load_snapshot(self._shard, iid),
            )
            self._entities[iid] = entity
            if entity.record is None:
                self._complain("listing", f"run {iid} has events and is not listed", entity)
            if entity.is_run:
                self._report.runs += 1
            else:
                self._report.entities += 1

    # ---- one row

    def _read(self, row: Row, before: int) -> int:
        entity = self._entities[row.iid]
        try:
            at, events, _ = decode_row(row.data)
        except StoreUnusable as error:
            self._complain("unreadable", str(error), entity, row.seq)
            entity.next_seq = row.seq + row.count
            return before
        if at < before:
            self._complain("time", f"{at} follows {before}", entity, row.seq)
        if len(events) != row.count:
            self._complain("unreadable", f"a row of {row.count} events has {len(events)}", entity, row.seq)
        if row.seq != entity.next_seq:
            self._complain("sequence", f"event {row.seq} stands where {entity.next_seq} should", entity, row.seq)
        for index, event in enumerate(events):
            self._tell(entity, event, row.seq + index, (row.epoch, row.offset + index), at)
        entity.next_seq = row.seq + row.count
        entity.last_offset = row.offset + row.count - 1
        self._report.events += row.count
        return max(at, before)

    def _tell(self, entity: _Entity, event: Event, seq: int, place: tuple[int, int], at: int) -> None:
        if not entity.is_run or entity.is_untold:
            return
        if entity.story is None and not self._open(entity, event, seq, at):
            entity.is_untold = entity.story is None
            return
        story = entity.story
        assert story is not None, "it was opened"
        if seq <= story.seq:
            return  # the snapshot has it
        try:
            story.tell(event, *place, at, lambda rule, words: self._complain(rule, words, entity, seq))
        except (IndexError, ValueError) as error:  # a task or an item that the definition does not have
            self._complain("unreadable", f"{event.type} makes no sense: {error}", entity, seq)
        self._compare(entity, story)
        if story.is_over:
            story.tasks = []  # many runs, one memory

    def _open(self, entity: _Entity, event: Event, seq: int, at: int) -> bool:
        """Begin a run's story: with its first event, or with the snapshot that a cut has left."""
        if seq == 1:
            if not isinstance(event, WorkflowCreated):
                self._complain("created", f"it begins with {event.type}", entity, seq)
                return False
            if entity.key is not None and (event.namespace, event.workflow_type, event.instance) != (
                entity.key.namespace, entity.key.workflow_type, entity.key.instance_id.bytes,
            ):  # fmt: skip
                self._complain("created", "its first event is of another run", entity, seq)
            plan = self._plans.of(event.definition)
            if plan is None:
                self._complain("unreadable", f"its definition {event.definition[:12]} is not stored", entity, seq)
                return False
            entity.story = RunStory.begin(plan, event, at)
            self._compare(entity, entity.story)
            return False
        state = decode_snapshot(entity.snapshot.data) if entity.snapshot is not None else None
        plan = self._plans.of(state.definition) if state is not None else None
        if state is None or plan is None or state.seq < seq - 1:
            self._complain("tombstone", "its first events were cut and no snapshot has what they made", entity, seq)
            return False
        entity.story = RunStory.resume(plan, state)
        return True

    def _compare(self, entity: _Entity, story: RunStory) -> None:
        if entity.snapshot is None or entity.snapshot.seq != story.seq:
            return
        self._report.snapshots += 1
        state = decode_snapshot(entity.snapshot.data)
        found = "it cannot be read" if state is None else difference(story, state)
        if found:
            self._complain("snapshot", found, entity, story.seq)

    # ---- at the end

    async def _judge(self, checkpoint: CheckpointRecord | None) -> None:
        hot = set(msgspec.msgpack.decode(checkpoint.data, type=list[int])) if checkpoint is not None else set()
        behind = checkpoint.offset if checkpoint is not None else 1
        for iid, entity in self._entities.items():
            await self._check_ends(iid, entity)
            if entity.story is not None and not entity.story.is_over:
                self._report.open_runs += 1
                if iid not in hot and entity.last_offset < behind:
                    await self._check_parked(iid, entity, entity.story)

    async def _check_ends(self, iid: int, entity: _Entity) -> None:
        if entity.snapshot is not None and entity.snapshot.seq >= entity.next_seq and entity.is_run:
            self._complain("snapshot", f"it is of event {entity.snapshot.seq}, which there is not", entity)
        # The listing of an open run may be of a slightly older event, and never of a later one.
        if entity.record is not None and entity.record.head >= entity.next_seq:
            story = f"listed with event {entity.record.head}, its events end with {entity.next_seq - 1}"
            self._complain("listing", story, entity)
        if entity.story is not None and entity.story.is_over and not self._is_listed(entity):
            entity.record = next(iter(await self._source.get_runs(self._shard, [iid])), None)
            if not self._is_listed(entity):
                listed = STATES[entity.record.state] if entity.record is not None else "nothing"
                self._complain("listing", f"listed as {listed}, its events make it {entity.story.status}", entity)

    @staticmethod
    def _is_listed(entity: _Entity) -> bool:
        story, record = entity.story, entity.record
        return record is None or story is None or STATES[record.state] == story.status

    async def _check_parked(self, iid: int, entity: _Entity, story: RunStory) -> None:
        """An open run that recovery would not read back by itself must have a parked record that wakes it in time."""
        parked = await self._source.get_parked(self._shard, iid)
        if parked is None:
            if not await self._has_gone_on(iid, entity):
                self._complain("stalled", f"{story.status}, not hot, not parked", entity, story.seq)
            return
        due = story.wake_at()
        if due and (not parked.wake_at or parked.wake_at > due + LATE) and not await self._has_gone_on(iid, entity):
            self._complain("timer", f"due at {due}, parked until {parked.wake_at}", entity, story.seq)

    async def _has_gone_on(self, iid: int, entity: _Entity) -> bool:
        """Was something appended meanwhile, by an orchestrator that is at work?"""
        return bool(await self._source.read_run(self._shard, iid, entity.next_seq, 1))


def _joined(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that touch or overlap as one, in order."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(stretches):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined
