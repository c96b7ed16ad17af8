"""onexflow: durable workflows on gRPC workers.

The names of this module are the public surface (docs/stability.md), resolved when they are first used, so that
`import onexflow` is quick and loads no gRPC:

- define: `workflow`, or `load_definition` for YAML and JSON; `WorkflowDefinition` and its parts
- serve: `Worker`, whose handlers may take a `Context` and raise `Fatal` or `Retry`
- call: `connect` → `Client` → `RunHandle`; from scripts without `async`, `onexflow.sync`
- errors: the specification's five (`SPIError` …) and the classes of `onexflow.core.errors` below them
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onexflow.client import Client, RunHandle, connect
    from onexflow.codec.definitions import dump_definition, load_definition
    from onexflow.config import Tls
    from onexflow.core.builder import workflow
    from onexflow.core.definition import (
        Compensation,
        RetryPolicy,
        RunRetry,
        TaskSpec,
        Timeouts,
        WorkflowDefinition,
    )
    from onexflow.core.errors import (
        DeadlineExceeded,
        DefinitionConflict,
        HandlerFailed,
        InvalidArgument,
        InvalidDefinition,
        InvalidTransition,
        Overloaded,
        RunExists,
        RunFailed,
        TaskTimedOut,
        Unavailable,
        UnknownNode,
        UnknownRun,
        UnknownTask,
        UnknownWorkflowType,
        WorkerLost,
    )
    from onexflow.spi.exceptions import (
        HandlerInitializationError,
        InvalidProtocolStateError,
        ProtocolHandlerError,
        RegistryError,
        SPIError,
    )
    from onexflow.worker import Cancelled, Context, Fatal, Retry, Worker

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("Client", "RunHandle", "connect"), "onexflow.client"),
    **dict.fromkeys(("dump_definition", "load_definition"), "onexflow.codec.definitions"),
    "Tls": "onexflow.config",
    "workflow": "onexflow.core.builder",
    **dict.fromkeys(
        ("Compensation", "RetryPolicy", "RunRetry", "TaskSpec", "Timeouts", "WorkflowDefinition"),
        "onexflow.core.definition",
    ),
    **dict.fromkeys(
        (
            "DeadlineExceeded", "DefinitionConflict", "HandlerFailed", "InvalidArgument", "InvalidDefinition",
            "InvalidTransition", "Overloaded", "RunExists", "RunFailed", "TaskTimedOut", "Unavailable", "UnknownNode",
            "UnknownRun", "UnknownTask", "UnknownWorkflowType", "WorkerLost",
        ),
        "onexflow.core.errors",
    ),
    **dict.fromkeys(
        (
            "HandlerInitializationError", "InvalidProtocolStateError", "ProtocolHandlerError", "RegistryError",
            "SPIError",
        ),
        "onexflow.spi.exceptions",
    ),
    **dict.fromkeys(("Cancelled", "Context", "Fatal", "Retry", "Worker"), "onexflow.worker"),
}  # fmt: skip

__all__ = [
    "Cancelled",
    "Client",
    "Compensation",
    "Context",
    "DeadlineExceeded",
    "DefinitionConflict",
    "Fatal",
    "HandlerFailed",
    "HandlerInitializationError",
    "InvalidArgument",
    "InvalidDefinition",
    "InvalidProtocolStateError",
    "InvalidTransition",
    "Overloaded",
    "ProtocolHandlerError",
    "RegistryError",
    "Retry",
    "RetryPolicy",
    "RunExists",
    "RunFailed",
    "RunHandle",
    "RunRetry",
    "SPIError",
    "TaskSpec",
    "TaskTimedOut",
    "Timeouts",
    "Tls",
    "Unavailable",
    "UnknownNode",
    "UnknownRun",
    "UnknownTask",
    "UnknownWorkflowType",
    "Worker",
    "WorkerLost",
    "WorkflowDefinition",
    "__version__",
    "connect",
    "dump_definition",
    "load_definition",
    "workflow",
]


def __getattr__(name: str) -> Any:
    if name == "sync":
        return import_module("onexflow.sync")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
