"""Node registry port: who can do what, how they are, and which runs are assigned to whom, as values. The engine answers
(`engine.node_book`), and so does a client over gRPC (`client.remote_nodes`); `engine.protocols.WorkflowNodeRegistry` makes the
specification's object of it.

A node is a worker, which registers itself and has a stream, or a guest, which somebody registered with `register_node` and
keeps registered with `renew_node`. Both stand in the registry (etcd), so every orchestrator tells the same of them.

Errors: UnknownNode, UnknownRun, InvalidTransition (the id is taken, or was taken over), InvalidArgument, Overloaded,
Unavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from onexflow.core.ids import RunKey
from onexflow.spi.exceptions import SPIError

#: Seconds that a guest stays registered without a heartbeat, unless it says otherwise; and what it may say.
DEFAULT_TTL: Final = 15.0
MIN_TTL: Final = 1.0
MAX_TTL: Final = 3600.0
#: Bytes of what a guest says of itself, as JSON.
MAX_DETAILS: Final = 64 * 1024
#: Guests of one orchestrator.
MAX_GUESTS: Final = 10_000

#: Fit for work, in the specification's words: what `discover_nodes(healthy_only=True)` gives.
HEALTHY: Final = frozenset({"healthy", "available"})
#: A worker of such a health is given no new tasks; what it runs goes on.
UNFIT: Final = frozenset({"unhealthy", "critical", "unreachable", "unavailable", "disposing", "error"})


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What a node can do."""

    name: str
    id: str = ""
    version: str = "1"
    max_concurrent_tasks: int = 1
    task_types: tuple[str, ...] = ()
    node_types: tuple[str, ...] = ()
    #: Whatever else was said of it (JSON).
    details: dict[str, Any] = {}


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it stands. Times are UTC ns, 0 when not known."""

    node_id: str
    node_type: str  #: in lower case; may have a subtype ("compute:gpu")
    host: str = ""
    port: int = 0
    name: str = ""
    environment: str = ""
    group: str = ""
    version: str = ""
    health: str = "unknown"
    capabilities: tuple[Capability, ...] = ()
    max_concurrent_tasks: int = 1
    workflow_types: tuple[str, ...] = ()
    #: Whatever else was said of it (JSON): metadata, scheduling_preferences, …
    details: dict[str, Any] = {}
    # ---- what the registry adds
    incarnation: str = ""
    started_at: int = 0
    guest: bool = False
    current_tasks: int = 0


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A guest, as who keeps it registered says it, each time in full: whichever orchestrator hears it, has it.

    Without `incarnation` and `started_at` it is a new one; the answer has both, and the heartbeats say them: so an older
    registration does not come back over a newer one."""

    node: NodeEntry
    incarnation: str = ""
    ttl: float = DEFAULT_TTL
    started_at: int = 0


class NodeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has done in its present life, as its orchestrator counted it. Durations are seconds; the percentiles are
    of the last ones, at most 512."""

    node_id: str
    health: str
    current_tasks: int = 0
    max_concurrent_tasks: int = 0
    completed: int = 0
    failed: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    last_heartbeat: int = 0  #: UTC ns, 0: not known here


class AssignmentView(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is assigned to a node."""

    key: RunKey
    node_id: str
    assigned_at: int
    epoch: int
    state: str


#: Called with all nodes, and again with all of them when something has changed; or once with the error that ends it.
NodeListener = Callable[[Sequence[NodeEntry] | SPIError], None]


class NodeRegistryService(Protocol):
    """See the module's text."""

    async def register_node(self, registration: Registration) -> Registration:
        """Begin a guest's registration, or renew it; returns it as it stands. The same id under another
        incarnation: the newer one replaces and fences the older, which gets InvalidTransition from then on. The id of a
        live worker or orchestrator is refused with InvalidTransition."""

    async def unregister_node(self, node_id: str, incarnation: str = "") -> bool:
        """End a guest's registration; with `incarnation`: only if it still is that one, else InvalidTransition. False when
        it is gone. Workers end their own: InvalidTransition."""

    async def find_nodes(self, node_id: str = "", capability: str = "") -> Sequence[NodeEntry]:
        """The nodes of that id, or with that capability, or all, by id. A worker of several roles is one node."""

    async def report_health(self, node_id: str, health: str, incarnation: str = "") -> bool:
        """Say how a node is; False when that was known. `incarnation` as in `unregister_node`."""

    async def measure_node(self, node_id: str) -> NodeFigures: ...

    async def assign_run(self, key: RunKey, node_id: str) -> bool:
        """Assign an open run to a node: its tasks go there while the node is connected and fit. Durable. False when it
        was so. `node_id` "" takes the assignment back."""

    async def list_assignments(self, node_id: str) -> Sequence[AssignmentView]:
        """The open runs that are assigned to it, by key. Durable ones only."""

    def watch_nodes(self, listener: NodeListener) -> Callable[[], None]:
        """Tell of all nodes, now and after each change of who is there or how they are. Returns the way to stop it."""
