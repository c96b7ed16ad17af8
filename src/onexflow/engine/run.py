"""A run in memory: its state, its place in the store, and the attempts that are under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onexflow.codec.rows import encode_snapshot
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey, Token, uuid_text
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from onexflow.core.payload import Payload
from onexflow.core.state import RunState

if TYPE_CHECKING:
    from onexflow.engine.feeding import Arrivals
    from onexflow.engine.sessions import WorkerSession
    from onexflow.engine.shard import Shard


#: A run is snapshotted after so many events, so that reading it back stays cheap; one whose snapshots are large less
#: often (`engine.shard`).
SNAPSHOT_EVERY = 500
#: Results of a mapped task of so many items are gathered (engine.gathering).
GATHERED_FROM = 256


class Attempt:
    """One attempt of one item: queued here, authorised, or on a worker. Known by its token."""

    __slots__ = ("gathers", "info", "item", "leaves_with", "progress_at", "role", "run", "sent", "sent_at", "session", "task",
                 "token", "withdrawn")  # fmt: skip

    def __init__(self, run: Run, task: int, item: int, token: Token) -> None:
        self.run = run
        self.task = task
        self.item = item
        self.token = token
        graph = run.graph
        #: What a worker is told of its task.
        self.info = info = graph.infos[task]
        self.role = info.role
        #: Its result may wait for others of its task: nothing else waits for it.
        self.gathers = task in graph.gathered and run.state.tasks[task].of >= GATHERED_FROM
        #: The worker's stream that it was placed on.
        self.session: WorkerSession | None = None
        #: The lane's commit (`CommitLane.covering`) that lets it go to its worker; 0 where none has to.
        self.leaves_with = 0
        #: It has left, or was found running on its worker.
        self.sent = False
        #: It is not wanted any more: skipped when its turn in a queue comes.
        self.withdrawn = False
        #: Loop time at which it left, for the start_to_close timeout of pure tasks: a token may be sent twice.
        self.sent_at = 0.0
        #: Loop time of the last sign of progress, for the heartbeat timeout.
        self.progress_at = 0.0

    @property
    def may_repeat(self) -> bool:
        """May it run twice? An effect says so when it is authorised."""
        return self.run.state.tasks[self.task].items[self.item].idempotent


class Run:
    """One open run, owned by its shard. Changed by the shard loop only."""

    __slots__ = (
        "arrivals", "attempts", "durable_seq", "graph", "idle_since", "iid", "instance_id", "is_broken", "key", "listed_at",
        "listed_seq", "listed_state", "looked_seq", "mended_after", "pinned", "progress", "shard", "snapshot_after",
        "snapshot_seq", "start_hash", "state",
    )  # fmt: skip

    def __init__(
        self, shard: Shard, iid: int, graph: Graph, state: RunState, start_hash: bytes, key: RunKey | None = None
    ) -> None:
        self.shard = shard
        self.iid = iid
        self.graph = graph
        self.state = state
        self.start_hash = start_hash
        self.key: RunKey = key or state.key
        self.instance_id = uuid_text(self.key.instance_id)
        self.durable_seq = 0
        #: A decision failed by a bug: nothing more is decided until the run is read back.
        self.is_broken = False
        #: The lane's commit (`CommitLane.covering`) after which that is done.
        self.mended_after = 0
        #: Event of the last snapshot, and after how many more the next is due.
        self.snapshot_seq = 0
        self.snapshot_after = SNAPSHOT_EVERY
        #: Its listing entry as last written: state, last event, and loop time of the writing.
        self.listed_state = ""
        self.listed_seq = 0
        self.listed_at = 0.0
        self.attempts: dict[Token, Attempt] = {}
        #: Of mapped tasks whose results a reducer is fed (engine.feeding).
        self.arrivals: dict[int, Arrivals] = {}
        #: What attempts reported last, by (task, item): handed to the next attempt, never stored.
        self.progress: dict[tuple[int, int], Payload] = {}
        #: The node that its register says it is assigned to (engine.pins).
        self.pinned = state.node
        #: Its last event when the watchdog looked at it last.
        self.looked_seq = 0
        #: Loop time since when nothing of it was under way.
        self.idle_since = 0.0

    @property
    def is_over(self) -> bool:
        return self.state.status in TERMINAL_WORKFLOW_STATES

    def snapshot(self) -> bytes:
        return encode_snapshot(self.state)

    def may_dispatch(self, task: int) -> bool:
        """May attempts of this task leave now?"""
        return self.state.status in self.graph.active[task]
