"""The guests whose heartbeats come to this orchestrator: nodes that have no stream of ours, and live as long as they are heard.

A guest's record stands in the registry under this process's membership. What is only in memory here is when it was heard
last, and which registrations are over.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import structlog

from onexflow.core.errors import InvalidTransition, Overloaded
from onexflow.engine import node_entries as views
from onexflow.engine.sessions import Sessions
from onexflow.ports.clock import Clock, IdSource
from onexflow.ports.nodes import MAX_GUESTS, Registration
from onexflow.ports.registry import HealthReport, NodeRecord, Registry, role_of

log = structlog.get_logger("onexflow.nodes")

#: A guest's time that ends so much later than it should have was not the guest's fault: this process stood still.
_LATE_SECONDS: Final = 1.0
#: Registrations of guests that are over, and remembered.
_KEPT_CLOSED: Final = 10_000


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


class Guests:
    """Registers, hears and ends them. Whoever registers under the id of one that lives takes its place."""

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        clock: Clock,
        ids: IdSource,
        orchestrator_id: str,
        incarnation: str,
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._spawn = spawn
        self._clock = clock
        self._ids = ids
        self._orchestrator_id = orchestrator_id
        self._incarnation = incarnation
        self._guests: dict[str, _Guest] = {}
        #: Registrations that are over, by incarnation: replaced by a newer one (True), or ended (False).
        self._closed: OrderedDict[str, bool] = OrderedDict()

    def stop(self) -> None:
        """Guests keep their records as long as this process's membership."""
        for guest in self._guests.values():
            guest.cancel()

    # ---- what is known of them

    def beat_at(self, node_id: str) -> int:
        """When a guest was heard last; 0 when its heartbeats do not come here."""
        guest = self._guests.get(node_id)
        return guest.beat_at if guest is not None else 0

    def is_heard(self, record: NodeRecord) -> bool:
        """Do the heartbeats of that very registration come here?"""
        guest = self._guests.get(record.node_id)
        return guest is not None and guest.incarnation == record.incarnation

    def check_present(self, node_id: str, held: str, said: str) -> None:
        """Raise InvalidTransition for who speaks as another incarnation than the one that is `held`."""
        if said and held != said:
            raise _over(node_id, replaced=True)

    def check_not_replaced(self, node_id: str, incarnation: str) -> None:
        """Raise InvalidTransition for who speaks as a registration that was replaced."""
        if self._closed.get(incarnation):
            raise _over(node_id, replaced=True)

    # ---- they come

    async def register(self, registration: Registration) -> Registration:
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
        kinds = {record.kind for record in lives_of(self._registry, node_id)} - {"guest"}
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

    def _guest_record(self, node_id: str) -> NodeRecord | None:
        record = next((record for record in lives_of(self._registry, node_id) if record.kind == "guest"), None)
        mine = self._guests.get(node_id)
        if mine is not None and (record is None or record.keeper == self._incarnation):
            # The registry may be away: what was said here last is what it will say.
            return views.guest_record(mine.registration, self._incarnation, mine.beat_at)
        return record

    # ---- and go

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
            self._closed.popitem(last=False)

    async def unregister(self, node_id: str, incarnation: str = "") -> bool:
        held = self._guest_record(node_id)
        if held is None:
            self.check_not_replaced(node_id, incarnation)
            if self._is_worker(node_id) or self._is_orchestrator(node_id):
                raise InvalidTransition(
                    f"{node_id} is a process of its own and registers itself: `onexflow node drain` takes it out of work",
                    {"node": node_id, "current_state": "registered by itself", "required_state": "a guest"},
                )
            return False
        self.check_present(node_id, held.incarnation, incarnation)
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

    def _is_worker(self, node_id: str) -> bool:
        lives = lives_of(self._registry, node_id)
        return node_id in self._sessions.by_worker or any(role_of(record.kind) for record in lives)

    def _is_orchestrator(self, node_id: str) -> bool:
        lives = lives_of(self._registry, node_id)
        return node_id == self._orchestrator_id or any(record.kind == "orchestrator" for record in lives)

    # ---- what the registry tells

    def on_process(self, node_id: str) -> None:
        """The id is a process's now."""
        guest = self._guests.get(node_id)
        if guest is not None:
            self._close(guest.incarnation, replaced=True)
            self._spawn(self._remove(node_id))

    def on_record(self, record: NodeRecord) -> None:
        """The registry shows a guest so: under whom it is kept, and whether somebody has ended it."""
        guest = self._guests.get(record.node_id)
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


def lives_of(registry: Registry, node_id: str) -> list[NodeRecord]:
    """All that is registered under that id."""
    return [record for record in registry.members() if record.node_id == node_id]


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
