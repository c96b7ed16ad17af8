"""The auditor: what a cluster writes is consistent, and each forgery is found by the rule that it breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from onexflow import Worker, workflow
from onexflow.audit import Report, audit
from onexflow.audit.rules import ITEM_MOVES, RULES, RUN_MOVES
from onexflow.audit.shard import STATES
from onexflow.cli.main import main
from onexflow.codec.definitions import dump_definition
from onexflow.codec.rows import decode_row, decode_snapshot, encode_row, encode_snapshot
from onexflow.core.commands import CancelRun, LoseAttempt
from onexflow.core.definition import RetryPolicy
from onexflow.core.events import (
    CompensationStarted,
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowFailed,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
)
from onexflow.core.machine import TASK_TRANSITIONS, WORKFLOW_TRANSITIONS
from onexflow.core.payload import Failure
from onexflow.engine.catalog import Catalog
from onexflow.engine.recovery import fold
from onexflow.ports.event_store import (
    CheckpointRecord,
    DefinitionRecord,
    ParkedRecord,
    Row,
    RunRecord,
    ShardAppend,
    SnapshotRecord,
    Tombstone,
)
from onexflow.storage.memory import MemoryStore
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import Cluster, virtual_time
from onexflow.testing.clock import VirtualClock
from support.core_driver import BEGIN, Model, graph_of


class Log:
    """One shard's content, to be forged: rows as (run, events)."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.shard = store._shards[0]

    def rewrite(self, change: Callable[[list[Event]], list[Event]]) -> None:
        """Change the events of the run, keeping places, and make the rows anew."""
        events: list[Event] = []
        for row in self.shard.rows:
            events += decode_row(row.data)[1]
        iid, at = self.iid, decode_row(self.shard.rows[0].data)[0]
        events = change(events)
        row = Row(1, len(events), 1, iid, 1, encode_row(at, events))
        self.shard.rows = [row]
        self.shard.runs_rows[iid] = [row]

    def replace(self, index: int, **fields: object) -> None:
        """One row with other fields."""
        row = msgspec.structs.replace(self.shard.rows[index], **fields)
        self.shard.rows[index] = row
        self.shard.runs_rows[row.iid][index] = row

    @property
    def iid(self) -> int:
        return self.shard.rows[0].iid


async def made(*, is_open: bool = False) -> Log:
    """The log of one run: an effect, then a compute task behind it; ended, or parked before its start."""
    worker = Worker("w")
    worker.effect("charge")(lambda _: {"ok": True})
    worker.compute("double")(lambda contract: contract)
    flow = workflow("order")
    flow.compute("double", depends_on=[flow.effect("charge")])
    clock = VirtualClock()
    store = MemoryStore(clock, shards=1)
    async with Cluster(store=store, clock=clock) as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(worker)
        if is_open:
            await cluster.start("order", {}, delay=3600.0)
            await cluster.clock.sleep(30.0)
        else:
            await cluster.run("order", {})
    await store.open()
    return Log(store)


def drop(kind: type[Event]) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [event for event in events if not isinstance(event, kind)]


def insert(kind: type[Event], event: Event) -> Callable[[list[Event]], list[Event]]:
    """`event` before the first of a kind."""

    def change(events: list[Event]) -> list[Event]:
        place = next(index for index, one in enumerate(events) if isinstance(one, kind))
        return [*events[:place], event, *events[place:]]

    return change


def again(kind: type[Event]) -> Callable[[list[Event]], list[Event]]:
    """The first event of a kind stands twice."""
    return lambda events: insert(kind, next(one for one in events if isinstance(one, kind)))(events)


class Forgery(NamedTuple):
    name: str
    rule: str
    change: Callable[[list[Event]], list[Event]]


FORGERIES = [
    Forgery("the effect's result stands twice", "task-transition", again(TaskCompleted)),
    Forgery("an effect is authorised twice", "task-transition", again(TaskStarted)),
    Forgery("a result nobody was authorised for", "task-transition", drop(TaskStarted)),
    Forgery("a second start", "run-transition", again(WorkflowStarted)),
    Forgery("resumed and never paused", "run-transition", insert(TaskScheduled, WorkflowResumed())),
    Forgery("two ends", "after-the-end", again(WorkflowCompleted)),
    Forgery("completed too early", "open-task", insert(TaskCompleted, WorkflowCompleted())),
    Forgery("a second beginning", "created", lambda events: [events[0], *events]),
    Forgery("no beginning", "created", drop(WorkflowCreated)),
    Forgery("scheduled before what it depends on", "dependency", insert(TaskStarted, TaskScheduled(1, source=0))),
    Forgery(
        "an attempt is skipped",
        "attempt",
        insert(
            TaskCompleted,
            TaskScheduled(0, attempt=3),
        ),
    ),
    Forgery("a task that there is not", "unreadable", insert(TaskStarted, TaskScheduled(9))),
    Forgery(
        "an item that there is not",
        "task-transition",
        insert(TaskCompleted, StateTransitioned("task.waiting_for_input", "running", "waiting_for_input", [0], 5)),
    ),
]


