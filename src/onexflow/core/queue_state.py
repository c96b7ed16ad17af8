"""The state of a work queue: what its events fold into, and the index that makes each operation O(log n).

A work queue is an instance of its own (docs/onex.md): its events stand in its shard's stream beside those of runs. A task
of it is known by its number. `QueueState` is the snapshot too; the index is rebuilt from it and never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Final
from uuid import UUID

import msgspec

from onexflow.core.events import (
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskFailed,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowCreated,
    WorkflowStarted,
)
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.core.payload import NULL, Failure, Payload

QUEUE_TYPE: Final = "$queue"
#: Who holds the tasks that runs do on the workers' streams (engine.queue_bridge).
STREAMS: Final = "$workers"
SECOND: Final = 1_000_000_000
#: Most urgent first; what a task weighs for `priority_weighted` is how many come after its own.
PRIORITIES: Final = ("urgent", "critical", "high", "normal", "low", "deferred")
RANK: Final = {name: rank for rank, name in enumerate(PRIORITIES)}
#: Waiting so long is worth one priority, so that nothing waits for ever.
AGEING: Final = 300 * SECOND
#: Ended tasks that can be asked for; older ones are forgotten, FORGOTTEN at a time.
KEPT: Final = 10_000
FORGOTTEN: Final = 1_000
#: Fractions of progress are stored as millionths.
MILLION: Final = 1_000_000
#: Encoding of the second payload of `task.scheduled` of kind `enqueued`.
TASK_ENCODING: Final = "onexflow.queue-task.1"

QUEUED: Final = frozenset({"scheduled", "retrying"})
ENDED: Final = frozenset({"completed", "failed", "skipped"})


def is_system_type(workflow_type: str) -> bool:
    """Is it an instance of ours that is no run?"""
    return workflow_type.startswith("$")


def queue_key(namespace: str, name: str, partition: int = 0) -> RunKey:
    """The name of a work queue's instance."""
    return RunKey(namespace, QUEUE_TYPE, derived_uuid(f"queue:{name}:{partition}"))


class TaskSpec(msgspec.Struct, array_like=True, frozen=True):
    """A task as it was put in the queue, its payload apart."""

    task_id: str
    name: str = ""
    type: str = "effect"
    queue: str = "default"
    priority: str = "normal"
    capability: str = ""
    dependencies: tuple[str, ...] = ()
    max_retries: int = 3
    #: How long a lease on it lasts, and what the user said of it.
    lease: int = 0
    timeout: float = 0.0
    not_before: int = 0
    workflow_type: str = ""
    instance_id: str = ""
    idempotency_key: str = ""


class QueueTask(msgspec.Struct, array_like=True):
    """One task of the queue."""

    number: int
    spec: TaskSpec
    payload: Payload
    priority: str
    #: blocked | scheduled | running | retrying | completed | failed | skipped
    status: str
    #: When it may be leased: the end of its delay, or of the backoff.
    due_at: int
    not_before: int
    created_at: int
    #: Dependencies that have not completed.
    unresolved: int = 0
    retry_count: int = 0
    lost: int = 0
    #: Number of the lease, from 1: the tasks's token is its number and this.
    attempt: int = 0
    worker: str = ""
    incarnation: str = ""
    assigned: bool = False
    progress: int = 0
    lease_until: int = 0
    started_at: int = 0
    finished_at: int = 0
    result: Payload | None = None
    error: Failure | None = None

    @property
    def key(self) -> int:
        """Its place in the order: the lower, the sooner."""
        return max(self.created_at, self.not_before) + RANK[self.priority] * AGEING

    @property
    def token(self) -> str:
        return f"{self.number}.{self.attempt}"

    @property
    def weight(self) -> int:
        return len(PRIORITIES) - RANK[self.priority]


class Holder(msgspec.Struct, array_like=True):
    """What a worker holds: how many tasks, their weight, and the number of its last assignment."""

    load: int = 0
    weight: int = 0
    last: int = 0


class QueueState(msgspec.Struct, array_like=True):
    """One work queue."""

    namespace: str
    instance: bytes
    created_at: int
    status: str = "pending"
    seq: int = 0
    version: int = 1
    updated_at: int = 0
    last_number: int = 0
    assignments: int = 0
    strategy: str = "round_robin"
    tasks: dict[int, QueueTask] = {}
    ids: dict[str, int] = {}
    #: Numbers of the tasks that wait for a task id.
    waiting: dict[str, list[int]] = {}
    paused: dict[str, bool] = {}
    holders: dict[str, Holder] = {}
    #: Ended tasks that are kept, in order; and how many ended in each way.
    ended: list[int] = []
    totals: dict[str, int] = {}

    @property
    def key(self) -> RunKey:
        return RunKey(self.namespace, QUEUE_TYPE, UUID(bytes=self.instance))


