"""What an orchestrator tells the outside about itself: two spans and two counts a run, and gauges that only look.

Per run and never per task: a task's span is its worker's, and what is counted by the thousand is kept as plain integers
that are read when somebody collects. When nobody measures or records spans, a run costs two looks at a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from onexflow.core.ids import RunKey
from onexflow.core.state import RunState
from onexflow.core.turn import SECOND
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.fitness import Fitness
from onexflow.engine.kernel import Kernel
from onexflow.engine.sessions import Sessions
from onexflow.engine.watchdog import Watchdog
from onexflow.ports.client_link import RunOutcome
from onexflow.telemetry import metrics, names, tracing


class Observed:
    """The instruments of one orchestrator."""

    def __init__(
        self, kernel: Kernel, book: AttemptBook, sessions: Sessions, watchdog: Watchdog, fitness: Fitness
    ) -> None:
        self._now = kernel.now
        self._is_measured = metrics.active()
        self._started = metrics.counter(names.RUNS_STARTED)
        self._ended = metrics.counter(names.RUNS_ENDED)
        self._durations = metrics.histogram(names.RUN_DURATION)
        readings: dict[names.Metric, Callable[[], float]] = {
            names.RUNS_ACTIVE: lambda: sum(_open_runs(kernel)),
            names.ATTEMPTS_ACTIVE: lambda: len(book.attempts),
            names.WORKERS: lambda: len(sessions.by_worker),
            names.EVENTS: lambda: kernel.lane.events,
            names.COMMITS: lambda: kernel.lane.commits,
            names.SUPERSEDED: lambda: book.superseded,
            names.REFUSED: lambda: book.admission.refused,
            names.LOOP_LAG: lambda: fitness.lag,
            names.STALLS: lambda: watchdog.repaired,
        }
        metrics.observe(
            names.RUNS_WAITING, lambda: [(n, {names.WAITS_FOR: kind}) for kind, n in watchdog.counts().items()]
        )
        for metric, read in readings.items():
            metrics.observe(metric, partial(_one, read))

    def begin(self, key: RunKey, parent: str) -> Span | None:
        """The span of a start, ended by `begun`; None when nobody records."""
        if not tracing.active():
            return None
        return tracing.start(
            names.START.of(key.workflow_type), parent=parent, kind=SpanKind.SERVER, attributes=_attributes(key)
        )

    def begun(self, key: RunKey, span: Span | None, error: Exception | None) -> None:
        """The start is durable, or never will be."""
        if error is None and self._is_measured:
            self._started.add(1, {names.WORKFLOW: key.workflow_type})
        if span is not None:
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()

    def ended(self, state: RunState, outcome: RunOutcome) -> None:
        """The end of a run is durable."""
        key, now = outcome.key, self._now()
        if self._is_measured:
            attributes = {names.WORKFLOW: key.workflow_type, names.STATE: outcome.state}
            self._ended.add(1, attributes)
            self._durations.record((now - state.created_at) / SECOND, attributes)
        if tracing.active():
            tracing.record(
                names.RUN.of(key.workflow_type),
                parent=state.trace,
                start_time=state.created_at,
                end_time=now,
                attributes={**_attributes(key), names.STATE: outcome.state},
                error="" if outcome.error is None else f"{outcome.error.type}: {outcome.error.message}",
            )


def _one(read: Callable[[], float]) -> list[tuple[float, dict[str, str]]]:
    return [(read(), {})]


def _attributes(key: RunKey) -> dict[str, str]:
    return {names.NAMESPACE: key.namespace, names.WORKFLOW: key.workflow_type, names.RUN_ID: str(key.instance_id)}


def _open_runs(kernel: Kernel) -> Iterable[bool]:
    """Called on a collector's thread: looks at copies."""
    return (not run.is_over for shard in list(kernel.shards.values()) for run in list(shard.runs.values()))
