"""ClientLink port: what clients ask of an orchestrator, as values. `engine` implements it, `rpc` and tests call it.

Every answer is durable before it is given: a start or a command is acknowledged after its events are, a query shows
durable state only. Errors are of `onexflow.core.errors`. Calls that a client makes by the thousand (`start_run`,
`wait_run`) answer by callback, so that they cost no task each; `reply` is called exactly once, on the event loop,
unless the returned cancel function was called before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from onexflow.core.blocked import Blocked
from onexflow.core.ids import RunKey
from onexflow.core.payload import NULL, Failure, Payload
from onexflow.ports.events import EventService
from onexflow.ports.nodes import NodeRegistryService
from onexflow.ports.queue import Answer, AnyCall
from onexflow.ports.worker_link import WorkerLink, WorkerPeer
from onexflow.spi.exceptions import SPIError

if TYPE_CHECKING:
    from onexflow.ports.persistence import PersistenceService


class Caller(msgspec.Struct, frozen=True):
    """Which call of which orchestration a start is (`ports.orchestration`)."""

    run: RunKey
    task: str
    item: int
    number: str  #: the same in every execution: the numbers of its branches and its own, with dots between


class StartRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Start a run. Idempotent by request_id and by instance_id (same correlation_id, definition and input).

    With `caller` it is a call of an orchestration: its instance_id is made of that, its correlation and causation are the
    caller's, and another start under the same number is refused with NotDeterministic."""

    namespace: str = "default"
    workflow_type: str
    instance_id: UUID | None = None  #: None: a new UUIDv7
    version: int = 0  #: 0: the newest registered
    input: Payload = NULL
    correlation_id: str = ""
    causation_id: str = ""
    request_id: str = ""
    #: Seconds to stay `pending` before starting.
    delay: float = 0.0
    #: Seconds until the run times out; 0: the definition's.
    timeout: float = 0.0
    trace: str = ""
    principal: str = ""
    caller: Caller | None = None
    #: The caller will wait for the run's end, and believes in nothing before: a new run's start is answered at once,
    #: durable or not, and its commit may go with what follows.
    wait: bool = False


class StartOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """`created` is False when the very same start had been made before."""

    key: RunKey
    version: int
    created: bool
    state: str
    sequence: int


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. `result` when completed, else `error`."""

    key: RunKey
    state: str
    result: Payload | None = None
    error: Failure | None = None


Action = Literal["pause", "resume", "cancel", "resolve", "assign"]


class ControlRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Pause, resume, cancel a run, resolve a task of unknown outcome (exactly one of retry, result, fail), or assign the
    run to a node (its tasks go there while it is connected; "" takes that back)."""

    key: RunKey
    action: Action
    reason: str = ""
    request_id: str = ""
    task: str = ""
    item: int = 0
    retry: bool = False
    result: Payload | None = None
    fail: str = ""
    node_id: str = ""
    principal: str = ""


class ControlOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """`changed` is False when the run already was in that state."""

    changed: bool
    state: str
    sequence: int


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands. Times are UTC ns, 0 when not yet."""

    name: str
    role: str
    handler: str
    state: str
    attempt: int = 0
    worker: str = ""
    items: int = 1
    items_done: int = 0
    scheduled_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    result: Payload | None = None
    error: Failure | None = None
    #: What it waits for, in words: "running on w1", "no worker with effect handler charge", "timer 2026-…Z", …
    blocked_because: str = ""
    next_wake_at: int = 0
    progress: Payload | None = None
    blocked: Blocked | None = None  #: the same as data; None when it has ended


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    key: RunKey
    version: int
    state: str
    sequence: int
    created_at: int
    updated_at: int


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it stands, folded up to event `sequence`."""

    key: RunKey
    version: int
    state: str
    sequence: int
    correlation_id: str
    created_at: int
    started_at: int
    updated_at: int
    completed_at: int
    input: Payload
    result: Payload | None
    error: Failure | None
    tasks: tuple[TaskView, ...]
    reason: str = ""  #: of the pause or the cancellation
    blocked_because: str = ""
    next_wake_at: int = 0
    shard: int = 0
    owner: str = ""
    node_id: str = ""  #: the node that the run is assigned to
    causation_id: str = ""
    #: "cancelled", "failed" or "timeout" of a run whose effects are undone, or were, or could not be; else empty.
    outcome: str = ""
    #: What it waits for; of several open tasks, what says most about what is wrong. None when it has ended.
    blocked: Blocked | None = None


