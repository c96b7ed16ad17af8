"""How a run that ended without a result is told to its caller."""

from __future__ import annotations

from typing import Any

from onexflow.codec.wire import common as wire_common
from onexflow.core.errors import RunFailed
from onexflow.v1 import workflow_pb2 as pb


def run_failed(outcome: pb.RunOutcome, workflow_type: str, instance_id: str) -> RunFailed:
    """The error of a run that ended without a result. Context: state, workflow_type, instance_id, and as far as they
    are known outcome (cancelled, failed or timeout, of a run that was compensated), error_type, error_code, task, traceback and the failure's own context."""
    failure = outcome.error
    context: dict[str, Any] = {
        "state": outcome.state,
        "workflow_type": outcome.key.workflow_type or workflow_type,
        "instance_id": outcome.key.instance_id or instance_id,
    }
    facts = wire_common.context_from_json(failure.context_json)
    if failure.type:
        context["error_type"] = failure.type
    if failure.code:
        context["error_code"] = failure.code
    if failure.traceback:
        context["traceback"] = failure.traceback
    if task := facts.pop("task", None):
        context["task"] = task
    if outcome.state == "compensated":
        context["outcome"] = facts.pop("outcome", "")
    if facts:
        context["error_context"] = facts
    what = f"run {context['workflow_type']}/{context['instance_id']} ended as {outcome.state}"
    if context.get("outcome"):
        what += f" ({context['outcome']})"
    where = f" in task {task}" if task else ""
    why = ": ".join(part for part in (failure.type, failure.message) if part)
    return RunFailed(f"{what}{where}{': ' if why else ''}{why}", context)
