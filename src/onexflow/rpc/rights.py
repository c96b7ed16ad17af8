"""Who may call what: one row a method of onexflow.v1, and a test that none is missing. docs/security.md is made from it.

A caller needs one of the roles of a row. An operator may do what a client may, a member (another orchestrator) what both
may: it passes their calls on, with the caller's name and roles, and these are checked as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from onexflow.core.identity import AccessRole

Roles = tuple[AccessRole, ...]

_CLIENT: Final[Roles] = ("client",)
_WORKER: Final[Roles] = ("worker",)
_OPERATOR: Final[Roles] = ("operator",)
#: What registers nodes: programs with nodes of their own, and people who mend what those have left.
_NODES: Final[Roles] = ("worker", "operator")
#: What everybody who runs a process of the cluster wants to know.
_LOOK: Final[Roles] = ("client", "worker")

_SERVICES: Final[Mapping[str, Mapping[str, Roles]]] = {
    "WorkflowService": {
        "StartWorkflow": _CLIENT,
        "GetResult": _CLIENT,
        "PauseRun": _CLIENT,
        "ResumeRun": _CLIENT,
        "CancelRun": _CLIENT,
        "ResolveTask": _CLIENT,
        "AssignRun": _CLIENT,
        "DescribeRun": _CLIENT,
        "GetHistory": _CLIENT,
        "FollowRun": _CLIENT,
        "ListRuns": _CLIENT,
        "GetWorkflowMetrics": _CLIENT,
        "RegisterDefinition": _CLIENT,
        "GetDefinition": _CLIENT,
        "ListDefinitions": _CLIENT,
        "Connect": _CLIENT,
    },
    "WorkerService": {"Session": _WORKER},
    "AdminService": {"ListNodes": _LOOK, "DrainNode": _OPERATOR, "GetHealth": _LOOK, "ListBlocked": _CLIENT},
    "WorkQueueService": {
        "EnqueueTask": _CLIENT,
        "DequeueTasks": _CLIENT,
        "CompleteTask": _CLIENT,
        "FailTask": _CLIENT,
        "ReportProgress": _CLIENT,
        "AssignTask": _CLIENT,
        "PauseQueue": _CLIENT,
        "ResumeQueue": _CLIENT,
        "SetAssignmentStrategy": _CLIENT,
        "GetTask": _CLIENT,
        "ListTasks": _CLIENT,
        "GetQueueMetrics": _CLIENT,
    },
    "EventBusService": {
        "PublishEvent": _CLIENT,
        "ReadEvents": _CLIENT,
        "FindEvent": _CLIENT,
        "Consume": _CLIENT,
        "ListGroups": _CLIENT,
        "DeleteGroup": _CLIENT,
        "ListDeadLetters": _CLIENT,
        "RequeueDeadLetters": _CLIENT,
        "DiscardDeadLetters": _CLIENT,
        "CreateTopic": _CLIENT,
        "DeleteTopic": _CLIENT,
        "ListTopics": _CLIENT,
        "SaveProjection": _CLIENT,
        "LoadProjection": _CLIENT,
        "ResetProjection": _CLIENT,
    },
    "NodeRegistryService": {
        "RegisterNode": _NODES,
        "UnregisterNode": _NODES,
        "FindNodes": _LOOK,
        "WatchNodes": _LOOK,
        "ReportNodeHealth": _NODES,
        "GetNodeMetrics": _LOOK,
        "ListAssignments": _LOOK,
    },
    "PersistenceService": {
        "SaveState": _CLIENT,
        "LoadState": _CLIENT,
        "SaveEvent": _CLIENT,
        "LoadEvents": _CLIENT,
        "CreateSnapshot": _CLIENT,
        "LoadSnapshot": _CLIENT,
        "CutHistory": _OPERATOR,
    },
}

PACKAGE: Final = "/onexflow.v1."


def _rows() -> Iterator[tuple[str, Roles]]:
    for service, methods in _SERVICES.items():
        for method, roles in methods.items():
            yield f"{PACKAGE}{service}/{method}", roles


#: The roles of which a caller needs one, by the method's full name (`/onexflow.v1.WorkflowService/StartWorkflow`).
RIGHTS: Final[Mapping[str, Roles]] = dict(_rows())


def as_markdown() -> str:
    """The table of docs/security.md."""
    lines = ["| service | methods | needs |", "|---|---|---|"]
    for service, methods in _SERVICES.items():
        for roles in dict.fromkeys(methods.values()):
            names = [name for name, needed in methods.items() if needed == roles]
            shown = "all" if len(names) == len(methods) else ", ".join(names)
            lines.append(f"| {service} | {shown} | {' or '.join(roles)} |")
    return "\n".join(lines) + "\n"
