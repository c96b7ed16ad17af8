"""Work queues in memory, as the shard and the lane see them: an entity beside the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from onexflow.codec.payload import UNREADABLE
from onexflow.codec.rows import decode_row
from onexflow.core.errors import StoreUnusable
from onexflow.core.events import WorkflowCreated
from onexflow.core.ids import RunKey
from onexflow.core.queue_state import QueueIndex, QueueState, create, evolve
from onexflow.engine.recovery import read_tail
from onexflow.engine.run import SNAPSHOT_EVERY
from onexflow.ports.event_store import EventStore, Row, RunRecord

if TYPE_CHECKING:
    from onexflow.engine.shard import Shard

SNAPSHOT_FORMAT: Final = 1


class _Snapshot(msgspec.Struct, array_like=True):
    format: int
    state: QueueState


class Queue:
    """One work queue, owned by its shard."""

    __slots__ = (
        "durable_seq", "iid", "index", "is_trimmed", "key", "listed_at", "listed_seq", "listed_state", "shard",
        "snapshot_after", "snapshot_seq", "start_hash", "state", "trimmed_seq",
    )  # fmt: skip

    def __init__(self, shard: Shard, iid: int, state: QueueState, index: QueueIndex) -> None:
        self.shard = shard
        self.iid = iid
        self.state = state
        self.index = index
        self.key: RunKey = state.key
        self.start_hash = b""
        self.durable_seq = 0
        self.snapshot_seq = 0
        self.snapshot_after = SNAPSHOT_EVERY
        #: Up to which event its history was cut by this owner, and is it being cut now?
        self.trimmed_seq = 0
        self.is_trimmed = False
        self.listed_state = ""
        self.listed_seq = 0
        self.listed_at = 0.0

    @property
    def is_over(self) -> bool:
        return False

    def snapshot(self) -> bytes:
        return encode_queue(self.state)


def encode_queue(state: QueueState) -> bytes:
    """The whole state of a work queue."""
    return msgspec.msgpack.encode(_Snapshot(SNAPSHOT_FORMAT, state))


def decode_queue(data: bytes) -> QueueState | None:
    """The state in a snapshot; None when its form is not this release's. Most of its events are cut by then: a release
    with a new form reads the old ones too."""
    try:
        snapshot = msgspec.msgpack.decode(data, type=_Snapshot)
    except UNREADABLE:
        return None
    return snapshot.state if snapshot.format == SNAPSHOT_FORMAT else None


def fold_queue(state: QueueState | None, rows: Sequence[Row]) -> QueueState:
    """Fold rows into a state (None: from the first event on)."""
    for row in rows:
        at, events, _ = decode_row(row.data)
        for seq, event in enumerate(events, row.seq):
            if state is None:
                if not isinstance(event, WorkflowCreated) or seq != 1:
                    raise StoreUnusable(f"queue {row.iid} does not begin with workflow.created", {"seq": seq})
                state = create(event, at)
            elif seq > state.seq:
                if seq != state.seq + 1:
                    raise StoreUnusable(f"queue {row.iid} lacks event {state.seq + 1}", {"seq": seq})
                evolve(state, event, at)
    if state is None:
        raise StoreUnusable("a queue without events")
    return state


async def read_queue(store: EventStore, shard: Shard, record: RunRecord) -> Queue:
    """The queue as the log has it."""
    state, snapshot_seq, rows = await read_tail(store, shard, record.iid, decode_queue)
    state = fold_queue(state, rows)
    queue = Queue(shard, record.iid, state, QueueIndex(state))
    queue.durable_seq = state.seq
    queue.listed_state, queue.listed_seq = "running", record.head
    queue.snapshot_seq = snapshot_seq
    return queue
