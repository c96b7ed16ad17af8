"""What every event store must do. Subclass `EventStoreSuite`, give it `stores`, and pytest does the rest.

class TestMine(EventStoreSuite):
    @pytest.fixture
    def stores(self, tmp_path):
        return MyStores(tmp_path)
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from onexflow.core.errors import InternalError, InvalidArgument, StoreFull, StoreUnavailable
from onexflow.ports.event_store import (
    AppendOutcome,
    CheckpointRecord,
    DefinitionRecord,
    EventStore,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunCount,
    RunFilter,
    ShardAppend,
    SnapshotRecord,
)
from onexflow.testing.conformance.event_store_cuts import RegistersAndCuts
from onexflow.testing.conformance.store_kit import ODD_TEXTS, Stores, key, one_row, run_record


class EventStoreSuite(RegistersAndCuts):
    """The contract of `ports.event_store`, clause by clause."""

    # ------------------------------------------------------------------------------------------------- life

    async def test_close_before_open_and_twice_is_legal(self, stores: Stores) -> None:
        store = stores.make()
        await store.close()
        await store.open()
        await store.close()
        await store.close()

    async def test_a_closed_store_refuses(self, stores: Stores) -> None:
        store = stores.make()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.append([])
            with pytest.raises(StoreUnavailable):
                await store.read_shard(0, 1)
            await store.open()
            await store.close()

    async def test_reopening_keeps_everything(self, stores: Stores) -> None:
        store = stores.make()
        await store.open()
        await store.claim(3, 0, "me")
        part = one_row(3, 1, 1, iid=7, count=2)
        part.runs = [run_record(7)]
        part.requests = [RequestRecord("default", "r1", b"h", b"answer", 5)]
        part.parked = [ParkedRecord(7, 40, "timer")]
        part.snapshots = [SnapshotRecord(7, 2, b"state")]
        part.checkpoint = CheckpointRecord(2, b"hot")
        part.registers = [RegisterRecord("state/a", b"v")]
        definition = DefinitionRecord("default", "orders", 1, "ab", b"{}", 9)
        assert (await store.append([part])).stored == {3}
        await store.save_definition(definition)
        await store.close()

        store = stores.make()
        await store.open()
        try:
            assert store.shards == 8
            assert (await store.owners())[3] == (3, 1, "me")
            assert await store.read_shard(3, 1) == part.rows
            assert await store.read_run(3, 7) == part.rows
            assert await store.find_run(3, key(7)) == part.runs[0]
            assert await store.find_request(3, "default", "r1") == part.requests[0]
            assert await store.get_parked(3, 7) == part.parked[0]
            assert await store.load_snapshot(3, 7) == part.snapshots[0]
            assert await store.load_checkpoint(3) == part.checkpoint
            assert await store.list_registers(3) == part.registers
            assert await store.load_definitions() == [definition]
            claim = await store.claim(3, 1, "successor")
            assert claim is not None
            assert (claim.shard, claim.epoch, claim.head, claim.next_iid) == (3, 2, 3, 8)
        finally:
            await store.close()

    # ---------------------------------------------------------------------------------------------- ownership

    async def test_a_fresh_store_has_no_owners(self, store: EventStore) -> None:
        assert list(await store.owners()) == [(shard, 0, "") for shard in range(8)]

    async def test_a_claim_is_a_compare_and_set(self, store: EventStore) -> None:
        first = await store.claim(2, 0, "one")
        assert first is not None
        assert (first.epoch, first.head, first.next_iid) == (1, 1, 1)
        assert await store.claim(2, 0, "two") is None
        assert await store.claim(2, 2, "two") is None
        assert (await store.owners())[2] == (2, 1, "one")
        assert await store.claim(2, 1, "two") is not None
        assert (await store.owners())[2] == (2, 2, "two")

    async def test_a_claim_of_no_shard_fails(self, store: EventStore) -> None:
        assert await store.claim(8, 0, "me") is None

    async def test_a_deposed_owner_cannot_append(self, store: EventStore) -> None:
        await store.claim(0, 0, "one")
        await store.claim(0, 1, "two")
        outcome = await store.append([one_row(0, 1, 1)])
        assert outcome.stored == frozenset()
        assert outcome.refused == {0: (2, 1)}
        assert await store.read_shard(0, 1) == []

    async def test_heads_are_told_of_all_shards_whoever_owns_them(self, store: EventStore) -> None:
        assert await store.heads() == dict.fromkeys(range(8), 1)
        await self.claimed(store, 3)
        await store.append([one_row(3, 1, 1)])
        await store.claim(3, 1, "two")
        assert await store.heads() == {**dict.fromkeys(range(8), 1), 3: 2}

    # ----------------------------------------------------------------------------------------------- appending

    async def test_offsets_are_dense_from_one(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        head = 1
        for count in (1, 3, 2):
            assert (await store.append([one_row(0, 1, head, count=count, seq=head)])).stored == {0}
            head += count
        assert [(row.offset, row.count) for row in await store.read_shard(0, 1)] == [(1, 1), (2, 3), (5, 2)]

    async def test_a_shard_that_does_not_match_is_untouched_while_others_store(self, store: EventStore) -> None:
        await self.claimed(store)
        wrong_epoch = one_row(1, 9, 1)
        wrong_head = one_row(2, 1, 5)
        wrong_epoch.runs = [run_record(1)]
        wrong_epoch.parked = [ParkedRecord(1, 1, "x")]
        wrong_head.snapshots = [SnapshotRecord(1, 1, b"s")]
        wrong_head.checkpoint = CheckpointRecord(1, b"c")
        wrong_head.requests = [RequestRecord("default", "r", b"", b"", 1)]
        outcome = await store.append([one_row(0, 1, 1), wrong_epoch, wrong_head, one_row(3, 1, 1)])
        assert outcome.stored == {0, 3}
        assert outcome.refused == {1: (1, 1), 2: (1, 1)}
        assert await store.find_run(1, key(1)) is None
        assert await store.get_parked(1, 1) is None
        assert await store.load_snapshot(2, 1) is None
        assert await store.load_checkpoint(2) is None
        assert await store.find_request(2, "default", "r") is None
        assert [len(await store.read_shard(shard, 1)) for shard in range(4)] == [1, 0, 0, 1]

    async def test_an_unknown_shard_is_refused(self, store: EventStore) -> None:
        assert (await store.append([one_row(99, 1, 1)])).refused == {99: (0, 0)}
        outcome = await store.append([ShardAppend(shard=8, epoch=0, head=0, next=0)])
        assert (outcome.stored, outcome.refused) == (frozenset(), {8: (0, 0)})

    async def test_the_same_append_twice_stores_once(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        part = one_row(0, 1, 1, count=2)
        assert (await store.append([part])).stored == {0}
        again = await store.append([part])
        assert again.stored == frozenset()
        assert again.refused == {0: (1, 3)}  # head is our `next`: it is stored
        assert len(await store.read_shard(0, 1)) == 1

    async def test_an_append_of_nothing_is_legal(self, store: EventStore) -> None:
        outcome = await store.append([])
        assert (outcome.stored, outcome.refused) == (frozenset(), {})

    async def test_an_append_without_rows_changes_the_tables(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        part = ShardAppend(shard=0, epoch=1, head=1, next=1, parked=[ParkedRecord(4, 9, "timer")])
        assert (await store.append([part])).stored == {0}
        assert await store.get_parked(0, 4) == ParkedRecord(4, 9, "timer")

    @pytest.mark.parametrize("count", [1, 5, 255, 256, 257, 700])
    async def test_any_number_of_rows(self, store: EventStore, count: int) -> None:
        await self.claimed(store, 0)
        rows = [Row(1 + n, 1, 1, 1 + n % 7, 1 + n // 7, b"%d" % n) for n in range(count)]
        runs = [run_record(1 + n) for n in range(count)]
        assert (
            await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1 + count, rows=rows, runs=runs)])
        ).stored
        assert await store.read_shard(0, 1) == rows
        assert len(await store.get_runs(0, range(1, count + 1))) == count

    async def test_values_of_every_kind(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        everything = bytes(range(256)) * 1100
        part = one_row(0, 1, 1, data=everything)
        part.parked = [ParkedRecord(iid, 1, text) for iid, text in enumerate(ODD_TEXTS, 1) if text]
        part.requests = [RequestRecord(text, f"{text}-", b"\0", b"", 1) for text in ODD_TEXTS]
        assert (await store.append([part])).stored == {0}
        assert (await store.read_shard(0, 1))[0].data == everything
        for iid, text in enumerate(ODD_TEXTS, 1):
            assert await store.get_parked(0, iid) == (ParkedRecord(iid, 1, text) if text else None)
            assert await store.find_request(0, text, f"{text}-") == RequestRecord(text, f"{text}-", b"\0", b"", 1)

    # ------------------------------------------------------------------------------------------------- reading

    async def test_a_shard_reads_in_pages_and_from_within_a_row(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        head = 1
        for n in range(10):
            await store.append(
                [one_row(0, 1, head, count=3, seq=head, data=b"%d" % n), one_row(1, 1, n + 1, seq=n + 1)]
            )
            head += 3
        seen: list[Row] = []
        at = 1
        while rows := await store.read_shard(0, at, 4):
            assert len(rows) <= 4
            seen += rows
            at = rows[-1].offset + rows[-1].count
        assert [row.data for row in seen] == [b"%d" % n for n in range(10)]
        assert [row.offset for row in await store.read_shard(0, 6, 2)] == [4, 7]
        assert [row.offset for row in await store.read_shard(0, 7, 2)] == [7, 10]
        assert [row.offset for row in await store.read_shard(0, 30)] == [28]
        assert await store.read_shard(0, 31) == []
        assert await store.read_shard(2, 1) == []
        assert await store.read_shard(99, 1) == []

    async def test_a_run_reads_in_pages_and_from_within_a_row(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        head, seqs = 1, {1: 1, 2: 1}
        for n in range(12):
            iid = 1 + n % 2
            await store.append([one_row(0, 1, head, iid=iid, seq=seqs[iid], count=2)])
            head += 2
            seqs[iid] += 2
        assert [row.seq for row in await store.read_run(0, 2)] == [1, 3, 5, 7, 9, 11]
        assert [row.seq for row in await store.read_run(0, 2, 4, 2)] == [3, 5]
        assert [row.seq for row in await store.read_run(0, 2, 12)] == [11]
        assert await store.read_run(0, 2, 13) == []
        assert {row.iid for row in await store.read_run(0, 1)} == {1}
        assert await store.read_run(0, 3) == []
        assert await store.read_run(1, 1) == []

    # ---------------------------------------------------------------------------------------------------- runs

    async def test_a_run_is_found_by_key_and_number_and_replaced(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        record = run_record(5, state=1)
        await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, runs=[record, run_record(6)])])
        changed = msgspec.structs.replace(record, state=4, updated_at=99, head=12, version=2, start_hash=b"other")
        await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, runs=[changed])])
        assert await store.find_run(0, key(5)) == changed
        assert await store.find_run(1, key(5)) is None
        assert await store.find_run(0, key(9)) is None
        assert await store.find_run(0, key(5, "elsewhere")) is None
        assert sorted(await store.get_runs(0, [5, 6, 7, 5])) == [changed, run_record(6)]
        assert await store.get_runs(0, []) == []

    async def test_two_runs_of_one_key_are_a_bug(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, runs=[run_record(5)])])
        with pytest.raises(InternalError):
            await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, runs=[run_record(6, name=key(5))])])
        assert await store.get_runs(0, [6]) == []
        assert (await store.append([one_row(0, 1, 1)])).stored == {0}

    async def test_unused_numbers_follow_the_highest_used(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        part = one_row(0, 1, 1, iid=41)
        part.runs = [run_record(12)]
        await store.append([part])
        claim = await store.claim(0, 1, "next")
        assert claim is not None
        assert claim.next_iid == 42

    async def test_listing_is_newest_first_in_stable_pages(self, store: EventStore) -> None:
        await self.claimed(store)
        for shard in range(8):
            runs = [run_record(n, name=key(shard * 100 + n), created_at=1 + n // 2) for n in range(1, 8)]
            await store.append([ShardAppend(shard=shard, epoch=1, head=1, next=1, runs=runs)])
        seen: list[tuple[int, int, int]] = []
        cursor = ""
        while True:
            page = await store.list_runs(RunFilter("default"), cursor, 10)
            seen += [(record.created_at, shard, record.iid) for shard, record in page.runs]
            cursor = page.cursor
            if not cursor:
                break
            newer = run_record(100 + len(seen), name=key(9000 + len(seen)), created_at=1000)
            await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, runs=[newer])])
        assert len(seen) == len(set(seen)) == 56
        assert [created for created, _, _ in seen] == sorted((created for created, _, _ in seen), reverse=True)

    async def test_listing_by_type_and_state(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        names = [("default", "orders"), ("default", "mail"), ("tenant", "orders"), ("", "")]
        for shard in (0, 1):
            runs = [
                run_record(n, name=key(shard * 100 + n, *names[n % 4]), state=n % 3, created_at=n) for n in range(1, 25)
            ]
            await store.append([ShardAppend(shard=shard, epoch=1, head=1, next=1, runs=runs)])

        async def listed(*where: object) -> list[tuple[int, int]]:
            page = await store.list_runs(RunFilter(*where), "", 1000)  # type: ignore[arg-type]  # spread for brevity
            assert not page.cursor
            return [(shard, record.iid) for shard, record in page.runs]

        def wanted(test: Callable[[int], bool]) -> list[tuple[int, int]]:
            return [(shard, n) for n in range(24, 0, -1) for shard in (1, 0) if test(n)]

        assert await listed("default") == wanted(lambda n: n % 4 in (0, 1))
        assert await listed("default", "mail") == wanted(lambda n: n % 4 == 1)
        assert await listed("tenant", "", frozenset({1})) == wanted(lambda n: n % 4 == 2 and n % 3 == 1)
        assert await listed("default", "orders", frozenset({0, 2})) == wanted(lambda n: n % 4 == 0 and n % 3 != 1)
        assert await listed("") == wanted(lambda n: n % 4 == 3)
        assert await listed("nobody") == []
        assert await listed("default", "nothing") == []
        assert await listed("default", "", frozenset({9})) == []

    async def test_runs_are_counted_by_type_version_and_state(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        names = [("default", "orders"), ("default", "mail"), ("tenant", "orders")]
        for shard in (0, 1):
            runs = [
                run_record(n, name=key(shard * 100 + n, *names[n % 3]), state=n % 2, head=n, version=1 + n // 7)
                for n in range(1, 13)
            ]
            await store.append([ShardAppend(shard=shard, epoch=1, head=1, next=1, runs=runs)])

        async def counted(*where: object) -> set[RunCount]:
            found = await store.count_runs(RunFilter(*where))  # type: ignore[arg-type]  # spread for brevity
            assert len(found) == len(set(found))
            return set(found)

        mail = {
            RunCount("mail", 1, 0, 2, 8),
            RunCount("mail", 1, 1, 2, 2),
            RunCount("mail", 2, 0, 2, 20),
            RunCount("mail", 2, 1, 2, 14),
        }
        assert await counted("default", "mail") == mail
        assert await counted("default", "mail", frozenset({1})) == {count for count in mail if count.state == 1}
        assert sum(count.runs for count in await counted("default")) == 16
        assert await counted("tenant", "mail") == await counted("nobody") == set()

    @pytest.mark.parametrize("cursor", ["x", "1", "-", "1-2-3-4", "zz-1", "ffffffffffffffffffffff-1", "\ud800"])
    async def test_a_foreign_cursor_is_a_clear_error(self, store: EventStore, cursor: str) -> None:
        with pytest.raises(InvalidArgument) as raised:
            await store.list_runs(RunFilter("default"), cursor)
        assert raised.value.context["field"] == "cursor"

    # ------------------------------------------------------------------------- snapshots, checkpoints, parked, requests

    async def test_the_newest_snapshot_counts(self, store: EventStore) -> None:
        await self.claimed(store, 0)

        async def save(seq: int, data: bytes) -> None:
            await store.append(
                [ShardAppend(shard=0, epoch=1, head=1, next=1, snapshots=[SnapshotRecord(1, seq, data)])]
            )

        assert await store.load_snapshot(0, 1) is None
        await save(5, b"five")
        await save(9, b"nine")
        await save(7, b"late")
        assert await store.load_snapshot(0, 1) == SnapshotRecord(1, 9, b"nine")
        assert await store.load_snapshot(0, 1, 9) == SnapshotRecord(1, 9, b"nine")
        older = await store.load_snapshot(0, 1, 8)
        assert older is None or older.seq <= 8
        await save(9, b"again")
        assert await store.load_snapshot(0, 1) == SnapshotRecord(1, 9, b"again")

    async def test_the_last_checkpoint_counts(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        assert await store.load_checkpoint(0) is None
        for offset in (1, 4):
            part = ShardAppend(shard=0, epoch=1, head=1, next=1, checkpoint=CheckpointRecord(offset, b"%d" % offset))
            await store.append([part])
        assert await store.load_checkpoint(0) == CheckpointRecord(4, b"4")
        assert await store.load_checkpoint(1) is None

    async def test_parked_runs_come_when_due_earliest_first(self, store: EventStore) -> None:
        await self.claimed(store, 0)

        async def park(*records: ParkedRecord) -> None:
            await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, parked=list(records))])

        await park(
            ParkedRecord(1, 30, "c"), ParkedRecord(2, 10, "a"), ParkedRecord(3, 0, "paused"), ParkedRecord(4, 20, "b")
        )
        assert [entry.iid for entry in await store.due_parked(0, 25)] == [2, 4]
        assert [entry.iid for entry in await store.due_parked(0, 99, 2)] == [2, 4]
        assert await store.due_parked(0, 9) == []
        assert await store.due_parked(1, 99) == []
        await park(ParkedRecord(2, 0, ""), ParkedRecord(4, 40, "later"), ParkedRecord(9, 0, ""))
        assert await store.due_parked(0, 99) == [ParkedRecord(1, 30, "c"), ParkedRecord(4, 40, "later")]
        assert await store.get_parked(0, 2) is None
        assert await store.get_parked(0, 3) == ParkedRecord(3, 0, "paused")
        await park(ParkedRecord(5, 1, "x"), ParkedRecord(5, 0, ""))
        assert await store.get_parked(0, 5) is None

    async def test_runs_are_read_back_with_all_that_they_are_made_of(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        first = ShardAppend(shard=0, epoch=1, head=1, next=6, runs=[run_record(1), run_record(2), run_record(3)])
        first.rows = [Row(1, 2, 1, 1, 1, b"a"), Row(3, 1, 1, 2, 1, b"b"), Row(4, 2, 1, 1, 3, b"c")]
        then = ShardAppend(shard=0, epoch=1, head=6, next=8)
        then.rows = [Row(6, 1, 1, 1, 5, b"d"), Row(7, 1, 1, 2, 2, b"e")]
        then.snapshots = [SnapshotRecord(1, 3, b"three"), SnapshotRecord(3, 1, b"one")]
        then.parked = [ParkedRecord(2, 9, "timer")]
        await store.append([first])
        await store.append([then])
        found = {one.record.iid: one for one in await store.read_back(0, [1, 2, 3, 9])}
        assert sorted(found) == [1, 2, 3]
        assert [one.record for one in found.values()] == [run_record(iid) for iid in found]
        assert found[1].snapshot == SnapshotRecord(1, 3, b"three")
        assert found[1].rows == [first.rows[2], then.rows[0]], "a row that stands across the snapshot belongs to it"
        assert found[2][1:] == (None, [first.rows[1], then.rows[1]], ParkedRecord(2, 9, "timer"))
        assert found[3][1:] == (SnapshotRecord(3, 1, b"one"), [], None)
        limited = {one.record.iid: one.rows for one in await store.read_back(0, [1, 2], 1)}
        assert limited == {1: [first.rows[2]], 2: [first.rows[1]]}
        assert await store.read_back(1, [1, 2, 3]) == await store.read_back(0, []) == []

    async def test_answers_are_kept_by_request_until_forgotten(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        records = [RequestRecord("default", f"r{n}", b"body", b"answer %d" % n, n) for n in range(2500)]
        await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, requests=records)])
        other = RequestRecord("tenant", "r1", b"other", b"other", 2499)
        again = records[1]._replace(response=b"changed")
        await store.append([ShardAppend(shard=0, epoch=1, head=1, next=1, requests=[other, again])])
        assert await store.find_request(0, "default", "r1") == records[1]
        assert await store.find_request(0, "tenant", "r1") == other
        assert await store.find_request(1, "default", "r1") is None
        assert await store.forget_requests(2400) == 2400
        assert await store.find_request(0, "default", "r1") is None
        assert await store.find_request(0, "default", "r2400") == records[2400]
        assert await store.forget_requests(2400) == 0

    # ------------------------------------------------------------------------------------------- definitions, time

    async def test_a_definition_is_never_overwritten(self, store: EventStore) -> None:
        first = DefinitionRecord("default", "orders", 1, "aa", b"one", 1)
        assert await store.save_definition(first) == first
        assert await store.save_definition(first._replace(hash="bb", data=b"two", registered_at=2)) == first
        second = first._replace(version=2, hash="bb", data=b"two")
        odd = first._replace(namespace="\0\ud800", workflow_type="")
        assert await store.save_definition(second) == second
        assert await store.save_definition(odd) == odd
        assert sorted(await store.load_definitions()) == sorted([first, second, odd])

    async def test_store_time_never_runs_backwards(self, stores: Stores) -> None:
        store = stores.make()
        stores.set_clock(1_000)
        await store.open()
        assert store.now() == 1_000
        await self.claimed(store, 0)
        stores.set_clock(2_000)
        outcome: AppendOutcome = await store.append([one_row(0, 1, 1)])
        assert outcome.now == 2_000
        stores.set_clock(500)
        assert store.now() == 2_000
        assert (await store.append([one_row(0, 1, 2, seq=2)])).now == 2_000
        await store.close()
        store = stores.make()
        await store.open()
        assert store.now() >= 2_000
        stores.set_clock(3_000)
        await self.claimed(store, 1)
        assert (
            await store.append([one_row(1, 1, 1)])
        ).now == 3_000  # a clock that is elsewhere is heard with an answer
        assert store.now() == 3_000
        await store.close()

    # ------------------------------------------------------------------------------------------------------ full

    async def test_a_full_store_stores_nothing_and_recovers(self, stores: Stores, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        assert (await store.append([one_row(0, 1, 1)])).stored == {0}
        await stores.fill(store)
        large = [one_row(0, 1, 2, seq=2, data=bytes(1 << 20)), one_row(1, 1, 1, data=b"small")]
        large[1].runs = [run_record(3, name=key(3, "never", "seen"))]
        large[1].registers = [RegisterRecord("never/seen", b"v")]
        for _ in range(3):
            with pytest.raises(StoreFull) as raised:
                await store.append(large)
            assert not raised.value.context.get("fatal")
        assert len(await store.read_shard(0, 1)) == 1
        assert await store.read_shard(1, 1) == []
        assert await store.get_register(1, "never/seen") is None
        await stores.free(store)
        assert (await store.append(large)).stored == {0, 1}
        assert len(await store.read_shard(0, 1)) == 2
        assert await store.find_run(1, key(3, "never", "seen")) == large[1].runs[0]

    async def test_statistics_count(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        part = one_row(0, 1, 1, count=3)
        part.runs = [run_record(1)]
        part.registers = [RegisterRecord("a", b"v")]
        await store.append([part])
        found = await store.statistics()
        assert (found["events"], found["rows"], found["runs"]) == (3, 1, 1)
        assert (found["registers"], found["cut_events"]) == (1, 0)
        assert found["bytes"] > 0
