"""The work queue's decisions: what each call makes of the state. Pure: the store's time and chance come in.

Tasks leave by priority, and waiting raises it (`queue_state.AGEING`), so that `deferred` never starves. Who takes a task
holds a lease; its token is the task's number and the lease's. What comes under a token that is not the present one
changes nothing. A lease that ends gives the task back; a task that fails comes again, later each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from onexflow.core import retry
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidArgument, InvalidTransition, UnknownTask, WorkerLost
from onexflow.core.events import (
    INLINE,
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskFailed,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowStarted,
)
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure, Payload
from onexflow.core.queue_state import (
    ENDED,
    MILLION,
    QUEUED,
    RANK,
    SECOND,
    STREAMS,
    QueueIndex,
    QueueState,
    QueueTask,
    TaskSpec,
    create,
    encode_spec,
    evolve,
    first_event,
)
from onexflow.core.strategies import STRATEGIES, Candidate, choose

#: Backoff between attempts; how many there are is the task's own word.
RETRY: Final = RetryPolicy(policy="exponential", initial_delay=1.0, multiplier=2.0, max_delay=60.0, jitter=0.2)
#: Seconds that a lease lasts when the task says nothing of its timeout. Progress renews it.
LEASE: Final = 300
#: Bytes of payloads that a worker is given at once: one more may come on top.
GIVEN_BYTES: Final = 4 << 20
#: A task that lost so many holders is not given to another.
LOST_LIMIT: Final = 3


class QueueTurn:
    """One decision under way: events are folded as they are emitted."""

    __slots__ = ("events", "index", "jitter", "now", "state")

    def __init__(self, state: QueueState, index: QueueIndex, now: int, jitter: Callable[[], float]) -> None:
        self.state = state
        self.index = index
        self.now = now
        self.jitter = jitter
        self.events: list[Event] = []

    @classmethod
    def first(cls, key: RunKey, name: str, now: int, jitter: Callable[[], float]) -> QueueTurn:
        """The turn that creates a queue."""
        event = first_event(key, name)
        state = create(event, now)
        turn = cls(state, QueueIndex(state), now, jitter)
        turn.events.append(event)
        turn.emit(WorkflowStarted())
        return turn

    def emit(self, event: Event) -> None:
        touched = evolve(self.state, event, self.now)
        self.events.append(event)
        self.index.touch(touched)

    def task(self, task_id: str) -> QueueTask:
        """The task of that id. Raises UnknownTask."""
        number = self.state.ids.get(task_id)
        if number is None:
            raise UnknownTask(f"the queue has no task {task_id!r}", {"task": task_id})
        return self.state.tasks[number]


def check_priority(priority: str) -> str:
    if priority not in RANK:
        raise InvalidArgument(f"{priority!r} is not a priority: {', '.join(RANK)}", field="priority")
    return priority


def enqueue(turn: QueueTurn, spec: TaskSpec, payload: Payload) -> str:
    """Put a task in. An id that is open already stays one task: the higher priority and the earlier time count."""
    number = turn.state.ids.get(spec.task_id)
    if number is not None and turn.state.tasks[number].status not in ENDED:
        _raise(turn, turn.state.tasks[number], spec)
        return spec.task_id
    _check_cycle(turn.state, spec)
    turn.emit(
        TaskScheduled(
            turn.state.last_number + 1, source=INLINE, inputs=(payload, encode_spec(spec)), kind="enqueued"
        )
    )  # fmt: skip
    return spec.task_id


def _raise(turn: QueueTurn, task: QueueTask, spec: TaskSpec) -> None:
    higher = min(task.priority, spec.priority, key=lambda priority: RANK[priority])
    earlier = min(task.not_before, spec.not_before)  # 0: at once
    if task.status in QUEUED | {"blocked"} and (higher != task.priority or earlier != task.not_before):
        turn.emit(StateTransitioned("task.raised", task.priority, higher, [task.number], due_at=earlier))


def _check_cycle(state: QueueState, spec: TaskSpec) -> None:
    """Only a task that others wait for already can close a circle."""
    if spec.task_id in spec.dependencies:
        raise InvalidArgument(f"task {spec.task_id!r} depends on itself", field="dependencies")
    if spec.task_id not in state.waiting:
        return
    seen: set[str] = set()
    look = list(spec.dependencies)
    while look:
        task_id = look.pop()
        if task_id == spec.task_id:
            raise InvalidArgument(f"the dependencies of task {spec.task_id!r} lead back to it", field="dependencies")
        number = state.ids.get(task_id)
        if number is not None and task_id not in seen:
            look.extend(state.tasks[number].spec.dependencies)
        seen.add(task_id)


class Taker:
    """A worker that asks for tasks: it gets at most `room` more."""

    __slots__ = ("bytes", "capabilities", "got", "incarnation", "room", "worker")

    def __init__(self, worker: str, capabilities: frozenset[str], incarnation: str, room: int) -> None:
        self.worker = worker
        self.capabilities = capabilities
        self.incarnation = incarnation
        self.room = room
        self.bytes = 0
        #: What it was given, in order.
        self.got: list[QueueTask] = []


def hand_out(turn: QueueTurn, takers: Sequence[Taker]) -> None:
    """Lease the tasks in their order, each to the worker that the strategy names among those that can take it."""
    while True:
        able = [taker for taker in takers if taker.room]
        if not able:
            return
        capabilities = frozenset[str]().union(*(taker.capabilities for taker in able))
        heads = [task for task in turn.index.heads(turn.now) if _can(task, capabilities)]
        if not heads:
            return
        task = min(heads, key=lambda task: (task.key, task.number))
        fit = {taker.worker: taker for taker in reversed(able) if _can(task, taker.capabilities)}
        chosen = choose(
            turn.state.strategy, [candidate(turn.state, task, t.worker, t.capabilities) for t in fit.values()]
        )
        taker = fit[chosen.worker]
        _lease(turn, task, taker.worker, taker.incarnation, "leased")
        taker.room -= 1
        taker.got.append(task)
        taker.bytes += len(task.payload.data)
        if taker.bytes > GIVEN_BYTES:
            taker.room = 0


def _can(task: QueueTask, capabilities: frozenset[str]) -> bool:
    return not task.spec.capability or task.spec.capability in capabilities


def candidate(state: QueueState, task: QueueTask, worker: str, capabilities: frozenset[str]) -> Candidate:
    """What the strategies look at."""
    holder = state.holders.get(worker)
    numbers = (state.ids.get(dependency) for dependency in task.spec.dependencies)
    near = sum(number is not None and state.tasks[number].worker == worker for number in numbers)
    if holder is None:
        return Candidate(worker, capabilities, near=near)
    return Candidate(worker, capabilities, holder.load, holder.weight, holder.last, near)


def _lease(turn: QueueTurn, task: QueueTask, worker: str, incarnation: str, kind: str) -> None:
    turn.emit(TaskStarted(task.number, [task.attempt + 1], worker, incarnation, turn.now, kind=kind))


def bridge(turn: QueueTurn, task: QueueTask) -> None:
    """Lease a ready task to the workers' streams: a run does it, and the lease lasts as long as that."""
    _lease(turn, task, STREAMS, "", "bridged")


