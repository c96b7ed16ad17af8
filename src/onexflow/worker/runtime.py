"""`WorkerRuntime`: a worker put together, from its start to its end.

It makes the handlers ready (`served.py`), links orchestrators (`peers.py`: what is asked for on a link, and who owns a
shard now), and stops in good order. Attempts and their results are kept in `attempts.py`; `lanes.py` runs the attempts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

import msgspec

from onexflow.codec.payload import JsonCodec
from onexflow.core.errors import InvalidConfiguration
from onexflow.core.payload import PayloadCodec
from onexflow.ports import orchestration
from onexflow.ports.clock import Clock
from onexflow.ports.orchestration import NodeCaller
from onexflow.ports.worker_link import ROLES, Goodbye, Hello, OrchestratorLink, Role, WorkerDraining
from onexflow.worker.attempts import Attempts
from onexflow.worker.handlers import Worker
from onexflow.worker.peers import OrchestratorPeer, Peers
from onexflow.worker.programs import Programs
from onexflow.worker.served import ServedHandlers

DEFAULT_SLOTS: Final[dict[Role, int]] = {"effect": 32, "compute": 4, "reducer": 4, "orchestrator": 1000}
#: Seconds that a cancelled attempt has to end when the worker closes.
STOP_GRACE: Final = 2.0
#: Seconds to wait for the acknowledgement of the last results.
ACK_GRACE: Final = 2.0


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is doing, at one moment."""

    links: int
    slots: dict[str, int]
    queued: dict[str, int]
    running: dict[str, int]
    credits: dict[str, int]  #: given to orchestrators and not yet used
    stopping: int  #: attempts that were cancelled and still hold their slot
    unacknowledged: int
    completed: int
    failed: int
    duplicates: int  #: assignments of tokens that were known already
    refused_stale: int  #: messages of orchestrators that no longer own the shard
    refused_uncredited: int  #: assignments beyond the credits given


