"""The specification's data types as classes that its examples can construct.

The specification annotates with `ProtocolWorkflowEvent` and also calls it; so these are dataclasses, exported under
both names (`WorkflowEvent` and `ProtocolWorkflowEvent`). Where it uses two names for one thing, both can be read.
Times are aware datetimes in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5  # noqa: TID251 - as _now

from onexflow.spi.event_type import EventType
from onexflow.spi.literals import (
    LiteralHealthStatus,
    LiteralTaskPriority,
    LiteralTaskState,
    LiteralTaskType,
    LiteralWorkflowState,
    LiteralWorkQueuePriority,
)

ContextValue: TypeAlias = "str | int | float | bool | list[ContextValue] | dict[str, ContextValue] | None"
"""A JSON value."""

Context: TypeAlias = dict[str, ContextValue]


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the default of a record that a user builds in his own process


def to_uuid(value: UUID | str) -> UUID:
    """`value` as a UUID: a string that is none gives the same derived UUID everywhere (as `core.ids.derived_uuid`)."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except ValueError:
        return uuid5(NAMESPACE_OID, f"onexflow:{value}")


@dataclass(frozen=True, slots=True, init=False)
class WorkflowEvent:
    """A fact about a run. `sequence_number` 0 asks the event bus to number it; `data` and `payload` are one field."""

    event_id: UUID
    event_type: EventType
    workflow_type: str
    instance_id: UUID
    correlation_id: UUID
    sequence_number: int
    timestamp: datetime
    source: str
    idempotency_key: str
    payload: Context
    metadata: Context
    causation_id: UUID | None
    correlation_chain: list[UUID]

    def __init__(
        self,
        *,
        event_type: str,
        workflow_type: str,
        instance_id: UUID | str,
        sequence_number: int | None = None,
        payload: Context | None = None,
        data: Context | None = None,
        event_id: UUID | str | None = None,
        correlation_id: UUID | str | None = None,
        timestamp: datetime | None = None,
        source: str = "",
        idempotency_key: str = "",
        metadata: Context | None = None,
        causation_id: UUID | str | None = None,
        correlation_chain: list[UUID] | None = None,
    ) -> None:
        """Raises ValueError for an unknown event type, TypeError when `data` and `payload` contradict each other."""
        if data is not None and payload is not None and data != payload:
            raise TypeError("data and payload are two names of one field: give one of them")
        body = payload if payload is not None else data
        notes = dict(metadata or {})
        if isinstance(correlation_id, str) and str(to_uuid(correlation_id)) != correlation_id.lower():
            notes.setdefault("correlation_id", correlation_id)  # the caller's own text is not lost
        instance = to_uuid(instance_id)
        identity = to_uuid(event_id) if event_id is not None else uuid4()
        put = object.__setattr__
        put(self, "event_id", identity)
        put(self, "event_type", EventType(event_type))
        put(self, "workflow_type", workflow_type)
        put(self, "instance_id", instance)
        put(self, "correlation_id", to_uuid(correlation_id) if correlation_id is not None else instance)
        put(self, "sequence_number", sequence_number or 0)
        put(self, "timestamp", timestamp or _now())
        put(self, "source", source)
        put(self, "idempotency_key", idempotency_key or str(identity))
        put(self, "payload", {} if body is None else body)
        put(self, "metadata", notes)
        put(self, "causation_id", None if causation_id is None else to_uuid(causation_id))
        put(self, "correlation_chain", list(correlation_chain or ()))

    @property
    def data(self) -> Context:
        """The same as `payload`."""
        return self.payload

    async def validate_event(self) -> bool:
        """Whether the event can be published."""
        return bool(self.workflow_type) and self.is_valid_sequence()

    def is_valid_sequence(self) -> bool:
        return self.sequence_number >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """A task as it stands."""

    task_id: str
    state: LiteralTaskState
    priority: LiteralTaskPriority | LiteralWorkQueuePriority = "normal"
    worker_id: str | None = None
    retry_count: int = 0
    progress: float | None = None
    result: ContextValue = None
    error: str | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def progress_percent(self) -> float | None:
        """The same as `progress`, which is a fraction, per cent."""
        return None if self.progress is None else self.progress * 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInstance:
    """A run, as start_workflow returns it."""

    workflow_type: str
    instance_id: UUID
    correlation_id: UUID
    state: LiteralWorkflowState
    sequence_number: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    initial_data: Context = field(default_factory=dict)
    metadata: Context = field(default_factory=dict)

    @property
    def current_state(self) -> LiteralWorkflowState:
        """The same as `state`."""
        return self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowState:
    """A run folded up to and including event `sequence_number`."""

    workflow_type: str
    instance_id: UUID
    state: LiteralWorkflowState
    sequence_number: int = 0
    context: Context = field(default_factory=dict)
    tasks: dict[str, TaskStatus] = field(default_factory=dict)
    started_at: datetime | None = None
    updated_at: datetime | None = None
    completed_at: datetime | None = None
    error: str | None = None
    metadata: Context = field(default_factory=dict)

    @property
    def current_state(self) -> LiteralWorkflowState:
        """The same as `state`."""
        return self.state

    @property
    def data(self) -> Context:
        """The same as `context`."""
        return self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowSnapshot:
    """A stored state: with the events after `sequence_number` it gives the run as it stands."""

    workflow_type: str
    instance_id: UUID
    sequence_number: int
    state: LiteralWorkflowState
    context: Context = field(default_factory=dict)
    tasks: dict[str, TaskStatus] = field(default_factory=dict)
    created_at: datetime | None = None
    metadata: Context = field(default_factory=dict)

    async def validate_snapshot(self) -> bool:
        """Whether a run can be rebuilt from it."""
        return self.is_consistent()

    def is_consistent(self) -> bool:
        return bool(self.workflow_type) and self.sequence_number >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """A distribution of durations, in seconds."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowMetrics:
    """Figures of one workflow type, or of all (`workflow_type` None). Durations (from creation to end) and throughput are
    those of the last `window_seconds`; the counts are of all runs that there are."""

    workflow_type: str | None = None
    by_state: dict[LiteralWorkflowState, int] = field(default_factory=dict)
    started: int = 0
    completed: int = 0
    failed: int = 0
    events: int = 0
    tasks: int = 0
    durations: Percentiles = field(default_factory=Percentiles)
    throughput: float = 0.0
    window_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTask:
    """Something to be done, as the work queue takes and gives it."""

    task_id: str
    task_name: str = ""
    task_type: LiteralTaskType = "effect"
    workflow_type: str = ""
    instance_id: UUID | None = None
    queue_name: str = "default"
    priority: LiteralTaskPriority | LiteralWorkQueuePriority = "normal"
    payload: ContextValue = None
    required_capability: str | None = None
    dependencies: list[str] = field(default_factory=list)
    retry_count: int = 0
    max_retries: int = 3
    timeout_seconds: float | None = None
    attempt: int = 1
    created_at: datetime | None = None
    not_before: datetime | None = None
    idempotency_key: str = ""

    @property
    def contract(self) -> ContextValue:
        """The same as `payload`."""
        return self.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTicket:
    """The same task, seen through the ticket calls."""

    ticket_id: str
    work_type: str = ""
    priority: LiteralTaskPriority | LiteralWorkQueuePriority = "normal"
    #: pending | assigned | in_progress | completed | failed
    status: str = "pending"
    assigned_to: str | None = None
    created_at: datetime | None = None
    due_at: datetime | None = None
    completed_at: datetime | None = None
    payload: ContextValue = None
    metadata: Context = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same as `ticket_id`."""
        return self.ticket_id

    async def validate_work_ticket(self) -> bool:
        """Whether the ticket can be worked on."""
        return bool(self.ticket_id)

    def is_overdue(self) -> bool:
        return self.due_at is not None and self.completed_at is None and self.due_at < _now()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """One queue as it stands."""

    queue_name: str
    paused: bool = False
    pending: int = 0
    in_progress: int = 0
    delayed: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMetrics:
    """Figures of all queues together, and of each in `by_queue`."""

    pending: int = 0
    delayed: int = 0
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    oldest_age_seconds: float = 0.0
    by_priority: dict[str, int] = field(default_factory=dict)
    throughput: float = 0.0
    wait: Percentiles = field(default_factory=Percentiles)
    run: Percentiles = field(default_factory=Percentiles)
    by_queue: dict[str, QueueStatus] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowNodeCapability:
    """What a node can do."""

    capability_name: str
    capability_id: str = ""
    capability_version: str = "1"
    max_concurrent_tasks: int = 1
    supported_task_types: list[LiteralTaskType] = field(default_factory=list)
    supported_node_types: list[str] = field(default_factory=list)
    resource_requirements: Context = field(default_factory=dict)
    configuration_schema: Context = field(default_factory=dict)
    performance_characteristics: Context = field(default_factory=dict)
    availability_constraints: Context = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowNodeInfo:
    """A node as it is registered. `node_type` is compared without case and may have a subtype (`compute:gpu`)."""

    node_id: str
    node_type: str
    host: str = ""
    port: int = 0
    node_name: str = ""
    environment: str = ""
    group: str = ""
    version: str = ""
    health_status: LiteralHealthStatus = "unknown"
    metadata: Context = field(default_factory=dict)
    workflow_capabilities: list[WorkflowNodeCapability] = field(default_factory=list)
    current_workload: Context = field(default_factory=dict)
    max_concurrent_tasks: int = 1
    current_task_count: int = 0
    supported_workflow_types: list[str] = field(default_factory=list)
    task_execution_history: list[Context] = field(default_factory=list)
    resource_utilization: Context = field(default_factory=dict)
    scheduling_preferences: Context = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        """`host:port`, empty when the node has no address."""
        return f"{self.host}:{self.port}" if self.host else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetrics:
    """Figures of one node."""

    node_id: str
    health_status: LiteralHealthStatus = "unknown"
    current_task_count: int = 0
    max_concurrent_tasks: int = 0
    completed: int = 0
    failed: int = 0
    mean_duration_seconds: float = 0.0
    duration: Percentiles = field(default_factory=Percentiles)
    resource_utilization: Context = field(default_factory=dict)
    last_heartbeat: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowAssignment:
    """A run pinned to a node, as long as the node's membership lives."""

    workflow_type: str
    instance_id: UUID
    node_id: str
    assigned_at: datetime | None = None
    epoch: int = 0
    state: LiteralWorkflowState = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnexResult:
    """What a coordinator's calls return; they report failure here and raise nothing."""

    success: bool
    message: str = ""
    result_data: ContextValue = None
    error_code: str | None = None
    timestamp: datetime = field(default_factory=_now)

    @property
    def error(self) -> str | None:
        """None on success, else the message."""
        return None if self.success else self.message


ProtocolWorkflowEvent = WorkflowEvent
ProtocolWorkflowInstance = WorkflowInstance
ProtocolWorkflowState = WorkflowState
ProtocolWorkflowMetrics = WorkflowMetrics
ProtocolWorkflowSnapshot = WorkflowSnapshot
ProtocolWorkTask = WorkTask
ProtocolWorkTicket = WorkTicket
ProtocolTaskStatus = TaskStatus
ProtocolQueueMetrics = QueueMetrics
ProtocolQueueStatus = QueueStatus
ProtocolWorkflowNodeInfo = WorkflowNodeInfo
ProtocolWorkflowNodeCapability = WorkflowNodeCapability
ProtocolNodeMetrics = NodeMetrics
ProtocolWorkflowAssignment = WorkflowAssignment
ProtocolOnexResult = OnexResult