def assign(turn: QueueTurn, task_id: str, worker: str, workers: Mapping[str, tuple[frozenset[str], str]]) -> QueueTask:
    """Lease one task to a worker that is named, or (an empty name) to the one that the strategy picks of `workers`,
    which has (capabilities, incarnation) by name. Raises InvalidTransition for a task that is held, over or
    blocked, or whose queue is paused."""
    task = turn.task(task_id)
    if task.status not in QUEUED or task.spec.queue in turn.state.paused:  # who names it does not mean later
        raise _refused(turn, task, "scheduled")
    able = {name: known for name, known in workers.items() if _can(task, known[0])}
    if not worker:
        if not able:
            raise InvalidArgument(f"no worker that is known can take task {task_id!r}", field="agent_id")
        fit = [candidate(turn.state, task, name, known[0]) for name, known in able.items()]
        worker = choose(turn.state.strategy, fit).worker
    _lease(turn, task, worker, able[worker][1] if worker in able else "", "assigned")
    return task


def complete(turn: QueueTurn, task_id: str, token: str, result: Payload) -> bool:
    """True: the task has this result for ever. False: it was completed already, or the lease is not the present one."""
    task = turn.task(task_id)
    if not _holds(turn, task, token):
        return False
    turn.emit(TaskCompleted(task.number, [task.attempt], [result]))
    return True


