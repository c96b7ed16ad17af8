"""Registry port: who is there (membership), and what is announced. Never the truth of ownership: that is the store.

Implementations: `onexflow.registry.memory`, `onexflow.registry.etcd`; one conformance suite runs on both.
Everything here can be registered anew at any time; nothing is written per task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec

from onexflow.core.definition import ROLES, Role
from onexflow.core.ids import RunKey

NodeStatus = Literal["ready", "draining"]
#: What a record is of: the orchestrator process, a worker process in one of its roles (`kind_of`), or a guest: a node
#: that somebody registered and that has no stream. The orchestrator that hears its heartbeats keeps its record.
NodeKind = Literal["orchestrator", "effect", "compute", "reducer", "orchestrator-node", "guest"]


def kind_of(role: Role) -> NodeKind:
    """The kind of a worker's record. A worker of role orchestrator is an `orchestrator-node`: `orchestrator` is the
    server."""
    return "orchestrator-node" if role == "orchestrator" else role


def role_of(kind: str) -> str:
    """The role of the workers of that kind; "" of other kinds."""
    if kind == "orchestrator-node":
        return "orchestrator"
    return kind if kind != "orchestrator" and kind in ROLES else ""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a process registers, as JSON. A worker with handlers of several roles registers once a role."""

    kind: NodeKind
    node_id: str
    #: The life of the process: new at every start. A record with another incarnation replaces and fences the old one.
    incarnation: str
    address: str = ""  #: host:port of its gRPC service (orchestrators)
    liveness: str = ""  #: host:port that answers with the incarnation
    handlers: tuple[str, ...] = ()
    slots: int = 0
    status: NodeStatus = "ready"
    version: str = ""
    started_at: int = 0  #: UTC ns
    labels: dict[str, str] = {}
    #: Of a guest: the orchestrator (its incarnation) that keeps this record, since when (UTC ns), and what it said of
    #: itself. One that comes to another orchestrator is kept by that one from then on.
    keeper: str = ""
    kept_since: int = 0
    details: dict[str, Any] = {}


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said last of a node's health. It is about one life of the node and ends with it."""

    node_id: str
    incarnation: str
    health: str  #: a LiteralHealthStatus
    at: int = 0  #: UTC ns; the later of two reports counts
    #: Of a guest: it was unregistered through another orchestrator than the one that keeps its record, which takes it away.
    retired: bool = False


class ShardAnnouncement(msgspec.Struct, frozen=True, kw_only=True):
    """Who says that it owns a shard. For routing and for people; appends are fenced by the store alone."""

    shard: int
    owner: str  #: node_id of the orchestrator
    epoch: int
    address: str = ""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A run pinned to a node, mirrored from the run's own history while the node's membership lives."""

    key: RunKey
    node_id: str
    assigned_at: int = 0
    epoch: int = 0  #: of the run's shard when it was assigned


class MemberEvent(msgspec.Struct, frozen=True):
    """A node came, changed or went, or something else was said of its health (`changed`, of each of its records). After a
    resync, differences arrive as events like any other."""

    type: Literal["up", "changed", "down"]
    record: NodeRecord


class RegistryHealth(msgspec.Struct, frozen=True, kw_only=True):
    connected: bool
    kind: str  #: "etcd" | "memory"
    detail: str = ""


MemberListener = Callable[[MemberEvent], None]


class Registry(Protocol):
    """One process's membership and its view of the others.

    `start` and `close` are idempotent; close before start is legal. After `start` returned, losing the registry is
    never an error to the caller: the last view stays valid, `health()` says so, and registration is restored within
    3 s of its return (also when it comes back empty).
    """

    async def start(self) -> None:
        """Connect and load the view. Raises RegistryUnavailable when there is no answer within the start deadline."""

    async def close(self) -> None:
        """Revoke the membership (all keys of this process go at once) and end."""

    async def register(self, record: NodeRecord) -> None:
        """Add or replace a record of this process. It lives as long as the process's lease, which is renewed at
        TTL/3 by a thread of its own, and is written again after any loss. While the registry is away: remembered,
        written when it is back."""

    async def unregister(self, kind: NodeKind, node_id: str) -> None:
        """Take one record of this process away."""

    def members(self, kind: NodeKind | None = None) -> Sequence[NodeRecord]:
        """The live records as last seen. No I/O."""

    def subscribe(self, listener: MemberListener) -> Callable[[], None]:
        """Call `listener` on the event loop for each later change, in order. Returns the way to stop it."""

    async def announce(self, shards: Sequence[ShardAnnouncement]) -> None:
        """Replace this process's announcements: written now, or when the registry is back."""

    async def announcements(self) -> Sequence[ShardAnnouncement]:
        """What is announced, by all."""

    async def assign(self, assignment: Assignment) -> None:
        """Mirror a pin under the node's own lease-bound keys."""

    async def unassign(self, key: RunKey) -> None: ...

    async def assignments(self, node_id: str | None = None) -> Sequence[Assignment]: ...

    async def report_health(self, report: HealthReport) -> None:
        """Tell all of a node's health, under the node's own lease: it survives who reported it, and is gone with the
        node's life. While the registry is away: remembered."""

    def health_of(self, node_id: str) -> HealthReport | None:
        """The last report about the node's present life, or None. No I/O."""

    async def revoke(self, record: NodeRecord) -> None:
        """End the membership of a process that is proven dead (its lease, so all its keys). No-op if it is gone, and for
        guests, who have none of their own."""

    def beat(self) -> None:
        """Called by the owner's loop as it turns: the lease is renewed only while beats are younger than 2 s."""

    def health(self) -> RegistryHealth: ...


class Prober(Protocol):
    """Proof of death (liveness ports): what answers at a process's own address."""

    async def probe(self, address: str) -> str | None:
        """The incarnation that answers at `address`; None when the connection is refused (no process listens).

        Raises Unavailable when neither is known within the time-out: not a proof of anything.
        """
