"""The calls of clients: values of `ports.client_link` ↔ the messages of `onexflow.v1` WorkflowService."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from onexflow.codec.wire import common
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey, uuid_text
from onexflow.core.payload import Payload
from onexflow.ports import client_link as link
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import workflow_pb2 as pb

MAX_PAGE: Final = 1000
_VIEW: Final = common.MAX_MESSAGE * 7 // 8  #: bytes of a run's view


# ---- starts and ends


def start(message: pb.StartWorkflowRequest, *, trace: str = "", principal: str = "") -> link.StartRequest:
    """The start that is asked for. Raises InvalidArgument naming the field."""
    delay, timeout = message.delay, message.timeout
    if delay or timeout:  # nearly none has one
        common.seconds(delay, "delay")
        common.seconds(timeout, "timeout")
    return link.StartRequest(
        namespace=common.kept(common.name(message.namespace, "namespace", default=DEFAULT_NAMESPACE)),
        workflow_type=common.kept(common.name(message.workflow_type, "workflow_type")),
        instance_id=common.run_id(message.instance_id, "instance_id") if message.instance_id else None,
        version=message.version,
        input=common.payload_or_null(message, "input", "input"),
        correlation_id=common.optional_name(message.correlation_id, "correlation_id"),
        causation_id=common.optional_name(message.causation_id, "causation_id"),
        request_id=common.optional_name(message.request_id, "request_id"),
        delay=delay,
        timeout=timeout,
        trace=common.optional_name(message.trace, "trace") or trace,
        principal=principal,
        caller=_caller(message.caller) if message.HasField("caller") else None,
        wait=message.wait,
    )


def _caller(message: pb.Caller) -> link.Caller:
    if not message.HasField("run"):
        raise InvalidArgument("A caller has no run.", field="caller.run")
    return link.Caller(
        common.key(message.run),
        common.name(message.task, "caller.task"),
        message.item,
        common.name(message.number, "caller.number"),
    )


def start_to_pb(value: link.StartRequest, *, wait: bool = False) -> pb.StartWorkflowRequest:
    caller = value.caller
    return pb.StartWorkflowRequest(
        namespace=value.namespace,
        workflow_type=value.workflow_type,
        instance_id=uuid_text(value.instance_id) if value.instance_id is not None else "",
        version=value.version,
        input=common.payload_to_pb(value.input),
        correlation_id=value.correlation_id,
        causation_id=value.causation_id,
        request_id=value.request_id,
        delay=value.delay,
        timeout=value.timeout,
        trace=value.trace,
        wait=wait,
        caller=None
        if caller is None
        else pb.Caller(run=common.key_to_pb(caller.run), task=caller.task, item=caller.item, number=caller.number),
    )


def start_outcome(message: pb.StartOutcome) -> link.StartOutcome:
    return link.StartOutcome(
        key=common.key(message.key),
        version=message.version,
        created=message.created,
        state=message.state,
        sequence=message.sequence,
    )


def start_outcome_to_pb(value: link.StartOutcome) -> pb.StartOutcome:
    return pb.StartOutcome(
        key=common.key_to_pb(value.key),
        version=value.version,
        created=value.created,
        state=value.state,
        sequence=value.sequence,
    )


def run_outcome(message: pb.RunOutcome) -> link.RunOutcome:
    return link.RunOutcome(
        key=common.key(message.key),
        state=message.state,
        result=_payload(message, "result"),
        error=common.optional_failure(message, "error"),
    )


def run_outcome_to_pb(value: link.RunOutcome) -> pb.RunOutcome:
    return pb.RunOutcome(
        key=common.key_to_pb(value.key),
        state=value.state,
        result=common.optional_payload_to_pb(value.result),
        error=common.optional_failure_to_pb(value.error),
    )


def fill_answer(message: pb.Answer, call_id: int, value: link.StartOutcome | link.RunOutcome | SPIError) -> None:
    """Write the answer to a call on the client's stream into its place."""
    message.call_id = call_id
    if isinstance(value, link.RunOutcome):
        ended = message.ended
        common.fill_key(ended.key, value.key)
        ended.state = value.state
        if value.result is not None:
            common.fill_payload(ended.result, value.result)
        if value.error is not None:
            ended.error.CopyFrom(common.failure_to_pb(value.error))
    elif isinstance(value, link.StartOutcome):
        started = message.started
        common.fill_key(started.key, value.key)
        started.version = value.version
        started.created = value.created
        started.state = value.state
        started.sequence = value.sequence
    else:
        message.error.CopyFrom(common.error_to_pb(value))


def answer(message: pb.Answer) -> link.StartOutcome | link.RunOutcome | SPIError:
    """What an answer says. Raises InvalidArgument when it says nothing that is known."""
    match message.WhichOneof("answer"):
        case "started":
            return start_outcome(message.started)
        case "ended":
            return run_outcome(message.ended)
        case "error":
            return common.error(message.error)
    raise InvalidArgument(f"The answer to call {message.call_id} holds nothing that is known.", field="answer")


