"""The 46 places where the specification contradicts itself or says too little: each has its tests.

`docs/onex.md` says how each reads. The list may not name what is not there.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from onexflow import onex

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = "src/onexflow/testing/conformance/onex_orchestrator.py"
STEERING: Final = "src/onexflow/testing/conformance/onex_orchestrator_steering.py"
NODES: Final = "src/onexflow/testing/conformance/onex_nodes.py"
REGISTRY: Final = "src/onexflow/testing/conformance/onex_node_registry.py"
NODE_WORK: Final = "src/onexflow/testing/conformance/onex_node_work.py"
QUEUE: Final = "src/onexflow/testing/conformance/work_queue.py"
BUS: Final = "src/onexflow/testing/conformance/onex_event_bus.py"
DELIVERY: Final = "src/onexflow/testing/conformance/onex_event_delivery.py"
PROJECTIONS: Final = "src/onexflow/testing/conformance/onex_projections.py"
COORDINATOR: Final = "src/onexflow/testing/conformance/onex_event_coordinator.py"
PERSISTENCE: Final = "src/onexflow/testing/conformance/onex_persistence.py"
CLEAN_UP: Final = "src/onexflow/testing/conformance/onex_persistence_cuts.py"
CUTS: Final = "tests/properties/test_cut_histories.py"
QUEUES: Final = "tests/integration/test_work_queue_engine.py"
HERE: Final = "tests/acceptance/test_spec_rows.py"
TYPES: Final = "tests/unit/spi/test_spi_types.py"
PROTOCOLS: Final = "tests/unit/spi/test_spi_protocols.py"
STATES: Final = "tests/unit/test_machine.py"
BLOCKS: Final = "tests/acceptance/test_spec_blocks.py"
FILES: Final = "tests/unit/test_definition_files.py"
HANDLERS: Final = "tests/unit/test_worker_handlers.py"
UNDOING: Final = "tests/unit/test_compensation.py"
BASES: Final = "tests/unit/test_node_bases.py"
LIVES: Final = "tests/unit/test_node_lifecycle.py"

#: Row: the question, and where its tests are.
TESTED: Final[dict[int, tuple[str, list[tuple[str, str]]]]] = {
    1: (
        "event type with a dot or an underscore",
        [
            (TYPES, "test_an_event_type_equals_both_spellings"),
            (SUITE, "test_event_types_equal_both_spellings"),
            (BUS, "test_types_are_filtered_in_either_spelling"),
        ],
    ),
    2: (
        "event body: data or payload",
        [
            (TYPES, "test_data_and_payload_are_one_field"),
            (SUITE, "test_event_types_equal_both_spellings"),
            (BUS, "test_an_event_of_another_class_is_taken"),
        ],
    ),
    3: ("Protocol classes are instantiated", [(HERE, "test_data_types_can_be_made_under_both_names")]),
    4: ('UUID("req-abc123")', [(BLOCKS, "test_722_workflow_orchestration")]),
    5: ("correlation_id is a UUID or text", [(SUITE, "test_a_correlation_id_may_be_text")]),
    6: ("task calls or ticket calls", [(QUEUE, "test_tickets_are_the_same_tasks")]),
    7: (
        "two sets of priorities",
        [(QUEUE, "test_priorities_of_both_sets_in_their_order"), (QUEUE, "test_other_values_are_refused")],
    ),
    8: ("progress of 0.5", [(QUEUE, "test_progress_is_a_fraction_or_per_cent")]),
    9: ("12 or 13 protocols", [(PROTOCOLS, "test_there_are_thirteen_protocols")]),
    10: (
        "nodes of protocols.onex, or of protocols.nodes",
        [
            (BASES, "test_both_paths_give_the_same_objects"),
            (BASES, "test_a_base_has_what_both_apis_want"),
            (BASES, "test_workers_serve_them_and_lead_their_lives"),
            (HANDLERS, "test_a_node_of_the_published_package_is_called_by_its_execute"),
        ],
    ),
    11: (
        'node_type "compute" or "COMPUTE"',
        [
            (NODES, "test_a_name_in_two_roles_needs_its_type"),
            (HANDLERS, "test_class_nodes_are_registered_as_they_are"),
            (REGISTRY, "test_a_registered_node_is_seen_by_all_with_all_it_said"),
            (REGISTRY, "test_the_base_registry_finds_by_type_environment_group_and_health"),
        ],
    ),
    12: (
        "a base bus or the workflow bus, a base registry or the workflow registry",
        [
            (COORDINATOR, "test_it_takes_a_workflow_bus_or_its_base"),
            (COORDINATOR, "test_it_takes_a_base_bus_of_others"),
            (COORDINATOR, "test_it_takes_either_registry"),
        ],
    ),
    13: (
        "two publish_workflow_event",
        [
            (BUS, "test_what_is_published_is_delivered_as_it_was"),
            (COORDINATOR, "test_publish_says_where_it_stands"),
        ],
    ),
    14: (
        "a callback is sync, a handler async",
        [
            (BUS, "test_handlers_are_async_or_sync_and_take_one_or_two"),
            (COORDINATOR, "test_a_callback_gets_events_of_all_workflow_types"),
        ],
    ),
    15: (
        "events of instances nobody started",
        [
            (COORDINATOR, "test_events_of_instances_nobody_started_are_external_streams"),
            (COORDINATOR, "test_one_that_fails_does_not_keep_the_others"),
            (COORDINATOR, "test_nothing_is_raised"),
        ],
    ),
    16: ("result.error or message, error_code, result_data", [(HERE, "test_a_result_has_both_words_for_its_error")]),
    17: (
        "who numbers",
        [
            (BUS, "test_the_bus_numbers_what_has_no_number"),
            (BUS, "test_a_number_above_the_head_is_taken"),
            (BUS, "test_the_same_event_again_changes_nothing_and_another_is_refused"),
            (BUS, "test_a_run_s_events_are_its_orchestrator_s_to_write"),
        ],
    ),
    18: (
        "first sequence, ends of ranges",
        [
            (BUS, "test_a_replay_has_both_its_ends_and_reaches_only_its_handler"),
            (SUITE, "test_a_replay_has_both_its_ends"),
            (SUITE, "test_the_history_is_numbered_from_one_without_a_gap"),
            (PERSISTENCE, "test_a_run_s_events_are_its_history"),
        ],
    ),
    19: (
        "an unknown instance: an error, or nothing",
        [
            (SUITE, "test_an_unknown_run_is_a_registry_error"),
            (PERSISTENCE, "test_what_is_not_known_loads_as_nothing"),
        ],
    ),
    20: (
        "starting an instance that exists",
        [
            (SUITE, "test_the_same_start_again_returns_the_run"),
            (SUITE, "test_another_start_of_an_instance_is_refused"),
        ],
    ),
    21: (
        "the first task failed at a start",
        [
            (SUITE, "test_a_run_that_cannot_be_initialised_is_a_handler_error"),
            (SUITE, "test_a_first_task_that_fails_for_good_is_raised_when_asked_for"),
            (SUITE, "test_a_start_returns_when_the_run_is_initialised"),
        ],
    ),
    22: (
        "a refused transition",
        [(STEERING, "test_pause_resume_cancel"), (STEERING, "test_a_transition_that_there_is_not_is_refused")],
    ),
    23: (
        "an empty queue",
        [
            (QUEUE, "test_an_empty_queue_gives_an_empty_list"),
            (QUEUE, "test_only_the_caller_s_deadline_is_a_timeout"),
        ],
    ),
    24: (
        "fail_task: final, or again",
        [
            (QUEUE, "test_a_failed_task_comes_again_until_its_retries_are_used_up"),
            (QUEUE, "test_the_greater_retry_count_counts"),
        ],
    ),
    25: (
        "a late result",
        [(QUEUE, "test_a_lease_that_ends_gives_the_task_back_and_fences_its_holder")],
    ),
    26: (
        "what a worker can do, and for how long it has a task",
        [
            (QUEUE, "test_a_capability_is_asked_of_the_worker"),
            (QUEUES, "test_a_dead_workers_tasks_come_back_before_their_lease_ends"),
        ],
    ),
    27: (
        "which queue name",
        [
            (QUEUE, "test_pause_and_resume_by_queue_name"),
            (QUEUE, "test_a_task_without_queue_name_is_in_that_of_its_type"),
        ],
    ),
    28: (
        "whose is a projection's state",
        [
            (PROJECTIONS, "test_it_is_asked_only_when_the_bus_has_nothing"),
            (PROJECTIONS, "test_it_goes_on_where_it_was"),
        ],
    ),
    29: (
        "events before a projection's registration",
        [(PROJECTIONS, "test_it_has_all_that_was_before_and_all_that_is_durable_at_a_call")],
    ),
    30: (
        "from when a subscription has events, and without a handler",
        [
            (BUS, "test_what_is_published_before_is_not_delivered_and_after_unsubscribing_neither"),
            (DELIVERY, "test_messages_are_pulled_and_acknowledged"),
            (DELIVERY, "test_what_is_not_acknowledged_comes_again"),
        ],
    ),
    31: (
        "whom a replay reaches",
        [(BUS, "test_a_replay_has_both_its_ends_and_reaches_only_its_handler")],
    ),
    32: (
        "topics without a broker",
        [
            (BUS, "test_topics_are_created_and_deleted"),
            (BUS, "test_partitions_follow_the_key"),
            (BUS, "test_a_target_topic_is_where_it_is_delivered"),
        ],
    ),
    33: (
        "what a snapshot holds, and a clean-up of what replay needs",
        [
            (PERSISTENCE, "test_a_snapshot_is_the_state_at_exactly_that_event"),
            (PERSISTENCE, "test_there_is_no_snapshot_beyond_the_head"),
            (CLEAN_UP, "test_a_clean_up_leaves_a_snapshot_and_the_rest"),
            (CLEAN_UP, "test_what_was_cut_is_out_of_range_and_never_silence"),
            (CLEAN_UP, "test_a_run_goes_on_after_a_clean_up"),
            (CUTS, "test_a_run_is_what_its_whole_history_says"),
        ],
    ),
    34: (
        "no table of transitions",
        [
            (STATES, "test_every_pair_of_states_is_an_edge_or_raises"),
            (STATES, "test_every_pair_of_state_and_command_transits_legally_or_is_refused_without_a_trace"),
        ],
    ),
    35: ("no way to define a workflow type", [(FILES, "test_what_was_written_is_read_again")]),
    36: ("a contract by attribute or by item", [(NODES, "test_they_do_what_the_nodes_do")]),
    37: (
        "assigning a workflow to a node, beside queueing by task",
        [
            (NODE_WORK, "test_an_assigned_run_is_known_and_ends_its_assignment"),
            (NODE_WORK, "test_dispatch_honours_it"),
            (NODE_WORK, "test_an_assignment_is_given_back_when_its_node_goes"),
            (NODE_WORK, "test_runs_and_nodes_that_there_are_not"),
        ],
    ),
    38: (
        "the id of a registered node; registering twice",
        [
            (REGISTRY, "test_a_new_registration_replaces_the_old_and_fences_it"),
            (REGISTRY, "test_the_same_object_may_register_a_node_again"),
        ],
    ),
    39: ("which health is healthy", [(REGISTRY, "test_health_decides_who_is_found")]),
    40: (
        "a node that is not initialised",
        [
            (NODES, "test_a_call_before_initialize_has_finished_is_refused"),
            (NODES, "test_a_call_after_the_shutdown_is_refused"),
            (NODES, "test_a_node_s_own_state_error_comes_as_what_it_is"),
            (LIVES, "test_one_whose_initialize_fails_ends_its_worker_and_is_refused"),
        ],
    ),
    41: (
        "a node's timeout",
        [(NODES, "test_a_call_that_takes_too_long_is_a_handler_error_from_a_timeout")],
    ),
    42: (
        "a pull API with strategies",
        [
            (QUEUES, "test_those_who_wait_are_served_by_the_strategy"),
            (QUEUE, "test_a_ticket_without_an_agent_is_given_to_whom_the_strategy_picks"),
        ],
    ),
    43: (
        "context values",
        [(HERE, "test_context_values_are_any_json"), (SUITE, "test_data_that_is_no_json_object_is_refused")],
    ),
    44: (
        "an example class WorkflowOrchestrator is a node",
        [
            (NODES, "test_a_node_of_type_orchestrator_may_be_a_workflow"),
            (NODES, "test_an_orchestrator_node_has_the_others_work"),
            (BLOCKS, "test_502_nodes_of_every_role"),
        ],
    ),
    45: (
        "cancel with something to undo: cancelled or compensated",
        [
            (STEERING, "test_a_cancel_with_something_to_undo_ends_compensated_and_keeps_its_outcome"),
            (STEERING, "test_a_cancel_with_nothing_to_undo_ends_cancelled"),
            (STEERING, "test_a_failure_with_something_to_undo_goes_to_compensating_and_never_to_failed"),
            (UNDOING, "test_a_cancelled_run_undoes_the_last_first_and_keeps_its_outcome"),
            (UNDOING, "test_nothing_to_undo_is_cancelled_at_once"),
        ],
    ),
    46: (
        "getters and a maker of events that are called and not defined",
        [(HERE, "test_there_are_the_getters_and_the_maker_of_events_that_the_examples_call")],
    ),
}


def test_every_row_is_tested() -> None:
    assert sorted(TESTED) == list(range(1, 47))


@pytest.mark.parametrize("row", TESTED)
def test_the_tests_of_a_row_are_there(row: int) -> None:
    for file, name in TESTED[row][1]:
        tree = ast.parse((ROOT / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in names, f"{file} has no {name}"


def test_there_are_the_getters_and_no_others() -> None:
    built = {name for name in onex.__all__ if name.startswith("get_")}
    assert built == {
        "get_node",
        "get_work_queue",
        "get_workflow_event_bus",
        "get_workflow_event_coordinator",
        "get_workflow_node_registry",
        "get_workflow_orchestrator",
        "get_workflow_persistence",
    }


# ---- rows that have no better place


def test_data_types_can_be_made_under_both_names() -> None:
    instance = uuid4()
    event = onex.ProtocolWorkflowEvent(event_type="task_completed", workflow_type="order", instance_id=instance)
    assert isinstance(event, onex.WorkflowEvent)
    node = onex.ProtocolWorkflowNodeInfo(node_id="n1", node_type="compute", host="192.168.1.100", port=8080)
    assert isinstance(node, onex.WorkflowNodeInfo)
    capability = onex.ProtocolWorkflowNodeCapability(capability_name="payment_processing", max_concurrent_tasks=10)
    assert isinstance(capability, onex.WorkflowNodeCapability)
    assert isinstance(onex.ProtocolWorkTask(task_id="t1"), onex.WorkTask)


def test_a_result_has_both_words_for_its_error() -> None:
    good, bad = (
        onex.OnexResult(success=True, message="done", result_data={"n": 1}),
        onex.OnexResult(success=False, message="no", error_code="OXF-2001"),
    )
    assert (good.error, good.message, good.result_data, good.error_code) == (None, "done", {"n": 1}, None)
    assert (bad.error, bad.message, bad.result_data, bad.error_code) == ("no", "no", None, "OXF-2001")
    assert good.timestamp.tzinfo is not None


def test_there_are_the_getters_and_the_maker_of_events_that_the_examples_call() -> None:
    made = {
        "get_workflow_orchestrator": onex.ProtocolWorkflowOrchestrator,
        "get_work_queue": onex.ProtocolWorkQueue,
        "get_workflow_event_bus": onex.ProtocolWorkflowEventBus,
        "get_workflow_node_registry": onex.ProtocolWorkflowNodeRegistry,
        "get_workflow_event_coordinator": onex.ProtocolWorkflowEventCoordinator,
        "get_workflow_persistence": onex.ProtocolWorkflowPersistence,
    }
    assert all(isinstance(getattr(onex, name)(), protocol) for name, protocol in made.items())
    event = onex.create_workflow_event("task_completed", "order", uuid4())
    assert (event.event_type, event.sequence_number, event.data) == ("task.completed", 0, {})
    assert event.idempotency_key == str(event.event_id)


def test_context_values_are_any_json() -> None:
    values: onex.Context = {"a": 99.99, "b": "ORD-12345", "c": True, "d": None, "e": [1, {"f": ["g"]}]}
    event = onex.create_workflow_event("task.completed", "order", uuid4(), data=values)
    assert event.data == values
