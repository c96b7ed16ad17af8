"""EventStore port: the only truth of what happened and of who owns a shard.

Implementations: `onexflow.storage.memory`, `onexflow.storage.sqlite`; one conformance suite runs on all
(`onexflow.testing.conformance`). The contract in short:

- A shard has one append stream. Offsets are dense and start at 1; `head` is the next free offset.
- An append names, shard by shard, the epoch and the head it expects. A shard whose epoch and head match is stored
  whole, all its parts in one durable transaction; a shard that does not match is left untouched. The same append sent
  twice stores once (the head has moved), which makes retrying an ambiguous append harmless.
- What `append` says is stored has been fsynced. What it does not say is not known to be stored.
- Times are the store's clock: UTC nanoseconds, never below the last stored, and never standing still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """What one turn appended to one run: `count` events from `offset` on, packed (`codec.rows`)."""

    offset: int  #: of the first event
    count: int
    epoch: int
    iid: int  #: number of the run within its shard
    seq: int  #: sequence number of the first event in the run, from 1
    data: bytes

    def __iter__(self) -> Iterator[object]:
        """Its fields, as other records have them (store copies count and hash all alike)."""
        return iter(msgspec.structs.astuple(self))


class RunRecord(msgspec.Struct, frozen=True, order=True, gc=False):
    """The listing entry of a run, one a run, written with the events that change its state.

    `head` and `updated_at` of an open run may be of a slightly older event; the rows are the truth."""

    iid: int
    key: bytes  #: `RunKey.to_bytes()`
    state: int  #: index into LiteralWorkflowState's values
    created_at: int
    updated_at: int
    #: Hash of (correlation_id, definition, input) of the start: a repeated start with the same one is the same start.
    start_hash: bytes
    head: int  #: sequence number of the run's last event
    version: int = 1  #: of its definition

    def __iter__(self) -> Iterator[object]:
        """As `Row`'s."""
        return iter(msgspec.structs.astuple(self))


class RequestRecord(NamedTuple):
    """The answer to a mutating call, kept so that a repeated call gets the same answer."""

    namespace: str
    request_id: str
    body_hash: bytes  #: of the request without its id
    response: bytes
    at: int


class ParkedRecord(NamedTuple):
    """An open run that is paged out: when to look at it again and why it waits. `wake_at` 0: nobody needs to look.

    `reason` "" takes the record away."""

    iid: int
    wake_at: int
    reason: str


class SnapshotRecord(NamedTuple):
    """The state of a run folded up to and including `seq`."""

    iid: int
    seq: int
    data: bytes


class StoredRun(NamedTuple):
    """What it takes to have a run in memory again."""

    record: RunRecord
    snapshot: SnapshotRecord | None
    rows: list[Row]  #: that hold what came after the snapshot
    parked: ParkedRecord | None


class CheckpointRecord(NamedTuple):
    """Where recovery begins: rows from `offset` on are read, `data` names the runs that were hot."""

    offset: int
    data: bytes


class RegisterRecord(NamedTuple):
    """A named value of a shard that is not an event: a reader's position, a projection's state, what can be derived from
    events or is about them. Replaces the one of that name; empty `data` takes it away. Names may be any text."""

    name: str
    data: bytes


class Tombstone(NamedTuple):
    """What was cut out of a run's history: all its events from `first_seq` to `last_seq`, `count` of them, which stood
    between the two offsets. Never deleted; a later cut of the same run adds another one."""

    iid: int
    first_seq: int
    last_seq: int
    first_offset: int
    last_offset: int
    count: int  # type: ignore[assignment]  # as Row.count
    hash: bytes  #: BLAKE2b, 16 bytes, of the cut rows' data in order, the part of a row that was cut packed as a row
    at: int


class Cut(NamedTuple):
    """Delete the rows of a run whose events are all below `before_seq`. A row that stands across it is replaced by
    `rest`, which has what is left of it: so the caller reads the rows first."""

    before_seq: int
    tombstone: Tombstone
    rest: Row | None = None


class ShardAppend(msgspec.Struct, kw_only=True):
    """All that one commit writes to one shard."""

    shard: int
    epoch: int
    head: int  #: expected next free offset
    next: int  #: next free offset afterwards: `head` plus the sum of the rows' counts
    rows: list[Row] = []
    runs: list[RunRecord] = []  #: inserted, or replaced by iid
    requests: list[RequestRecord] = []
    parked: list[ParkedRecord] = []
    snapshots: list[SnapshotRecord] = []  #: replace older ones of the same run
    checkpoint: CheckpointRecord | None = None
    registers: list[RegisterRecord] = []
    cuts: list[Cut] = []


