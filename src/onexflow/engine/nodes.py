"""Who is there: the registry's word and the open streams, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import msgspec

from onexflow.core.errors import UnknownNode
from onexflow.engine.node_book import NodeBook
from onexflow.engine.sessions import Sessions, WorkerSession
from onexflow.engine.whereabouts import Whereabouts
from onexflow.ports.client_link import NodeView
from onexflow.ports.nodes import NodeEntry
from onexflow.ports.registry import NodeRecord, Registry, kind_of, role_of
from onexflow.ports.worker_link import Role


class Nodes:
    """Of the cluster, as one orchestrator sees them."""

    def __init__(self, registry: Registry, sessions: Sessions, book: NodeBook, whereabouts: Whereabouts) -> None:
        self._registry = registry
        self._sessions = sessions
        self._book = book
        self._whereabouts = whereabouts

    async def list(self) -> Sequence[NodeView]:
        """All of them, and nodes of workers that are gone (`engine.lifecycle`)."""
        views = node_views(self._registry.members(), self._sessions.by_worker.values(), self._whereabouts.record)
        views = with_health(views, await self._book.find_nodes())
        return [*views, *self._sessions.lifecycle.views()]

    def drain(self, node_id: str) -> bool:
        """Tell a worker to finish and take nothing new. False when it already drains; raises UnknownNode."""
        session: WorkerSession | None = self._sessions.by_worker.get(node_id)
        if session is None:
            raise UnknownNode(f"no worker {node_id} is connected", {"node": node_id})
        if session.is_draining:
            return False
        session.is_draining = True
        self._book.on_drain(session)
        return True


def node_views(
    members: Sequence[NodeRecord], sessions: Iterable[WorkerSession], own: NodeRecord | None
) -> list[NodeView]:
    """One entry a process and role, registered or connected or both."""
    views: dict[tuple[str, str], NodeView] = {}
    connected = {session.worker_id: session for session in sessions}
    for record in members if own is None else (own, *members):
        session = connected.get(record.node_id)
        same = session is not None and session.incarnation == record.incarnation
        views[record.kind, record.node_id] = NodeView(
            node_id=record.node_id,
            kind=record.kind,
            incarnation=record.incarnation,
            address=record.address,
            status="draining" if session is not None and session.is_draining else record.status,
            handlers=record.handlers,
            slots=record.slots,
            running=_running(session, role_of(record.kind)) if session is not None and same else 0,
            connected=same or (own is not None and record.incarnation == own.incarnation),
            registered=record in members,
            version=record.version,
            started_at=record.started_at,
        )
    for session in connected.values():
        for role, slots in (session.hello.slots if session.hello else {}).items():
            kind = kind_of(cast("Role", role))
            if (kind, session.worker_id) not in views:
                views[kind, session.worker_id] = _unregistered(session, cast("Role", role), slots)
    return [views[key] for key in sorted(views)]


def with_health(views: Sequence[NodeView], entries: Iterable[NodeEntry]) -> list[NodeView]:
    """The views of workers and guests with how they are, and with the tasks that guests have."""
    found = {(entry.node_id, entry.incarnation): entry for entry in entries}
    return [
        view if view.kind == "orchestrator" else _with_health(view, found.get((view.node_id, view.incarnation)))
        for view in views
    ]


def _with_health(view: NodeView, entry: NodeEntry | None) -> NodeView:
    if entry is None:
        return view
    running = entry.current_tasks if entry.guest else view.running
    return msgspec.structs.replace(view, health=entry.health, running=running)


def _running(session: WorkerSession, role: str) -> int:
    return sum(attempt.role == role for attempt in session.inflight.values())


def _unregistered(session: WorkerSession, role: Role, slots: int) -> NodeView:
    return NodeView(
        node_id=session.worker_id,
        kind=kind_of(role),
        incarnation=session.incarnation,
        address="",
        status="draining" if session.is_draining else "ready",
        handlers=tuple(name for kind, name in session.infos if kind == role),
        slots=slots,
        running=_running(session, role),
        connected=True,
        registered=False,
        version=session.hello.build_id if session.hello else "",
    )
