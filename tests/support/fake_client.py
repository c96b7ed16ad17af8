"""A client that knows a few runs by heart: the command line's output over it is always the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Self
from uuid import UUID

import msgspec

from onexflow.client.ids import instance_uuid
from onexflow.codec.payload import encode_value
from onexflow.core.blocked import Blocked
from onexflow.core.errors import RunExists, Unavailable, UnknownRun, UnknownTask, UnknownWorkflowType
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure
from onexflow.ports.client_link import (
    BlockedRun,
    ControlOutcome,
    DefinitionInfo,
    EventView,
    Health,
    NodeView,
    RunOutcome,
    RunSummary,
    RunView,
    TaskView,
)

NOON = 1_700_049_600_000_000_000  # 2023-11-15 12:00:00 UTC
SECOND = 1_000_000_000
DONE = UUID("01890000-0000-7000-8000-00000000000a")
STUCK = UUID("01890000-0000-7000-8000-00000000000b")
FAILED = UUID("01890000-0000-7000-8000-00000000000c")
ORDER = {"order_id": "ORD-12345", "amount": 99.99}


def _view(instance: UUID, state: str, tasks: Sequence[TaskView], **more: Any) -> RunView:
    values: dict[str, Any] = {
        "correlation_id": "req-abc123",
        "completed_at": 0,
        "result": None,
        "error": None,
        "shard": 3,
        "owner": "o1",
        "input": encode_value(ORDER),
        **more,
    }
    return RunView(
        key=RunKey("default", "order-processing", instance),
        version=1,
        state=state,
        sequence=17,
        created_at=NOON,
        started_at=NOON + SECOND // 2,
        updated_at=NOON + 3 * SECOND,
        tasks=tuple(tasks),
        **values,
    )


def _task(name: str, role: str, state: str, **more: Any) -> TaskView:
    times = {"scheduled_at": NOON + SECOND, "started_at": NOON + SECOND}
    if state in {"completed", "failed"}:
        times["finished_at"] = NOON + 2 * SECOND + 340_000_000
    if state in {"blocked", "skipped"}:
        times = {}
    return TaskView(name=name, role=role, handler=name, state=state, **{**times, **more})


UNKNOWN = Blocked(kind="unknown_outcome", worker="w1", attempt=1, since=NOON + SECOND)
LOST = Failure("WorkerLost", "its workers died: w1, w2, w3", code="OXF-4003", context={"task": "charge"})
RUNS = {
    DONE: _view(
        DONE,
        "completed",
        [
            _task("validate", "compute", "completed", attempt=1, worker="w1"),
            _task("charge", "effect", "completed", attempt=2, worker="w2"),
            _task("lines", "compute", "completed", attempt=1, worker="w1", items=40, items_done=40),
        ],
        completed_at=NOON + 3 * SECOND,
        result=encode_value({"payment": "L-7", "amount": 99.99}),
    ),
    STUCK: _view(
        STUCK,
        "running",
        [
            _task("validate", "compute", "completed", attempt=1, worker="w1"),
            _task(
                "charge", "effect", "waiting_for_input", attempt=1, worker="w1",
                blocked_because="worker w1 was lost while it ran; resolve it", blocked=UNKNOWN,
            ),
            _task("summarise", "reducer", "blocked"),
        ],
        blocked_because="charge: worker w1 was lost while it ran; resolve it",
        blocked=msgspec.structs.replace(UNKNOWN, task="charge"),
    ),
    FAILED: _view(
        FAILED,
        "failed",
        [_task("charge", "effect", "failed", attempt=3, worker="w3", error=LOST)],
        completed_at=NOON + 200 * SECOND,
        error=LOST,
    ),
}  # fmt: skip
EVENTS = [
    EventView(
        sequence=1, type="workflow.created", kind="", timestamp=NOON, shard=3, offset=40, epoch=2,
        data={"namespace": "default", "workflow_type": "order-processing", "version": 1, "input": ORDER},
    ),
    EventView(
        sequence=2, type="task.started", kind="", timestamp=NOON + 5, shard=3, offset=41, epoch=2, task="charge",
        data={"task": 1, "items": [0], "worker": "w1"},
    ),
    EventView(
        sequence=3, type="task.retry", kind="lost", timestamp=NOON + SECOND, shard=3, offset=42, epoch=2,
        task="charge", data={"task": 1, "item": 0, "attempt": 2, "due_at": 0},
    ),
    EventView(
        sequence=4, type="workflow.completed", kind="", timestamp=NOON + 3 * SECOND, shard=3, offset=43, epoch=2,
        data={"result": {"payment": "L-7"}},
    ),
]  # fmt: skip


class FakeHandle:
    def __init__(self, key: RunKey, *, created: bool = True) -> None:
        self.key = key
        self.version = 1
        self.created = created
        self.workflow_type = key.workflow_type
        self.instance_id = key.instance_id

    async def state(self) -> RunView:
        if self.key.instance_id not in RUNS:
            raise UnknownRun(f"there is no run {self.key}", {"instance_id": str(self.key.instance_id)})
        return RUNS[self.key.instance_id]

    async def outcome(self, timeout: float | None = None) -> RunOutcome:
        view = await self.state()
        return RunOutcome(key=self.key, state=view.state, result=view.result, error=view.error)

    async def history(self, from_sequence: int = 1) -> list[EventView]:
        return [event for event in EVENTS if event.sequence >= from_sequence]

    async def follow(self, from_sequence: int = 1) -> AsyncIterator[EventView]:
        for event in await self.history(from_sequence):
            yield event

    async def pause(self, reason: str = "") -> ControlOutcome:
        return ControlOutcome(changed=True, state="paused", sequence=18)

    async def resume(self, reason: str = "") -> ControlOutcome:
        return ControlOutcome(changed=False, state="running", sequence=17)

    async def cancel(self, reason: str = "") -> ControlOutcome:
        return ControlOutcome(changed=True, state="cancelled", sequence=18)

    async def resolve(self, task: str, item: int = 0, **decision: Any) -> ControlOutcome:
        if task != "charge":
            raise UnknownTask(f"the run has no task {task}", {"task": task})
        return ControlOutcome(changed=True, state="running", sequence=18)


class FakeClient:
    """What `onexflow.client.connect` gives in these tests."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def start(self, workflow_type: str, input: Any, *, instance_id: str | None, **_: Any) -> FakeHandle:
        if workflow_type != "order-processing":
            raise UnknownWorkflowType(
                f"no workflow type {workflow_type!r} is registered", {"workflow_type": workflow_type}
            )
        if instance_id == "taken":
            raise RunExists("another run has the id taken", {"instance_id": "taken"})
        chosen = instance_uuid(instance_id) if instance_id else DONE
        return FakeHandle(RunKey("default", workflow_type, chosen), created=chosen != FAILED)

    def get(self, workflow_type: str, instance_id: UUID | str) -> FakeHandle:
        return FakeHandle(RunKey("default", workflow_type, instance_uuid(instance_id)))

    async def blocked(self, workflow_type: str = "", *, limit: int | None = None) -> AsyncIterator[BlockedRun]:
        for view in [view for view in RUNS.values() if view.blocked is not None][:limit]:
            assert view.blocked is not None
            yield BlockedRun(key=view.key, state=view.state, blocked=view.blocked)

    async def list(
        self, workflow_type: str = "", states: Sequence[str] = (), *, limit: int | None = None
    ) -> AsyncIterator[RunSummary]:
        for run in list(RUNS.values())[:limit]:
            if (not workflow_type or run.key.workflow_type == workflow_type) and (not states or run.state in states):
                yield RunSummary(
                    key=run.key, version=1, state=run.state, sequence=17,
                    created_at=run.created_at, updated_at=run.updated_at,
                )  # fmt: skip

    async def definitions(self) -> Sequence[DefinitionInfo]:
        return [
            DefinitionInfo(
                namespace="default", workflow_type="order-processing", version=1, hash="ab12" * 16, tasks=5,
                registered_at=NOON,
            )
        ]  # fmt: skip

    async def register(self, definition: Any) -> DefinitionInfo:
        return DefinitionInfo(
            namespace="default", workflow_type=definition.workflow_type, version=definition.version,
            hash="cd34" * 16, tasks=len(definition.tasks), registered_at=NOON, created=True,
        )  # fmt: skip

    async def nodes(self) -> Sequence[NodeView]:
        return [
            NodeView(
                node_id="o1", kind="orchestrator", incarnation="i1", address="127.0.0.1:7411", status="ready",
                handlers=(), slots=0, running=0, connected=True, registered=True, version="0.1.0", started_at=NOON,
            ),
            NodeView(
                node_id="w1", kind="effect", incarnation="i2", address="127.0.0.1:40001", status="draining",
                handlers=("charge", "reserve_stock"), slots=8, running=3, connected=True, registered=False,
                started_at=NOON, health="unavailable",
            ),
            NodeView(
                node_id="agent-7", kind="guest", incarnation="i3", address="10.0.0.7:8080", status="ready",
                handlers=("paint",), slots=2, running=1, connected=False, registered=True, started_at=NOON,
                health="healthy",
            ),
        ]  # fmt: skip

    async def health(self) -> Health:
        return Health(serving=True, details={"registry": "etcd does not answer"})

    async def drain(self, node_id: str) -> bool:
        return True


async def connect(address: str = "", **_: Any) -> FakeClient:
    if address.startswith("nowhere"):
        raise Unavailable(f"no orchestrator answers at {address}: connection refused")
    return FakeClient()


async def connect_nowhere(*_: Any, **__: Any) -> FakeClient:
    raise Unavailable("no orchestrator answers at 127.0.0.1:7411: connection refused")
