"""WorkerLink port: what an orchestrator and a worker say to each other on the worker's stream.

The messages are domain values; `codec.wire` turns them into `onexflow.v1`. Simulation and the in-process worker pass
them directly. Order on a link is kept in each direction, but that an Ack
may overtake the Assignments right before it, unless these name a token of it; a link ends once and for all, a new one starts with Hello.

The session: worker sends Hello; orchestrator answers Welcome (with the current epoch of every shard it owns), or closes
with a reason. For each ShardEpoch, and for the epochs in Welcome, the worker keeps the highest epoch it has seen of
each shard, refuses what comes with a lower one, and answers with its unacknowledged Results of that shard and then Held
with its queued and running attempts of it: what is in neither never began there.
Results wait in the worker until an Ack. Credits say how many more attempts of a role the orchestrator may send; each
Assignment uses one; it comes back with a later Credits message (never by itself).

Fed attempts (`TaskInfo.fed`) get items by Feed once their worker has said Fed with count 0, on this stream: at most
FEED_WINDOW_ITEMS, and FEED_WINDOW_BYTES unless one alone is larger, are given and not yet taken. A fold that lacks items
ends with its stream, and with the epoch that it began under: the worker drops it, and does not name it in Held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias, get_args

import msgspec

from onexflow.core import definition
from onexflow.core.ids import Token
from onexflow.core.payload import NULL, Failure, Payload

PROTOCOL_VERSION = 1
#: Most items of a fed attempt, and bytes of them, that its worker has been given and has not taken yet.
FEED_WINDOW_ITEMS: Final = 256
FEED_WINDOW_BYTES: Final = 1 << 20
Role: TypeAlias = definition.Role
ROLES: Final = definition.ROLES
TaskInfo: TypeAlias = definition.TaskInfo


#: The life of a class node on its worker; "": a handler without one, which is always ready.
NodeState: TypeAlias = Literal["", "initializing", "ready", "failed", "shutdown"]
NODE_STATES: Final[tuple[NodeState, ...]] = get_args(NodeState)


class HandlerInfo(msgspec.Struct, frozen=True):
    """A handler that a worker serves. `idempotent` is its author's promise, of effects only. Attempts are sent to those
    that are ready."""

    role: Role
    name: str
    idempotent: bool = True
    state: NodeState = ""


# ---- worker → orchestrator


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    worker_id: str
    incarnation: str
    handlers: tuple[HandlerInfo, ...]
    slots: dict[str, int]  #: by role
    liveness: str = ""  #: host:port that answers with the incarnation
    build_id: str = ""
    protocol_version: int = PROTOCOL_VERSION
    labels: dict[str, str] = {}


class Credits(msgspec.Struct, frozen=True):
    """`granted` more attempts of a role may be sent. Sums up; unused ones are taken back by Reclaim → Reclaimed."""

    granted: dict[str, int]


class Reclaim(msgspec.Struct, frozen=True):
    """The worker wants unused credits back, up to so many of each role: another orchestrator is short of them."""

    wanted: dict[str, int]


class AttemptResult(msgspec.Struct, frozen=True, gc=False):
    """How an attempt ended. `returned`: it was never begun (drain, recall); `stopped`: it ended by a Cancel."""

    token: Token
    status: Literal["completed", "failed", "stopped", "returned"]
    result: Payload = NULL
    error: Failure | None = None
    started_at: int = 0  #: worker's clock, UTC ns; 0 when it never began
    finished_at: int = 0


class Results(msgspec.Struct, frozen=True):
    """Ends of attempts; and credits, as if `Credits` came right after."""

    results: list[AttemptResult]
    granted: dict[str, int] = {}


class Held(msgspec.Struct, frozen=True):
    """Answer to a ShardEpoch: the attempts of that shard that this worker is running or has queued."""

    shard: int
    epoch: int
    running: list[Token]


class Progress(msgspec.Struct, frozen=True):
    """A running attempt is alive, and how far: resets its heartbeat timeout. The last one is handed to the next attempt."""

    token: Token
    details: Payload = NULL


class Fed(msgspec.Struct, frozen=True, gc=False):
    """`count` items of a fed attempt were taken by its handler since the last Fed; 0: it begins, with the first item."""

    token: Token
    count: int


class WorkerDraining(msgspec.Struct, frozen=True):
    """The worker takes nothing new; what it has is finished or returned."""


class Lifecycle(msgspec.Struct, frozen=True):
    """The states of class nodes have changed."""

    handlers: tuple[HandlerInfo, ...]


class Goodbye(msgspec.Struct, frozen=True):
    """A planned end: nothing is running here any more."""


class Pong(msgspec.Struct, frozen=True):
    nonce: int


# ---- orchestrator → worker


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    orchestrator_id: str
    epochs: dict[int, int]  #: shard → epoch
    orchestrators: tuple[str, ...] = ()  #: addresses, so that a worker finds them again without a registry
    protocol_version: int = PROTOCOL_VERSION


class ShardEpoch(msgspec.Struct, frozen=True):
    shard: int
    epoch: int


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """One attempt to run. Unique by its token."""

    token: Token
    info: TaskInfo
    namespace: str
    instance_id: str  #: UUID text
    attempt: int
    input: Payload
    idempotency_key: str = ""
    trace: str = ""  #: W3C traceparent
    progress: Payload | None = None  #: what the attempt before reported last


class Assignments(msgspec.Struct, frozen=True):
    """Attempts to run; and acknowledgements, as if the `Ack` came right before."""

    assignments: list[Assignment]
    ack: Ack | None = None


class FedItem(msgspec.Struct, frozen=True, gc=False):
    """The result of one item of the mapped task."""

    index: int
    payload: Payload


class Feed(msgspec.Struct, frozen=True, gc=False):
    """More items for a fed attempt, each once; `is_last`: there are no others. Its items and their results are durable."""

    token: Token
    items: list[FedItem]
    is_last: bool = False


class Ack(msgspec.Struct, frozen=True):
    """These results need not be kept: durable at (shard, offset), or discarded (superseded, unknown)."""

    tokens: list[Token]
    discarded: list[Token] = []
    offsets: dict[int, int] = {}  #: shard → durable offset


class Cancel(msgspec.Struct, frozen=True):
    """Stop that attempt; it answers with a result, `stopped` if it obeyed. Not running: `returned`."""

    tokens: list[Token]
    reason: str = ""


class Recall(msgspec.Struct, frozen=True):
    """Give back up to `count` credits and queued attempts of a role that have not begun (as `returned` results)."""

    role: Role
    count: int


class Reclaimed(msgspec.Struct, frozen=True):
    """Answer to Reclaim: so many credits of each role were unused, and are void from here on. The others were used."""

    returned: dict[str, int]


class Demand(msgspec.Struct, frozen=True):
    """How many attempts of each role wait at this orchestrator. The worker hands out credits by it."""

    waiting: dict[str, int]


class Drain(msgspec.Struct, frozen=True):
    """The orchestrator is going away: send nothing new here; reconnect when the stream ends."""

    reason: str = ""


class Ping(msgspec.Struct, frozen=True):
    """Sent only while nothing else flows; Pong is due within the ping deadline, or the stream is closed."""

    nonce: int


FromWorker = Hello | Credits | Reclaim | Results | Held | Progress | Fed | WorkerDraining | Goodbye | Pong | Lifecycle
ToWorker = Welcome | ShardEpoch | Assignments | Feed | Ack | Cancel | Recall | Reclaimed | Demand | Drain | Ping


class WorkerLink(Protocol):
    """The orchestrator's end."""

    def send(self, message: ToWorker) -> None:
        """Queue a message, however large; sent in order, soon. Never blocks; after the end: ignored."""

    def close(self, reason: str = "") -> None:
        """End the link, with the reason told to the worker."""


class OrchestratorLink(Protocol):
    """The worker's end."""

    def send(self, message: FromWorker) -> None:
        """As WorkerLink.send; results and credits may wait until the orchestrator has taken those before them."""

    def close(self) -> None: ...


class WorkerPeer(Protocol):
    """What the orchestrator's end calls (implemented by `engine.sessions`), on the event loop, in order."""

    def on_message(self, message: FromWorker) -> None:
        """Raises ProtocolViolation: the link closes this stream with the reason."""

    def on_close(self, planned: bool) -> None:
        """The link has ended. `planned` after Goodbye. Called once."""


#: How the orchestrator accepts a new link: `accept(link) → peer`.
AcceptWorker = Callable[[WorkerLink], WorkerPeer]
