"""ProtocolWorkQueue over `ports.queue.QueueService`: the task calls and the ticket calls on one durable store.

In process it is given the engine's Orchestrator, over gRPC `onexflow.client.remote.RemoteService`. A ticket is a task seen
through the ticket calls: the same id, the same lease, the same end.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, cast
from uuid import UUID

from onexflow.codec.payload import encode_value
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.core.queue_state import PRIORITIES
from onexflow.core.strategies import STRATEGIES
from onexflow.engine.protocols import checked, records
from onexflow.engine.protocols.checked import InvalidValue
from onexflow.ports import queue as port
from onexflow.spi.literals import (
    LiteralAssignmentStrategy,
    LiteralTaskPriority,
    LiteralTaskState,
    LiteralTaskType,
    LiteralWorkQueuePriority,
)
from onexflow.spi.types import (
    Context,
    ContextValue,
    Percentiles,
    QueueMetrics,
    QueueStatus,
    TaskStatus,
    WorkTask,
    WorkTicket,
    to_uuid,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Seconds of a delay, and retries, that are taken at most: a wire field has room for them.
_LONGEST: Final = 10 * 365 * 86_400.0
_MOST_RETRIES: Final = 1_000_000
#: Leases that an object remembers for callers who name a task by its bare id.
_HELD: Final = 10_000


class LeasedId(str):
    """A task id, as a worker got it with the task: equal to the bare id, and it knows its lease."""

    __slots__ = ("token",)
    token: str

    def __new__(cls, task_id: str, token: str) -> Self:
        self = super().__new__(cls, task_id)
        self.token = token
        return self


class WorkQueue:
    """The specification's work queue. Every answer is durable before it is given.

    Who completes or fails a task says under which lease: by the id that came with the task, which knows it, else by the
    lease that this object got last for that id, else by whichever is the present one. Under a lease that is over the
    answer is False and nothing changes. Unknown tasks raise RegistryError, impossible steps InvalidProtocolStateError.
    """

    def __init__(
        self,
        service: port.QueueService,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        name: str = "default",
        wait_seconds: float = 0.0,
    ) -> None:
        """`wait_seconds`: how long dequeue_task waits for a first task before it returns []."""
        self._service = service
        self._where: dict[str, str] = {"namespace": namespace, "work_queue": name}
        self._wait = wait_seconds
        self._held: OrderedDict[str, str] = OrderedDict()

    # ---- task calls

    async def enqueue_task(
        self,
        task: WorkTask,
        priority: LiteralWorkQueuePriority | LiteralTaskPriority = "normal",
        delay_seconds: int = 0,
    ) -> str:
        """Put a task in; returns its id. An id that is open already stays one task: the higher priority and the
        earlier time count. `priority` says more than the task's own, unless it is left at `normal`."""
        if not hasattr(task, "task_id"):
            raise InvalidArgument(f"task: a work task is needed, not {type(task).__name__}", field="task")
        own = _priority(getattr(task, "priority", "normal"))
        given = _priority(priority)
        not_before = getattr(task, "not_before", None)
        instance = getattr(task, "instance_id", None)
        await self._call(
            port.Enqueue(
                **cast("Any", self._where),
                task_id=_name(task.task_id, "task_id"),
                priority=given if given != "normal" else own,
                delay=checked.number(delay_seconds, "delay_seconds", most=_LONGEST),
                not_before=_nanoseconds(not_before),
                name=task.task_name,
                type=task.task_type,
                queue=_queue_of(task),
                capability=getattr(task, "required_capability", None) or "",
                dependencies=tuple(
                    _name(one, "dependencies") for one in checked.each(task.dependencies, "dependencies")
                ),
                payload=encode_value(task.payload),
                max_retries=task.max_retries,
                timeout=task.timeout_seconds or 0.0,
                workflow_type=task.workflow_type,
                instance_id=str(instance) if instance else "",
                idempotency_key=task.idempotency_key,
            )
        )
        return _name(task.task_id, "task_id")

    async def dequeue_task(self, worker_id: str, max_tasks: int = 1) -> list[WorkTask]:
        """Lease up to `max_tasks`; [] when there is none for this worker. A lease ends after the task's timeout, with
        the worker's registration, or by complete_task and fail_task."""
        answer = await self._call(
            port.Dequeue(
                **cast("Any", self._where),
                worker_id=_name(worker_id, "worker_id"),
                max_tasks=checked.whole(max_tasks, "max_tasks"),
                wait=self._wait,
            )
        )
        return [_task(self._hold(view), view) for view in answer.tasks]

    async def complete_task(self, task_id: str, result: dict[str, ContextValue] | None = None) -> bool:
        """True: the task has this result for ever. False: it was completed already, or the lease is over."""
        token = self._token(task_id)
        call = port.Complete(
            **cast("Any", self._where), task_id=_name(task_id, "task_id"), token=token, result=encode_value(result)
        )
        return (await self._call(call)).changed

    async def fail_task(self, task_id: str, error: str, retry_count: int | None = None) -> bool:
        """True: the attempt has failed; the task comes again, later each time, while the greater of its own and the
        given retry count is below its max_retries. False: as in complete_task."""
        if retry_count is not None:
            checked.whole(retry_count, "retry_count", most=_MOST_RETRIES)
        token = self._token(task_id)
        call = port.Fail(
            **cast("Any", self._where),
            task_id=_name(task_id, "task_id"),
            token=token,
            error=checked.storable(str(error), "error"),
            retry_count=retry_count,
        )
        return (await self._call(call)).changed

    async def get_task_status(self, task_id: str) -> TaskStatus:
        """The task as it stands."""
        view = await self._task_view(task_id)
        return TaskStatus(
            task_id=view.task_id,
            state=cast("LiteralTaskState", view.state),
            priority=cast("LiteralTaskPriority", view.priority),
            worker_id=view.worker or None,
            retry_count=view.retry_count,
            progress=view.progress,
            result=records.plain(view.result),
            error=view.error or None,
            enqueued_at=records.moment(view.created_at),
            started_at=records.moment(view.started_at),
            finished_at=records.moment(view.finished_at),
        )

    async def get_queue_metrics(self) -> QueueMetrics:
        """Figures of all queue names together, and of each in `by_queue`."""
        figures = await self._figures()
        return QueueMetrics(
            pending=figures.pending,
            delayed=figures.delayed,
            in_progress=figures.in_progress,
            completed=figures.completed,
            failed=figures.failed,
            oldest_age_seconds=figures.oldest_age,
            by_priority=figures.by_priority,
            throughput=figures.throughput,
            wait=Percentiles(**dict(zip(_SPREAD, figures.wait, strict=True))),
            run=Percentiles(**dict(zip(_SPREAD, figures.run, strict=True))),
            by_queue={queue.queue: _queue_status(queue) for queue in figures.queues},
        )

    async def pause_queue(self, queue_name: str) -> bool:
        """Give out nothing more of that queue name; what is out may end. False: it is paused already."""
        return (await self._call(port.Pause(**cast("Any", self._where), queue=_name(queue_name, "queue_name")))).changed

    async def resume_queue(self, queue_name: str) -> bool:
        return (
            await self._call(port.Resume(**cast("Any", self._where), queue=_name(queue_name, "queue_name")))
        ).changed

    async def get_queue_status(self, queue_name: str) -> QueueStatus:
        """One queue name as it stands; a queue name that was never used is empty."""
        wanted = _name(queue_name, "queue_name")
        figures = await self._figures()
        known = {queue.queue: _queue_status(queue) for queue in figures.queues}
        return known.get(wanted) or QueueStatus(queue_name=wanted)

    # ---- ticket calls

    async def connect_to_work_system(self) -> bool:
        """True when the queue answers. Not needed before other calls."""
        await self._figures()
        return True

    async def fetch_pending_tickets(self, limit: int | None = None) -> list[WorkTicket]:
        """The tickets that nobody has and that depend on nothing open, in their order, those whose time has not come
        last: each could be assigned. Leases nothing."""
        return await self._tickets("pending", limit=limit)

    async def assign_ticket_to_agent(self, ticket_id: str, agent_id: str = "") -> bool:
        """Lease this ticket to an agent; without a name, to the one that the assignment strategy picks."""
        answer = await self._call(
            port.Assign(
                **cast("Any", self._where),
                task_id=_name(ticket_id, "ticket_id"),
                worker_id=_name(agent_id, "agent_id") if agent_id else "",
            )
        )
        for view in answer.tasks:
            self._hold(view)
        return answer.changed

    async def update_ticket_progress(self, ticket_id: str, progress_percent: float) -> bool:
        """How far it is: 0 to 1 is a fraction, above 1 up to 100 per cent. Renews the lease. False: it is over."""
        given = checked.number(progress_percent, "progress_percent", most=100)
        share = given if given <= 1 else given / 100
        token = self._token(ticket_id)
        call = port.Progress(
            **cast("Any", self._where), task_id=_name(ticket_id, "ticket_id"), token=token, share=share
        )
        return (await self._call(call)).changed

    async def complete_ticket(self, ticket_id: str, result_data: dict[str, ContextValue] | None = None) -> bool:
        return await self.complete_task(ticket_id, result_data)

    async def fail_ticket(self, ticket_id: str, error_message: str) -> bool:
        return await self.fail_task(ticket_id, error_message)

    async def get_queue_statistics(self) -> dict[str, ContextValue]:
        """Counts by what tickets are doing."""
        figures = await self._figures()
        return {
            "pending": figures.pending + figures.delayed,
            "delayed": figures.delayed,
            "in_progress": figures.in_progress,
            "completed": figures.completed,
            "failed": figures.failed,
            "skipped": figures.skipped,
            "by_priority": cast("ContextValue", dict(figures.by_priority)),
            "strategy": figures.strategy,
        }

    async def get_ticket_dependencies(self, ticket_id: str) -> list[WorkTicket]:
        """The tickets that this one depends on (those that are in the queue)."""
        return await self._tickets("dependencies", ticket_id=_name(ticket_id, "ticket_id"))

    async def get_ready_tickets(self) -> list[WorkTicket]:
        """The tickets that could be leased now, in their order. Leases nothing."""
        return await self._tickets("ready")

    async def set_assignment_strategy(self, strategy: LiteralAssignmentStrategy) -> bool:
        """How one of several workers is chosen from now on. False: it is so already."""
        if strategy not in tuple(STRATEGIES):  # a tuple takes what has no hash, too
            raise InvalidValue(f"{strategy!r} is not a strategy: {', '.join(STRATEGIES)}", field="strategy")
        return (await self._call(port.SetStrategy(**cast("Any", self._where), strategy=strategy))).changed

    # ---- helpers

    async def _call(self, call: port.AnyCall) -> port.Answer:
        return await self._service.queue_call(call)

    async def _figures(self) -> port.Figures:
        answer = await self._call(port.Measure(**cast("Any", self._where)))
        return answer.figures or port.Figures()

    async def _task_view(self, task_id: str) -> port.TaskView:
        answer = await self._call(port.GetTask(**cast("Any", self._where), task_id=_name(task_id, "task_id")))
        return answer.tasks[0]

    async def _tickets(self, which: str, ticket_id: str = "", limit: int | None = None) -> list[WorkTicket]:
        if limit is not None:
            checked.whole(limit, "limit")
        if limit == 0:
            return []
        call = port.ListTasks(
            **cast("Any", self._where),
            which=cast("Any", which),
            task_id=ticket_id,
            limit=min(port.MAX_TASKS if limit is None else limit, port.MAX_TASKS),
        )
        return [_ticket(view) for view in (await self._call(call)).tasks]

    def _hold(self, view: port.TaskView) -> LeasedId:
        self._held.pop(view.task_id, None)
        self._held[view.task_id] = view.token
        if len(self._held) > _HELD:
            self._held.popitem(last=False)
        return LeasedId(view.task_id, view.token)

    def _token(self, task_id: str) -> str:
        return task_id.token if isinstance(task_id, LeasedId) else self._held.get(str(task_id), "")


