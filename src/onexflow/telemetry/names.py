"""The names of all spans, metrics and attributes, in one place (docs/telemetry.md is made from here).

Units follow OpenTelemetry: seconds (`s`), bytes (`By`), counted things in braces. A run's id is an attribute of spans
and logs, never of a metric: that would be a time series a run.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class SpanName(NamedTuple):
    """A kind of span: `{}` in the name stands for the workflow or task."""

    name: str
    meaning: str

    def of(self, subject: str) -> str:
        return self.name.format(subject)


class Metric(NamedTuple):
    """An instrument."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------- attributes
NAMESPACE: Final = "onexflow.namespace"
WORKFLOW: Final = "onexflow.workflow"
RUN_ID: Final = "onexflow.run.id"
TASK: Final = "onexflow.task"
ATTEMPT: Final = "onexflow.attempt"
ROLE: Final = "onexflow.role"
STATE: Final = "onexflow.state"
WORKER: Final = "onexflow.worker"
OUTCOME: Final = "onexflow.outcome"
REASON: Final = "onexflow.reason"

# ------------------------------------------------------------------------------------------------------------ spans
START: Final = SpanName("start {}", "client: a run is started, from the call to its acknowledgement")
RUN: Final = SpanName("run {}", "orchestrator: a run, from its creation to its end")
EXECUTE: Final = SpanName("execute {}", "worker: one attempt of a task, from its start to its result")
RESULT: Final = SpanName("result {}", "orchestrator: the result of an attempt is recorded")

SPANS: Final = (START, RUN, EXECUTE, RESULT)

# ---------------------------------------------------------------------------------------------------------- metrics
RUNS_STARTED: Final = Metric("onexflow.runs.started", "counter", "{run}", "runs created", (WORKFLOW,))
RUNS_ENDED: Final = Metric(
    "onexflow.runs.ended", "counter", "{run}", "runs that reached a terminal state", (WORKFLOW, STATE)
)
RUNS_ACTIVE: Final = Metric("onexflow.runs.active", "gauge", "{run}", "open runs held in memory")
RUN_DURATION: Final = Metric(
    "onexflow.run.duration", "histogram", "s", "from creation to the terminal state", (WORKFLOW, STATE)
)
TASKS_DISPATCHED: Final = Metric("onexflow.tasks.dispatched", "counter", "{task}", "attempts sent to workers", (ROLE,))
TASKS_COMPLETED: Final = Metric("onexflow.tasks.completed", "counter", "{task}", "results recorded", (ROLE,))
TASKS_FAILED: Final = Metric("onexflow.tasks.failed", "counter", "{task}", "attempts that failed", (ROLE, REASON))
RESULTS_REFUSED: Final = Metric(
    "onexflow.results.refused", "counter", "{result}", "results of superseded attempts, refused", (REASON,)
)
TASK_WAIT: Final = Metric(
    "onexflow.task.schedule_to_start", "histogram", "s", "from schedule to the start on a worker", (ROLE,)
)
TASK_EXECUTION: Final = Metric(
    "onexflow.task.execution", "histogram", "s", "how long a handler ran", (ROLE, TASK, OUTCOME)
)
QUEUE_DEPTH: Final = Metric("onexflow.queue.depth", "gauge", "{task}", "tasks waiting for a worker", (ROLE,))
APPEND_DURATION: Final = Metric(
    "onexflow.store.append.duration", "histogram", "s", "one group commit, from hand-over to durable"
)
APPEND_EVENTS: Final = Metric("onexflow.store.append.events", "counter", "{event}", "events made durable")
LOOP_LAG: Final = Metric("onexflow.loop.lag", "gauge", "s", "how late the shard loop turns")
TIMER_DRIFT: Final = Metric("onexflow.timer.drift", "histogram", "s", "how late timers fire")
LEASES_LOST: Final = Metric("onexflow.lease.lost", "counter", "{lease}", "memberships that etcd ended or forgot")
STREAMS_OPEN: Final = Metric("onexflow.streams.open", "gauge", "{stream}", "sessions of workers and clients", (ROLE,))
RECONNECTS: Final = Metric("onexflow.stream.reconnects", "counter", "{stream}", "sessions that were made again")
WORKER_SLOTS: Final = Metric("onexflow.worker.slots", "gauge", "{slot}", "slots of a worker", (ROLE, STATE))

METRICS: Final = (
    RUNS_STARTED, RUNS_ENDED, RUNS_ACTIVE, RUN_DURATION, TASKS_DISPATCHED, TASKS_COMPLETED, TASKS_FAILED,
    RESULTS_REFUSED, TASK_WAIT, TASK_EXECUTION, QUEUE_DEPTH, APPEND_DURATION, APPEND_EVENTS, LOOP_LAG, TIMER_DRIFT,
    LEASES_LOST, STREAMS_OPEN, RECONNECTS, WORKER_SLOTS,
)  # fmt: skip