async def retried() -> Log:
    """The log of a run of one effect: the first attempt failed, of the second nobody knows how it ended, as its worker
    was lost, and it came back late with its result."""
    flow = workflow("order")
    flow.effect("charge", retry=RetryPolicy(initial_delay=1.0, jitter=0.0))
    model = Model(graph_of(flow))
    model.authorise("charge")
    model.fail("charge")
    model.later(2)
    model.fire("retry", "charge")
    model.authorise("charge", idempotent=False)
    model.on_attempt(LoseAttempt, "charge", worker="w1")
    model.complete("charge", result={"ok": True})
    assert model.state.status == "completed"
    return await stored(model)


async def stored(model: Model) -> Log:
    """A row for each event of the model's log, and no checkpoint: the run is listed as being at work."""
    store = MemoryStore(VirtualClock(), shards=1)
    await store.open()
    claim = await store.claim(0, 0, "me")
    assert claim is not None
    definition, state = model.graph.definition, model.state
    record = DefinitionRecord("default", definition.workflow_type, 1, model.graph.hash, dump_definition(definition), 1)
    await store.save_definition(record)
    run = RunRecord(1, state.key.to_bytes(), STATES.index(state.status), BEGIN, BEGIN, b"start", len(model.log))
    rows = [Row(one.offset, 1, 1, 1, one.offset, encode_row(one.at, [one.event])) for one in model.log]
    head = len(rows) + 1
    await store.append([ShardAppend(shard=0, epoch=1, head=1, next=head, rows=rows, runs=[run])])
    return Log(store)


def moved(kind: type[Event], which: int, before: type[Event]) -> Callable[[list[Event]], list[Event]]:
    """The event of that kind and number is repeated before the last of another kind."""

    def change(events: list[Event]) -> list[Event]:
        event = [one for one in events if isinstance(one, kind)][which]
        place = max(index for index, one in enumerate(events) if isinstance(one, before))
        return [*events[:place], event, *events[place:]]

    return change


#: Each has an effect's token end twice, or end without having begun.
TOKENS = {
    "the first attempt fails twice": moved(TaskRetry, 0, TaskScheduled),
    "the first attempt fails again when the second is authorised": moved(TaskRetry, 0, WorkflowCompleted),
    "the first attempt succeeds, too": moved(TaskCompleted, 0, TaskScheduled),
    "the result comes before the second is authorised": moved(TaskCompleted, 0, TaskStarted),
    "two results of the second": moved(TaskCompleted, 0, WorkflowCompleted),
    "the second is authorised twice": moved(TaskStarted, 1, StateTransitioned),
    "it is authorised again while its end is awaited": moved(TaskStarted, 1, TaskCompleted),
    "one result, for two items that are one": lambda events: [
        TaskCompleted(one.task, [0, 0], one.results * 2) if isinstance(one, TaskCompleted) else one for one in events
    ],
}


@pytest.mark.parametrize("name", TOKENS)
@virtual_time
async def test_a_token_of_an_effect_has_one_end_across_retries(name: str) -> None:
    log = await retried()
    assert (await audit(log.store)).findings == []
    log.rewrite(TOKENS[name])
    assert rules(await audit(log.store)) & {"task-transition", "attempt"}


async def fed() -> Log:
    """The log of two items and the reducer that was fed them."""
    flow = workflow("fed")
    flow.reducer("total", feed=True, depends_on=[flow.compute("item", map="input")])
    model = Model(graph_of(flow), [1, 2])
    model.complete("item", 1, result=2)
    model.complete("item", 0, result=1)
    model.complete("total", result=3)
    assert model.state.status == "completed"
    return await stored(model)


def of_task(kind: type[Event], task: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, kind) and getattr(event, "task", -1) == task