_SPREAD: Final = ("mean", "p50", "p95", "p99")


def _name(given: Any, field: str) -> str:
    """A name or an id; a leased id becomes a bare one."""
    return checked.name(str(given) if isinstance(given, UUID) else given, field)


def _priority(priority: Any) -> str:
    if priority not in tuple(PRIORITIES):  # a tuple takes what has no hash, too
        raise InvalidValue(f"{priority!r} is not a priority: {', '.join(PRIORITIES)}", field="priority")
    return str(priority)


def _queue_of(task: WorkTask) -> str:
    """The task's queue name, else its node type, else `default`."""
    return getattr(task, "queue_name", "") or getattr(task, "task_type", "") or "default"


def _nanoseconds(moment: datetime | None) -> int:
    return int((moment - _EPOCH) / timedelta(microseconds=1)) * 1000 if moment is not None else 0


def _task(task_id: str, view: port.TaskView) -> WorkTask:
    return WorkTask(
        task_id=task_id,
        task_name=view.name,
        task_type=cast("LiteralTaskType", view.type),
        workflow_type=view.workflow_type,
        instance_id=to_uuid(view.instance_id) if view.instance_id else None,
        queue_name=view.queue,
        priority=cast("LiteralTaskPriority", view.priority),
        payload=records.plain(view.payload),
        required_capability=view.capability or None,
        dependencies=list(view.dependencies),
        retry_count=view.retry_count,
        max_retries=view.max_retries,
        timeout_seconds=view.timeout or None,
        attempt=view.attempt,
        created_at=records.moment(view.created_at),
        not_before=records.moment(view.not_before),
        idempotency_key=view.idempotency_key,
    )


def _ticket(view: port.TaskView) -> WorkTicket:
    ended = {"completed": "completed", "failed": "failed", "skipped": "failed"}
    held = "assigned" if view.assigned else "in_progress"
    metadata: Context = {
        "state": view.state,
        "queue_name": view.queue,
        "retry_count": view.retry_count,
        "dependencies": list(view.dependencies),
        "progress": view.progress,
        "progress_percent": view.progress * 100,
        "result": records.plain(view.result),
        "error": view.error or None,
    }
    return WorkTicket(
        ticket_id=view.task_id,
        work_type=view.name or view.type,
        priority=cast("LiteralTaskPriority", view.priority),
        status=ended.get(view.state) or (held if view.state == "running" else "pending"),
        assigned_to=view.worker or None,
        created_at=records.moment(view.created_at),
        completed_at=records.moment(view.finished_at),
        payload=records.plain(view.payload),
        metadata=metadata,
    )


def _queue_status(queue: port.QueueFigures) -> QueueStatus:
    return QueueStatus(
        queue_name=queue.queue,
        paused=queue.paused,
        pending=queue.pending,
        in_progress=queue.in_progress,
        delayed=queue.delayed,
        workers=queue.workers,
    )
