"""Work queue port: the calls of a work queue as values. The engine answers them (`engine.queue_book`), and so does a client
over gRPC (`client.remote`); `engine.protocols.WorkQueue` makes the specification's object of them.

Every answer is durable. A repeated call with the same request_id gets the first answer, also after a failover. Errors:
UnknownTask, InvalidTransition, InvalidArgument, Overloaded, Unavailable.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from onexflow.core.blocked import Blocked
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.core.payload import NULL, Payload

#: Most tasks of one answer.
MAX_TASKS = 1000


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands."""

    task_id: str
    state: str
    priority: str
    token: str = ""  #: of the present lease; given only to who got it
    name: str = ""
    type: str = "effect"
    queue: str = "default"
    capability: str = ""
    dependencies: tuple[str, ...] = ()
    payload: Payload = NULL
    max_retries: int = 3
    retry_count: int = 0
    attempt: int = 0
    timeout: float = 0.0
    workflow_type: str = ""
    instance_id: str = ""
    idempotency_key: str = ""
    worker: str = ""
    assigned: bool = False  #: by name, and not begun
    progress: float = 0.0
    result: Payload | None = None
    error: str = ""
    created_at: int = 0
    not_before: int = 0
    started_at: int = 0
    finished_at: int = 0
    blocked: Blocked | None = None  #: what it waits for, where it was asked for by itself or in a list


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One queue name."""

    queue: str
    paused: bool = False
    pending: int = 0
    delayed: int = 0
    in_progress: int = 0
    workers: int = 0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """All queue names together. Durations are of the ended tasks that are kept: mean, p50, p95, p99."""

    pending: int = 0
    delayed: int = 0
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    skipped: int = 0
    oldest_age: float = 0.0
    throughput: float = 0.0
    strategy: str = ""
    by_priority: dict[str, int] = {}
    wait: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    run: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    queues: tuple[QueueFigures, ...] = ()


class Call(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="call"):
    """Base: which work queue, and under which request id."""

    namespace: str = DEFAULT_NAMESPACE
    work_queue: str = "default"
    request_id: str = ""


class Enqueue(Call, frozen=True, kw_only=True):
    """Put a task in. The same open task_id again: the higher priority and the earlier time count."""

    task_id: str
    priority: str = "normal"
    delay: float = 0.0
    not_before: int = 0
    name: str = ""
    type: str = "effect"
    queue: str = "default"
    capability: str = ""
    dependencies: tuple[str, ...] = ()
    payload: Payload = NULL
    max_retries: int = 3
    timeout: float = 0.0
    workflow_type: str = ""
    instance_id: str = ""
    idempotency_key: str = ""


class Dequeue(Call, frozen=True, kw_only=True):
    """Lease up to `max_tasks`, waiting up to `wait` seconds for the first."""

    worker_id: str
    max_tasks: int = 1
    wait: float = 0.0


class Complete(Call, frozen=True, kw_only=True):
    """`changed` False: done already, or superseded. An empty token stands for the present lease."""

    task_id: str
    token: str = ""
    result: Payload = NULL


class Fail(Call, frozen=True, kw_only=True):
    task_id: str
    token: str = ""
    error: str = ""
    retry_count: int | None = None


class Progress(Call, frozen=True, kw_only=True):
    """`share` is from 0 to 1. Renews the lease."""

    task_id: str
    token: str = ""
    share: float


class Assign(Call, frozen=True, kw_only=True):
    """Lease one task to `worker_id`; empty: to whom the strategy picks."""

    task_id: str
    worker_id: str = ""


class Pause(Call, frozen=True, kw_only=True):
    queue: str


class Resume(Call, frozen=True, kw_only=True):
    queue: str


class SetStrategy(Call, frozen=True, kw_only=True):
    strategy: str


class GetTask(Call, frozen=True, kw_only=True):
    task_id: str


class ListTasks(Call, frozen=True, kw_only=True):
    """Tasks in their order: all that could be assigned, those that could be leased now, or what `task_id` depends on."""

    which: Literal["pending", "ready", "dependencies"] = "pending"
    task_id: str = ""
    limit: int = MAX_TASKS


class Measure(Call, frozen=True, kw_only=True):
    """Figures."""


AnyCall = (
    Enqueue
    | Dequeue
    | Complete
    | Fail
    | Progress
    | Assign
    | Pause
    | Resume
    | SetStrategy
    | GetTask
    | ListTasks
    | Measure
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is answered with; which fields say something depends on the call."""

    changed: bool = False
    tasks: tuple[TaskView, ...] = ()
    figures: Figures | None = None


class QueueService(Protocol):
    """Who answers the calls of work queues."""

    async def queue_call(self, call: AnyCall) -> Answer: ...