def answer_size(value: link.StartOutcome | link.RunOutcome | SPIError) -> int:
    """About how many bytes the answer takes on the wire."""
    if isinstance(value, link.RunOutcome):
        result, error = value.result, value.error
        story = len(error.message) + len(error.traceback) if error is not None else 0
        return common.ENTRY + story + (len(result.data) if result is not None else 0)
    return common.ENTRY + (common.MAX_CONTEXT if isinstance(value, SPIError) else 0)


# ---- commands


def control(
    message: pb.PauseRunRequest | pb.ResumeRunRequest | pb.CancelRunRequest, action: link.Action, principal: str = ""
) -> link.ControlRequest:
    return link.ControlRequest(
        key=common.key(message.key),
        action=action,
        reason=_text(message.reason, "reason"),
        request_id=common.optional_name(message.request_id, "request_id"),
        principal=principal,
    )


def resolve(message: pb.ResolveTaskRequest, principal: str = "") -> link.ControlRequest:
    decision = message.WhichOneof("decision")
    if decision is None or (decision == "retry" and not message.retry):
        raise InvalidArgument("One of retry, result and fail must be given.", field="decision")
    if decision == "fail" and not message.fail:
        raise InvalidArgument("fail needs a reason.", field="fail")
    return link.ControlRequest(
        key=common.key(message.key),
        action="resolve",
        reason=_text(message.reason, "reason"),
        request_id=common.optional_name(message.request_id, "request_id"),
        task=common.name(message.task, "task"),
        item=message.item,
        retry=decision == "retry",
        result=common.payload(message.result, "result") if decision == "result" else None,
        fail=_text(message.fail, "fail"),
        principal=principal,
    )


def assign(message: pb.AssignRunRequest, principal: str = "") -> link.ControlRequest:
    return link.ControlRequest(
        key=common.key(message.key),
        action="assign",
        node_id=common.optional_name(message.node_id, "node_id"),
        request_id=common.optional_name(message.request_id, "request_id"),
        principal=principal,
    )


def resolve_to_pb(value: link.ControlRequest) -> pb.ResolveTaskRequest:
    message = pb.ResolveTaskRequest(
        key=common.key_to_pb(value.key),
        task=value.task,
        item=value.item,
        reason=value.reason,
        request_id=value.request_id,
    )
    if value.retry:
        message.retry = True
    elif value.result is not None:
        message.result.CopyFrom(common.payload_to_pb(value.result))
    else:
        message.fail = value.fail
    return message


def control_outcome(message: pb.ControlOutcome) -> link.ControlOutcome:
    return link.ControlOutcome(changed=message.changed, state=message.state, sequence=message.sequence)


def control_outcome_to_pb(value: link.ControlOutcome) -> pb.ControlOutcome:
    return pb.ControlOutcome(changed=value.changed, state=value.state, sequence=value.sequence)


# ---- views


def run_view_to_pb(value: link.RunView) -> pb.RunView:
    return pb.RunView(
        key=common.key_to_pb(value.key),
        version=value.version,
        state=value.state,
        sequence=value.sequence,
        correlation_id=value.correlation_id,
        created_at=value.created_at,
        started_at=value.started_at,
        updated_at=value.updated_at,
        completed_at=value.completed_at,
        input=common.payload_to_pb(value.input),
        result=common.optional_payload_to_pb(value.result),
        error=common.optional_failure_to_pb(value.error),
        tasks=[task_view_to_pb(task) for task in value.tasks],
        reason=value.reason,
        blocked_because=value.blocked_because,
        next_wake_at=value.next_wake_at,
        shard=value.shard,
        owner=value.owner,
        node_id=value.node_id,
        causation_id=value.causation_id,
        outcome=value.outcome,
        blocked=common.blocked_to_pb(value.blocked),
    )


def fit_run_view(message: pb.RunView) -> pb.RunView:
    """The view itself, without the payloads that would not fit into a message (the history has them): first those of
    the tasks, then the run's input."""
    if message.ByteSize() > _VIEW:
        for task in message.tasks:
            task.ClearField("result")
            task.ClearField("progress")
    if message.ByteSize() > _VIEW:
        message.ClearField("input")
    return message


def run_view(message: pb.RunView) -> link.RunView:
    return link.RunView(
        key=common.key(message.key),
        version=message.version,
        state=message.state,
        sequence=message.sequence,
        correlation_id=message.correlation_id,
        created_at=message.created_at,
        started_at=message.started_at,
        updated_at=message.updated_at,
        completed_at=message.completed_at,
        input=common.trusted_payload(message.input),
        result=_payload(message, "result"),
        error=common.optional_failure(message, "error"),
        tasks=tuple(task_view(task) for task in message.tasks),
        reason=message.reason,
        blocked_because=message.blocked_because,
        next_wake_at=message.next_wake_at,
        shard=message.shard,
        owner=message.owner,
        node_id=message.node_id,
        causation_id=message.causation_id,
        outcome=message.outcome,
        blocked=common.blocked(message),
    )


