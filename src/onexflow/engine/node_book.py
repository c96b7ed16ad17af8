"""The nodes as one orchestrator tells of them (`ports.nodes.NodeRegistryService`): workers by the registry's word and their
streams, guests by the heartbeats that come here; their health, what they have done, and the runs assigned to them.

The registry (etcd) is what all orchestrators share: a guest's record stands there under the membership of the one that
hears its heartbeats. What is only in memory here is when a guest was heard last, and which registrations are over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec
import structlog

from onexflow.core.errors import InvalidTransition, Overloaded, UnknownNode
from onexflow.core.ids import RunKey
from onexflow.engine import node_entries as views
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.pins import Pins
from onexflow.engine.queue_book import QueueBook
from onexflow.engine.sessions import Sessions, WorkerSession
from onexflow.engine.tally_store import SAVE_SECONDS, TallyStore
from onexflow.ports.client_link import ControlOutcome, ControlRequest
from onexflow.ports.clock import Clock, IdSource
from onexflow.ports.nodes import (
    MAX_GUESTS,
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

#: A guest's time that ends so much later than it should have was not the guest's fault: this process stood still.
_LATE_SECONDS: Final = 1.0
#: After a start, nodes that runs are assigned to have so long to come back.
_RETURN_SECONDS: Final = 20.0
#: What could not be given back (the store is away) is tried again after so long.
_GIVE_BACK_AGAIN_SECONDS: Final = 1.0
#: Registrations of guests that are over, and remembered.
_KEPT_CLOSED: Final = 10_000

Control = Callable[[ControlRequest], Coroutine[Any, Any, ControlOutcome]]


class _Guest:
    """A guest whose heartbeats come here."""

    __slots__ = ("beat_at", "is_written", "registration", "timer")

    def __init__(self, registration: Registration, beat_at: int) -> None:
        self.registration = registration
        self.beat_at = beat_at
        #: Until then, what the registry shows of it may be older.
        self.is_written = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def incarnation(self) -> str:
        return self.registration.incarnation

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


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
        self._ids = ids
        self._orchestrator_id = orchestrator_id
        self._incarnation = incarnation
        self._guests: dict[str, _Guest] = {}
        #: Registrations that are over, by incarnation: replaced by a newer one (True), or ended (False).
        self._closed: dict[str, bool] = {}
        self._listeners: dict[int, NodeListener] = {}
        self._listener_id = 0
        self._telling = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] | None = None

    # ---- life

    def start(self) -> None:
        self._unsubscribe = self._registry.subscribe(self._on_member)
        self._later(SAVE_SECONDS, self._save_figures)
        self._later(_RETURN_SECONDS, self._look_for_absent)

    async def stop(self, error: SPIError) -> None:
        """Nobody is told any more; guests keep their records as long as this process's membership."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._figures.save()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for guest in self._guests.values():
            guest.cancel()
        listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener(error)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- guests

    async def register_node(self, registration: Registration) -> Registration:
        node = registration.node
        mine = self._guests.get(node.node_id)
        if mine is not None and mine.registration == registration:  # a heartbeat that says nothing new: by far the most
            self._beat(mine)
            return registration
        if not registration.incarnation:
            registration = msgspec.structs.replace(registration, incarnation=str(self._ids.uuid()), started_at=0)
        views.check(registration)
        self._refuse_taken(node.node_id)
        held = self._guest_record(node.node_id)
        registration = self._admit(registration, held)
        if mine is not None and mine.incarnation == registration.incarnation and held is not None:
            self._beat(mine)
            if mine.registration == registration:
                return registration
        elif mine is None and len(self._guests) >= MAX_GUESTS:
            raise Overloaded(f"this orchestrator keeps {MAX_GUESTS:,} guests already", {"limit": MAX_GUESTS})
        report = self._registry.health_of(node.node_id)
        guest = self._keep(registration)
        await self._registry.register(views.guest_record(registration, self._incarnation, self._clock.now()))
        if report is not None and report.incarnation == registration.incarnation:
            await self._registry.report_health(report)  # under the membership that the record is under now
        guest.is_written = True
        return registration

    def _refuse_taken(self, node_id: str) -> None:
        kinds = {record.kind for record in self._lives(node_id)} - {"guest"}
        taken = ""
        if node_id == self._orchestrator_id or "orchestrator" in kinds:
            taken = "orchestrator"
        elif kinds or node_id in self._sessions.by_worker:
            taken = "worker"
        if taken:
            raise InvalidTransition(
                f"{node_id} is the id of a live {taken}: a guest needs one of its own",
                {"node": node_id, "current_state": f"registered as {taken}", "required_state": "not registered"},
            )

    def _admit(self, registration: Registration, held: NodeRecord | None) -> Registration:
        """The registration with the time of its beginning. Raises InvalidTransition for one that is over."""
        node_id, incarnation = registration.node.node_id, registration.incarnation
        if incarnation in self._closed:
            raise _over(node_id, replaced=self._closed[incarnation])
        now = self._clock.now()
        if held is None:
            return views.begun(registration, registration.started_at or now)
        if held.incarnation == incarnation:
            return views.begun(registration, held.started_at)
        if not registration.started_at:
            registration = views.begun(registration, max(now, held.started_at + 1))
        if (registration.started_at, incarnation) < (held.started_at, held.incarnation):
            self._close(incarnation, replaced=True)
            raise _over(node_id, replaced=True)
        self._close(held.incarnation, replaced=True)
        return registration

    def _keep(self, registration: Registration) -> _Guest:
        node_id = registration.node.node_id
        before = self._guests.get(node_id)
        if before is not None:
            before.cancel()
        guest = self._guests[node_id] = _Guest(registration, self._clock.now())
        self._arm(guest, registration.ttl)
        if before is None or before.incarnation != registration.incarnation:
            log.info("guest.registered", node=node_id, incarnation=registration.incarnation)
        return guest

    def _beat(self, guest: _Guest) -> None:
        guest.beat_at = self._clock.now()
        self._arm(guest, guest.registration.ttl)

    def _arm(self, guest: _Guest, seconds: float) -> None:
        guest.cancel()
        loop = asyncio.get_running_loop()
        guest.timer = loop.call_at(loop.time() + seconds, self._expire, guest, loop.time() + seconds)

    def _expire(self, guest: _Guest, due: float) -> None:
        """Its heartbeats have ended."""
        if asyncio.get_running_loop().time() - due > _LATE_SECONDS:
            self._arm(guest, guest.registration.ttl)
            return
        node_id = guest.registration.node.node_id
        if self._guests.get(node_id) is guest:
            log.info("guest.expired", node=node_id, incarnation=guest.incarnation)
            self._spawn(self._remove(node_id))

    async def _remove(self, node_id: str) -> None:
        guest = self._guests.pop(node_id, None)
        if guest is not None:
            guest.cancel()
            await self._registry.unregister("guest", node_id)

    def _close(self, incarnation: str, *, replaced: bool) -> None:
        self._closed.setdefault(incarnation, replaced)
        if len(self._closed) > _KEPT_CLOSED:
            del self._closed[next(iter(self._closed))]

    async def unregister_node(self, node_id: str, incarnation: str = "") -> bool:
        held = self._guest_record(node_id)
        if held is None:
            if self._closed.get(incarnation):
                raise _over(node_id, replaced=True)
            if self._is_worker(node_id) or self._is_orchestrator(node_id):
                raise InvalidTransition(
                    f"{node_id} is a process of its own and registers itself: `onexflow node drain` takes it out of work",
                    {"node": node_id, "current_state": "registered by itself", "required_state": "a guest"},
                )
            return False
        self._check_present(held, incarnation)
        if held.incarnation in self._closed:
            return False  # its keeper has still to take it away
        self._close(held.incarnation, replaced=False)
        log.info("guest.unregistered", node=node_id, incarnation=held.incarnation)
        if node_id in self._guests:
            await self._remove(node_id)
        else:
            now = self._clock.now()
            await self._registry.report_health(
                HealthReport(
                    node_id=node_id, incarnation=held.incarnation, health="disposing", at=now, retired=True
                )
            )  # fmt: skip
        return True

    def _check_present(self, held: NodeRecord, incarnation: str) -> None:
        if incarnation and held.incarnation != incarnation:
            raise _over(held.node_id, replaced=True)

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
        entry = self._entry(node_id, self._lives(node_id))
        if entry is None:
            raise UnknownNode(f"there is no node {node_id}", {"node": node_id})
        return entry

    def _lives(self, node_id: str) -> list[NodeRecord]:
        return [record for record in self._registry.members() if record.node_id == node_id]

    def _guest_record(self, node_id: str) -> NodeRecord | None:
        record = next((record for record in self._lives(node_id) if record.kind == "guest"), None)
        mine = self._guests.get(node_id)
        if mine is not None and (record is None or record.keeper == self._incarnation):
            # The registry may be away: what was said here last is what it will say.
            return views.guest_record(mine.registration, self._incarnation, mine.beat_at)
        return record

    def _is_worker(self, node_id: str) -> bool:
        return node_id in self._sessions.by_worker or any(role_of(record.kind) for record in self._lives(node_id))

    def _is_orchestrator(self, node_id: str) -> bool:
        return node_id == self._orchestrator_id or any(r.kind == "orchestrator" for r in self._lives(node_id))

    # ---- health

    async def report_health(self, node_id: str, health: str, incarnation: str = "") -> bool:
        views.check_health(health)
        if self._closed.get(incarnation):
            raise _over(node_id, replaced=True)
        entry = self._find(node_id)
        if incarnation and entry.incarnation != incarnation:
            raise _over(node_id, replaced=True)
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
            guest = self._guests.get(node_id)
            return views.guest_figures(entry, queued, guest.beat_at if guest is not None else 0)
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
        guest = self._guests.get(node_id)
        if record.kind == "guest":
            self._on_guest(event, guest)
        elif event.type != "down":
            if guest is not None:  # the id is a process's now
                self._close(guest.incarnation, replaced=True)
                self._spawn(self._remove(node_id))
            if role_of(record.kind):
                self._apply_health(node_id)
        elif role_of(record.kind) and not self._lives(node_id):
            self._leave(node_id)
        self._tell()

    def _on_guest(self, event: MemberEvent, guest: _Guest | None) -> None:
        record = event.record
        if event.type == "down":
            if guest is not None and guest.incarnation == record.incarnation:
                return  # this process's membership was lost: it is written again
            if record.keeper == self._incarnation or self._lives(record.node_id):
                self._left(record)
            else:  # its keeper may have died, not it: then it comes to another one, or to this
                self._later(views.ttl_of(record), self._left, record)
            return
        report = self._registry.health_of(record.node_id)
        if guest is None or not guest.is_written:
            return
        if record.keeper != self._incarnation:  # it talks to another orchestrator now
            if record.incarnation != guest.incarnation:
                self._close(guest.incarnation, replaced=True)
            self._spawn(self._remove(record.node_id))
        elif report is not None and report.retired and report.incarnation == guest.incarnation:
            self._close(guest.incarnation, replaced=False)
            self._spawn(self._remove(record.node_id))

    def _left(self, record: NodeRecord) -> None:
        """A guest's life is over, unless it has come back meanwhile."""
        lives = self._lives(record.node_id)
        if not any(life.incarnation == record.incarnation for life in lives):
            self._queues.lost(record.node_id)
        if not lives:
            self._leave(record.node_id)

    # ---- runs of nodes that are gone

    def _leave(self, node_id: str) -> None:
        self._spawn(self._give_back(node_id))

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
        if not self._lives(node_id):
            self._leave(node_id)

    def _look_for_absent(self) -> None:
        """A node may have died while no orchestrator saw it."""
        self._spawn(self._give_back_absent())

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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _over(node_id: str, *, replaced: bool) -> InvalidTransition:
    why = "was registered again by somebody else" if replaced else "was unregistered"
    return InvalidTransition(
        f"this registration of {node_id} is over: it {why}",
        {
            "node": node_id,
            "current_state": "replaced" if replaced else "unregistered",
            "required_state": "registered",
        },
    )
