"""Every code block of the specification, run as it stands in docs/spec.

A block is named by the line of its opening fence. Its text is unchanged but for the module that it imports from and
`UUID("req-abc123")`, which no Python accepts; it runs inside an async function, after PRELUDE and the names that its test
gives it.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import textwrap
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest

from onexflow import Client, Worker, connect, onex
from onexflow.client.remote import RemoteService
from onexflow.testing.conformance.onex_event_bus import Seen
from onexflow.testing.conformance.onex_orchestrator import Script, definitions
from onexflow.testing.conformance.onex_projections import Totals
from support.grpc_cluster import grpc_cluster, grpc_worker

SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "workflow-orchestration.md"

#: The order of the specification's examples.
PAID = UUID("123e4567-e89b-12d3-a456-426614174000")

#: The names that the blocks presume.
PRELUDE = """
import asyncio
import logging
from typing import Any, Callable, Literal, Protocol, runtime_checkable
from uuid import UUID, uuid4

from onexflow.onex import *

logger = logging.getLogger("specification")
"""

#: Blocks that declare a protocol.
DECLARED = {
    13: "ProtocolWorkflowEventBus",
    80: "ProtocolWorkflowEventMessage",
    110: "ProtocolWorkflowEventHandler",
    127: "ProtocolLiteralWorkflowStateProjection",
    150: "ProtocolWorkflowOrchestrator",
    210: "ProtocolWorkflowPersistence",
    268: "ProtocolWorkQueue",
    317: "ProtocolWorkflowNodeRegistry",
    373: "ProtocolEffectNode",
    406: "ProtocolComputeNode",
    438: "ProtocolReducerNode",
    470: "ProtocolOrchestratorNode",
    1283: "ProtocolWorkflowEventCoordinator",
}
#: Blocks that declare literals.
LITERALS = (573, 684)
#: Blocks with a test of their own below.
EXAMPLES = (502, 722, 750, 777, 828, 866, 922, 982, 1027, 1073, 1136, 1187, 1238, 1257, 1269, 1336)


def _blocks() -> dict[int, str]:
    found: dict[int, str] = {}
    opened = 0
    lines = SPECIFICATION.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if opened and line.rstrip() == "```":
            found[opened] = "".join(lines[opened : number - 1])
            opened = 0
        elif line.rstrip() == "```python":
            opened = number
    return found


BLOCKS = _blocks()


async def run(line: int, **given: Any) -> dict[str, Any]:
    """Run a block; the names that it made."""
    text = re.sub(r"^from omnibase_spi\.[\w.]+ import", "from onexflow.onex import", BLOCKS[line], flags=re.MULTILINE)
    text = text.replace('UUID("req-abc123")', '"req-abc123"')
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    # As parameters: a block may assign to them.
    source = f"async def block({', '.join(given)}):\n{textwrap.indent(text, '    ')}\n    return locals()\n"
    exec(compile(source, f"{SPECIFICATION.name}:{line}", "exec", dont_inherit=True), names)
    made: dict[str, Any] = await names["block"](**given)
    return {**names, **made}


def shape(member: Any) -> Any:
    """What of a member must agree."""
    if isinstance(member, property):
        return "property"
    parameters = inspect.signature(member).parameters.values()
    return inspect.iscoroutinefunction(member), [(p.name, p.kind, p.default) for p in parameters]


def members(protocol: type) -> dict[str, Any]:
    """The members of a protocol and their shapes; attributes have none."""
    own = {
        name: shape(value) for name, value in vars(protocol).items() if callable(value) or isinstance(value, property)
    }
    public = {name: value for name, value in own.items() if not name.startswith("_") or name == "__call__"}
    return {**dict.fromkeys(inspect.get_annotations(protocol), "attribute"), **public}


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def orchestrator(script: Script, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[onex.WorkflowOrchestrator]:
    """What `get_workflow_orchestrator` gives, before a cluster with the suite's workflows."""
    async with grpc_cluster(script.worker()) as client:
        for definition in definitions():
            await client.register(definition)
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        yield onex.get_workflow_orchestrator()
        await onex.close()


