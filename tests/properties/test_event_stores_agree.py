"""Whatever is asked of them, the SQLite and the PostgreSQL store give the answers that the memory store gives."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from onexflow.ports.event_store import (
    AppendOutcome,
    CheckpointRecord,
    Cut,
    DefinitionRecord,
    EventStore,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunCount,
    RunFilter,
    RunRecord,
    ShardAppend,
    SnapshotRecord,
    StoredRun,
    Tombstone,
)
from onexflow.storage.memory import MemoryStore
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing.conformance.store_kit import key
from postgres_support import new_schema, postgres  # noqa: F401 - a fixture
from support.store_clock import SettableClock

T = TypeVar("T")

SHARDS = 3
shards = st.integers(0, SHARDS)  # one more than there are
iids = st.integers(1, 6)
texts = st.sampled_from(["", "a", "b", "a\0b", "\ud800", "ü"])
names = st.sampled_from(["", "a", "a/", "a/b", "a/\ud800", "a/𝄞", "b", "\0"])
blobs = st.binary(max_size=40)
namespaces = st.sampled_from(["default", "tenant", ""])
times = st.integers(0, 50)
off_by = st.sampled_from([0, 0, 0, 0, 1, -1])


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """All that an append may hold beside its place: rows as (count, iid, data)."""

    def few(of: st.SearchStrategy[T]) -> list[T]:
        return draw(st.lists(of, max_size=4))

    numbers = st.integers(0, 8)
    return {
        "rows": few(st.tuples(st.integers(1, 4), iids, blobs)),
        "runs": few(st.tuples(iids, st.integers(0, 4), times)),
        "requests": few(st.builds(RequestRecord, texts, texts, blobs, blobs, times)),
        "parked": few(st.builds(ParkedRecord, iids, times, texts)),
        "snapshots": few(st.builds(SnapshotRecord, iids, numbers, blobs)),
        "registers": few(st.builds(RegisterRecord, names, blobs)),
        "checkpoint": few(st.builds(CheckpointRecord, st.integers(1, 9), blobs)),
    }


EMPTY: dict[str, list[Any]] = {
    "runs": [], "requests": [], "parked": [], "snapshots": [], "registers": [], "checkpoint": []
}  # fmt: skip


class StoresAgree(RuleBasedStateMachine):
    """The memory store beside another one, `other`."""

    other: EventStore

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = SettableClock(1)
        self.memory = MemoryStore(self.clock, SHARDS)
        self.runner = asyncio.Runner()
        self.epochs = [0] * SHARDS
        self.heads = [1] * SHARDS
        self.seqs: dict[tuple[int, int], int] = {}

    def make(self) -> EventStore:
        return SqliteStore(Path(self.folder.name) / "store.db", SHARDS, self.clock)

    @initialize()
    def open(self) -> None:
        self.other = self.make()
        self.runner.run(self.other.open())
        self.runner.run(self.memory.open())
        self.compare_clocks()

    def compare_clocks(self) -> None:
        assert self.other.now() == self.memory.now()

    def comparable(self, answer: T) -> T:
        return answer

    def teardown(self) -> None:
        self.runner.run(self.other.close())
        self.runner.close()
        self.folder.cleanup()

    def both(self, ask: Callable[[EventStore], Awaitable[T]]) -> T:
        async def answers() -> tuple[T, T]:
            return await ask(self.memory), await ask(self.other)

        expected, actual = self.runner.run(answers())
        assert self.comparable(actual) == self.comparable(expected)
        return expected

    @rule(nanoseconds=times)
    def time_passes(self, nanoseconds: int) -> None:
        self.clock.value = nanoseconds
        self.compare_clocks()

    @rule()
    def restart(self) -> None:
        self.runner.run(self.other.close())
        self.clock.value = max(self.clock.value, self.memory.now())
        self.open()

    @rule(shard=shards, off=off_by, owner=texts)
    def claim(self, shard: int, off: int, owner: str) -> None:
        epoch = self.epochs[shard] if shard < SHARDS else 0
        if self.both(lambda store: store.claim(shard, epoch + off, owner)) is not None:
            self.epochs[shard] += 1
        self.both(lambda store: store.owners())

    @rule(asked=st.lists(st.tuples(shards, off_by, off_by, contents()), max_size=4))
    def append(self, asked: list[tuple[int, int, int, dict[str, Any]]]) -> None:
        batch = [self.part(*entry) for entry in asked]
        outcome = self.both(lambda store: store.append(batch))
        self.after(batch, outcome)
        self.after(batch, self.both(lambda store: store.append(batch)))

    def after(self, batch: list[ShardAppend], outcome: AppendOutcome) -> None:
        for part in batch:
            if part.shard not in outcome.stored:
                continue
            if (part.epoch, part.head) == (self.epochs[part.shard], self.heads[part.shard]):
                self.heads[part.shard] = part.next
                for row in part.rows:
                    self.seqs[part.shard, row.iid] = row.seq + row.count

    def part(self, shard: int, epoch_off: int, head_off: int, content: dict[str, Any]) -> ShardAppend:
        epoch = (self.epochs[shard] if shard < SHARDS else 1) + epoch_off
        head = offset = (self.heads[shard] if shard < SHARDS else 1) + head_off
        seqs: dict[int, int] = {}
        rows = []
        for count, iid, data in content["rows"]:
            seq = seqs.get(iid, self.seqs.get((shard, iid), 1))
            rows.append(Row(offset, count, epoch, iid, seq, data))
            offset += count
            seqs[iid] = seq + count
        runs = [
            RunRecord(iid, name_of(shard, iid), state, at, at, b"h", seqs.get(iid, 0))
            for iid, state, at in content["runs"]
        ]
        checkpoint = content["checkpoint"][-1] if content["checkpoint"] else None
        others = {name: content[name] for name in ("requests", "parked", "snapshots", "registers")}
        return ShardAppend(
            shard=shard, epoch=epoch, head=head, next=offset, rows=rows, runs=runs, checkpoint=checkpoint, **others
        )  # fmt: skip

    @rule(shard=st.integers(0, SHARDS - 1), iid=iids, below=st.integers(1, 8), whole=st.booleans(), data=blobs)
    def cut(self, shard: int, iid: int, below: int, whole: bool, data: bytes) -> None:
        """Cut up to `below` events from what there is of a run, within a row or not, and maybe with new rows."""
        rows = self.both(lambda store: store.read_run(shard, iid))
        if not rows:
            return
        before = min(rows[0].seq + below, self.seqs[shard, iid])
        gone = [row for row in rows if row.seq < before]
        last = gone[-1]
        left = last.seq + last.count - before
        rest = None
        if left > 0:
            rest = Row(last.offset + last.count - left, left, last.epoch, iid, before, data)
        place = last.offset + last.count - max(left, 0) - 1
        grave = Tombstone(iid, rows[0].seq, before - 1, rows[0].offset, place, before - rows[0].seq, b"h", below)
        batch = [self.part(shard, 0, 0, {"rows": [(1, iid, data)] if whole else [], **EMPTY})]
        batch[0].cuts = [Cut(before, grave, rest)]
        for _ in range(2):
            self.after(batch, self.both(lambda store: store.append(batch)))
        self.both(lambda store: store.read_run(shard, iid))
        self.both(lambda store: store.read_shard(shard, 1))

    @rule(shard=shards, name=names, after=names, limit=st.integers(1, 4), at=st.integers(0, 40), iid=st.integers(0, 6))
    def look_beside_the_events(self, shard: int, name: str, after: str, limit: int, at: int, iid: int) -> None:
        self.both(lambda store: store.get_register(shard, name))
        self.both(lambda store: store.find_register(name))
        self.both(lambda store: store.list_registers(shard, name, after, limit))
        self.both(lambda store: store.tombstones(shard, at, iid))

    @rule(shard=shards, at=st.integers(1, 60), limit=st.integers(1, 5), iid=iids)
    def read(self, shard: int, at: int, limit: int, iid: int) -> None:
        self.both(lambda store: store.read_shard(shard, at, limit))
        self.both(lambda store: store.read_run(shard, iid, at, limit))

    @rule(shard=shards, iid=iids, other=shards, seq=st.integers(0, 9))
    def look_up(self, shard: int, iid: int, other: int, seq: int) -> None:
        self.both(lambda store: store.find_run(shard, name_of(other, iid)))
        self.both(lambda store: sorted_runs(store, shard))
        self.both(lambda store: store.load_snapshot(shard, iid, seq))
        self.both(lambda store: store.load_snapshot(shard, iid))
        self.both(lambda store: store.load_checkpoint(shard))
        self.both(lambda store: store.get_parked(shard, iid))
        self.both(lambda store: read_back_of(store, shard, [iid, iid + 1, 1]))

    @rule(shard=shards, until=times, limit=st.integers(1, 4))
    def look_for_parked(self, shard: int, until: int, limit: int) -> None:
        self.both(lambda store: store.due_parked(shard, until, limit))

    @rule(shard=shards, namespace=texts, request_id=texts)
    def look_for_request(self, shard: int, namespace: str, request_id: str) -> None:
        self.both(lambda store: store.find_request(shard, namespace, request_id))

    @rule(before=times)
    def forget(self, before: int) -> None:
        self.both(lambda store: store.forget_requests(before))

    @rule(
        namespace=namespaces,
        kind=st.sampled_from(["", "orders", "mail"]),
        states=st.frozensets(st.integers(0, 4)),
        limit=st.integers(1, 3),
    )
    def list_all(self, namespace: str, kind: str, states: frozenset[int], limit: int) -> None:
        self.both(lambda store: listed(store, RunFilter(namespace, kind, states), limit))
        self.both(lambda store: counted(store, RunFilter(namespace, kind, states)))

    @rule(record=st.builds(DefinitionRecord, texts, texts, st.integers(1, 2), texts, blobs, times))
    def define(self, record: DefinitionRecord) -> None:
        self.both(lambda store: store.save_definition(record))

    @rule()
    def look_at_all(self) -> None:
        async def definitions(store: EventStore) -> list[DefinitionRecord]:
            return sorted(await store.load_definitions())

        async def counts(store: EventStore) -> dict[str, int]:
            found = await store.statistics()
            return {name: count for name, count in found.items() if name != "bytes"}

        self.both(definitions)
        self.both(counts)


def name_of(shard: int, iid: int) -> bytes:
    """A run's key, some of the same instance id but of another namespace or type."""
    return key(shard * 10 + iid // 4, ["default", "tenant"][iid % 2], ["orders", "mail"][iid // 2 % 2])


async def sorted_runs(store: EventStore, shard: int) -> list[RunRecord]:
    return sorted(await store.get_runs(shard, range(8)))


async def read_back_of(store: EventStore, shard: int, iids: list[int]) -> list[StoredRun]:
    return sorted(await store.read_back(shard, iids, 2), key=lambda one: one.record.iid)


async def counted(store: EventStore, where: RunFilter) -> list[RunCount]:
    return sorted(await store.count_runs(where))


async def listed(store: EventStore, where: RunFilter, limit: int) -> list[object]:
    found: list[object] = []
    cursor = ""
    while True:
        page = await store.list_runs(where, cursor, limit)
        found += [page.runs]
        cursor = page.cursor
        if not cursor:
            return found


class PostgresAgrees(StoresAgree):
    """Its clock is the server's, and is not compared."""

    server: ClassVar[EmbeddedPostgres]

    def make(self) -> EventStore:
        if not hasattr(self, "url"):
            self.url = new_schema(self.server)
        return PostgresStore(self.url, SHARDS, self.clock)

    def compare_clocks(self) -> None:
        """There is nothing to compare."""

    def comparable(self, answer: T) -> T:
        if isinstance(answer, AppendOutcome):
            return cast("T", answer._replace(now=0))
        return answer


@pytest.fixture
def shared_postgres(postgres: EmbeddedPostgres) -> None:  # noqa: F811 - the fixture by its name
    PostgresAgrees.server = postgres


TestStoresAgree = StoresAgree.TestCase
TestPostgresAgrees = pytest.mark.usefixtures("shared_postgres")(pytest.mark.timeout(120)(PostgresAgrees.TestCase))
TestPostgresAgrees.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestStoresAgree.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
