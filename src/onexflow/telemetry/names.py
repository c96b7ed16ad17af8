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
    #: A sum is a counter that is read when somebody collects, as a gauge is.
    kind: Literal["counter", "histogram", "gauge", "sum"]
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
OUTCOME: Final = "onexflow.outcome"
REASON: Final = "onexflow.reason"
WAITS_FOR: Final = "onexflow.waits_for"

# ------------------------------------------------------------------------------------------------------------ spans
START: Final = SpanName("start {}", "orchestrator: a run is created, until that is durable; child of the caller's span")
RUN: Final = SpanName("run {}", "orchestrator: the whole run, from its creation to its end, with its outcome")
EXECUTE: Final = SpanName("execute {}", "worker: one attempt of a task, current while the handler runs")

SPANS: Final = (START, RUN, EXECUTE)

# ---------------------------------------------------------------------------------------------------------- metrics
RUNS_STARTED: Final = Metric("onexflow.runs.started", "counter", "{run}", "runs created", (WORKFLOW,))
RUNS_ENDED: Final = Metric(
    "onexflow.runs.ended", "counter", "{run}", "runs that reached a terminal state", (WORKFLOW, STATE)
)
RUN_DURATION: Final = Metric(
    "onexflow.run.duration", "histogram", "s", "from creation to the terminal state", (WORKFLOW, STATE)
)
RUNS_ACTIVE: Final = Metric("onexflow.runs.active", "gauge", "{run}", "open runs held in memory")
RUNS_WAITING: Final = Metric(
    "onexflow.runs.waiting", "gauge", "{run}",
    "open runs held in memory, by what they wait for (blocked.md), as counted after the last reading", (WAITS_FOR,),
)  # fmt: skip
STALLS: Final = Metric(
    "onexflow.stalls.repaired", "sum", "{stall}", "runs and queues that nothing accounted for, repaired by the watchdog"
)
LOOP_LAG: Final = Metric("onexflow.loop.lag", "gauge", "s", "by how much the last measured turn of the loop was late")
ATTEMPTS_ACTIVE: Final = Metric("onexflow.attempts.active", "gauge", "{attempt}", "attempts waiting or running")
WORKERS: Final = Metric("onexflow.workers.connected", "gauge", "{worker}", "workers with an open stream")
EVENTS: Final = Metric("onexflow.store.events", "sum", "{event}", "events made durable")
COMMITS: Final = Metric("onexflow.store.commits", "sum", "{commit}", "group commits; events a commit is their ratio")
REFUSED: Final = Metric("onexflow.starts.refused", "sum", "{start}", "starts refused because too much is under way")
SUPERSEDED: Final = Metric(
    "onexflow.results.superseded", "sum", "{result}", "results that the log does not wait for, refused"
)
WORKER_SLOTS: Final = Metric(
    "onexflow.worker.slots", "gauge", "{slot}", "slots of a worker: running, free", (ROLE, STATE)
)
WORKER_RESULTS: Final = Metric(
    "onexflow.worker.attempts", "sum", "{attempt}", "attempts that a worker has ended: completed, failed", (OUTCOME,)
)
REGISTRY_RENEWAL: Final = Metric(
    "onexflow.registry.renewal", "histogram", "s", "a renewal of this process's lease, from request to answer"
)
REGISTRY_LEASE: Final = Metric(
    "onexflow.registry.lease",
    "gauge",
    "s",
    "how long the lease lasts if it is not renewed any more; below 0: it may have ended",
)
REGISTRY_RECONNECTS: Final = Metric(
    "onexflow.registry.reconnects",
    "counter",
    "{reconnect}",
    "watches lost and opened anew, by etcd's status",
    (REASON,),
)
REGISTRY_GAP: Final = Metric(
    "onexflow.registry.gap", "histogram", "{revision}", "revisions of etcd that went by until a lost watch was back"
)
REGISTRY_AMBIGUOUS: Final = Metric(
    "onexflow.registry.ambiguous", "counter", "{transaction}", "transactions whose answer never came: asked again"
)
BRIDGE_PUBLISHED: Final = Metric(
    "onexflow.bridge.published", "sum", "{event}", "events that JetStream has acknowledged"
)
BRIDGE_REPEATED: Final = Metric(
    "onexflow.bridge.repeated", "sum", "{event}", "events that were refused, or lost with a connection, and sent again"
)
BRIDGE_PARKED: Final = Metric(
    "onexflow.bridge.parked", "sum", "{event}", "events that NATS will never take, kept as dead letters"
)
BRIDGE_MISSED: Final = Metric(
    "onexflow.bridge.missed",
    "sum",
    "{event}",
    "events that were cut out of histories before they were read",
    (NAMESPACE,),
)
BRIDGE_WAITING: Final = Metric(
    "onexflow.bridge.waiting", "gauge", "{event}", "events that were read and are not acknowledged by JetStream"
)
BRIDGE_LAG: Final = Metric(
    "onexflow.bridge.lag", "gauge", "{event}", "events of the log behind which the bridge is, at the most", (NAMESPACE,)
)

METRICS: Final = (
    RUNS_STARTED, RUNS_ENDED, RUN_DURATION, RUNS_ACTIVE, RUNS_WAITING, STALLS, LOOP_LAG, ATTEMPTS_ACTIVE, WORKERS, EVENTS, COMMITS, SUPERSEDED,
    REFUSED,
    WORKER_SLOTS, WORKER_RESULTS, REGISTRY_RENEWAL, REGISTRY_LEASE, REGISTRY_RECONNECTS, REGISTRY_GAP,
    REGISTRY_AMBIGUOUS,
    BRIDGE_PUBLISHED, BRIDGE_REPEATED, BRIDGE_PARKED, BRIDGE_MISSED, BRIDGE_WAITING, BRIDGE_LAG,
)  # fmt: skip
