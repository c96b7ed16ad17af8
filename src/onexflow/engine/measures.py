"""Figures of runs, from what the store counted: nothing is kept for them while runs run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Final

from onexflow.core.machine import TERMINAL_WORKFLOW_STATES, WORKFLOW_STATE_INDEX, WORKFLOW_STATES
from onexflow.core.queue_state import is_system_type
from onexflow.core.turn import SECOND
from onexflow.engine.kernel import Kernel
from onexflow.ports.client_link import RunMetrics
from onexflow.ports.event_store import RunCount, RunFilter, RunRecord

#: Ended runs that durations and throughput are taken from.
MEASURED: Final = 1000
_ENDED: Final = frozenset(WORKFLOW_STATE_INDEX[state] for state in TERMINAL_WORKFLOW_STATES)


async def measure(kernel: Kernel, namespace: str, workflow_type: str) -> RunMetrics:
    """The figures of one type, or of all. Raises UnknownWorkflowType."""
    catalog, store = kernel.catalog, kernel.store
    if workflow_type:
        catalog.record(namespace, workflow_type)
    await kernel.lane.durable()
    counts = await store.count_runs(RunFilter(namespace, workflow_type))
    counts = [count for count in counts if not is_system_type(count.workflow_type)]
    kinds = {(count.workflow_type, count.version) for count in counts}
    sizes = {kind: len(catalog.graph(catalog.record(namespace, *kind)).specs) for kind in kinds}
    newest = await store.list_runs(RunFilter(namespace, workflow_type, _ENDED), "", MEASURED)
    return run_metrics(workflow_type, counts, sizes, [record for _, record in newest.runs], store.now())


def run_metrics(
    workflow_type: str,
    counts: Sequence[RunCount],
    sizes: Mapping[tuple[str, int], int],
    ended: Sequence[RunRecord],
    now: int,
) -> RunMetrics:
    """The figures: `sizes` has the number of tasks by (type, version), `ended` the newest ended runs."""
    by_state: Counter[str] = Counter()
    for count in counts:
        by_state[WORKFLOW_STATES[count.state]] += count.runs
    durations = sorted((record.updated_at - record.created_at) / SECOND for record in ended)
    window = (now - min(record.created_at for record in ended)) / SECOND if ended else 0.0
    return RunMetrics(
        workflow_type=workflow_type,
        by_state=dict(by_state),
        events=sum(count.events for count in counts),
        tasks=sum(count.runs * sizes[count.workflow_type, count.version] for count in counts),
        mean=sum(durations) / len(durations) if durations else 0.0,
        p50=percentile(durations, 0.50),
        p95=percentile(durations, 0.95),
        p99=percentile(durations, 0.99),
        throughput=len(durations) / window if window > 0 else 0.0,
        window=window,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least `share` of the ordered values do not exceed; 0 when there are none."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0
