"""ProtocolWorkflowOrchestrator: start, steer, look at, replay and measure workflows."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from onexflow.codec.payload import encode_value
from onexflow.core.errors import InvalidArgument, RunFailed
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.engine import asking
from onexflow.engine.protocols import checked, reading, records
from onexflow.ports.client_link import Action, ControlRequest, EventView, RunService, RunView, StartRequest
from onexflow.spi.types import (
    Context,
    ContextValue,
    WorkflowEvent,
    WorkflowInstance,
    WorkflowMetrics,
    WorkflowState,
)

#: A run that is in one of these has not begun its main tasks.
_BEFORE: Final = frozenset({"pending", "initializing"})
#: A run that is in one of these has ended by itself without a result.
_FAILED: Final = frozenset({"failed", "timeout"})


class WorkflowOrchestrator:
    """The specification's orchestrator, over an engine in this process or one at the other end of a client.

    Every answer is durable before it is given. Ids may be UUIDs or text: text that is no UUID stands for one that is
    derived from it, and a correlation id's own text is kept in `metadata["correlation_id"]`. An unknown type or run
    raises RegistryError; every error is a SPIError with its context.
    """

    def __init__(
        self,
        service: RunService,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        start_timeout: float = 30.0,
        first_task_timeout: float = 0.0,
    ) -> None:
        """`start_timeout`: seconds that start_workflow waits for a run's setup tasks; it then returns the instance as
        it stands, `initializing`. `first_task_timeout`: seconds that it waits further for a first task to complete, so
        that one which fails for good is raised; 0: it does not wait."""
        self._service = service
        self._namespace = namespace
        self._start_timeout = start_timeout
        self._first_task_timeout = first_task_timeout
        self._definitions = reading.Definitions(service)

    async def start_workflow(
        self,
        workflow_type: str,
        instance_id: UUID,
        initial_data: dict[str, ContextValue],
        correlation_id: UUID | str | None = None,
    ) -> WorkflowInstance:
        """Start a run; returns when it is created, initialised and its first tasks are scheduled.

        The same start again (same ids and data) returns the run as it stands. Raises RegistryError for an unknown
        workflow type, InvalidProtocolStateError when the instance exists with other data or correlation id,
        ProtocolHandlerError when its initialisation or its first task has failed for good by then.
        """
        key = self._key(workflow_type, instance_id)
        if not isinstance(initial_data, dict):
            raise InvalidArgument(
                f"initial_data: a dict is needed, not {type(initial_data).__name__}", field="initial_data"
            )
        started = await asking.start(
            self._service,
            StartRequest(
                namespace=key.namespace,
                workflow_type=workflow_type,
                instance_id=key.instance_id,
                input=encode_value(initial_data),
                correlation_id=records.correlation_text(correlation_id),
            ),
        )
        view = await self._service.describe_run(key)
        was_open = started.created
        if view.state == "initializing":
            was_open = True
            view = await self._reach(key, _Begun(), self._start_timeout)
        if started.created and self._first_task_timeout and view.state not in _BEFORE | _FAILED:
            view = await self._reach(key, _FirstTask(), self._first_task_timeout)
        if was_open and view.state in _FAILED and await self._has_done_nothing(view):
            raise _start_failed(view)
        return records.instance_of(view, created=started.created)

    async def _reach(self, key: RunKey, reached: _Begun | _FirstTask, seconds: float) -> RunView:
        await reading.follow_until(self._service, key, reached, seconds)
        return await self._service.describe_run(key)

    async def _has_done_nothing(self, view: RunView) -> bool:
        """Whether none of the run's main tasks has completed: a failure of a later one is not the start's."""
        main = {spec.name for spec in (await self._definitions.of(view)).tasks if not spec.setup}
        return not any(task.state == "completed" and task.name in main for task in view.tasks)

    async def pause_workflow(self, workflow_type: str, instance_id: UUID) -> bool:
        """Stop dispatching; what runs ends and is recorded. False when the run is paused already. Raises
        InvalidProtocolStateError when a run in its state cannot be paused."""
        return await self._control("pause", workflow_type, instance_id)

    async def resume_workflow(self, workflow_type: str, instance_id: UUID) -> bool:
        """Go on with a paused run. False when it is running. Raises InvalidProtocolStateError when it is neither."""
        return await self._control("resume", workflow_type, instance_id)

    async def cancel_workflow(self, workflow_type: str, instance_id: UUID, reason: str | None = None) -> bool:
        """End a run; running attempts are told to stop. False when it is cancelled already. Raises
        InvalidProtocolStateError when it has ended otherwise."""
        said = "" if reason is None else checked.storable(reason, "reason")
        return await self._control("cancel", workflow_type, instance_id, said)

    async def get_workflow_state(self, workflow_type: str, instance_id: UUID) -> WorkflowState:
        """The run as it stands, with its tasks."""
        view = await self._service.describe_run(self._key(workflow_type, instance_id))
        return records.state_of(view, await self._definitions.of(view))

    async def get_workflow_history(self, workflow_type: str, instance_id: UUID) -> list[WorkflowEvent]:
        """All events of the run, in order, numbered from 1."""
        return await self.replay_workflow(workflow_type, instance_id, 0)

    async def replay_workflow(
        self, workflow_type: str, instance_id: UUID, from_sequence: int, to_sequence: int | None = None
    ) -> list[WorkflowEvent]:
        """The run's events from one sequence number to another, both in it, as they were recorded: replaying tells and
        changes nothing. From 0 and from 1 both give everything; a range beyond the last event is empty."""
        key = self._key(workflow_type, instance_id)
        events = await reading.read_events(self._service, key, from_sequence, to_sequence)
        if not events:
            return []
        correlation, causation = (str(events[0].data.get(name) or "") for name in ("correlation_id", "causation_id"))
        if events[0].sequence > 1:  # the first one may have been cut
            view = await self._service.describe_run(key)
            correlation, causation = view.correlation_id, view.causation_id
        return [records.event_of(event, key, correlation, causation) for event in events]

    async def get_workflow_metrics(self, workflow_type: str | None = None) -> WorkflowMetrics:
        """Figures of the runs of a type, or of all. The counts are of all runs that there are; durations and throughput
        of the newest ended runs, at most 1,000, whose age is `window_seconds`."""
        kind = "" if workflow_type is None or workflow_type == "" else checked.name(workflow_type, "workflow_type")
        return records.metrics_of(await self._service.measure_runs(self._namespace, kind))

    def _key(self, workflow_type: str, instance_id: UUID | str) -> RunKey:
        return checked.run_key(self._namespace, workflow_type, instance_id)

    async def _control(self, action: Action, workflow_type: str, instance_id: UUID, reason: str = "") -> bool:
        key = self._key(workflow_type, instance_id)
        return (await self._service.control(ControlRequest(key=key, action=action, reason=reason))).changed


class _Begun:
    """Has the run begun its main tasks? Asked for each event, in order."""

    def __call__(self, event: EventView) -> bool:
        return event.type == "workflow.started"


class _FirstTask:
    """Has one of the run's main tasks completed?"""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, event: EventView) -> bool:
        self._begun = self._begun or event.type == "workflow.started"
        return self._begun and event.type == "task.completed"


def _start_failed(view: RunView) -> RunFailed:
    error = view.error
    facts: Context = {"run": str(view.key), "state": view.state, "error": error.type if error else ""}
    task = next((task.name for task in view.tasks if task.error is not None), "")
    if task:
        facts["task"] = task
    why = f": {error.message}" if error else ""
    return RunFailed(f"the run {view.key} ended as {view.state} at its start{why}", facts)