def create(event: WorkflowCreated, at: int) -> QueueState:
    """The state after the first event."""
    return QueueState(event.namespace, event.instance, at, seq=1, updated_at=at)


def evolve(state: QueueState, event: Event, at: int) -> list[QueueTask]:
    """Fold one event; returns the tasks that it touched. Kinds of newer releases are counted and change nothing."""
    state.seq += 1
    state.updated_at = at
    match event:
        case WorkflowStarted():
            state.status = "running"
        case TaskScheduled(kind="enqueued"):
            return [_enqueued(state, event, at)]
        case TaskStarted():
            return [_leased(state, event, at)]
        case TaskCompleted():
            task = state.tasks[event.task]
            task.result, task.progress = event.results[0], MILLION
            return [task, *_end(state, task, "completed", at)]
        case TaskFailed():
            task = state.tasks[event.task]
            task.error = event.error
            return [task, *_end(state, task, "failed", at)]
        case TaskRetry():
            return [_retried(state, event)]
        case StateTransitioned():
            return _transitioned(state, event, at)
        case _:
            pass
    return []


def _enqueued(state: QueueState, event: TaskScheduled, at: int) -> QueueTask:
    spec = msgspec.msgpack.decode(event.inputs[1].data, type=TaskSpec)
    task = QueueTask(
        event.task, spec, event.inputs[0], spec.priority, "scheduled", spec.not_before or at, spec.not_before, at
    )
    state.last_number = event.task
    state.tasks[event.task] = task
    state.ids[spec.task_id] = event.task
    for dependency in spec.dependencies:
        number = state.ids.get(dependency)
        status = state.tasks[number].status if number is not None else ""
        if status in ("failed", "skipped"):
            task.status = "skipped"
        elif status != "completed":
            task.unresolved += 1
            state.waiting.setdefault(dependency, []).append(task.number)
    if task.status == "skipped":
        _end(state, task, "skipped", at)
    elif task.unresolved:
        task.status = "blocked"
    return task


def _leased(state: QueueState, event: TaskStarted, at: int) -> QueueTask:
    task = state.tasks[event.task]
    state.assignments += 1
    task.status, task.attempt = "running", event.items[0]
    task.worker, task.incarnation, task.assigned = event.worker, event.incarnation, event.kind == "assigned"
    # What a run does is the run's to give up: such a lease has no end of its own.
    task.lease_until = 0 if event.kind == "bridged" else at + task.spec.lease
    task.started_at, task.progress = at, 0
    holder = state.holders.setdefault(event.worker, Holder())
    holder.load += 1
    holder.weight += task.weight
    holder.last = state.assignments
    if len(state.holders) > KEPT:
        for worker in [name for name, idle in state.holders.items() if not idle.load][:FORGOTTEN]:
            del state.holders[worker]
    return task


def _retried(state: QueueState, event: TaskRetry) -> QueueTask:
    task = state.tasks[event.task]
    _release(state, task)
    task.status, task.due_at, task.error, task.retry_count = "retrying", event.due_at, event.error, event.item
    task.lost += event.kind in {"timeout", "lost"}
    return task


def _transitioned(state: QueueState, event: StateTransitioned, at: int) -> list[QueueTask]:
    touched = [state.tasks[number] for number in event.tasks]
    match event.kind:
        case "queue.paused":
            state.paused[event.reason] = True
        case "queue.resumed":
            state.paused.pop(event.reason, None)
        case "queue.strategy":
            state.strategy = event.target
        case "task.raised":
            for task in touched:
                task.priority, task.not_before = event.target, event.due_at
                if task.status != "retrying":
                    task.due_at = event.due_at or task.created_at
        case "task.progress":
            for task in touched:
                task.progress, task.assigned = event.item, False
                if task.lease_until:
                    task.lease_until = at + task.spec.lease
        case _:
            return []
    return touched


def _release(state: QueueState, task: QueueTask) -> None:
    if task.status == "running":
        holder = state.holders.get(task.worker)
        if holder is not None:
            holder.load -= 1
            holder.weight -= task.weight
    task.assigned = False


def _end(state: QueueState, task: QueueTask, status: str, at: int) -> list[QueueTask]:
    """The task has ended, and what follows: dependents become free, or can never be done. Returns those."""
    touched: list[QueueTask] = []
    ending = [(task, status)]
    while ending:
        task, status = ending.pop()
        _release(state, task)
        task.status, task.finished_at, task.lease_until = status, at, 0
        state.ended.append(task.number)
        state.totals[status] = state.totals.get(status, 0) + 1
        for number in state.waiting.pop(task.spec.task_id, ()):
            dependent = state.tasks.get(number)
            if dependent is None or dependent.status != "blocked":
                continue
            touched.append(dependent)
            if status != "completed":
                ending.append((dependent, "skipped"))
                continue
            dependent.unresolved -= 1
            if not dependent.unresolved:
                dependent.status = "scheduled"
    if len(state.ended) > KEPT + FORGOTTEN:
        for number in state.ended[:FORGOTTEN]:
            old = state.tasks.pop(number)
            if state.ids.get(old.spec.task_id) == number:
                del state.ids[old.spec.task_id]
        del state.ended[:FORGOTTEN]
    return touched


