"""The calls of work queues: values of `ports.queue` ↔ the messages of `onexflow.v1` WorkQueueService."""

from __future__ import annotations

from typing import Any, Final

from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.ports import queue as port
from onexflow.v1 import queue_pb2 as pb

_LISTS: Final = frozenset({"pending", "ready", "dependencies"})
_TYPES: Final = frozenset({"effect", "compute", "reducer", "orchestrator"})
_MAX_DEPENDENCIES: Final = 1000


def _where(message: Any) -> dict[str, Any]:
    ref = message.work_queue
    return {
        "namespace": common.name(ref.namespace, "work_queue.namespace", default=DEFAULT_NAMESPACE),
        "work_queue": common.name(ref.name, "work_queue.name", default="default"),
        "request_id": common.optional_name(getattr(message, "request_id", ""), "request_id"),
    }


def _leased(message: Any) -> dict[str, Any]:
    return {
        **_where(message),
        "task_id": common.name(message.task_id, "task_id"),
        "token": common.optional_name(message.token, "token"),
    }


def call(message: Any) -> port.AnyCall:
    """The call that a request is. Raises InvalidArgument."""
    match message:
        case pb.EnqueueTaskRequest():
            return _enqueue(message)
        case pb.DequeueTasksRequest():
            worker = common.name(message.worker_id, "worker_id")
            wait = common.seconds(message.wait, "wait")
            return port.Dequeue(**_where(message), worker_id=worker, max_tasks=message.max_tasks or 1, wait=wait)
        case pb.CompleteTaskRequest():
            return port.Complete(**_leased(message), result=common.payload_or_null(message, "result", "result"))
        case pb.FailTaskRequest():
            count = message.retry_count if message.HasField("retry_count") else None
            return port.Fail(**_leased(message), error=message.error[: common.MAX_MESSAGE_TEXT], retry_count=count)
        case pb.ReportProgressRequest():
            return port.Progress(**_leased(message), share=message.share)
        case pb.AssignTaskRequest():
            worker = common.optional_name(message.worker_id, "worker_id")
            return port.Assign(**_where(message), task_id=common.name(message.task_id, "task_id"), worker_id=worker)
        case pb.PauseQueueRequest():
            return port.Pause(**_where(message), queue=common.name(message.queue, "queue"))
        case pb.ResumeQueueRequest():
            return port.Resume(**_where(message), queue=common.name(message.queue, "queue"))
        case pb.SetAssignmentStrategyRequest():
            return port.SetStrategy(**_where(message), strategy=common.name(message.strategy, "strategy"))
        case pb.GetTaskRequest():
            return port.GetTask(**_where(message), task_id=common.name(message.task_id, "task_id"))
        case pb.ListTasksRequest():
            return _list(message)
        case _:
            return port.Measure(**_where(message))


def _enqueue(message: pb.EnqueueTaskRequest) -> port.Enqueue:
    if len(message.dependencies) > _MAX_DEPENDENCIES:
        raise InvalidArgument(f"{_MAX_DEPENDENCIES:,} dependencies are the most", field="dependencies")
    kind = message.type or "effect"
    if kind not in _TYPES:
        raise InvalidArgument(f"{kind!r} is not a type of tasks: {', '.join(sorted(_TYPES))}", field="type")
    return port.Enqueue(
        **_where(message),
        task_id=common.name(message.task_id, "task_id"),
        priority=common.name(message.priority, "priority", default="normal"),
        delay=common.seconds(message.delay, "delay"),
        not_before=common.not_negative(message.not_before, "not_before"),
        name=common.optional_name(message.name, "name"),
        type=kind,
        queue=common.name(message.queue, "queue", default="default"),
        capability=common.optional_name(message.capability, "capability"),
        dependencies=tuple(common.name(task_id, "dependencies") for task_id in message.dependencies),
        payload=common.payload_or_null(message, "payload", "payload"),
        max_retries=message.max_retries,
        timeout=common.seconds(message.timeout, "timeout"),
        workflow_type=common.optional_name(message.workflow_type, "workflow_type"),
        instance_id=common.optional_name(message.instance_id, "instance_id"),
        idempotency_key=common.optional_name(message.idempotency_key, "idempotency_key"),
    )


def _list(message: pb.ListTasksRequest) -> port.ListTasks:
    which: Any = message.which or "pending"
    if which not in _LISTS:
        raise InvalidArgument(f"which must be one of {', '.join(sorted(_LISTS))}", field="which")
    if which == "dependencies":
        common.name(message.task_id, "task_id")
    return port.ListTasks(
        **_where(message), which=which, task_id=message.task_id, limit=message.limit or port.MAX_TASKS
    )  # fmt: skip


def call_to_pb(value: port.AnyCall) -> Any:
    """The request of a call."""
    where = pb.WorkQueueRef(namespace=value.namespace, name=value.work_queue)
    base: dict[str, Any] = {"work_queue": where, "request_id": value.request_id}
    match value:
        case port.Enqueue():
            return _enqueue_to_pb(value, base)
        case port.Dequeue():
            return pb.DequeueTasksRequest(
                **base, worker_id=value.worker_id, max_tasks=value.max_tasks, wait=value.wait
            )  # fmt: skip
        case port.Complete():
            result = common.payload_to_pb(value.result)
            return pb.CompleteTaskRequest(**base, task_id=value.task_id, token=value.token, result=result)
        case port.Fail():
            return pb.FailTaskRequest(
                **base, task_id=value.task_id, token=value.token, error=value.error, retry_count=value.retry_count
            )
        case port.Progress():
            return pb.ReportProgressRequest(**base, task_id=value.task_id, token=value.token, share=value.share)
        case port.Assign():
            return pb.AssignTaskRequest(**base, task_id=value.task_id, worker_id=value.worker_id)
        case port.Pause():
            return pb.PauseQueueRequest(**base, queue=value.queue)
        case port.Resume():
            return pb.ResumeQueueRequest(**base, queue=value.queue)
        case port.SetStrategy():
            return pb.SetAssignmentStrategyRequest(**base, strategy=value.strategy)
        case port.GetTask():
            return pb.GetTaskRequest(work_queue=where, task_id=value.task_id)
        case port.ListTasks():
            return pb.ListTasksRequest(work_queue=where, which=value.which, task_id=value.task_id, limit=value.limit)
        case port.Measure():
            return pb.GetQueueMetricsRequest(work_queue=where)


