"""Work queues at the other end of a client, as `ports.queue.QueueService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from onexflow.client.channels import Channels
from onexflow.client.ids import new_request_id
from onexflow.codec.wire import queue as wire
from onexflow.ports.queue import (
    Answer,
    AnyCall,
    Assign,
    Complete,
    Dequeue,
    Enqueue,
    Fail,
    GetTask,
    ListTasks,
    Measure,
    Pause,
    Progress,
    Resume,
    SetStrategy,
)

_METHODS: Final[dict[type, str]] = {
    Enqueue: "EnqueueTask",
    Dequeue: "DequeueTasks",
    Complete: "CompleteTask",
    Fail: "FailTask",
    Progress: "ReportProgress",
    Assign: "AssignTask",
    Pause: "PauseQueue",
    Resume: "ResumeQueue",
    SetStrategy: "SetAssignmentStrategy",
    GetTask: "GetTask",
    ListTasks: "ListTasks",
    Measure: "GetQueueMetrics",
}


class RemoteQueue:
    """Implements `QueueService`. A call without an answer is repeated under its request_id, without a second effect."""

    def __init__(self, channels: Channels, unary: Callable[[Any], Awaitable[Any]]) -> None:
        self._channels = channels
        self._unary = unary

    async def queue_call(self, call: AnyCall) -> Answer:
        if not call.request_id:
            call = msgspec.structs.replace(call, request_id=new_request_id())
        request = wire.call_to_pb(call)
        method = _METHODS[type(call)]
        return wire.answer(
            await self._unary(lambda seconds: getattr(self._channels.queues, method)(request, timeout=seconds))
        )