def before(wanted: Callable[[Event], bool], place: Callable[[Event], bool]) -> Callable[[list[Event]], list[Event]]:
    """The events that are wanted stand before the first that is at that place."""

    def change(events: list[Event]) -> list[Event]:
        moving = [one for one in events if wanted(one)]
        others = [one for one in events if not wanted(one)]
        index = next(index for index, one in enumerate(others) if place(one))
        return [*others[:index], *moving, *others[index:]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        before(of_task(TaskCompleted, 1), of_task(TaskCompleted, 0)),
        before(of_task(TaskScheduled, 1), of_task(TaskScheduled, 0)),
        lambda events: [one for one in events if not (of_task(TaskCompleted, 0)(one) and one.items == [0])],
    ],
    ids=["it completes before its items", "it is scheduled before them", "an item has no end"],
)
@virtual_time
async def test_a_fed_reducer_begins_with_its_items_and_ends_after_them(
    change: Callable[[list[Any]], list[Event]],
) -> None:
    log = await fed()
    assert (await audit(log.store)).findings == []
    log.rewrite(change)
    assert rules(await audit(log.store)) & {"dependency"}


async def undone() -> Log:
    """The log of a run of two effects and a third that failed: both were undone."""
    worker = Worker("w")
    for name in ("book", "pay", "undo"):
        worker.effect(name)(lambda contract: contract)
    flow = workflow("saga")
    book = flow.effect("book", compensation="undo")
    pay = flow.effect("pay", depends_on=[book], compensation="undo")
    flow.compute("fail", depends_on=[pay], input="length(`5`)")
    clock = VirtualClock()
    store = MemoryStore(clock, shards=1)
    async with Cluster(store=store, clock=clock) as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(worker)
        outcome = await cluster.wait((await cluster.start("saga", {})).key)
        assert outcome.state == "compensated"
    await store.open()
    return Log(store)


def without_results(events: list[Event]) -> list[Event]:
    """Nothing has completed before the compensation."""
    place = next(index for index, one in enumerate(events) if isinstance(one, CompensationStarted))
    head = [one for one in events[:place] if isinstance(one, WorkflowCreated | WorkflowStarted)]
    return [*head, *events[place:]]


def order_turned(events: list[Event]) -> list[Event]:
    """What undoes the one stands where the other was undone."""
    turned = {3: 4, 4: 3}
    return [
        msgspec.structs.replace(one, task=turned[one.task])
        if isinstance(one, TaskScheduled | TaskStarted | TaskCompleted) and one.task in turned
        else one
        for one in events
    ]


def one_left_out(events: list[Event]) -> list[Event]:
    """The first effect is not undone."""
    return [one for one in events if getattr(one, "task", 0) != 3]


def failed_instead(events: list[Event]) -> list[Event]:
    """The run just ends."""
    place = next(index for index, one in enumerate(events) if isinstance(one, CompensationStarted))
    return [*events[:place], WorkflowFailed(Failure("MappingError", "…"))]


#: Each breaks the rule "compensation".
UNDOING = [
    without_results,
    order_turned,
    one_left_out,
    failed_instead,
    insert(CompensationStarted, TaskScheduled(4, source=-1)),
    insert(CompensationStarted, WorkflowCancelled("no", "compensating")),
]


@pytest.mark.parametrize("change", UNDOING, ids=lambda change: change.__name__)
@virtual_time
async def test_forged_undoing_is_found(change: Callable[[list[Event]], list[Event]]) -> None:
    log = await undone()
    assert (await audit(log.store)).is_consistent
    log.rewrite(change)
    assert "compensation" in rules(await audit(log.store))


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
async def test_what_a_cluster_writes_is_consistent() -> None:
    report = await audit((await made()).store)
    assert report.is_consistent
    assert (report.runs, report.open_runs, report.shards) == (1, 0, 1)
    assert report.events > 6
    parked = await audit((await made(is_open=True)).store)
    assert parked.is_consistent
    assert (parked.open_runs, parked.snapshots) == (1, 1)


@pytest.mark.parametrize("forgery", FORGERIES, ids=[forgery.name for forgery in FORGERIES])
@virtual_time
async def test_a_forged_event_is_found(forgery: Forgery) -> None:
    log = await made()
    log.rewrite(forgery.change)
    assert forgery.rule in rules(await audit(log.store))


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