class AppendOutcome(NamedTuple):
    """`stored`: the shards whose part is durable. `refused`: shard → (epoch, head) as the store has them."""

    stored: frozenset[int]
    refused: dict[int, tuple[int, int]]
    now: int  #: store clock


class ShardClaim(NamedTuple):
    shard: int
    epoch: int
    head: int
    next_iid: int  #: first unused run number of the shard


class RunFilter(NamedTuple):
    """Which runs to list; empty fields match all."""

    namespace: str
    workflow_type: str = ""
    states: frozenset[int] = frozenset()


class RunPage(NamedTuple):
    """One page, newest first. `cursor` continues; empty at the end. Entries are (shard, record)."""

    runs: list[tuple[int, RunRecord]]
    cursor: str


class RunCount(NamedTuple):
    """How many runs of one type and version are in one state, and how many events these have together."""

    workflow_type: str
    version: int
    state: int
    runs: int
    events: int


class DefinitionRecord(NamedTuple):
    namespace: str
    workflow_type: str
    version: int
    hash: str  #: SHA-256 hex of `data`
    data: bytes  #: canonical JSON
    registered_at: int


class EventStore(Protocol):
    """See the module's text for the contract.

    Errors: StoreLocked, StoreUnusable at open; StoreFull (nothing was stored, space is missing), StoreUnavailable
    (ambiguous: nothing is known) from append; StoreUnavailable from reads. Drivers' own errors never come through.
    Cancelling an append does not undo it.
    """

    @property
    def shards(self) -> int:
        """Number of shards, fixed when the store was made."""

    async def open(self) -> None:
        """Open, lock, migrate. Raises StoreLocked, StoreUnusable (newer schema, not a database, unsafe settings)."""

    async def close(self) -> None:
        """Finish the append under way, release the lock. Idempotent; close before open is legal."""

    def now(self) -> int:
        """The store's clock. It goes on when the wall clock is set back."""

    async def owners(self) -> Sequence[tuple[int, int, str]]:
        """(shard, epoch, owner) of every shard; epoch 0 and "" when never claimed."""

    async def heads(self) -> dict[int, int]:
        """The next offset of every shard: all events before it are durable."""

    async def claim(self, shard: int, epoch: int, owner: str) -> ShardClaim | None:
        """Compare-and-set: make `owner` the shard's owner at `epoch + 1`, if its epoch is still `epoch`; else None.
        Durable when it returns."""

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        """Store each shard's part whose epoch and head match, in one transaction and one fsync. Durable when it
        returns. One append at a time is in flight."""

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        """Up to `limit` rows holding `offset` or later, in order."""

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        """Up to `limit` rows of one run holding `from_seq` or later, in order."""

    async def find_run(self, shard: int, key: bytes) -> RunRecord | None:
        """The listing entry of the run with that key, or None."""

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        """The entries of these runs (those that exist), in any order."""

    async def list_runs(self, where: RunFilter, cursor: str = "", limit: int = 100) -> RunPage: ...

    async def count_runs(self, where: RunFilter) -> list[RunCount]:
        """The runs that match, counted by type, version and state, in any order. Looks at each: not for a hot path."""

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        """The newest snapshot at or below `max_seq`, or None."""

    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None: ...

    async def due_parked(self, shard: int, until: int, limit: int = 1024) -> list[ParkedRecord]:
        """Parked runs with 0 < wake_at <= until, earliest first."""

    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None: ...

    async def read_back(self, shard: int, iids: Sequence[int], limit: int = 64) -> list[StoredRun]:
        """Those of these runs that exist, in any order, each with its newest snapshot and up to `limit` of its rows after
        that: one call instead of four a run. A history that is cut meanwhile may be torn: who cuts must not."""

    async def get_register(self, shard: int, name: str) -> bytes | None: ...

    async def list_registers(
        self, shard: int, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[RegisterRecord]:
        """Those whose names begin with `prefix` and are greater than `after`, in the order of their names' UTF-8."""

    async def find_register(self, name: str) -> list[tuple[int, bytes]]:
        """(shard, data) of the registers of that name, in all shards."""

    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]:
        """Those with a `last_offset` not below `from_offset`, of that run (0: of all), by `last_offset`."""

    async def find_request(self, shard: int, namespace: str, request_id: str) -> RequestRecord | None: ...

    async def forget_requests(self, before: int) -> int:
        """Delete answers recorded before that store time; how many."""

    async def save_definition(self, record: DefinitionRecord) -> DefinitionRecord:
        """Insert; if (namespace, type, version) exists, return the stored one unchanged. Durable when it returns."""

    async def load_definitions(self) -> list[DefinitionRecord]: ...

    async def statistics(self) -> dict[str, int]:
        """Sizes and counts for health and `store` commands: events, rows, runs, bytes."""