def _enqueue_to_pb(value: port.Enqueue, base: dict[str, Any]) -> pb.EnqueueTaskRequest:
    return pb.EnqueueTaskRequest(
        **base,
        task_id=value.task_id,
        priority=value.priority,
        delay=value.delay,
        not_before=value.not_before,
        name=value.name,
        type=value.type,
        queue=value.queue,
        capability=value.capability,
        dependencies=value.dependencies,
        payload=common.payload_to_pb(value.payload),
        max_retries=value.max_retries,
        timeout=value.timeout,
        workflow_type=value.workflow_type,
        instance_id=value.instance_id,
        idempotency_key=value.idempotency_key,
    )


def task_to_pb(value: port.TaskView) -> pb.QueueTask:
    return pb.QueueTask(
        task_id=value.task_id,
        state=value.state,
        priority=value.priority,
        token=value.token,
        name=value.name,
        type=value.type,
        queue=value.queue,
        capability=value.capability,
        dependencies=value.dependencies,
        payload=common.payload_to_pb(value.payload),
        max_retries=value.max_retries,
        retry_count=value.retry_count,
        attempt=value.attempt,
        timeout=value.timeout,
        workflow_type=value.workflow_type,
        instance_id=value.instance_id,
        idempotency_key=value.idempotency_key,
        worker=value.worker,
        assigned=value.assigned,
        progress=value.progress,
        result=common.optional_payload_to_pb(value.result),
        error=value.error,
        created_at=value.created_at,
        not_before=value.not_before,
        started_at=value.started_at,
        finished_at=value.finished_at,
        blocked=common.blocked_to_pb(value.blocked),
    )


def _task(message: pb.QueueTask) -> port.TaskView:
    return port.TaskView(
        task_id=message.task_id,
        state=message.state,
        priority=message.priority,
        token=message.token,
        name=message.name,
        type=message.type,
        queue=message.queue,
        capability=message.capability,
        dependencies=tuple(message.dependencies),
        payload=common.trusted_payload(message.payload),
        max_retries=message.max_retries,
        retry_count=message.retry_count,
        attempt=message.attempt,
        timeout=message.timeout,
        workflow_type=message.workflow_type,
        instance_id=message.instance_id,
        idempotency_key=message.idempotency_key,
        worker=message.worker,
        assigned=message.assigned,
        progress=message.progress,
        result=common.trusted_payload(message.result) if message.HasField("result") else None,
        error=message.error,
        created_at=message.created_at,
        not_before=message.not_before,
        started_at=message.started_at,
        finished_at=message.finished_at,
        blocked=common.blocked(message),
    )


def figures_to_pb(value: port.Figures) -> pb.QueueFigures:
    return pb.QueueFigures(
        pending=value.pending,
        delayed=value.delayed,
        in_progress=value.in_progress,
        completed=value.completed,
        failed=value.failed,
        skipped=value.skipped,
        oldest_age=value.oldest_age,
        throughput=value.throughput,
        strategy=value.strategy,
        by_priority=value.by_priority,
        wait=_spread_to_pb(value.wait),
        run=_spread_to_pb(value.run),
        queues=[
            pb.NamedQueue(
                queue=queue.queue,
                paused=queue.paused,
                pending=queue.pending,
                delayed=queue.delayed,
                in_progress=queue.in_progress,
                workers=queue.workers,
            )
            for queue in value.queues
        ],
    )


def _figures(message: pb.QueueFigures) -> port.Figures:
    return port.Figures(
        pending=message.pending,
        delayed=message.delayed,
        in_progress=message.in_progress,
        completed=message.completed,
        failed=message.failed,
        skipped=message.skipped,
        oldest_age=message.oldest_age,
        throughput=message.throughput,
        strategy=message.strategy,
        by_priority=dict(message.by_priority),
        wait=_spread(message.wait),
        run=_spread(message.run),
        queues=tuple(
            port.QueueFigures(
                queue=queue.queue,
                paused=queue.paused,
                pending=queue.pending,
                delayed=queue.delayed,
                in_progress=queue.in_progress,
                workers=queue.workers,
            )
            for queue in message.queues
        ),
    )


def _spread_to_pb(value: tuple[float, float, float, float]) -> pb.Spread:
    return pb.Spread(mean=value[0], p50=value[1], p95=value[2], p99=value[3])


def _spread(message: pb.Spread) -> tuple[float, float, float, float]:
    return (message.mean, message.p50, message.p95, message.p99)


def answer(message: Any) -> port.Answer:
    """The answer that a response is."""
    fields = message.DESCRIPTOR.fields_by_name
    if "figures" in fields:
        return port.Answer(figures=_figures(message.figures))
    tasks = message.tasks if "tasks" in fields else [message.task] if "task" in fields else []
    changed = message.changed if "changed" in fields else bool(tasks)
    return port.Answer(changed=changed, tasks=tuple(_task(task) for task in tasks))
