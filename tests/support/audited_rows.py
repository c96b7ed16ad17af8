"""Events for stores that are written to without an engine, so that what a crash leaves can be audited. Everything
follows from the place: anybody can say what should stand there."""

from __future__ import annotations

import hashlib
from typing import Final
from uuid import UUID

from onexflow.audit import Source, audit
from onexflow.codec.definitions import dump_definition
from onexflow.codec.rows import encode_row
from onexflow.core.builder import workflow
from onexflow.core.events import Event, WorkflowCancelled, WorkflowCreated, WorkflowStarted
from onexflow.core.ids import RunKey
from onexflow.core.machine import WORKFLOW_STATE_INDEX
from onexflow.core.payload import NULL
from onexflow.ports.event_store import DefinitionRecord, EventStore, Row, RunRecord, ShardAppend

_FLOW = workflow("crash")
_FLOW.compute("never")
_DATA: Final = dump_definition(_FLOW.build())
DEFINITION: Final = DefinitionRecord("default", "crash", 1, hashlib.sha256(_DATA).hexdigest(), _DATA, 1)
#: The state after so many events.
_STATES: Final = ("", "pending", "running", "cancelled")


def key_at(shard: int, offset: int) -> RunKey:
    return RunKey("default", "crash", UUID(int=shard << 64 | offset))


def row_at(shard: int, offset: int, epoch: int, iid: int, count: int = 0, size: int = 0) -> Row:
    """A run's whole history: it was created (and stands parked until then), or started as well, or cancelled as well."""
    count, size = count or 1 + offset % 3, size or 64 * (1 + offset * 37 % 60)
    digest = hashlib.blake2b(b"%d.%d" % (shard, offset)).hexdigest()
    created = WorkflowCreated(
        namespace="default", workflow_type="crash", version=1, definition=DEFINITION.hash,
        instance=key_at(shard, offset).instance_id.bytes, input=NULL, correlation_id=(digest * (size // 128 + 1))[:size],
        start_at=offset,
    )  # fmt: skip
    events: list[Event] = [created, WorkflowStarted(), WorkflowCancelled("enough")]
    return Row(offset, count, epoch, iid, 1, encode_row(offset, events[:count]))


def run_at(shard: int, row: Row) -> RunRecord:
    """The listing entry of the run of `row_at`."""
    key, state = key_at(shard, row.offset).to_bytes(), WORKFLOW_STATE_INDEX[_STATES[row.count]]
    return RunRecord(row.iid, key, state, row.offset, row.offset, b"start", row.count)


def part_at(shard: int, epoch: int, head: int, size: int = 0) -> ShardAppend:
    """An append of one event: a run that is created."""
    row = row_at(shard, head, epoch, head, 1, size)
    return ShardAppend(shard=shard, epoch=epoch, head=head, next=head + 1, rows=[row], runs=[run_at(shard, row)])


async def define(store: EventStore) -> None:
    """Store the definition that the events name."""
    await store.save_definition(DEFINITION)


async def assert_consistent(store: Source) -> None:
    report = await audit(store)
    assert report.is_consistent, "the log is not consistent:\n" + "\n".join(map(str, report.findings[:20]))
