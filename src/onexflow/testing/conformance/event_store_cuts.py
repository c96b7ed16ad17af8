"""The part of the event store's suite that is about registers, cuts and tombstones."""

from __future__ import annotations

from onexflow.ports.event_store import EventStore, RegisterRecord, Row, ShardAppend, SnapshotRecord
from onexflow.testing.conformance.store_kit import ODD_TEXTS, Stores, StoreSuite, a_cut, one_row, registers


class RegistersAndCuts(StoreSuite):
    """What stands beside the events, and what is left where they were."""

    # ------------------------------------------------------------------------------------------------ registers

    async def test_a_register_is_replaced_and_taken_away(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        assert await store.get_register(0, "a") is None
        await store.append([registers(0, 1, ("a", b"one"), ("b", b"\0"))])
        assert await store.get_register(0, "a") == b"one"
        assert await store.get_register(1, "a") is None
        assert await store.get_register(99, "a") is None
        # Of several of one name in an append, the last counts; taking away what is not there is legal.
        again = registers(
            0, 1, ("a", b"two"), ("a", b"three"), ("b", b""), ("c", b"x"), ("c", b""), ("d", b""), ("d", b"d")
        )
        for _ in range(2):
            await store.append([again])
            assert await store.list_registers(0) == [RegisterRecord("a", b"three"), RegisterRecord("d", b"d")]
        large = bytes(300_000)
        await store.append([registers(0, 1, ("a", large))])
        assert await store.get_register(0, "a") == large

    async def test_registers_come_with_their_append_or_not_at_all(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        part = one_row(0, 1, 1)
        part.registers = [RegisterRecord("position", b"2")]
        assert (await store.append([part])).stored == {0}
        part.registers = [RegisterRecord("position", b"late")]
        assert (await store.append([part])).stored == set()
        assert (await store.append([registers(0, 2, ("position", b"foreign"), epoch=9)])).stored == set()
        assert await store.get_register(0, "position") == b"2"

    async def test_registers_are_listed_by_prefix_in_pages(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        names = ["", "a", "a/", "a/1", "a/2", "a/\ud800", "a/ü", "a/𝄞", "a0", "b/1", "\0", *ODD_TEXTS[4:]]
        await store.append([registers(0, 1, *((name, b"v") for name in names))])
        await store.append([registers(1, 1, ("a/1", b"other"))])
        ordered = sorted(set(names), key=lambda name: name.encode("utf-8", "surrogatepass"))

        async def listed(prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
            return [record.name for record in await store.list_registers(0, prefix, after, limit)]

        assert await listed() == ordered
        assert await listed("a/") == [name for name in ordered if name.startswith("a/")]
        assert await listed("a/", "a/1") == [name for name in ordered if name.startswith("a/")][2:]
        assert await listed("a/", "a") == await listed("a/")
        assert await listed("a/", "b") == []
        assert await listed("", "a/2", 2) == ordered[ordered.index("a/2") + 1 :][:2]
        assert await listed("zz") == []
        pages: list[str] = []
        while page := await listed("", pages[-1], 3) if pages else await listed("", "", 3):
            pages += page
        assert pages == ordered
        assert await store.list_registers(99) == []

    async def test_a_register_is_found_in_all_shards(self, store: EventStore) -> None:
        await self.claimed(store)
        for shard in (2, 5):
            await store.append([registers(shard, 1, ("key/\ud800", b"%d" % shard), ("key", b"-"))])
        assert await store.find_register("key/\ud800") == [(2, b"2"), (5, b"5")]
        assert await store.find_register("nothing") == []

    # ----------------------------------------------------------------------------------------------------- cuts

    @staticmethod
    async def two_runs(store: EventStore) -> None:
        """Shard 0: run 1 in rows of three events, run 2 in rows of one, in turns; offsets 1 to 16."""
        for n in range(4):
            rows = [Row(1 + 4 * n, 3, 1, 1, 1 + 3 * n, b"%d" % n), Row(4 + 4 * n, 1, 1, 2, 1 + n, b"other")]
            await store.append([ShardAppend(shard=0, epoch=1, head=1 + 4 * n, next=5 + 4 * n, rows=rows)])

    async def test_a_cut_takes_rows_away_and_leaves_a_tombstone(self, stores: Stores, store: EventStore) -> None:
        await self.claimed(store, 0)
        await self.two_runs(store)
        rest = Row(6, 2, 1, 1, 5, b"rest")
        cut = a_cut(1, (1, 4), (1, 5), rest)
        part = ShardAppend(shard=0, epoch=1, head=17, next=17, cuts=[cut], snapshots=[SnapshotRecord(1, 4, b"s")])
        for _ in range(2):  # the same append sent twice
            assert (await store.append([part])).stored == {0}
            assert [(row.offset, row.seq, row.count) for row in await store.read_run(0, 1)] == [
                (6, 5, 2), (9, 7, 3), (13, 10, 3)
            ]  # fmt: skip
            assert (await store.read_run(0, 1, 2, 1)) == [rest]
            assert (await store.read_run(0, 1, 6, 1)) == [rest]
            assert [row.offset for row in await store.read_shard(0, 1)] == [4, 6, 8, 9, 12, 13, 16]
            assert (await store.read_shard(0, 7, 1)) == [rest]
            assert (await store.read_shard(0, 1, 1))[0].iid == 2
            assert await store.tombstones(0) == [cut.tombstone]
        assert len(await store.read_run(0, 2)) == 4
        found = await store.statistics()
        assert (found["events"], found["rows"], found["cut_events"]) == (16, 7, 4)

        # A second cut adds another tombstone; offsets are never used again.
        last = a_cut(1, (5, 12), (6, 15))
        await store.append([ShardAppend(shard=0, epoch=1, head=17, next=17, cuts=[last])])
        assert await store.read_run(0, 1) == []
        assert [row.offset for row in await store.read_shard(0, 1)] == [4, 8, 12, 16]
        await store.close()
        store = stores.make()
        await store.open()
        try:
            assert await store.tombstones(0) == [cut.tombstone, last.tombstone]
            claim = await store.claim(0, 1, "next")
            assert claim is not None
            assert claim.head == 17
            assert (await store.append([one_row(0, 2, 17, iid=1, seq=13, data=b"new")])).stored == {0}
            assert await store.read_shard(0, 16) == [Row(16, 1, 1, 2, 4, b"other"), Row(17, 1, 2, 1, 13, b"new")]
            assert await store.read_run(0, 1) == [Row(17, 1, 2, 1, 13, b"new")]
        finally:
            await store.close()

    async def test_all_rows_may_go_and_the_next_ones_stand_where_they_belong(
        self, stores: Stores, store: EventStore
    ) -> None:
        await self.claimed(store, 0, 1)
        await store.append([one_row(1, 1, 1)])
        for n in range(1, 4):
            await store.append([one_row(0, 1, n, seq=n)])
        await store.append([ShardAppend(shard=0, epoch=1, head=4, next=4, cuts=[a_cut(1, (1, 3), (1, 3))])])
        assert await store.read_shard(0, 1) == []
        await store.close()
        store = stores.make()
        await store.open()
        try:
            for n in range(4, 7):
                await store.append([one_row(0, 1, n, seq=n), one_row(1, 1, n - 2, seq=n - 2)])
            assert [row.offset for row in await store.read_shard(0, 1)] == [4, 5, 6]
            assert [row.offset for row in await store.read_shard(0, 5)] == [5, 6]
            assert [row.offset for row in await store.read_shard(1, 1)] == [1, 2, 3, 4]
            assert [row.seq for row in await store.read_run(0, 1, 2)] == [4, 5, 6]
        finally:
            await store.close()

    async def test_a_cut_that_does_not_match_changes_nothing(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        await self.two_runs(store)
        for epoch, head in ((2, 17), (1, 16)):
            part = ShardAppend(shard=0, epoch=epoch, head=head, next=head, cuts=[a_cut(1, (1, 3), (1, 3))])
            assert (await store.append([part])).stored == set()
        assert len(await store.read_run(0, 1)) == 4
        assert await store.tombstones(0) == []

    async def test_a_cut_and_new_rows_go_together(self, store: EventStore) -> None:
        await self.claimed(store, 0)
        await self.two_runs(store)
        part = one_row(0, 1, 17, iid=1, seq=13, data=b"new")
        part.cuts = [a_cut(1, (1, 12), (1, 15)), a_cut(2, (1, 2), (4, 8))]
        assert (await store.append([part])).stored == {0}
        assert (await store.append([part])).stored == set()
        assert [(row.iid, row.seq) for row in await store.read_shard(0, 1)] == [(2, 3), (2, 4), (1, 13)]

    async def test_tombstones_are_found_by_place_and_run(self, store: EventStore) -> None:
        await self.claimed(store, 0, 1)
        await self.two_runs(store)
        cuts = [a_cut(1, (1, 3), (1, 3)), a_cut(2, (1, 3), (4, 12)), a_cut(1, (4, 6), (5, 7))]
        for cut in cuts:
            await store.append([ShardAppend(shard=0, epoch=1, head=17, next=17, cuts=[cut])])
        first, other, second = (cut.tombstone for cut in cuts)
        assert await store.tombstones(0) == [first, second, other]
        assert await store.tombstones(0, 4) == [second, other]
        assert await store.tombstones(0, 7) == [second, other]
        assert await store.tombstones(0, 8, 1) == []
        assert await store.tombstones(0, 7, 1) == [second]
        assert await store.tombstones(0, 0, 2) == [other]
        assert await store.tombstones(0, 13) == await store.tombstones(1) == await store.tombstones(99) == []