class BlockedRun(msgspec.Struct, frozen=True, kw_only=True):
    """An open run, and what it waits for."""

    key: RunKey
    state: str  #: "" when its owner does not answer, or while its present state is on its way to the store
    blocked: Blocked


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """An event as people and programs read it."""

    sequence: int
    type: str
    kind: str
    timestamp: int  #: UTC ns, store clock
    shard: int
    offset: int
    epoch: int
    task: str = ""  #: name, when it is of one task
    data: dict[str, Any] = {}  #: the event's own fields; payloads as decoded JSON where they are JSON


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the runs of one type, or of all types of a namespace (`workflow_type` ""), counted in the store.

    The counts are of all runs that there are. Durations (seconds from a run's creation to its end) and throughput are
    those of the window: the newest ended runs, at most 1,000, since the creation of the oldest of these."""

    workflow_type: str = ""
    by_state: dict[str, int] = {}
    events: int = 0
    tasks: int = 0  #: tasks of their definitions
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    throughput: float = 0.0  #: runs of the window that ended, a second
    window: float = 0.0  #: seconds


class DefinitionInfo(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    workflow_type: str
    version: int
    hash: str
    tasks: int
    registered_at: int
    created: bool = False


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A process as the orchestrator sees it: registered (lease) and connected (stream) are two things."""

    node_id: str
    kind: str  #: orchestrator | effect | compute | reducer | orchestrator-node (`ports.registry.NodeKind`)
    incarnation: str
    address: str
    status: str
    handlers: tuple[str, ...]
    slots: int
    running: int
    connected: bool
    registered: bool
    version: str = ""
    started_at: int = 0
    health: str = ""  #: as it said or was last said of it; "" of orchestrators


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`serving` is what the gRPC health service answers; `details` names what is degraded."""

    serving: bool
    details: dict[str, str] = {}
    #: Its store has answered lately, and no write waits for long.
    can_append: bool = False


class RunService(Protocol):
    """The part of an orchestrator that the specification's service objects stand on (`engine.protocols`). The engine has
    it, and so has a client (`client.remote`): the same objects work in process and over gRPC."""

    def start_run(self, request: StartRequest, reply: Callable[[StartOutcome | SPIError], None]) -> None: ...

    async def control(self, request: ControlRequest) -> ControlOutcome: ...

    async def queue_call(self, call: AnyCall) -> Answer:
        """A call of a work queue (`ports.queue`)."""

    async def describe_run(self, key: RunKey) -> RunView: ...

    async def read_history(self, key: RunKey, from_sequence: int = 1, limit: int = 1000) -> Sequence[EventView]:
        """Durable events in order; empty beyond the head."""

    def follow_run(
        self, key: RunKey, from_sequence: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> Callable[[], None]:
        """Every durable event from `from_sequence` on, each once and in order; None after the run's last. A slow
        listener is its own affair. Returns the way to stop it."""

    async def measure_runs(self, namespace: str, workflow_type: str = "") -> RunMetrics:
        """Figures of the runs of a type, or of all. Counts what is stored, so not for a hot path. Raises
        UnknownWorkflowType."""

    async def get_definition(
        self, namespace: str, workflow_type: str, version: int = 0
    ) -> tuple[DefinitionInfo, bytes]: ...

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome | SPIError], None]) -> Callable[[], None]:
        """Answer when the run has ended (at once if it has). Returns the way to give up waiting."""

    async def register_definition(self, namespace: str, definition: bytes) -> DefinitionInfo:
        """Validate and store a definition (JSON). Idempotent; other content under the same version:
        DefinitionConflict. Raises InvalidDefinition naming every problem's place."""

    async def list_nodes(self) -> Sequence[NodeView]: ...

    async def explain_runs(self, keys: Sequence[RunKey]) -> Sequence[BlockedRun]:
        """What these runs wait for. Those that have ended or are unknown are left out; of those whose owner does not
        answer it is said that their shard is moving. Answers without the store when it is away: then all that is not in
        memory is left out."""


class ShardMap(NamedTuple):
    """Which orchestrator owns what, as far as is known: addresses of all that are there, how many shards there are, and the
    owners' addresses by shard. Empty when there is one orchestrator."""

    orchestrators: tuple[str, ...] = ()
    shards: int = 0
    owners: Mapping[int, str] = {}


class OrchestratorService(RunService, Protocol):
    """One orchestrator. `reply` gets the named outcome or an SPIError instance."""

    orchestrator_id: str

    @property
    def events(self) -> EventService:
        """The event bus (`ports.events`)."""

    @property
    def records(self) -> PersistenceService:
        """States, snapshots and cuts of histories (`ports.persistence`)."""

    @property
    def node_registry(self) -> NodeRegistryService:
        """Nodes, their health and figures, and the runs assigned to them (`ports.nodes`)."""

    def accept_worker(self, link: WorkerLink) -> WorkerPeer:
        """A worker has opened a stream: what its messages are given to."""

    async def list_runs(
        self, namespace: str, workflow_type: str = "", states: Sequence[str] = (), cursor: str = "", limit: int = 100
    ) -> tuple[Sequence[RunSummary], str]: ...

    async def list_definitions(self, namespace: str) -> Sequence[DefinitionInfo]: ...

    async def drain_node(self, node_id: str) -> bool:
        """Tell a worker to finish and take nothing new. False when it already drains."""

    def health(self) -> Health: ...

    def shard_map(self) -> ShardMap:
        """For clients that ask the owners themselves."""
