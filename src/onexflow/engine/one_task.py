"""Definitions of runs that are one call: to a node, or a task of a work queue."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from onexflow.core.definition import RetryPolicy, Role, TaskSpec, WorkflowDefinition

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]{1,80}", re.ASCII)
#: The name of the only task.
TASK: Final = "execute"
#: How the types of calls to nodes begin.
NODE_RUN: Final = "node."


def one_task(kind: str, role: Role, handler: str, description: str) -> WorkflowDefinition:
    """The workflow `KIND.ROLE.HANDLER`, of one task. A failure is the caller's to deal with: no retry. (An orchestration
    has its role's own: for calls that could not be made.)"""
    name = handler if _PLAIN.fullmatch(handler) else sha256(handler.encode()).hexdigest()[:32]
    once = RetryPolicy(policy="none", max_attempts=1)
    task = TaskSpec(name=TASK, role=role, handler=handler, retry=None if role == "orchestrator" else once)
    return WorkflowDefinition(workflow_type=f"{kind}.{role}.{name}", description=description, tasks=(task,))