def fail(turn: QueueTurn, task_id: str, token: str, error: str | Failure, retry_count: int | None) -> bool:
    """True: the attempt has failed; the task comes again unless its retries are used up. False as in `complete`."""
    task = turn.task(task_id)
    if retry_count is not None and retry_count < 0:
        raise InvalidArgument("retry_count must not be negative", field="retry_count")
    if not _holds(turn, task, token):
        return False
    failure = Failure("TaskFailed", error) if isinstance(error, str) else error
    used = max(task.retry_count, retry_count or 0)
    if used >= task.spec.max_retries:
        turn.emit(TaskFailed(task.number, task.attempt, failure))
        return True
    count = max(task.retry_count + 1, retry_count or 0)
    due = turn.now + int(retry.delay(RETRY, task.retry_count + 1, turn.jitter()) * SECOND)
    turn.emit(TaskRetry(task.number, count, task.attempt + 1, due, failure, "", task.worker))
    return True


def progress(turn: QueueTurn, task_id: str, token: str, share: float) -> bool:
    """Say how far a task is (0 to 1), and renew its lease. False: the lease is not the present one."""
    task = turn.task(task_id)
    if not _holds(turn, task, token):
        return False
    turn.emit(
        StateTransitioned("task.progress", "running", "running", [task.number], item=round(share * MILLION))
    )  # fmt: skip
    return True


def _holds(turn: QueueTurn, task: QueueTask, token: str) -> bool:
    """May this be done under that token? False: superseded, or done already, or of a task that had its id before. An empty token stands for whoever holds
    the task now. Raises InvalidTransition when there never was a lease, or it ended in another way."""
    if task.status == "running":
        return not token or token == task.token
    if task.status == "completed" or (task.attempt and (token or task.status in QUEUED)):
        return False
    if token and token.partition(".")[0] != str(task.number):  # of a task that had this id before, and is over
        return False
    raise _refused(turn, task, "running")


def _refused(turn: QueueTurn, task: QueueTask, required: str) -> InvalidTransition:
    state = shown_state(task, turn.now)
    return InvalidTransition(
        f"task {task.spec.task_id!r} is {state}, and must be {required}",
        {"task": task.spec.task_id, "current_state": state, "required_state": required},
    )


def give_back(turn: QueueTurn, task: QueueTask, kind: str) -> None:
    """The lease on a task has ended (`timeout`), or its holder has (`lost`): the task is free again, if not for the
    LOST_LIMIT-th time."""
    error = Failure(
        "WorkerLost" if kind == "lost" else "LeaseExpired",
        f"worker {task.worker} " + ("is gone" if kind == "lost" else "did not end the task within its lease"),
        code=WorkerLost.code,
    )
    if task.lost + 1 >= LOST_LIMIT:
        turn.emit(TaskFailed(task.number, task.attempt, error, "lost"))
    else:
        turn.emit(TaskRetry(task.number, task.retry_count, task.attempt + 1, turn.now, error, kind, task.worker))


def put_back(turn: QueueTurn, task: QueueTask) -> None:
    """Nothing was done under the lease: the task is free again, as if it had not been leased."""
    turn.emit(TaskRetry(task.number, task.retry_count, task.attempt + 1, turn.now, None, "returned", task.worker))


def expire(turn: QueueTurn) -> None:
    """End the leases that have run out."""
    while (task := turn.index.expired(turn.now)) is not None:
        give_back(turn, task, "timeout")


def release(turn: QueueTurn, worker: str, alive: frozenset[str]) -> None:
    """Give back what a worker holds under a membership that is not among the living."""
    for number in sorted(turn.index.held.get(worker, ())):
        task = turn.state.tasks[number]
        if task.incarnation and task.incarnation not in alive:
            give_back(turn, task, "lost")


def pause(turn: QueueTurn, queue: str) -> bool:
    """Lease nothing more of that queue name. What is leased goes on. False: it is paused already."""
    if queue in turn.state.paused:
        return False
    turn.emit(StateTransitioned("queue.paused", "running", "paused", reason=queue))
    return True


def resume(turn: QueueTurn, queue: str) -> bool:
    if queue not in turn.state.paused:
        return False
    turn.emit(StateTransitioned("queue.resumed", "paused", "running", reason=queue))
    return True


def set_strategy(turn: QueueTurn, strategy: str) -> bool:
    if strategy not in STRATEGIES:
        raise InvalidArgument(f"{strategy!r} is not a strategy: {', '.join(STRATEGIES)}", field="strategy")
    if strategy == turn.state.strategy:
        return False
    turn.emit(StateTransitioned("queue.strategy", turn.state.strategy, strategy))
    return True


def shown_state(task: QueueTask, now: int) -> str:
    """The task's state in the specification's words: one whose time has not come is pending."""
    if task.status == "scheduled":
        return "pending" if task.due_at > now else "scheduled"
    return "scheduled" if task.status == "retrying" and task.due_at <= now else task.status
