"""The nodes as one orchestrator tells of them (`ports.nodes.NodeRegistryService`): workers by the registry's word and their
streams, guests by the heartbeats that come to one of the orchestrators (`engine.guests`); their health, what they have done,
and the runs assigned to them. The registry (etcd) is what all orchestrators share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from onexflow.core.errors import UnknownNode
from onexflow.core.ids import RunKey
from onexflow.engine import node_entries as views
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.background import Background
from onexflow.engine.guests import Guests, lives_of
from onexflow.engine.pins import Pins
from onexflow.engine.queue_book import QueueBook
from onexflow.engine.sessions import Sessions, WorkerSession
from onexflow.engine.tally_store import SAVE_SECONDS, TallyStore
from onexflow.ports.client_link import ControlOutcome, ControlRequest
from onexflow.ports.clock import Clock, IdSource
from onexflow.ports.nodes import (
    UNFIT,
    AssignmentView,
    NodeEntry,
    NodeFigures,
    NodeListener,
    Registration,
)
from onexflow.ports.registry import HealthReport, MemberEvent, NodeRecord, Registry, role_of
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.nodes")

#: After a start, nodes that runs are assigned to have so long to come back.
_RETURN_SECONDS: Final = 20.0
#: What could not be given back (the store is away) is tried again after so long.
_GIVE_BACK_AGAIN_SECONDS: Final = 1.0

Control = Callable[[ControlRequest], Coroutine[Any, Any, ControlOutcome]]


class NodeBook:
    """Implements `NodeRegistryService`."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        book: AttemptBook,
        queues: QueueBook,
        pins: Pins,
        figures: TallyStore,
        control: Control,
        *,
        clock: Clock,
        ids: IdSource,
        orchestrator_id: str,
        incarnation: str,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._book = book
        self._queues = queues
        self._pins = pins
        self._figures = figures
        self._control = control
        self._clock = clock
        self._incarnation = incarnation
        self._background = Background()
        self._guests = Guests(
            registry,
            sessions,
            self._background.spawn,
            clock=clock,
            ids=ids,
            orchestrator_id=orchestrator_id,
            incarnation=incarnation,
        )
        self._listeners: dict[int, NodeListener] = {}
        self._listener_id = 0
        self._telling = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._unsubscribe: Callable[[], None] | None = None

    # ---- life

    def start(self) -> None:
        self._unsubscribe = self._registry.subscribe(self._on_member)
        self._later(SAVE_SECONDS, self._save_figures)
        self._later(_RETURN_SECONDS, self._look_for_absent)

    async def stop(self, error: SPIError) -> None:
        """Nobody is told any more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._figures.save()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._guests.stop()
        listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener(error)
        await self._background.stop()

    # ---- guests

    async def register_node(self, registration: Registration) -> Registration:
        return await self._guests.register(registration)

    async def unregister_node(self, node_id: str, incarnation: str = "") -> bool:
        return await self._guests.unregister(node_id, incarnation)

    # ---- who is there

    async def find_nodes(self, node_id: str = "", capability: str = "") -> Sequence[NodeEntry]:
        return [
            entry
            for entry in self._entries()
            if node_id in {"", entry.node_id}
            and (not capability or any(c.name == capability for c in entry.capabilities))
        ]

    def _entries(self) -> list[NodeEntry]:
        by_node: dict[str, list[NodeRecord]] = {}
        for record in self._registry.members():
            by_node.setdefault(record.node_id, []).append(record)
        found = []
        for node_id in sorted({*by_node, *self._sessions.by_worker}):
            entry = self._entry(node_id, by_node.get(node_id, []))
            if entry is not None:
                found.append(entry)
        return found

    def _entry(self, node_id: str, records: Sequence[NodeRecord]) -> NodeEntry | None:
        """The node as it stands: its worker, if there is one of that id, else its guest."""
        session = self._sessions.by_worker.get(node_id)
        roles = [record for record in records if role_of(record.kind)]
        report = self._registry.health_of(node_id)
        if roles or session is not None:
            return views.worker_entry(node_id, roles, session, report)
        guest = next((record for record in records if record.kind == "guest"), None)
        if guest is None or (report is not None and report.retired):
            return None
        return views.guest_entry(guest, report, self._queues.tally_of(node_id).running)

    def _find(self, node_id: str) -> NodeEntry:
        entry = self._entry(node_id, lives_of(self._registry, node_id))
        if entry is None:
            raise UnknownNode(f"there is no node {node_id}", {"node": node_id})
        return entry

    # ---- health

    async def report_health(self, node_id: str, health: str, incarnation: str = "") -> bool:
        views.check_health(health)
        self._guests.check_not_replaced(node_id, incarnation)
        entry = self._find(node_id)
        self._guests.check_present(node_id, entry.incarnation, incarnation)
        last = self._registry.health_of(node_id)
        if last is not None and last.incarnation != entry.incarnation:
            last = None
        if health == (last.health if last is not None else entry.health):
            return False
        at = max(self._clock.now(), last.at + 1 if last is not None else 0)
        log.info("node.health", node=node_id, health=health, incarnation=entry.incarnation)
        await self._registry.report_health(
            HealthReport(node_id=node_id, incarnation=entry.incarnation, health=health, at=at)
        )
        self._apply_health(node_id)
        self._tell()
        return True

    def _apply_health(self, node_id: str) -> None:
        """A worker that is not fit gets no new tasks until it is again; what it runs goes on."""
        session = self._sessions.by_worker.get(node_id)
        if session is None:
            return
        report = self._registry.health_of(node_id)
        is_unfit = report is not None and report.incarnation == session.incarnation and report.health in UNFIT
        if is_unfit != session.is_unfit:
            session.is_unfit = is_unfit
            if is_unfit:
                self._book.pass_over(session)
            else:
                self._book.on_credits(session)

    # ---- figures

    async def measure_node(self, node_id: str) -> NodeFigures:
        entry = self._find(node_id)
        queued = self._queues.tally_of(node_id)
        if entry.guest:
            return views.guest_figures(entry, queued, self._guests.beat_at(node_id))
        session = self._sessions.by_worker.get(node_id)
        tally = self._book.tallies.by_worker.get(node_id)
        return views.worker_figures(entry, tally, queued, self._heard_at(session))

    def _heard_at(self, session: WorkerSession | None) -> int:
        if session is None:
            return 0
        return self._clock.now() - int((asyncio.get_running_loop().time() - session.heard_at) * 1e9)

    async def load(self) -> None:
        """Go on counting where the orchestrator before was."""
        await self._figures.load()

    def _save_figures(self) -> None:
        self._figures.save()
        self._later(SAVE_SECONDS, self._save_figures)

    # ---- assignments

    async def assign_run(self, key: RunKey, node_id: str) -> bool:
        return (await self._control(ControlRequest(key=key, action="assign", node_id=node_id))).changed

    def check_known(self, node_id: str) -> None:
        """Raise UnknownNode unless a run can be assigned to it."""
        self._find(node_id)

    async def list_assignments(self, node_id: str) -> Sequence[AssignmentView]:
        found = await self._pins.of(node_id)
        if not found:
            self._find(node_id)
        return found

    # ---- changes

    def watch_nodes(self, listener: NodeListener) -> Callable[[], None]:
        self._listener_id += 1
        number = self._listener_id
        self._listeners[number] = listener
        self._tell()

        def stop() -> None:
            self._listeners.pop(number, None)

        return stop

    def on_drain(self, session: WorkerSession) -> None:
        """The worker was told to take nothing new."""
        self._book.pass_over(session)
        self._tell()

    def _tell(self) -> None:
        if self._listeners and not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell_all)

    def _tell_all(self) -> None:
        self._telling = False
        entries = self._entries()
        for listener in list(self._listeners.values()):
            try:
                listener(entries)
            except Exception:
                log.exception("listener.failed")

    def _on_member(self, event: MemberEvent) -> None:
        record = event.record
        node_id = record.node_id
        if record.kind == "guest" and event.type != "down":
            self._guests.on_record(record)
        elif record.kind == "guest":
            self._on_guest_down(record)
        elif event.type != "down":
            self._guests.on_process(node_id)
            if role_of(record.kind):
                self._apply_health(node_id)
        elif role_of(record.kind) and not lives_of(self._registry, node_id):
            self._leave(node_id)
        self._tell()

    def _on_guest_down(self, record: NodeRecord) -> None:
        if self._guests.is_heard(record):
            return  # this process's membership was lost: it is written again
        if record.keeper == self._incarnation or lives_of(self._registry, record.node_id):
            self._left(record)
        else:  # its keeper may have died, not it: then it comes to another one, or to this
            self._later(views.ttl_of(record), self._left, record)

    def _left(self, record: NodeRecord) -> None:
        """A guest's life is over, unless it has come back meanwhile."""
        lives = lives_of(self._registry, record.node_id)
        if not any(life.incarnation == record.incarnation for life in lives):
            self._queues.lost(record.node_id)
        if not lives:
            self._leave(record.node_id)

    # ---- runs of nodes that are gone

    def _leave(self, node_id: str) -> None:
        self._background.spawn(self._give_back(node_id))

    async def _give_back(self, node_id: str) -> None:
        try:
            given = await self._pins.give_back(node_id)
        except SPIError as error:
            log.warning("assignments.kept", node=node_id, error=str(error))
            self._later(_GIVE_BACK_AGAIN_SECONDS, self._leave_if_gone, node_id)
            return
        if given:
            log.info("assignments.given_back", node=node_id, runs=given)

    def _leave_if_gone(self, node_id: str) -> None:
        if not lives_of(self._registry, node_id):
            self._leave(node_id)

    def _look_for_absent(self) -> None:
        """A node may have died while no orchestrator saw it."""
        self._background.spawn(self._give_back_absent())

    async def _give_back_absent(self) -> None:
        try:
            nodes = await self._pins.nodes()
        except SPIError:
            self._later(_RETURN_SECONDS, self._look_for_absent)
            return
        for node_id in sorted(nodes):
            if node_id not in self._sessions.by_worker:
                self._leave_if_gone(node_id)

    # ---- helpers

    def _later(self, seconds: float, act: Callable[..., None], *args: object) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            act(*args)

        timer = asyncio.get_running_loop().call_later(seconds, fire)
        self._timers.add(timer)
