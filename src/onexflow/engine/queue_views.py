"""Work queues as their callers see them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from onexflow.core.blocked import Blocked
from onexflow.core.queue import shown_state
from onexflow.core.queue_state import ENDED, MILLION, QUEUED, SECOND, STREAMS, QueueState, QueueTask
from onexflow.engine.measures import percentile
from onexflow.engine.node_entries import QueueTally
from onexflow.ports.queue import Figures, QueueFigures, TaskView


def task_view(task: QueueTask, now: int, *, with_token: bool = False, blocked: Blocked | None = None) -> TaskView:
    spec = task.spec
    return TaskView(
        task_id=spec.task_id,
        state=shown_state(task, now),
        priority=task.priority,
        token=task.token if with_token else "",
        name=spec.name,
        type=spec.type,
        queue=spec.queue,
        capability=spec.capability,
        dependencies=spec.dependencies,
        payload=task.payload,
        max_retries=spec.max_retries,
        retry_count=task.retry_count,
        attempt=task.attempt,
        timeout=spec.timeout,
        workflow_type=spec.workflow_type,
        instance_id=spec.instance_id,
        idempotency_key=spec.idempotency_key,
        worker="" if task.status in QUEUED else task.worker,
        assigned=task.assigned,
        progress=task.progress / MILLION,
        result=task.result,
        error=task.error.message if task.error is not None and task.status != "completed" else "",
        created_at=task.created_at,
        not_before=task.due_at if task.due_at > task.created_at else 0,
        started_at=task.started_at,
        finished_at=task.finished_at,
        blocked=blocked,
    )


def ticket_blocked(
    state: QueueState, task: QueueTask, now: int, run: str, serves: Callable[[str, str], bool]
) -> Blocked | None:
    """What a task waits for; None when it has ended. `run` does it while it is leased to the streams, and `serves` says
    whether workers take tasks of that type and name."""
    spec = task.spec
    if task.status in ENDED:
        return None
    if task.status == "blocked":
        done = (state.ids.get(name, 0) for name in spec.dependencies)
        names = tuple(
            name
            for name, number in zip(spec.dependencies, done, strict=True)
            if number not in state.tasks or state.tasks[number].status != "completed"
        )
        return Blocked(kind="dependencies", names=names)
    if task.status == "running":
        names = (run,) if task.worker == STREAMS else ()
        return Blocked(
            kind="leased", worker="" if names else task.worker, attempt=task.attempt, since=task.started_at, names=names,
            until=task.lease_until, next_wake_at=task.lease_until,
        )  # fmt: skip
    if spec.queue in state.paused:
        return Blocked(kind="paused", reason=f"the queue {spec.queue}")
    if task.due_at > now and task.status == "retrying":
        return Blocked(kind="retry", attempt=task.attempt + 1, until=task.due_at, next_wake_at=task.due_at)
    if task.due_at > now:
        return Blocked(kind="delayed", until=task.due_at, next_wake_at=task.due_at)
    since = max(task.created_at, task.due_at)
    if serves(spec.type, spec.name):
        return Blocked(kind="no_slot", role=spec.type, handler=spec.name, since=since)
    return Blocked(kind="unclaimed", role=spec.type, handler=spec.name, since=since)


def waiting_tasks(state: QueueState, now: int, *, ready: bool) -> list[QueueTask]:
    """The tasks that wait for nothing but a worker or their time, in their order: first those that could be leased now;
    only those if `ready`."""

    def is_ready(task: QueueTask) -> bool:
        return task.status in QUEUED and task.due_at <= now and task.spec.queue not in state.paused

    found = [task for task in state.tasks.values() if task.status in QUEUED]
    if ready:
        found = [task for task in found if is_ready(task)]
    return sorted(found, key=lambda task: (not is_ready(task), task.key, task.number))


def figures(state: QueueState, now: int) -> Figures:
    """Looks at every task: not for a hot path."""
    by_queue: dict[str, Counter[str]] = {name: Counter() for name in state.paused}
    workers: dict[str, set[str]] = {}
    by_priority: Counter[str] = Counter()
    oldest = now
    for task in state.tasks.values():
        if task.status in ENDED:
            by_queue.setdefault(task.spec.queue, Counter())
            continue
        kind = "in_progress" if task.status == "running" else "delayed" if _is_delayed(task, now) else "pending"
        by_queue.setdefault(task.spec.queue, Counter())[kind] += 1
        if kind == "in_progress":
            workers.setdefault(task.spec.queue, set()).add(task.worker)
        else:
            by_priority[task.priority] += 1
            oldest = min(oldest, task.created_at)
    queues = tuple(
        QueueFigures(
            queue=name,
            paused=name in state.paused,
            pending=counts["pending"],
            delayed=counts["delayed"],
            in_progress=counts["in_progress"],
            workers=len(workers.get(name, ())),
        )
        for name, counts in sorted(by_queue.items())
    )
    ended = [state.tasks[number] for number in state.ended if state.tasks[number].started_at]
    window = (now - min(task.finished_at for task in ended)) / SECOND if ended else 0.0
    return Figures(
        pending=sum(queue.pending for queue in queues),
        delayed=sum(queue.delayed for queue in queues),
        in_progress=sum(queue.in_progress for queue in queues),
        completed=state.totals.get("completed", 0),
        failed=state.totals.get("failed", 0),
        skipped=state.totals.get("skipped", 0),
        oldest_age=(now - oldest) / SECOND,
        throughput=len(ended) / window if window > 0 else 0.0,
        strategy=state.strategy,
        by_priority=dict(by_priority),
        # Who was to come later has not waited before.
        wait=_spread((task.started_at - max(task.created_at, task.not_before)) / SECOND for task in ended),
        run=_spread((task.finished_at - task.started_at) / SECOND for task in ended),
        queues=queues,
    )


def queue_tally(states: Iterable[QueueState], worker: str) -> QueueTally:
    """What a worker has done, of the tasks that are kept, and how many it holds."""
    running = completed = failed = 0
    durations = []
    for task in (task for state in states for task in state.tasks.values() if task.worker == worker):
        if task.status == "running":
            running += 1
        elif task.status in ("completed", "failed"):
            completed += task.status == "completed"
            failed += task.status == "failed"
            durations.append(task.finished_at - task.started_at)
    return QueueTally(running, completed, failed, durations)


def _is_delayed(task: QueueTask, now: int) -> bool:
    return task.status in QUEUED and task.due_at > now


def _spread(seconds: Iterable[float]) -> tuple[float, float, float, float]:
    """Mean, p50, p95 and p99."""
    ordered = sorted(seconds)
    if not ordered:
        return (0.0, 0.0, 0.0, 0.0)
    mean = sum(ordered) / len(ordered)
    return (mean, percentile(ordered, 0.50), percentile(ordered, 0.95), percentile(ordered, 0.99))