@virtual_time
async def test_forged_places_are_found() -> None:
    expected = {
        "offsets": {"offset": 40},
        "sequence": {"seq": 40},
        "epochs": {"epoch": 7},
        "unreadable": {"data": b"\x00"},
        "time": {"data": encode_row(1, [WorkflowCompleted()])},
    }
    for rule, fields in expected.items():
        log = await made()
        log.replace(len(log.shard.rows) - 1, **fields)
        assert rule in rules(await audit(log.store)), rule
    log = await made()
    log.replace(0, epoch=2)
    assert "epochs" in rules(await audit(log.store)), "an epoch that falls"


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
async def test_the_last_rows_are_missed_where_something_speaks_of_them() -> None:
    log = await made()
    last = log.shard.rows.pop()
    log.shard.runs_rows[last.iid].pop()
    log.shard.checkpoint = None
    assert rules(await audit(log.store)) == {"listing"}, "the run is listed with events that there are not"
    log.shard.checkpoint = CheckpointRecord(last.offset + last.count, msgspec.msgpack.encode([log.iid]))
    assert rules(await audit(log.store)) == {"listing", "offsets"}, "the checkpoint is of a later offset"


@virtual_time
async def test_a_run_that_is_listed_and_has_no_events_is_found() -> None:
    log = await made()
    row = log.shard.rows[-1]
    later = Row(row.offset + row.count, 1, 1, row.iid + 2, 1, encode_row(1 << 62, [WorkflowCompleted()]))
    log.shard.rows.append(later)
    for iid in (row.iid + 1, row.iid + 2):
        log.shard.runs[iid] = msgspec.structs.replace(log.shard.runs[row.iid], iid=iid)
    assert [finding.story for finding in (await audit(log.store)).findings if "has no events" in finding.story]


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


@virtual_time
async def test_forged_tables_are_found() -> None:
    log = await made()
    record = log.shard.runs[log.iid]
    log.shard.runs[log.iid] = msgspec.structs.replace(record, state=5)
    assert rules(await audit(log.store)) == {"listing"}
    del log.shard.runs[log.iid]
    assert "listing" in rules(await audit(log.store))
    log = await made()
    log.store._definitions.clear()
    assert rules(await audit(log.store)) == {"unreadable"}


@virtual_time
async def test_a_forgotten_run_and_a_late_timer_are_found() -> None:
    log = await made(is_open=True)
    parked = log.shard.parked[log.iid]
    log.shard.parked[log.iid] = ParkedRecord(log.iid, parked.wake_at + 60 * 10**9, parked.reason)
    assert rules(await audit(log.store)) == {"timer"}
    log.shard.parked[log.iid] = ParkedRecord(log.iid, 0, parked.reason)
    assert rules(await audit(log.store)) == {"timer"}
    del log.shard.parked[log.iid]
    assert rules(await audit(log.store)) == {"stalled"}
    log.shard.checkpoint = CheckpointRecord(log.shard.head, msgspec.msgpack.encode([log.iid]))
    assert (await audit(log.store)).is_consistent


@virtual_time
async def test_a_forged_snapshot_is_found() -> None:
    log = await made(is_open=True)
    snapshot = log.shard.snapshots[log.iid]
    state = decode_snapshot(snapshot.data)
    assert state is not None
    state.status = "running"
    log.shard.snapshots[log.iid] = SnapshotRecord(log.iid, snapshot.seq, encode_snapshot(state))
    assert rules(await audit(log.store)) == {"snapshot"}
    log.shard.snapshots[log.iid] = SnapshotRecord(log.iid, 99, snapshot.data)
    assert rules(await audit(log.store)) == {"snapshot"}


def test_every_rule_is_broken_by_a_test() -> None:
    text = Path(__file__).read_text()
    assert {rule for rule in RULES if f'"{rule}"' not in text} == set()


def test_its_own_tables_are_no_wider_than_the_state_machines() -> None:
    """Written twice on purpose; this says where they differ."""
    run_edges = {(origin, after) for origins, after in RUN_MOVES.values() for origin in origins}
    assert run_edges <= {(a, b) for a, after in WORKFLOW_TRANSITIONS.items() for b in after}
    item_edges = {(origin, after) for after, origins in ITEM_MOVES.items() for origin in origins}
    assert item_edges <= {(a, b) for a, after in TASK_TRANSITIONS.items() for b in after}


def test_the_command_tells_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", f"sqlite:{tmp_path}/none.db"]) == 16
    assert "there is no store" in capsys.readouterr().err
    assert main(["audit", "memory:"]) == 2
    capsys.readouterr()


async def test_a_store_is_audited_beside_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onexflow.cli.audit import audit as command

    store = SqliteStore(tmp_path / "store.db")
    await store.open()  # and it stays open: the lock is held
    try:
        assert await command(f"sqlite:{store.path}") == 0
        assert re.search(r"shards +8\n", shown := capsys.readouterr().out)
        assert shown.endswith("consistent\n")
        assert await command(f"sqlite:{store.path}", output="json") == 0
        assert '"violations": 0' in capsys.readouterr().out
    finally:
        await store.close()