class QueueIndex:
    """Where the next task, the next delay's end and the next lease's end are found. Heaps whose entries may be stale:
    one that does not say what the task says is dropped when its turn comes."""

    def __init__(self, state: QueueState) -> None:
        self._state = state
        #: By (queue name, required capability): (key, number).
        self._ready: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        #: The same by (queue name, required capability, type, name), of those tasks that `watch` named.
        self._named: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._watched: frozenset[tuple[str, str]] = frozenset()
        self._delayed: list[tuple[int, int]] = []
        self._leases: list[tuple[int, int]] = []
        #: Numbers of the tasks that a worker holds.
        self.held: dict[str, set[int]] = {}
        self._holder: dict[int, str] = {}
        self.touch(state.tasks.values())

    def touch(self, tasks: Iterable[QueueTask]) -> None:
        for task in tasks:
            was = self._holder.pop(task.number, None)
            if was is not None:
                self.held[was].discard(task.number)
                if not self.held[was]:
                    del self.held[was]
            if task.status in QUEUED:
                heappush(self._delayed, (task.due_at, task.number))
            elif task.status == "running":
                if task.lease_until:
                    heappush(self._leases, (task.lease_until, task.number))
                self.held.setdefault(task.worker, set()).add(task.number)
                self._holder[task.number] = task.worker

    def _promote(self, now: int) -> None:
        """Move what is due now to where it is found by its place in the order."""
        while self._delayed and self._delayed[0][0] <= now:
            due, number = heappop(self._delayed)
            task = self._state.tasks.get(number)
            if task is not None and task.status in QUEUED and task.due_at == due:
                group = (task.spec.queue, task.spec.capability)
                heappush(self._ready.setdefault(group, []), (task.key, number))
                if (task.spec.type, task.spec.name) in self._watched:
                    self._push_named(task)

    def watch(self, handlers: frozenset[tuple[str, str]]) -> None:
        """From now on `named_heads` has the tasks of these types and names."""
        new, self._watched = handlers - self._watched, self._watched | handlers
        for task in self._state.tasks.values():
            if task.status in QUEUED and (task.spec.type, task.spec.name) in new:
                self._push_named(task)

    def _push_named(self, task: QueueTask) -> None:
        spec = task.spec
        heap = self._named.setdefault((spec.queue, spec.capability, spec.type, spec.name), [])
        heappush(heap, (task.key, task.number))

    def heads(self, now: int) -> Iterator[QueueTask]:
        """The first task of each queue name and capability, where the queue is not paused."""
        return self._heads(self._ready, now)

    def named_heads(self, now: int) -> Iterator[QueueTask]:
        """The first task of each queue name, capability and watched handler, where the queue is not paused."""
        return self._heads(self._named, now)

    def _heads(self, groups: dict[tuple[str, ...], list[tuple[int, int]]], now: int) -> Iterator[QueueTask]:
        self._promote(now)
        for group in list(groups):
            heap = groups[group]
            while heap:
                key, number = heap[0]
                task = self._state.tasks.get(number)
                if task is not None and task.status in QUEUED and task.due_at <= now and task.key == key:
                    break
                heappop(heap)
            if not heap:
                del groups[group]
            elif group[0] not in self._state.paused:
                yield self._state.tasks[heap[0][1]]

    def expired(self, now: int) -> QueueTask | None:
        """A task whose lease has run out."""
        task = self._next_lease()
        return task if task is not None and task.lease_until <= now else None

    def _next_lease(self) -> QueueTask | None:
        while self._leases:
            until, number = self._leases[0]
            task = self._state.tasks.get(number)
            if task is not None and task.status == "running" and task.lease_until == until:
                return task
            heappop(self._leases)
        return None

    def next_due(self, now: int) -> int:
        """When there is something to do without being asked: a lease or a delay ends. 0: nothing."""
        self._promote(now)
        lease = self._next_lease()
        dues = [lease.lease_until] if lease is not None else []
        if self._delayed:
            dues.append(self._delayed[0][0])
        return min(dues, default=0)


def encode_spec(spec: TaskSpec) -> Payload:
    return Payload(msgspec.msgpack.encode(spec), TASK_ENCODING)


def first_event(key: RunKey, name: str) -> WorkflowCreated:
    return WorkflowCreated(key.namespace, QUEUE_TYPE, 1, "", key.instance_id.bytes, NULL, name)
