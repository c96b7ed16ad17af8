"""Registry port: who is there (membership), and what is announced. Never the truth of ownership: that is the store.

Implementations: `onexflow.registry.memory`, `onexflow.registry.etcd`; one conformance suite runs on both.
Everything here can be registered anew at any time; nothing is written per task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from onexflow.core.ids import RunKey

NodeStatus = Literal["ready", "draining"]
#: What a record is of: the orchestrator process, or a worker process in one of its roles.
NodeKind = Literal["orchestrator", "effect", "compute", "reducer"]


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


class MemberEvent(msgspec.Struct, frozen=True):
    """A node came, changed or went. After a resync, differences arrive as events like any other."""

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

    async def revoke(self, record: NodeRecord) -> None:
        """End the membership of a process that is proven dead (its lease, so all its keys). No-op if it is gone."""

    def beat(self) -> None:
        """Called by the owner's loop as it turns: the lease is renewed only while beats are younger than 2 s."""

    def health(self) -> RegistryHealth: ...


class Prober(Protocol):
    """Proof of death (liveness ports): what answers at a process's own address."""

    async def probe(self, address: str) -> str | None:
        """The incarnation that answers at `address`; None when the connection is refused (no process listens).

        Raises Unavailable when neither is known within the time-out: not a proof of anything.
        """