def task_view_to_pb(value: link.TaskView) -> pb.TaskView:
    return pb.TaskView(
        name=value.name,
        role=value.role,
        handler=value.handler,
        state=value.state,
        attempt=value.attempt,
        worker=value.worker,
        items=value.items,
        items_done=value.items_done,
        scheduled_at=value.scheduled_at,
        started_at=value.started_at,
        finished_at=value.finished_at,
        result=common.optional_payload_to_pb(value.result),
        error=common.optional_failure_to_pb(value.error),
        blocked_because=value.blocked_because,
        next_wake_at=value.next_wake_at,
        progress=common.optional_payload_to_pb(value.progress),
        blocked=common.blocked_to_pb(value.blocked),
    )


def task_view(message: pb.TaskView) -> link.TaskView:
    return link.TaskView(
        name=message.name,
        role=message.role,
        handler=message.handler,
        state=message.state,
        attempt=message.attempt,
        worker=message.worker,
        items=message.items,
        items_done=message.items_done,
        scheduled_at=message.scheduled_at,
        started_at=message.started_at,
        finished_at=message.finished_at,
        result=_payload(message, "result"),
        error=common.optional_failure(message, "error"),
        blocked_because=message.blocked_because,
        next_wake_at=message.next_wake_at,
        progress=_payload(message, "progress"),
        blocked=common.blocked(message),
    )


def event_view_to_pb(value: link.EventView) -> pb.EventView:
    return pb.EventView(
        sequence=value.sequence,
        type=value.type,
        kind=value.kind,
        timestamp=value.timestamp,
        shard=value.shard,
        offset=value.offset,
        epoch=value.epoch,
        task=value.task,
        data_json=msgspec.json.encode(value.data, enc_hook=str).decode() if value.data else "",
    )


def event_view(message: pb.EventView) -> link.EventView:
    return link.EventView(
        sequence=message.sequence,
        type=message.type,
        kind=message.kind,
        timestamp=message.timestamp,
        shard=message.shard,
        offset=message.offset,
        epoch=message.epoch,
        task=message.task,
        data=msgspec.json.decode(message.data_json) if message.data_json else {},
    )


def event_size(message: pb.EventView) -> int:
    """About how many bytes it takes on the wire."""
    return common.ENTRY + len(message.data_json)


def run_summary_to_pb(value: link.RunSummary) -> pb.RunSummary:
    return pb.RunSummary(
        key=common.key_to_pb(value.key),
        version=value.version,
        state=value.state,
        sequence=value.sequence,
        created_at=value.created_at,
        updated_at=value.updated_at,
    )


def run_summary(message: pb.RunSummary) -> link.RunSummary:
    return link.RunSummary(
        key=common.key(message.key),
        version=message.version,
        state=message.state,
        sequence=message.sequence,
        created_at=message.created_at,
        updated_at=message.updated_at,
    )


def run_metrics_to_pb(value: link.RunMetrics) -> pb.RunMetrics:
    return pb.RunMetrics(**msgspec.structs.asdict(value))


def run_metrics(message: pb.RunMetrics) -> link.RunMetrics:
    return link.RunMetrics(
        workflow_type=message.workflow_type,
        by_state=dict(message.by_state),
        events=message.events,
        tasks=message.tasks,
        mean=message.mean,
        p50=message.p50,
        p95=message.p95,
        p99=message.p99,
        throughput=message.throughput,
        window=message.window,
    )


def definition_info_to_pb(value: link.DefinitionInfo) -> pb.DefinitionInfo:
    return pb.DefinitionInfo(
        namespace=value.namespace,
        workflow_type=value.workflow_type,
        version=value.version,
        hash=value.hash,
        tasks=value.tasks,
        registered_at=value.registered_at,
        created=value.created,
    )


def definition_info(message: pb.DefinitionInfo) -> link.DefinitionInfo:
    return link.DefinitionInfo(
        namespace=message.namespace,
        workflow_type=message.workflow_type,
        version=message.version,
        hash=message.hash,
        tasks=message.tasks,
        registered_at=message.registered_at,
        created=message.created,
    )


# ---- pages


def namespace(text: str) -> str:
    return common.name(text, "namespace", default=DEFAULT_NAMESPACE)


def page_size(asked: int, default: int) -> int:
    return min(asked or default, MAX_PAGE)


def page_start(token: str) -> int:
    """The position that a page token of a list in memory stands for."""
    if not token:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidArgument(f"page_token is not one of ours: {token[:64]!r}.", field="page_token")
    return int(token)


def key(message: Any) -> RunKey:
    """The key of a request that has one. Raises InvalidArgument naming the field."""
    return common.key(message.key)


def _text(text: str, field: str) -> str:
    if len(text) > common.MAX_CONTEXT:
        raise InvalidArgument(f"{field} has {len(text)} characters; {common.MAX_CONTEXT} is the most.", field=field)
    return text


def _payload(parent: Any, attribute: str) -> Payload | None:
    return common.trusted_payload(getattr(parent, attribute)) if parent.HasField(attribute) else None