@pytest.fixture
async def work_queue(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[onex.WorkQueue]:
    """What `get_work_queue` gives, before a cluster."""
    async with grpc_cluster() as client:
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        yield onex.get_work_queue()
        await onex.close()


@pytest.fixture
async def event_bus(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[onex.WorkflowEventBus]:
    """What `get_workflow_event_bus` gives, before a cluster."""
    async with grpc_cluster() as client:
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        yield onex.get_workflow_event_bus()
        await onex.close()


def _nodes() -> AbstractAsyncContextManager[Client]:
    """A cluster with a node of each role."""

    async def handle(contract: Any) -> Any:
        if contract == "fail":
            raise ValueError("it does not work")
        if contract == "uninitialised":
            raise onex.InvalidProtocolStateError("not yet", {"current_state": "created", "required_state": "ready"})
        if contract == "wait":
            await asyncio.Event().wait()
        return contract

    worker = Worker("nodes")
    worker.effect("an-effect")(handle)
    worker.compute("a-compute")(handle)
    worker.reducer("a-reducer")(handle)
    worker.orchestrator("an-orchestrator")(handle)
    return grpc_cluster(worker)


# ---- the list itself


def test_every_block_is_judged() -> None:
    assert len(BLOCKS) == 31
    assert sorted(BLOCKS) == sorted([*DECLARED, *LITERALS, *EXAMPLES])


# ---- declarations


@pytest.mark.parametrize(("line", "name"), DECLARED.items(), ids=DECLARED.values())
async def test_a_declared_protocol_is_ours(line: int, name: str) -> None:
    declared, ours = (await run(line))[name], getattr(onex, name)
    assert members(declared) == members(ours)
    assert list(members(declared)) == list(members(ours))


async def test_the_declared_orchestrator_is_satisfied_by_ours(orchestrator: onex.WorkflowOrchestrator) -> None:
    assert isinstance(orchestrator, (await run(150))["ProtocolWorkflowOrchestrator"])


async def test_the_declared_work_queue_is_satisfied_by_ours() -> None:
    declared = (await run(268))["ProtocolWorkQueue"]
    assert isinstance(onex.get_work_queue(), declared)
    ours = members(onex.WorkQueue)
    assert {name: shape for name, shape in members(declared).items() if ours[name] != shape} == {}


@pytest.mark.parametrize(("line", "getter"), [(13, "get_workflow_event_bus"), (1283, "get_workflow_event_coordinator")])
async def test_the_declared_event_protocols_are_satisfied_by_ours(line: int, getter: str) -> None:
    declared = (await run(line))[DECLARED[line]]
    mine = getattr(onex, getter)()
    assert isinstance(mine, declared)
    ours = members(type(mine))
    assert {name: shape for name, shape in members(declared).items() if ours[name] != shape} == {}


async def test_the_declared_message_handler_and_projection_are_satisfied_by_ours(
    event_bus: onex.WorkflowEventBus,
) -> None:
    subscription = await event_bus.subscribe_to_workflow_events("order-processing")
    await event_bus.publish_workflow_event(onex.create_workflow_event("task.started", "order-processing", uuid4()))
    [message] = await event_bus.pull(subscription)
    declared = (await run(80))[DECLARED[80]]
    assert isinstance(message, declared)
    assert all(hasattr(message, name) for name in members(declared))
    assert isinstance(Seen(), (await run(110))[DECLARED[110]])
    assert isinstance(Totals(), (await run(127))[DECLARED[127]])


@pytest.mark.parametrize(
    ("line", "handler"), [(373, "an-effect"), (406, "a-compute"), (438, "a-reducer"), (470, "an-orchestrator")]
)
async def test_a_declared_node_is_satisfied_by_ours(line: int, handler: str) -> None:
    declared = (await run(line))[DECLARED[line]]
    async with _nodes() as client:
        assert isinstance(await client.node(handler), declared)


async def test_the_declared_persistence_is_satisfied_by_ours() -> None:
    declared = (await run(210))["ProtocolWorkflowPersistence"]
    assert isinstance(onex.get_workflow_persistence(), declared)
    ours = members(onex.WorkflowPersistence)
    assert {name: shape for name, shape in members(declared).items() if ours[name] != shape} == {}


@pytest.mark.parametrize("line", LITERALS)
async def test_literals_are_ours_value_for_value(line: int) -> None:
    made = await run(line)
    names = re.findall(r"^(Literal\w+) = Literal", BLOCKS[line], re.MULTILINE)
    assert len(names) == {573: 5, 684: 2}[line]
    for name in names:
        assert get_args(made[name]) == get_args(getattr(onex, name))


# ---- examples


async def test_502_nodes_of_every_role() -> None:
    posted: list[tuple[str, Any]] = []

    class HttpClient:
        async def post(self, url: str, data: Any) -> Any:
            posted.append((url, data))
            return {"status": 200}

    async with grpc_cluster() as client:
        service = RemoteService.of(client)
        made = await run(
            502,
            http_client=HttpClient(),
            transform_data=lambda rows: [row * 2 for row in rows],
            aggregate_results=sum,
            effect_node=onex.EffectNode(service, "effect-api-call-1"),
            compute_node=onex.ComputeNode(service, "compute-transform-1"),
            reducer_node=onex.ReducerNode(service, "reducer-aggregation-1"),
        )
        worker = Worker("nodes")
        for name in ("APICallEffect", "DataTransformCompute", "ResultAggregationReducer", "WorkflowOrchestrator"):
            worker.add_node(made[name]())
        contract = {
            "effect_contract": {"url": "https://example.test/orders", "payload": {"order": 1}},
            "compute_contract": {"input_data": [1, 2]},
            "reduce_contract": {"partial_results": [3, 4, 5]},
        }
        async with grpc_worker(client._channels.address, worker, "nodes"):
            found = await client.node("orchestrator-workflow-1", "orchestrator")
            assert isinstance(found, onex.ProtocolOrchestratorNode)
            assert await found.execute_orchestration(contract) == 12
        assert posted == [("https://example.test/orders", {"order": 1})]
        called = [summary.key.workflow_type async for summary in client.list()]
        assert sorted(called) == [
            "node.compute.compute-transform-1", "node.effect.effect-api-call-1",
            "node.orchestrator.orchestrator-workflow-1", "node.reducer.reducer-aggregation-1",
        ]  # fmt: skip
        await service.close()


async def test_722_workflow_orchestration(
    orchestrator: onex.WorkflowOrchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await run(722)
    assert made["workflow_instance"].instance_id == UUID("123e4567-e89b-12d3-a456-426614174000")
    assert made["workflow_instance"].metadata["correlation_id"] == "req-abc123"
    assert made["state"].context["input"]["amount"] == 99.99
    assert f"Workflow state: {made['state'].current_state}" in capsys.readouterr().out


async def test_750_event_sourcing(event_bus: onex.WorkflowEventBus) -> None:
    seen = Seen()
    await event_bus.subscribe_to_workflow_events("order-processing", handler=seen)
    handler = Seen()
    made = await run(750, workflow_event_handler=handler)
    await seen.got(1)
    [event] = await event_bus.replay_workflow_events("order-processing", PAID, 0)
    assert (event.sequence_number, event.event_type, event.data["result"]) == (5, "task.completed", "success")
    status = event_bus.subscription_status(made["subscription_id"])
    assert (status.topic, status.state) == ("order-processing", "active")
    for kind in ("task.started", "task.failed"):
        await event_bus.publish_workflow_event(onex.create_workflow_event(kind, "order-processing", PAID))
    await handler.got(1)
    assert handler.events[0].event_type == "task_failed"


async def test_828_state_projections(event_bus: onex.WorkflowEventBus) -> None:
    for _ in range(2):
        await event_bus.publish_workflow_event(
            onex.create_workflow_event("task.completed", "order-processing", PAID, data={"task": "payment_processing"})
        )
    made = await run(828, event_bus=event_bus)
    assert made["state"] == {"last_completed_task": "payment_processing", "completion_count": 2}


async def test_1136_event_replay_errors(event_bus: onex.WorkflowEventBus) -> None:
    replay = (await run(1136))["replay_workflow_safely"]
    assert await replay(event_bus, "order-processing", uuid4()) == []
    for _ in range(3):
        await event_bus.publish_workflow_event(onex.create_workflow_event("task.started", "order-processing", PAID))
    events = await replay(event_bus, "order-processing", PAID)
    assert [event.sequence_number for event in events] == [1, 2, 3]
    assert await replay(event_bus, "order-processing", PAID, 3) == events[2:]
    with pytest.raises(onex.SPIError):
        await replay(event_bus, "order-processing", PAID, -1)


async def test_1238_event_sourcing_patterns(event_bus: onex.WorkflowEventBus) -> None:
    for number in range(12):
        event = onex.create_workflow_event("task.completed", "order-processing", PAID, data={"n": number + 1})
        await event_bus.publish_workflow_event(event)
    made = await run(1238, event_bus=event_bus, projection=Totals())
    assert [event.sequence_number for event in made["events"]] == list(range(1, 11))
    assert made["current_state"] == {"numbers": list(range(1, 11)), "count": 10}


async def test_1336_event_coordination(event_bus: onex.WorkflowEventBus, capsys: pytest.CaptureFixture[str]) -> None:
    await event_bus.publish_workflow_event(
        onex.create_workflow_event("task.started", "order-processing", PAID, event_id="event-123")
    )
    made = await run(1336, node_registry=onex.get_workflow_node_registry(), event_bus=event_bus)
    assert made["result"].success
    assert made["result"].error is None
    assert made["health"]["registry"]["set"] is True
    said = capsys.readouterr().out
    assert "Events coordinated successfully" in said
    assert "Event state: published" in said
    assert "Coordinator health: healthy" in said


async def test_777_tickets(work_queue: onex.WorkQueue, capsys: pytest.CaptureFixture[str]) -> None:
    for task_id in ("ticket-123", "ticket-456", "other"):
        await work_queue.enqueue_task(onex.WorkTask(task_id=task_id, max_retries=0))
    await work_queue.enqueue_task(onex.WorkTask(task_id="ticket-789", dependencies=["ticket-123"]))
    made = await run(777)
    assert [ticket.id for ticket in made["tickets"]] == ["ticket-123", "ticket-456", "other"]
    assert (await work_queue.get_task_status("ticket-123")).result == {"status": "success", "output": "processed"}
    assert (await work_queue.get_task_status("ticket-123")).progress == 1.0
    assert (await work_queue.get_task_status("ticket-456")).state == "failed"
    assert [ticket.id for ticket in made["deps"]] == ["ticket-123"]
    assert "Pending: 1, In-Progress: 1" in capsys.readouterr().out


async def test_866_node_management(orchestrator: onex.WorkflowOrchestrator, script: Script) -> None:
    gate, instance = script.gate("reserve"), UUID("123e4567-e89b-12d3-a456-426614174000")
    await orchestrator.start_workflow("order-processing", instance, {})
    made = await run(866)
    assert made["node_id"] == "worker-node-1"
    [worker, node] = made["nodes"]  # the cluster's worker has a handler of that name
    assert worker.metadata["kind"] == "worker"
    registry = onex.get_workflow_node_registry()
    assert (node.node_id, node.node_type, node.host, node.port) == ("worker-node-1", "compute", "192.168.1.100", 8080)
    found = await registry.get_node_capabilities("worker-node-1")
    assert [(each.capability_name, each.max_concurrent_tasks) for each in found] == [
        ("payment_processing", 10),
        ("email_notification", 50),
    ]
    [assignment] = await registry.get_workflow_assignments("worker-node-1")
    assert (assignment.workflow_type, assignment.instance_id) == ("order-processing", instance)
    assert assignment.state == (await orchestrator.get_workflow_state("order-processing", instance)).current_state
    gate.set()


async def test_922_workflow_lifecycle_errors(orchestrator: onex.WorkflowOrchestrator, script: Script) -> None:
    start = (await run(922))["start_workflow_safely"]
    gate, instance = script.gate("reserve"), uuid4()
    started = await start(orchestrator, "order-processing", instance, {"a": 1})
    assert started.instance_id == instance
    assert await start(orchestrator, "order-processing", instance, {"a": 1}) is None  # with another correlation id
    assert await start(orchestrator, "no-such-type", uuid4(), {}) is None
    script.failures["prepare"] = 1
    with pytest.raises(onex.ProtocolHandlerError):
        await start(orchestrator, "guided", uuid4(), {})
    gate.set()


async def test_982_workflow_transition_errors(orchestrator: onex.WorkflowOrchestrator, script: Script) -> None:
    manage = (await run(982))["manage_workflow_state"]
    gate, instance = script.gate("reserve"), uuid4()
    await orchestrator.start_workflow("order-processing", instance, {})
    answers = [
        await manage(orchestrator, "order-processing", instance, action)
        for action in ("pause", "pause", "resume", "cancel", "resume", "cancel")
    ]
    assert answers == [True, False, True, True, False, False]
    with pytest.raises(onex.RegistryError):
        await manage(orchestrator, "order-processing", uuid4(), "pause")
    gate.set()


async def test_1027_work_queue_errors(work_queue: onex.WorkQueue) -> None:
    process = (await run(1027))["process_task_safely"]

    async def work(task: onex.WorkTask) -> dict[str, Any]:
        if task.task_name == "bad":
            raise OSError("no such thing")
        return {"did": task.task_name}

    await process(work_queue, "w1", work)  # empty
    await work_queue.enqueue_task(onex.WorkTask(task_id="g", task_name="good"))
    await process(work_queue, "w1", work)
    assert (await work_queue.get_task_status("g")).result == {"did": "good"}
    await work_queue.enqueue_task(onex.WorkTask(task_id="b", task_name="bad", max_retries=3))
    await process(work_queue, "w1", work)
    status = await work_queue.get_task_status("b")
    assert (status.state, status.retry_count, status.error) == ("retrying", 1, "no such thing")


async def test_1269_priorities(work_queue: onex.WorkQueue) -> None:
    async def process_task(task: onex.WorkTask) -> dict[str, Any]:
        assert task.priority == "critical"
        return {"done": True}

    task = onex.WorkTask(task_id="t")
    made = await run(1269, work_queue=work_queue, task=task, process_task=process_task)
    assert [one.task_id for one in made["tasks"]] == ["t"]
    assert (await work_queue.get_task_status("t")).result == {"done": True}


async def test_1073_node_execution_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = (await run(1073))["execute_node_safely"]
    async with _nodes() as client:
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        effect, compute = await onex.get_node("an-effect", timeout=0.3), await onex.get_node("a-compute")
        assert await execute(effect, {"a": 1}) == {"a": 1}
        assert await execute(compute, [1, 2]) == [1, 2]
        with pytest.raises(onex.ProtocolHandlerError, match="does not work") as raised:
            await execute(compute, "fail")
        assert raised.value.context["node_id"] == "a-compute"
        with pytest.raises(onex.InvalidProtocolStateError) as refused:
            await execute(compute, "uninitialised")
        assert refused.value.context["current_state"] == "created"
        with pytest.raises(onex.ProtocolHandlerError) as late:
            await execute(effect, "wait")
        assert isinstance(late.value.__cause__, TimeoutError)
        with pytest.raises(ValueError, match="Unknown node type"):
            await execute(await onex.get_node("a-reducer"), [])
        await onex.close()


async def test_1187_persistence_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(onex, "connect", partial(connect, timeout=0.3))

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)

    save = (await run(1187, asyncio=SimpleNamespace(sleep=sleep)))["save_workflow_with_retry"]
    persistence, instance = onex.get_workflow_persistence(), uuid4()
    state = onex.WorkflowState(workflow_type="elsewhere", instance_id=instance, state="running", sequence_number=2)
    ins = (persistence, "elsewhere", instance)
    async with grpc_cluster() as client:
        monkeypatch.setenv("ONEXFLOW_ADDRESS", "127.0.0.1:1")  # nobody is there, until the first wait is over
        assert await save(*ins, state) is True
        assert waits == [1]
        assert await save(*ins, replace(state, sequence_number=1)) is False
        assert await persistence.load_workflow_state("elsewhere", instance) == state
    await onex.close()
    monkeypatch.setenv("ONEXFLOW_ADDRESS", "127.0.0.1:1")
    waits.append(0)
    with pytest.raises(onex.HandlerInitializationError):
        await save(*ins, state)
    assert waits[2:] == [1, 2]


async def test_1257_workflow_lifecycle(orchestrator: onex.WorkflowOrchestrator, script: Script) -> None:
    gate, instance = script.gate("reserve"), uuid4()
    await run(1257, orchestrator=orchestrator, instance_id=instance, initial_data={"order_id": "ORD-12345"})
    state = await orchestrator.get_workflow_state("order-processing", instance)
    assert (state.current_state, state.metadata["reason"]) == ("cancelled", "User cancelled")
    gate.set()
