# ruff: noqa: N802 - the methods have the names of the wire
"""WorkQueueService over ports.queue.QueueService: translation only, no decisions."""

from __future__ import annotations

from typing import Any

from onexflow.codec.wire import queue as wire
from onexflow.ports.queue import Answer, QueueService
from onexflow.rpc.stream import Context
from onexflow.rpc.unary import unary
from onexflow.v1 import queue_pb2 as pb


class QueueEndpoint:
    """The handlers of onexflow.v1.WorkQueueService."""

    def __init__(self, service: QueueService) -> None:
        self._service = service

    async def _call(self, request: Any) -> Answer:
        return await self._service.queue_call(wire.call(request))

    @unary
    async def EnqueueTask(self, request: pb.EnqueueTaskRequest, context: Context) -> pb.EnqueueTaskResponse:
        answer = await self._call(request)
        task = wire.task_to_pb(answer.tasks[0])
        task.ClearField("payload")
        return pb.EnqueueTaskResponse(changed=answer.changed, task=task)

    @unary
    async def DequeueTasks(self, request: pb.DequeueTasksRequest, context: Context) -> pb.DequeueTasksResponse:
        answer = await self._call(request)
        return pb.DequeueTasksResponse(tasks=[wire.task_to_pb(task) for task in answer.tasks])

    @unary
    async def CompleteTask(self, request: pb.CompleteTaskRequest, context: Context) -> pb.CompleteTaskResponse:
        return pb.CompleteTaskResponse(changed=(await self._call(request)).changed)

    @unary
    async def FailTask(self, request: pb.FailTaskRequest, context: Context) -> pb.FailTaskResponse:
        return pb.FailTaskResponse(changed=(await self._call(request)).changed)

    @unary
    async def ReportProgress(self, request: pb.ReportProgressRequest, context: Context) -> pb.ReportProgressResponse:
        return pb.ReportProgressResponse(changed=(await self._call(request)).changed)

    @unary
    async def AssignTask(self, request: pb.AssignTaskRequest, context: Context) -> pb.AssignTaskResponse:
        answer = await self._call(request)
        return pb.AssignTaskResponse(task=wire.task_to_pb(answer.tasks[0]))

    @unary
    async def PauseQueue(self, request: pb.PauseQueueRequest, context: Context) -> pb.PauseQueueResponse:
        return pb.PauseQueueResponse(changed=(await self._call(request)).changed)

    @unary
    async def ResumeQueue(self, request: pb.ResumeQueueRequest, context: Context) -> pb.ResumeQueueResponse:
        return pb.ResumeQueueResponse(changed=(await self._call(request)).changed)

    @unary
    async def SetAssignmentStrategy(
        self, request: pb.SetAssignmentStrategyRequest, context: Context
    ) -> pb.SetAssignmentStrategyResponse:
        return pb.SetAssignmentStrategyResponse(changed=(await self._call(request)).changed)

    @unary
    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        return pb.GetTaskResponse(task=wire.task_to_pb((await self._call(request)).tasks[0]))

    @unary
    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        return pb.ListTasksResponse(tasks=[wire.task_to_pb(task) for task in (await self._call(request)).tasks])

    @unary
    async def GetQueueMetrics(self, request: pb.GetQueueMetricsRequest, context: Context) -> pb.GetQueueMetricsResponse:
        figures = (await self._call(request)).figures
        assert figures is not None, "a Measure is answered with figures"
        return pb.GetQueueMetricsResponse(figures=wire.figures_to_pb(figures))
