"""The calls of clients on the wire."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from onexflow.codec.wire import admin, common, workflow
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure, Payload
from onexflow.ports import client_link as link
from onexflow.v1 import common_pb2
from onexflow.v1 import workflow_pb2 as pb

RUN = UUID("01890000-0000-7000-8000-000000000001")
KEY = RunKey("default", "order", RUN)
FAILURE = Failure("E", "m", "t", "OXF-4002", False, {"a": 1})
TASK = link.TaskView(
    name="t", role="effect", handler="h", state="running", attempt=1, worker="w", items=3, items_done=2,
    scheduled_at=1, started_at=2, finished_at=3, result=Payload(b"1"), error=FAILURE, blocked_because="b",
    next_wake_at=4, progress=Payload(b"2"),
)  # fmt: skip
VIEW = link.RunView(
    key=KEY, version=1, state="running", sequence=9, correlation_id="c", created_at=1, started_at=2, updated_at=3,
    completed_at=0, input=Payload(b"{}"), result=None, error=None, tasks=(TASK,), reason="r", blocked_because="b",
    next_wake_at=5, shard=3, owner="o", outcome="timeout",
)  # fmt: skip
EVENT = link.EventView(
    sequence=1, type="task.completed", kind="", timestamp=5, shard=1, offset=2, epoch=3, task="t", data={"a": [1]}
)
START = link.StartRequest(
    namespace="n", workflow_type="order", instance_id=RUN, version=2, input=Payload(b"[1]"), correlation_id="c",
    causation_id="d", request_id="r", delay=1.0, timeout=2.0, trace="t",
    caller=link.Caller(KEY, "lead", 3, "2.1"),
)  # fmt: skip
NODE = link.NodeView(
    node_id="w", kind="effect", incarnation="i", address="a", status="ready", handlers=("h",), slots=4, running=1,
    connected=True, registered=False, version="1", started_at=7,
)  # fmt: skip


def test_values_come_back_as_they_went() -> None:
    assert workflow.run_view(workflow.run_view_to_pb(VIEW)) == VIEW
    assert workflow.event_view(workflow.event_view_to_pb(EVENT)) == EVENT
    assert workflow.start(workflow.start_to_pb(START)) == START
    assert admin.node_view(admin.node_view_to_pb(NODE)) == NODE
    health = link.Health(serving=True, details={"etcd": "away"})
    assert admin.health(admin.health_to_pb(health)) == health
    summary = link.RunSummary(key=KEY, version=1, state="s", sequence=2, created_at=3, updated_at=4)
    assert workflow.run_summary(workflow.run_summary_to_pb(summary)) == summary
    info = link.DefinitionInfo(namespace="n", workflow_type="w", version=1, hash="h", tasks=2, registered_at=3)
    assert workflow.definition_info(workflow.definition_info_to_pb(info)) == info
    metrics = link.RunMetrics(
        workflow_type="w", by_state={"running": 1}, events=2, tasks=3, mean=0.5, p50=1.5, p95=2.5, p99=3.5,
        throughput=4.5, window=5.5,
    )  # fmt: skip
    assert workflow.run_metrics(workflow.run_metrics_to_pb(metrics)) == metrics
    outcome = link.ControlOutcome(changed=True, state="paused", sequence=3)
    assert workflow.control_outcome(workflow.control_outcome_to_pb(outcome)) == outcome


@pytest.mark.parametrize(
    "outcome",
    [
        link.StartOutcome(key=KEY, version=1, created=True, state="running", sequence=2),
        link.RunOutcome(key=KEY, state="completed", result=Payload(b"1")),
        link.RunOutcome(key=KEY, state="failed", error=FAILURE),
    ],
)
def test_answers_come_back_as_they_went(outcome: link.StartOutcome | link.RunOutcome) -> None:
    message = pb.Answer()
    workflow.fill_answer(message, 5, outcome)
    assert workflow.answer(message) == outcome


@pytest.mark.parametrize("decision", [{"retry": True}, {"result": Payload(b"1")}, {"fail": "broke"}])
def test_a_resolution_comes_back_as_it_went(decision: dict[str, Any]) -> None:
    request = link.ControlRequest(key=KEY, action="resolve", task="t", item=2, request_id="r", **decision)
    assert workflow.resolve(workflow.resolve_to_pb(request)) == request


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"workflow_type": ""}, "workflow_type"),
        ({"workflow_type": "a\0b"}, "workflow_type"),
        ({"workflow_type": "x" * 256}, "workflow_type"),
        ({"namespace": "a\nb"}, "namespace"),
        ({"instance_id": "no"}, "instance_id"),
        ({"instance_id": "z" * 36}, "instance_id"),
        ({"delay": -1.0}, "delay"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"request_id": "x" * 256}, "request_id"),
        ({"input": common_pb2.Payload(data=b"{")}, "input"),
        ({"input": common_pb2.Payload(data=b'"' + b"x" * (2 << 20) + b'"')}, "input"),
        ({"input": common_pb2.Payload(data=b"1", encoding="x" * 256)}, "input.encoding"),
    ],
)
def test_a_wrong_start_is_refused_and_its_field_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        workflow.start(pb.StartWorkflowRequest(**{"workflow_type": "order", **fields}))
    assert caught.value.context["field"] == field


@pytest.mark.parametrize(
    "message", [pb.ResolveTaskRequest(), pb.ResolveTaskRequest(retry=False), pb.ResolveTaskRequest(fail="")]
)
def test_a_resolution_must_say_something(message: pb.ResolveTaskRequest) -> None:
    message.key.CopyFrom(common.key_to_pb(KEY))
    message.task = "t"
    with pytest.raises(InvalidArgument):
        workflow.resolve(message)


def test_a_long_context_is_cut_and_stays_json() -> None:
    problems = [{"place": f"tasks[{n}]", "problem": "p" * 300} for n in range(500)]
    text = common.context_to_json({"problems": problems, "field": "tasks"})
    assert len(text.encode()) <= common.MAX_CONTEXT
    context = common.context_from_json(text)
    assert context["truncated"] is True
    assert context["field"] == "tasks"


@pytest.mark.parametrize("token", ["x", "-1", "1" * 20, "²"])
def test_a_page_token_of_somebody_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        workflow.page_start(token)


def test_a_view_that_is_larger_than_a_message_leaves_the_tasks_results_out() -> None:
    small = workflow.run_view_to_pb(VIEW)
    assert workflow.run_view(workflow.fit_run_view(small)) == VIEW
    large = workflow.run_view_to_pb(VIEW)
    large.tasks[0].result.data = b"x" * (7 << 20)
    (task,) = workflow.run_view(workflow.fit_run_view(large)).tasks
    assert (task.result, task.state) == (None, "running")


def test_a_view_whose_input_and_result_are_more_than_a_message_leaves_the_input_out() -> None:
    view = msgspec.structs.replace(VIEW, input=Payload(b"x" * (2 << 20)), result=Payload(b"y" * (6 << 20)))
    fitted = workflow.fit_run_view(workflow.run_view_to_pb(view))
    assert fitted.ByteSize() < 7 << 20
    assert len(fitted.result.data) == 6 << 20
