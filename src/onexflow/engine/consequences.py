"""What follows, in the other parts of an orchestrator, when its kernel has decided or stored something, or a shard or the
store itself is lost. The kernel knows none of these parts; this knows them, and sets its hooks (but how full the store is,
which `engine.readiness` hears, and where shards are, which `engine.ownership` tells)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from onexflow.core.errors import Coded
from onexflow.core.instructions import FinishRun
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from onexflow.core.state import RunState
from onexflow.core.turn import Turn
from onexflow.engine import views
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.background import Background
from onexflow.engine.calls import CallBook
from onexflow.engine.events.book import EventBook
from onexflow.engine.kernel import Kernel
from onexflow.engine.observed import Observed
from onexflow.engine.outcomes import Outcomes
from onexflow.engine.ownership import Ownership
from onexflow.engine.pins import Pins
from onexflow.engine.queries import Queries
from onexflow.engine.queue_book import QueueBook
from onexflow.engine.readiness import Readiness
from onexflow.engine.run import Run
from onexflow.engine.shard import Entity, Shard
from onexflow.ports.client_link import RunOutcome
from onexflow.ports.registry import Registry

log = structlog.get_logger("onexflow.orchestrator")


class Consequences:
    """Of one kernel, from when this is made."""

    def __init__(
        self,
        kernel: Kernel,
        registry: Registry,
        *,
        book: AttemptBook,
        calls: CallBook,
        events: EventBook,
        observed: Observed,
        outcomes: Outcomes,
        ownership: Ownership,
        pins: Pins,
        queries: Queries,
        queues: QueueBook,
        readiness: Readiness,
        background: Background,
        on_fatal: Callable[[Coded], None] | None,
    ) -> None:
        """`on_fatal` is called last when the store is lost."""
        self._kernel = kernel
        self._registry = registry
        self._book = book
        self._calls = calls
        self._events = events
        self._observed = observed
        self._outcomes = outcomes
        self._ownership = ownership
        self._pins = pins
        self._queries = queries
        self._queues = queues
        self._readiness = readiness
        self._background = background
        self._on_fatal = on_fatal
        kernel.carry_out = self.carry_out
        kernel.on_loaded = self._on_loaded
        kernel.on_durable = self._on_durable
        kernel.on_lost = self._on_lost
        kernel.claims.on_claimed = self._on_claimed
        kernel.claims.on_left = self._on_left

    def carry_out(self, run: Run, turn: Turn) -> None:
        """Do what a decision asks for, now or when it is durable."""
        state = run.state
        if (run.pinned or state.node) and (run.pinned != state.node or run.is_over):
            self._pins.follow(run)
            if not run.is_over:
                self._book.place_anew(run)
        if run.arrivals:
            self._book.feeding.decided(run, turn)
        if not turn.instructions:
            return
        self._book.carry_out(run, turn)
        if state.status in TERMINAL_WORKFLOW_STATES and type(turn.instructions[-1]) is FinishRun:
            self._finish_when_durable(run)

    def _finish_when_durable(self, run: Run) -> None:
        state, calls = run.state, run.graph.calls
        outcome = views.outcome_of(run.key, state)
        self._kernel.lane.when_durable(lambda error: self._finish(state, outcome, calls, error), run.shard)

    def _finish(self, state: RunState, outcome: RunOutcome, calls: bool, error: Coded | None) -> None:
        if error is not None:
            return
        self._book.admission.ended(state.created_at)
        self._observed.ended(state, outcome)
        self._outcomes.ended(outcome)
        if state.node:
            self._background.spawn(self._pins.mirror(outcome.key))
        if calls:
            self._background.spawn(self._calls.close(outcome.key))

    def _on_loaded(self, run: Run) -> None:
        self._book.take_back(run, self._liveness_of)

    def _liveness_of(self, incarnation: str) -> str:
        return next((m.liveness for m in self._registry.members() if m.incarnation == incarnation and m.liveness), "")

    def _on_durable(self, entities: Sequence[tuple[Entity, int]]) -> None:
        self._queries.on_durable(entities)
        self._events.on_durable(entities)
        self._book.feeding.stored(entities)

    def _on_claimed(self, shard: Shard) -> None:
        self._book.claimed(shard)
        self._queues.claimed()

    def _on_left(self, shard: Shard) -> None:
        """Nothing more is decided for the shard here: forget it, and send away who waits for it."""
        assert shard.moved is not None, "it has left"
        self._ownership.left(shard)
        self._queues.left(shard)
        self._queries.look_again()
        self._events.left(shard)
        self._outcomes.left(shard, shard.moved)

    def _on_lost(self, error: Coded) -> None:
        """The store is lost: nothing new is taken, and who waits for anything is sent away."""
        self._readiness.lost = error
        log.critical("store.lost", code=error.code, error=str(error))
        self._outcomes.fail(error)
        self._queues.stop(error)
        self._queries.fail(error)
        self._events.stop(error)
        if self._on_fatal is not None:
            self._on_fatal(error)
