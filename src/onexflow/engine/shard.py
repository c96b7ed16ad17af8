"""A shard: the unit of ownership. One owner, one epoch, one append stream with dense offsets.

`next` is the decided offset, `durable` the one the store has confirmed; only the dispatch of pure tasks may run ahead
of the latter (engine.lane).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from onexflow.codec.rows import encode_row
from onexflow.core.errors import Coded
from onexflow.core.events import Event
from onexflow.core.ids import RunKey
from onexflow.core.machine import WORKFLOW_STATE_INDEX
from onexflow.engine.run import SNAPSHOT_EVERY, Attempt, Run
from onexflow.ports.event_store import (
    CheckpointRecord,
    Cut,
    EventStore,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunRecord,
    ShardAppend,
    ShardClaim,
    SnapshotRecord,
)

if TYPE_CHECKING:
    from onexflow.engine.queue import Queue
    from onexflow.engine.recovery import RecentRuns

#: Snapshots are taken so seldom that they cost no more than this an event, however large the run is.
SNAPSHOT_BYTES = 64
#: A checkpoint is written after so many events of the shard, or (when anything was appended) so many seconds.
CHECKPOINT_EVENTS = 5000
CHECKPOINT_SECONDS = 2.0
#: Parts, in a checkpoint, the runs at work from those that are in memory and wait. No run has this number.
NONE_AT_WORK = 0
#: Later than any store time.
NEVER = (1 << 63) - 1
#: A run's listing entry is written when its state changes; else it may lag behind its events by so many seconds, as
#: writing it with each of them would cost more than they do. Who lists sees what is in memory (engine.queries).
LISTED_SECONDS = 1.0


class EntityState(Protocol):
    """What the store's listing says of an entity."""

    status: str
    seq: int
    version: int
    created_at: int
    updated_at: int


class Entity(Protocol):
    """What has events in a shard: a run, a work queue, or an external stream."""

    shard: Shard
    iid: int
    key: RunKey
    start_hash: bytes
    durable_seq: int
    snapshot_seq: int
    snapshot_after: int
    listed_state: str
    listed_seq: int
    listed_at: float

    @property
    def state(self) -> EntityState: ...

    @property
    def is_over(self) -> bool: ...

    def snapshot(self) -> bytes:
        """Its whole state, as stored."""


class Decision(Protocol):
    """Events that were decided together, at store time `now`."""

    now: int
    events: list[Event]


class Segment(msgspec.Struct, frozen=True, gc=False):
    """Events of one entity that stand next to each other in the shard: one row to be."""

    run: Entity
    offset: int
    seq: int
    at: int
    events: list[Event]
    meta: dict[str, str] | None


@dataclass(slots=True)
class Pending:
    """What the next append writes to this shard."""

    segments: list[Segment] = field(default_factory=list)
    runs: dict[int, Entity] = field(default_factory=dict)
    requests: list[RequestRecord] = field(default_factory=list)
    parked: dict[int, ParkedRecord] = field(default_factory=dict)
    snapshots: dict[int, SnapshotRecord] = field(default_factory=dict)
    #: By name; the last one written counts. Empty data takes the register away.
    registers: dict[str, RegisterRecord] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)


class Watch:
    """A register's newest value, durable or not, from when it was read until the watch ends."""

    __slots__ = ("_found", "_shard", "name", "put")

    def __init__(self, shard: Shard, name: str) -> None:
        self.name = name
        #: What was put meanwhile: newer than what the store had.
        self.put: bytes | None = None
        self._shard = shard
        self._found: bytes | None = None

    async def read(self, store: EventStore) -> None:
        self._found = self._shard.peek(self.name)
        if self._found is None:
            self._found = await store.get_register(self._shard.id, self.name)

    @property
    def value(self) -> bytes | None:
        """None when there is none."""
        return (self._found if self.put is None else self.put) or None