class WorkerRuntime:
    """Runs a worker's handlers for the orchestrators that it is linked to.

    `async with WorkerRuntime(...) as runtime:` starts it (class nodes' `initialize()`) and closes it. `attach` links
    while it runs. All methods belong to one event loop.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        worker_id: str,
        incarnation: str,
        clock: Clock,
        slots: Mapping[Role, int] | Mapping[str, int] | None = None,
        codec: PayloadCodec | None = None,
        liveness: str = "",
        build_id: str = "",
        labels: dict[str, str] | None = None,
        caller: NodeCaller | None = None,
    ) -> None:
        """`caller`: how orchestrations call nodes and workflows. It is closed with the runtime."""
        self.worker = worker
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.liveness = liveness  #: may be set until the first `attach`
        self._clock = clock
        self._build_id = build_id
        self._labels = labels or {}
        self._caller = caller
        self._peers = Peers()
        self._handlers = ServedHandlers(worker, worker_id, self._peers.broadcast)
        self._attempts = Attempts(
            self._handlers, clock=clock, slots=_slots_of(worker, slots or {}), owner_of=self._peers.owners.get
        )
        self._programs = Programs(
            clock=clock,
            codec=codec or JsonCodec(),
            report=self._attempts.report,
            say_fed=self._attempts.say_fed,
            caller=caller,
        )
        self._started = self._wound_down = False

    @property
    def orchestrators(self) -> tuple[str, ...]:
        """Addresses of orchestrators, as the last Welcome gave them."""
        return self._peers.addresses

    # ---- start

    async def start(self) -> None:
        """`open`, then `initialize`."""
        self.open()
        await self.initialize()

    def open(self) -> None:
        """Make the handlers ready but the class nodes: these are told as `initializing`, and are sent nothing, until
        `initialize` is done. Raises InvalidConfiguration when a handler cannot be run."""
        if self._started:
            return
        self._handlers.open(self._programs, self._attempts.lanes)
        if "orchestrator" in self._attempts.lanes:
            orchestration.watch_tasks()
        self._attempts.verbose = logging.getLogger("onexflow.worker").isEnabledFor(logging.DEBUG)
        self._started = True

    async def initialize(self) -> None:
        """Initialise the class nodes, one after the other; links may be attached meanwhile. Raises
        HandlerInitializationError naming the one that failed, after the others were shut down."""
        await self._handlers.initialize()

    def attach(self, link: OrchestratorLink) -> OrchestratorPeer:
        """A link to an orchestrator is open: says Hello on it, and returns what the link calls."""
        if not self._started or self._peers.closed:
            raise InvalidConfiguration("a worker runtime takes links while it runs: between start() and close()")
        peer = OrchestratorPeer(link, self._peers, self._attempts)
        self._peers.linked.append(peer)
        link.send(self._hello())
        return peer

    def _hello(self) -> Hello:
        return Hello(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            handlers=self._handlers.infos(),
            slots={role: lane.ledger.slots for role, lane in self._attempts.lanes.items()},
            liveness=self.liveness,
            build_id=self._build_id,
            labels=self._labels,
        )

    # ---- end

    async def drain(self, timeout: float) -> None:
        """Stop in good order: take nothing new, give back what has not begun, and orchestrations, which another worker
        goes on with; let the rest run for `timeout` seconds, cancel what is left then, wait briefly for the
        acknowledgements, say Goodbye and close."""
        if self._peers.closed:
            return
        self._attempts.take_nothing_new()
        self._peers.broadcast(WorkerDraining())
        for attempt in list(self._attempts.here.values()):
            if attempt.assignment.info.role == "orchestrator":
                self._attempts.stop(attempt, "the worker is stopping")
        await self._until(lambda: not self._attempts.here, self._attempts.idle, timeout)
        # Links may still come back here, so that what ends now is not left without one to go out on.
        await self._wind_down()
        await self.close()

    async def close(self) -> None:
        """As `drain`, without waiting for running attempts: they are cancelled and reported as `stopped`."""
        if self._peers.closed:
            return
        self._peers.closed = True
        self._attempts.take_nothing_new()
        await self._wind_down()
        if not self._attempts.here:  # else it would be a lie: a thread that does not obey still runs
            self._peers.broadcast(Goodbye())
        for peer in list(self._peers.linked):
            peer.link.close()
            peer.on_close("closed by the worker")
        await self._attempts.close()
        await self._programs.close()
        if self._caller is not None:
            await self._caller.close()
        await self._handlers.shutdown()

    async def _wind_down(self) -> None:
        """Stop what runs, and wait for the acknowledgement of all results; both only so long."""
        if self._wound_down:
            return
        attempts = self._attempts
        for attempt in list(attempts.here.values()):
            attempts.stop(attempt, "the worker is stopping")
        await self._until(lambda: not attempts.here, attempts.idle, STOP_GRACE)
        attempts.outbox.flush()
        if self._peers.linked or not self._peers.closed:
            await self._until(lambda: not attempts.outbox.waiting, attempts.outbox.empty, ACK_GRACE)
        self._wound_down = True

    async def _until(self, done: Callable[[], bool], event: asyncio.Event, seconds: float) -> None:
        """Wait for `event`, at most so long."""
        if done() or seconds <= 0:
            return
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- how it is

    def statistics(self) -> Statistics:
        """A snapshot for people, health answers and tests."""
        attempts = self._attempts
        lanes = attempts.lanes.items()
        return Statistics(
            links=len(self._peers.linked),
            slots={role: lane.ledger.slots for role, lane in lanes},
            queued={role: lane.ledger.queued for role, lane in lanes},
            running={role: lane.ledger.running for role, lane in lanes},
            credits={role: lane.ledger.granted for role, lane in lanes},
            stopping=sum(attempt.cancelling for attempt in attempts.here.values()),
            unacknowledged=len(attempts.outbox.waiting),
            completed=attempts.completed,
            failed=attempts.failed,
            duplicates=attempts.duplicates,
            refused_stale=attempts.refused_stale,
            refused_uncredited=attempts.refused_uncredited,
        )


def _slots_of(worker: Worker, wanted: Mapping[Role, int] | Mapping[str, int]) -> dict[Role, int]:
    """The slots of each role that the worker has handlers of and that is to have any."""
    if unknown := set(wanted) - set(ROLES):
        raise InvalidConfiguration(f"slots of {', '.join(sorted(unknown))}: the roles are {', '.join(ROLES)}")
    served = {handler.role for handler in worker.handlers}
    slots: dict[Role, int] = {}
    for role in ROLES:
        count = wanted.get(role, DEFAULT_SLOTS[role])
        if count < 0:
            raise InvalidConfiguration(f"slots of {role}: {count} is no number of slots")
        if role in served and count:
            slots[role] = count
    return slots
