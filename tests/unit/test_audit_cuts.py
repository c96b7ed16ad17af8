"""The auditor and histories that were cut: a tombstone must tell of what is gone, and a snapshot must have it."""

from __future__ import annotations

from onexflow import workflow
from onexflow.audit import audit
from onexflow.codec.rows import encode_row, encode_snapshot
from onexflow.core.commands import CancelRun
from onexflow.core.events import WorkflowPaused
from onexflow.engine.catalog import Catalog
from onexflow.engine.recovery import fold
from onexflow.ports.event_store import Row, SnapshotRecord, Tombstone
from onexflow.testing import virtual_time
from support.core_driver import BEGIN, Model, graph_of
from support.forged_log import Log, made, rules, stored


@virtual_time
async def test_a_history_may_be_cut_between_a_cancel_and_the_compensation_that_it_begins() -> None:
    """No snapshot has the word of the cancel: it is believed where it may have been cut, and missed where not."""
    flow = workflow("saga")
    flow.effect("ship", depends_on=[flow.effect("book", compensation="undo")])
    model = Model(graph_of(flow))
    model.authorise("book")
    model.complete("book")
    model.do(CancelRun("no more"))
    cancelled = model.types().index("workflow.cancelled/compensating") + 1
    assert model.types()[cancelled] == "compensation.started/cancelled"
    for to_seq in (cancelled - 1, cancelled, cancelled + 1):
        log = await stored(model)
        await cut(log, to_seq)
        assert (await audit(log.store)).findings == [], to_seq
    log = await stored(model)
    log.replace(cancelled - 1, data=encode_row(BEGIN, [WorkflowPaused()]))
    await cut(log, cancelled - 1)
    assert "compensation" in rules(await audit(log.store)), "nobody had cancelled it"


@virtual_time
async def test_a_missing_row_is_found_unless_a_tombstone_tells_of_it() -> None:
    log = await made()
    first = log.shard.rows.pop(0)
    log.shard.runs_rows[first.iid].pop(0)
    assert rules(await audit(log.store)) >= {"offsets", "sequence", "tombstone"}
    stone = Tombstone(first.iid, first.seq, first.seq + first.count - 1, first.offset,
                      first.offset + first.count - 1, first.count, b"", 1)  # fmt: skip
    log.shard.tombstones[first.iid, 1] = stone
    # The gap is told of; what was cut is lost all the same, for no snapshot has what it made.
    assert rules(await audit(log.store)) == {"tombstone"}


def grave_of(row: Row) -> Tombstone:
    last = row.offset + row.count - 1
    return Tombstone(row.iid, row.seq, row.seq + row.count - 1, row.offset, last, row.count, b"", 1)


async def cut_log(count: int = 0) -> tuple[Log, list[Tombstone]]:
    """A log whose first rows (0: all) were cut as they should be: a tombstone for each, and a snapshot."""
    log = await made()
    gone = log.shard.rows[: count or None]
    return log, await cut(log, gone[-1].seq + gone[-1].count - 1)


async def cut(log: Log, to_seq: int) -> list[Tombstone]:
    """Cut the rows up to that event as it should be."""
    gone = [row for row in log.shard.rows if row.seq <= to_seq]
    iid, stones = log.iid, [grave_of(row) for row in gone]
    log.shard.snapshots[iid] = await snapshot_of(log, to_seq)
    log.shard.runs_rows[iid] = log.shard.rows = log.shard.rows[len(gone) :]
    stand(log, *stones)
    return stones


def stand(log: Log, *stones: Tombstone) -> None:
    log.shard.tombstones = {(stone.iid, stone.first_seq): stone for stone in stones}


async def snapshot_of(log: Log, to_seq: int) -> SnapshotRecord:
    """What the engine makes of the events up to there."""
    catalog = Catalog(log.store, log.store.now)
    await catalog.load()
    _, state = fold(catalog, None, log.shard.rows, to_seq)
    return SnapshotRecord(log.iid, state.seq, encode_snapshot(state))


@virtual_time
async def test_tombstones_that_do_not_account_for_what_is_gone_are_found() -> None:
    log, [first, second] = await cut_log(2)
    assert (await audit(log.store)).is_consistent
    shifted = second._replace(first_offset=second.first_offset + 40, last_offset=second.last_offset + 40)
    forged = {
        "one of two is missing": ([second], {"offsets", "tombstone"}),
        "the later one is missing": ([first], {"offsets", "sequence"}),
        "of another place, and as many": ([first, shifted], {"offsets"}),
        "it tells of more than went": ([first, second._replace(count=second.count + 1)], {"offsets", "tombstone"}),
        "it leaves an event out": ([first, second._replace(first_seq=second.first_seq + 1)], {"tombstone"}),
    }
    for name, (stones, expected) in forged.items():
        stand(log, *stones)
        assert rules(await audit(log.store)) >= expected, name
    stand(log, first, second)
    log.shard.snapshots.clear()
    assert rules(await audit(log.store)) == {"tombstone"}


@virtual_time
async def test_a_history_that_was_cut_to_its_end_must_be_in_a_snapshot() -> None:
    log, _ = await cut_log()
    assert (await audit(log.store)).is_consistent
    log.shard.snapshots.clear()
    assert rules(await audit(log.store)) == {"tombstone"}


@virtual_time
async def test_a_history_that_is_cut_while_it_is_read_is_read_again() -> None:
    log = await made()
    first, read = log.shard.rows[0], log.store.read_shard
    snapshot = await snapshot_of(log, first.count)

    async def reading(shard: int, offset: int, limit: int = 1024) -> list[Row]:
        if not log.shard.tombstones:  # it happens behind the look at the tombstones
            stand(log, grave_of(first))
            log.shard.snapshots[log.iid] = snapshot
            log.shard.rows.remove(first)
        return await read(shard, offset, limit)

    log.store.read_shard = reading  # type: ignore[method-assign]  # the store is at work
    assert (await audit(log.store)).is_consistent