class Shard:
    """An owned shard and the open runs of it that are in memory."""

    #: Starts that its owner has seen. Set by who claims it.
    recent: RecentRuns

    def __init__(self, claim: ShardClaim, on_dirty: Callable[[Shard], None]) -> None:
        """`on_dirty` hears of each append to be, once, when it gets the first thing to write."""
        #: Why nothing more is decided for it here: it is being handed over, or another owner has claimed it.
        self.moved: Coded | None = None
        #: Why what was decided and is not durable never will be.
        self.lost: Coded | None = None
        #: What workers have said of it before its runs were read back, in order; None when they are.
        self.early: list[Callable[[], None]] | None = []
        #: Pure attempts that wait for the workers to say what they hold; None when they have.
        self.adopting: list[Attempt] | None = None
        self.id = claim.shard
        self.epoch = claim.epoch
        self.next = self.durable = claim.head
        self.next_iid = claim.next_iid
        self.runs: dict[int, Run] = {}
        self.by_key: dict[RunKey, Run] = {}
        self.queues: dict[RunKey, Queue] = {}
        self.pending = Pending()
        #: There is something for the next append.
        self.is_dirty = False
        self._on_dirty = on_dirty
        #: Registers of the append under way.
        self._in_flight: dict[str, RegisterRecord] = {}
        self.is_in_flight = False
        #: Runs that are being read back, and those of them that have got events since that began.
        self.reading: set[int] = set()
        self.outdated: set[int] = set()
        #: Open runs that are neither in memory nor parked: they left it to be read back, or cannot be read here.
        self.absent: set[int] = set()
        #: Open runs that waited in the memory of the owner before and have still to be read back.
        self.unread: set[int] = set()
        #: Store time before which no parked run of it is due: who wakes them (engine.housekeeping) need not look earlier.
        self.next_wake = 0
        self._watches: dict[str, list[Watch]] = {}
        #: Held while a history of this shard is cut, from reading its rows until the cut is durable (engine.cuts).
        self.cutting = asyncio.Lock()
        #: How often a history of it was cut.
        self.cuts = 0
        self.checkpoint_offset = claim.head
        self.checkpoint_at = 0.0

    def add(self, run: Run) -> None:
        self.runs[run.iid] = run
        self.by_key[run.key] = run
        self.absent.discard(run.iid)
        self.unread.discard(run.iid)

    def remove(self, run: Run) -> None:
        self.runs.pop(run.iid, None)
        self.by_key.pop(run.key, None)

    def check(self) -> None:
        """Raises ShardMoved when nothing may be decided for it any more."""
        if self.moved is not None:
            raise self.moved

    def touch(self) -> None:
        """Whoever puts something into `pending` says so."""
        if not self.is_dirty:
            self.is_dirty = True
            self._on_dirty(self)

    def record(self, run: Entity, turn: Decision, meta: dict[str, str] | None = None) -> None:
        """Take a decision's events into the next append. They keep the offsets that the decision gave them."""
        if self.moved is not None:
            raise self.moved
        pending, events = self.pending, turn.events
        segments, count, offset = pending.segments, len(events), self.next
        if (
            segments
            and (last := segments[-1]).run is run
            and last.at == turn.now
            and last.meta is None
            and meta is None
        ):
            last.events.extend(events)
        else:
            segments.append(Segment(run, offset, run.state.seq - count + 1, turn.now, events, meta))
        self.next = offset + count
        pending.runs[run.iid] = run
        if not self.is_dirty:
            self.touch()
        if self.reading and run.iid in self.reading:
            self.outdated.add(run.iid)

    def put(self, name: str, data: bytes) -> None:
        """Write a register with the next append; empty data takes it away. The caller marks the lane."""
        self.check()
        self.pending.registers[name] = RegisterRecord(name, data)
        self.touch()
        for watch in self._watches.get(name, ()):
            watch.put = data

    def peek(self, name: str) -> bytes | None:
        """The register's value that is not durable yet, pending or on its way; empty when it is being taken away.
        None: what the store has is the newest, so far."""
        found = self.pending.registers.get(name) or self._in_flight.get(name)
        return None if found is None else found.data

    async def register(self, store: EventStore, name: str) -> bytes | None:
        """The register's newest value, durable or not; None when there is none."""
        with self.watch(name) as watch:
            await watch.read(store)
            return watch.value

    @contextmanager
    def watch(self, name: str) -> Iterator[Watch]:
        """Know a register's newest value at every moment, once it was read."""
        watch = Watch(self, name)
        watches = self._watches.setdefault(name, [])
        watches.append(watch)
        try:
            yield watch
        finally:
            watches.remove(watch)
            if not watches:
                del self._watches[name]

    def cut(self, cut: Cut) -> None:
        """Cut a run's history with the next append. Made and guarded by `engine.cuts`; the caller marks the lane."""
        self.pending.cuts.append(cut)
        self.cuts += 1
        self.touch()

    def answer(self, record: RequestRecord) -> None:
        """Write the answer to a request with the next append. The caller marks the lane."""
        self.pending.requests.append(record)
        self.touch()

    def keep(self, snapshot: SnapshotRecord) -> None:
        """Write a snapshot with the next append, unless a later one is written anyway. The caller marks the lane."""
        pending = self.pending.snapshots.get(snapshot.iid)
        if pending is None or pending.seq < snapshot.seq:
            self.pending.snapshots[snapshot.iid] = snapshot
            self.touch()

    def stored(self, append: ShardAppend) -> None:
        """What was taken last is durable."""
        self.durable = append.next
        self._in_flight = {}
        self.is_in_flight = False

    def take(self, now: float, *, checkpoint: bool = True) -> ShardAppend:
        """Pack what is pending into one append, and start collecting anew."""
        pending, self.pending = self.pending, Pending()
        self.is_dirty = False
        is_whole = self.early is None
        if not is_whole:
            # A checkpoint now would name the runs that are in memory and forget those that are still being read back. So
            # there is none, and who changes between parked and hot waits for it.
            self.pending.parked, pending.parked = pending.parked, {}
            if self.pending.parked:
                self.touch()
        self._in_flight = pending.registers
        self.is_in_flight = True
        head = pending.segments[0].offset if pending.segments else self.next
        rows = [
            Row(one.offset, len(one.events), self.epoch, one.run.iid, one.seq, encode_row(one.at, one.events, one.meta))
            for one in pending.segments
        ]
        records = []
        for run in pending.runs.values():
            state = run.state
            seq, status = state.seq, state.status
            if seq - run.snapshot_seq >= run.snapshot_after and not run.is_over:
                data = run.snapshot()
                run.snapshot_seq = seq
                run.snapshot_after = max(SNAPSHOT_EVERY, len(data) // SNAPSHOT_BYTES)
                pending.snapshots[run.iid] = SnapshotRecord(run.iid, seq, data)
            if status != run.listed_state or now - run.listed_at >= LISTED_SECONDS:
                run.listed_state, run.listed_seq, run.listed_at = status, seq, now
                records.append(
                    RunRecord(
                        run.iid, run.key.to_bytes(), WORKFLOW_STATE_INDEX[status], state.created_at,
                        state.updated_at, run.start_hash, seq, state.version,
                    )
                )  # fmt: skip
        append = ShardAppend(
            shard=self.id,
            epoch=self.epoch,
            head=head,
            next=self.next,
            rows=rows,
            runs=records,
            requests=pending.requests,
            parked=list(pending.parked.values()),
            snapshots=list(pending.snapshots.values()),
            registers=list(pending.registers.values()),
            cuts=pending.cuts,
        )
        behind = self.next - self.checkpoint_offset
        is_due = behind >= CHECKPOINT_EVENTS or (behind and now - self.checkpoint_at >= CHECKPOINT_SECONDS)
        # The next owner finds a run by its parked row or in the list of hot ones: whoever changes sides, changes both.
        if checkpoint and is_whole and (is_due or append.parked):
            self.checkpoint_offset, self.checkpoint_at = self.next, now
            append.checkpoint = CheckpointRecord(self.next, msgspec.msgpack.encode(self._hot()))
        return append

    def _hot(self) -> list[int]:
        """Whom the next owner has to read back by itself: those at work, and behind NONE_AT_WORK those that wait."""
        hot = [*self.absent, *(queue.iid for queue in self.queues.values())]
        waiting = [NONE_AT_WORK, *self.unread]
        for iid, run in self.runs.items():
            if not run.is_over:
                (hot if run.attempts or run.is_broken else waiting).append(iid)
        return hot + waiting

    def park(self, run: Run, wake_at: int, reason: str) -> None:
        """Write the run's snapshot and its parked row with the next append, and let go of its memory."""
        self.pending.snapshots[run.iid] = SnapshotRecord(run.iid, run.state.seq, run.snapshot())
        self.pending.parked[run.iid] = ParkedRecord(run.iid, wake_at, reason)
        if wake_at:
            self.next_wake = min(self.next_wake, wake_at)
        if run.listed_seq != run.state.seq:
            run.listed_state = ""
            self.pending.runs[run.iid] = run
        self.touch()
        self.remove(run)

    def unpark(self, iid: int) -> None:
        """The run is in memory again, or needs to be looked at no more: its parked row goes with the next append."""
        self.pending.parked[iid] = ParkedRecord(iid, 0, "")
        self.touch()
