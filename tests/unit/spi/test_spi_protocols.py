"""The specification, member by member: names, parameters, order, defaults, annotations and async-ness."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import onexflow.spi
from onexflow.spi import nodes, protocols

# Transcribed from the specification's text, not from our code.
MEMBERS: dict[str, list[str]] = {
    "ProtocolWorkflowEventBus": [
        "property base_event_bus -> ProtocolEventBusBase",
        "async publish_workflow_event(event: ProtocolWorkflowEvent, target_topic: str | None=None, partition_key: str | None=None) -> None",
        "async subscribe_to_workflow_events(workflow_type: str, event_types: list[LiteralWorkflowEventType] | None=None, handler: ProtocolWorkflowEventHandler | None=None) -> str",
        "async unsubscribe_from_workflow_events(subscription_id: str) -> None",
        "async replay_workflow_events(workflow_type: str, instance_id: UUID, from_sequence: int, to_sequence: int | None=None, handler: ProtocolWorkflowEventHandler | None=None) -> list[ProtocolWorkflowEvent]",
        "async register_projection(projection: ProtocolLiteralWorkflowStateProjection) -> None",
        "async unregister_projection(projection_name: str) -> None",
        "async get_projection_state(projection_name: str, workflow_type: str, instance_id: UUID) -> dict[str, ContextValue]",
        "async create_workflow_topic(workflow_type: str, partition_count: int) -> bool",
        "async delete_workflow_topic(workflow_type: str) -> bool",
    ],
    "ProtocolWorkflowEventMessage": [
        "topic: str",
        "key: bytes | None",
        "value: bytes",
        "headers: dict[str, ContextValue]",
        "offset: str | None",
        "partition: int | None",
        "workflow_type: str",
        "instance_id: UUID",
        "correlation_id: UUID",
        "sequence_number: int",
        "event_type: LiteralWorkflowEventType",
        "idempotency_key: str",
        "async ack() -> None",
        "async get_workflow_event() -> ProtocolWorkflowEvent",
    ],
    "ProtocolWorkflowEventHandler": [
        "async __call__(event: ProtocolWorkflowEvent, context: dict[str, ContextValue]) -> None",
    ],
    "ProtocolLiteralWorkflowStateProjection": [
        "projection_name: str",
        "async apply_event(event: ProtocolWorkflowEvent, current_state: dict[str, ContextValue]) -> dict[str, ContextValue]",
        "async get_state(workflow_type: str, instance_id: UUID) -> dict[str, ContextValue]",
    ],
    "ProtocolWorkflowOrchestrator": [
        "async start_workflow(workflow_type: str, instance_id: UUID, initial_data: dict[str, ContextValue], correlation_id: UUID | None=None) -> ProtocolWorkflowInstance",
        "async pause_workflow(workflow_type: str, instance_id: UUID) -> bool",
        "async resume_workflow(workflow_type: str, instance_id: UUID) -> bool",
        "async cancel_workflow(workflow_type: str, instance_id: UUID, reason: str | None=None) -> bool",
        "async get_workflow_state(workflow_type: str, instance_id: UUID) -> ProtocolWorkflowState",
        "async get_workflow_history(workflow_type: str, instance_id: UUID) -> list[ProtocolWorkflowEvent]",
        "async replay_workflow(workflow_type: str, instance_id: UUID, from_sequence: int, to_sequence: int | None=None) -> list[ProtocolWorkflowEvent]",
        "async get_workflow_metrics(workflow_type: str | None=None) -> ProtocolWorkflowMetrics",
    ],
    "ProtocolWorkflowPersistence": [
        "async save_workflow_state(workflow_type: str, instance_id: UUID, state: ProtocolWorkflowState) -> bool",
        "async load_workflow_state(workflow_type: str, instance_id: UUID) -> ProtocolWorkflowState | None",
        "async save_workflow_event(event: ProtocolWorkflowEvent) -> bool",
        "async load_workflow_events(workflow_type: str, instance_id: UUID, from_sequence: int=0, to_sequence: int | None=None) -> list[ProtocolWorkflowEvent]",
        "async create_snapshot(workflow_type: str, instance_id: UUID, sequence_number: int) -> bool",
        "async load_snapshot(workflow_type: str, instance_id: UUID) -> ProtocolWorkflowSnapshot | None",
        "async cleanup_old_events(workflow_type: str, instance_id: UUID, before_sequence: int) -> int",
    ],
    "ProtocolWorkQueue": [
        "async enqueue_task(task: ProtocolWorkTask, priority: LiteralWorkQueuePriority='normal', delay_seconds: int=0) -> str",
        "async dequeue_task(worker_id: str, max_tasks: int=1) -> list[ProtocolWorkTask]",
        "async complete_task(task_id: str, result: dict[str, ContextValue] | None=None) -> bool",
        "async fail_task(task_id: str, error: str, retry_count: int | None=None) -> bool",
        "async get_task_status(task_id: str) -> ProtocolTaskStatus",
        "async get_queue_metrics() -> ProtocolQueueMetrics",
        "async pause_queue(queue_name: str) -> bool",
        "async resume_queue(queue_name: str) -> bool",
        "async get_queue_status(queue_name: str) -> ProtocolQueueStatus",
    ],
    "ProtocolWorkflowNodeRegistry": [
        "async register_node(node_info: ProtocolWorkflowNodeInfo, capabilities: list[ProtocolWorkflowNodeCapability]) -> str",
        "async unregister_node(node_id: str) -> bool",
        "async discover_nodes(capability: str | None=None, healthy_only: bool=True) -> list[ProtocolWorkflowNodeInfo]",
        "async get_node_capabilities(node_id: str) -> list[ProtocolWorkflowNodeCapability]",
        "async update_node_health(node_id: str, health_status: LiteralHealthStatus) -> bool",
        "async get_node_metrics(node_id: str) -> ProtocolNodeMetrics",
        "async assign_workflow_to_node(workflow_type: str, instance_id: UUID, node_id: str) -> bool",
        "async get_workflow_assignments(node_id: str) -> list[ProtocolWorkflowAssignment]",
    ],
    "ProtocolEffectNode": [
        "async execute_effect(contract: Any) -> Any",
        "property node_id -> str",
        "property node_type -> str",
    ],
    "ProtocolComputeNode": [
        "async execute_compute(contract: Any) -> Any",
        "property node_id -> str",
        "property node_type -> str",
    ],
    "ProtocolReducerNode": [
        "async execute_reduction(contract: Any) -> Any",
        "property node_id -> str",
        "property node_type -> str",
    ],
    "ProtocolOrchestratorNode": [
        "async execute_orchestration(contract: Any) -> Any",
        "property node_id -> str",
        "property node_type -> str",
    ],
    "ProtocolWorkflowEventCoordinator": [
        "def set_registry(registry: ProtocolNodeRegistry) -> None",
        "def set_event_bus(event_bus: ProtocolEventBusBase) -> None",
        "async run(input_state: dict[str, ContextValue]) -> ProtocolOnexResult",
        "async coordinate_events(workflow_events: list[ProtocolWorkflowEvent], scenario_id: str, correlation_id: str) -> ProtocolOnexResult",
        "async publish_workflow_event(event: ProtocolWorkflowEvent, correlation_id: str) -> ProtocolOnexResult",
        "async subscribe_to_events(event_types: list[str], callback: Callable[..., None], correlation_id: str) -> ProtocolOnexResult",
        "async get_event_status(event_id: str) -> dict[str, ContextValue] | None",
        "async health_check() -> dict[str, ContextValue]",
    ],
}


def members_of(name: str) -> list[str]:
    """What our class declares, in the table's form."""
    source = Path(inspect.getfile(nodes if name.endswith("Node") else protocols)).read_text()
    declaration = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
    found = []
    for node in declaration.body:
        if isinstance(node, ast.AnnAssign):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.returns is not None
            returns = ast.unparse(node.returns)
            if any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list):
                found.append(f"property {node.name} -> {returns}")
            else:
                assert node.args.args.pop(0).arg == "self"
                kind = "async" if isinstance(node, ast.AsyncFunctionDef) else "def"
                found.append(f"{kind} {node.name}({ast.unparse(node.args)}) -> {returns}")
    return found


def test_there_are_thirteen_protocols() -> None:
    assert len(MEMBERS) == 13


@pytest.mark.parametrize("name", MEMBERS)
def test_a_protocol_has_the_specifications_members_and_no_others(name: str) -> None:
    assert sorted(members_of(name)) == sorted(MEMBERS[name])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_protocol_can_be_asked_at_run_time(name: str) -> None:
    protocol = getattr(onexflow.spi, name)
    assert not isinstance(object(), protocol)


def test_a_class_with_the_members_satisfies_the_protocol() -> None:
    class Transform:
        node_id = "compute-transform-1"
        node_type = "compute"

        async def execute_compute(self, contract: object) -> object:
            return contract

    assert isinstance(Transform(), onexflow.spi.ProtocolComputeNode)
    assert not isinstance(Transform(), onexflow.spi.ProtocolEffectNode)


def test_the_public_names_are_sorted_and_exist() -> None:
    assert onexflow.spi.__all__ == sorted(onexflow.spi.__all__)
    for name in onexflow.spi.__all__:
        getattr(onexflow.spi, name)
