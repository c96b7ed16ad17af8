"""The auditor: what a cluster writes is consistent, and each forgery is found by the rule that it breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from onexflow.audit import audit
from onexflow.audit.rules import ITEM_MOVES, RULES, RUN_MOVES
from onexflow.cli.main import main
from onexflow.codec.rows import decode_snapshot, encode_row, encode_snapshot
from onexflow.core.events import (
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskScheduled,
    TaskStarted,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowResumed,
    WorkflowStarted,
)
from onexflow.core.machine import TASK_TRANSITIONS, WORKFLOW_TRANSITIONS
from onexflow.ports.event_store import CheckpointRecord, ParkedRecord, Row, SnapshotRecord
from onexflow.storage.sqlite import SqliteStore
from onexflow.testing import virtual_time
from support.forged_log import again, drop, insert, made, rules


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
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_audit*.py"))
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
