"""The tree of errors, over the specification's five (`onexflow.spi`).

    SPIError
    ├── InvalidArgument        OXF-1001   a field of a request is wrong
    │   └── InvalidDefinition  OXF-1002   a workflow definition is wrong, at a named place
    ├── DeadlineExceeded       OXF-1301   the caller's deadline has passed
    ├── ProtocolViolation      OXF-1401   the peer of a stream broke the protocol
    ├── PermissionDenied       OXF-1501   the caller may not do this
    ├── Unauthenticated        OXF-1502   nobody is known by what the caller has shown
    ├── InternalError          OXF-9001   a bug of ours; carries the story
    ├── RegistryError
    │   ├── UnknownWorkflowType OXF-2001  ├── UnknownRun OXF-2002  ├── UnknownTask OXF-2003  ├── UnknownNode OXF-2004
    │   ├── UnknownTopic OXF-2005  ├── UnknownGroup OXF-2006  └── UnknownProjection OXF-2007
    ├── InvalidProtocolStateError
    │   ├── RunExists          OXF-3001   another run has this id
    │   ├── InvalidTransition  OXF-3002   the state machine has no such edge
    │   ├── DefinitionConflict OXF-3003   this version is registered with other content
    │   ├── NotDeterministic   OXF-3004   an orchestration made another call than before under the same number
    │   └── NodeNotReady       OXF-3005   the node is not initialised, or was shut down
    └── ProtocolHandlerError
        ├── Overloaded         OXF-1201   a limit is reached                                    (retryable)
        │   └── StoreFull      OXF-1202   no space left for new work                            (retryable)
        ├── RunFailed          OXF-4001   the run ended without a result
        ├── HandlerFailed      OXF-4002   a handler raised
        ├── WorkerLost         OXF-4003   the task's workers died under it, too often
        ├── TaskTimedOut       OXF-4004   a task passed one of its four timeouts
        ├── OutOfRange         OXF-4005   what is asked for was cut out of the history
        └── HandlerInitializationError
            ├── Unavailable          OXF-1101   try again: the answer is not known or not possible now  (retryable)
            │   ├── StoreUnavailable OXF-1102   the append failed or its outcome is unknown             (retryable)
            │   ├── ShardMoved       OXF-1103   another orchestrator owns it                            (retryable)
            │   ├── Draining         OXF-1104   this process is stopping                                (retryable)
            │   └── NotSecured       OXF-1105   the two ends do not agree on a secure connection        (retryable)
            ├── StoreLocked OXF-5001  ├── StoreUnusable OXF-5002  ├── RegistryUnavailable OXF-5003
            ├── PortBusy OXF-5004  ├── ModuleNotImportable OXF-5005  ├── InvalidConfiguration OXF-5006
            ├── UnsupportedPython OXF-5007  └── RoleNotSupported OXF-5008

Codes are stable. Each has a page (`docs/errors.md`, `onexflow explain CODE`). An error's docstring is its default message.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from onexflow.spi.exceptions import (
    HandlerInitializationError,
    InvalidProtocolStateError,
    ProtocolHandlerError,
    RegistryError,
    SPIError,
)


class Coded(SPIError):
    """What all errors of ours have beside the specification's class: a code, a hint, and whether to try again."""

    code: ClassVar[str]
    hint: ClassVar[str] = ""
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", context: dict[str, Any] | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0], context)


class InvalidArgument(Coded):
    """A field of the request is wrong."""

    code = "OXF-1001"
    hint = "The context's `field` names the place."

    def __init__(self, message: str = "", context: dict[str, Any] | None = None, *, field: str = "") -> None:
        super().__init__(message, {**(context or {}), **({"field": field} if field else {})})


class InvalidDefinition(InvalidArgument):
    """The workflow definition is wrong."""

    code = "OXF-1002"
    hint = "`onexflow definition check FILE` lists every problem with its place."


class Unavailable(Coded, HandlerInitializationError):
    """The answer is not known or not possible now. Try again."""

    code = "OXF-1101"
    hint = "Calls with the same request_id may be repeated safely."
    retryable = True


class StoreUnavailable(Unavailable):
    """The store did not confirm the write."""

    code = "OXF-1102"
    hint = "Look at the orchestrator's health answer: it names the store's error."


class ShardMoved(Unavailable):
    """Another orchestrator owns this run."""

    code = "OXF-1103"


class Draining(Unavailable):
    """This process is stopping and takes no new work."""

    code = "OXF-1104"


class NotSecured(Unavailable):
    """The two ends do not agree on a secure connection."""

    code = "OXF-1105"
    hint = "docs/security.md tells how the certificates of both ends must fit."


class Overloaded(Coded, ProtocolHandlerError):
    """A limit is reached."""

    code = "OXF-1201"
    retryable = True


class StoreFull(Overloaded):
    """The store has no space left: new work is refused, running work is safe."""

    code = "OXF-1202"
    hint = "Free disk space. The orchestrator goes on by itself."


class DeadlineExceeded(Coded):
    """The deadline has passed."""

    code = "OXF-1301"
    hint = "What was asked may still happen. Ask for the state, or repeat with the same request_id."


class ProtocolViolation(Coded):
    """The peer broke the stream's protocol."""

    code = "OXF-1401"
    hint = "The stream was closed; nothing else is affected. proto/onexflow/v1 describes the protocol."


class PermissionDenied(Coded):
    """The caller may not do this."""

    code = "OXF-1501"
    hint = "The orchestrators' access policy says who may do what; docs/security.md has the roles."


class Unauthenticated(Coded):
    """The caller did not show who it is, or nobody is known by what it showed."""

    code = "OXF-1502"
    hint = "Give a token (ONEXFLOW_TOKEN_FILE, --token-file) or a certificate that the access policy knows."


class InternalError(Coded):
    """A bug in onexflow."""

    code = "OXF-9001"
    hint = "Please report it, with the story in the context."


class UnknownWorkflowType(Coded, RegistryError):
    """No such workflow type or version is registered."""

    code = "OXF-2001"
    hint = "`onexflow definition list` shows what is registered."


class UnknownRun(Coded, RegistryError):
    """There is no such run."""

    code = "OXF-2002"
    hint = "`onexflow run list` shows the runs."


class UnknownTask(Coded, RegistryError):
    """The run has no such task."""

    code = "OXF-2003"


class UnknownNode(Coded, RegistryError):
    """There is no such node."""

    code = "OXF-2004"
    hint = "`onexflow node list` shows the nodes."


class UnknownTopic(Coded, RegistryError):
    """There is no such topic of the event bus, or no longer."""

    code = "OXF-2005"


class UnknownGroup(Coded, RegistryError):
    """There is no such consumer group."""

    code = "OXF-2006"


class UnknownProjection(Coded, RegistryError):
    """No projection of that name was ever registered."""

    code = "OXF-2007"


class RunExists(Coded, InvalidProtocolStateError):
    """Another run has this id."""

    code = "OXF-3001"
    hint = "A repeated start returns the run if its correlation_id and input are the same."


class InvalidTransition(Coded, InvalidProtocolStateError):
    """The state machine has no such edge."""

    code = "OXF-3002"
    hint = "docs/states.md shows the edges."


class DefinitionConflict(Coded, InvalidProtocolStateError):
    """This version is registered with other content."""

    code = "OXF-3003"
    hint = "Raise the version: running runs keep the definition they were started with."


class NotDeterministic(Coded, InvalidProtocolStateError):
    """An orchestration made another call than in an earlier execution: its code is not deterministic."""

    code = "OXF-3004"
    hint = "What decides about its calls must come from its contract and from the results of its calls."


class NodeNotReady(Coded, InvalidProtocolStateError):
    """The node is not initialised, or was shut down."""

    code = "OXF-3005"
    hint = "Start a worker that serves the node, and call again."


class RunFailed(Coded, ProtocolHandlerError):
    """The run ended without a result."""

    code = "OXF-4001"
    hint = "`onexflow run show ID` names the task that failed."


class HandlerFailed(Coded, ProtocolHandlerError):
    """A handler raised."""

    code = "OXF-4002"


class WorkerLost(Coded, ProtocolHandlerError):
    """The workers that ran the task died under it, too often."""

    code = "OXF-4003"
    hint = "The context's `workers` names them. Does the handler crash its process?"


class TaskTimedOut(Coded, ProtocolHandlerError):
    """The task passed one of its timeouts."""

    code = "OXF-4004"


class OutOfRange(Coded, ProtocolHandlerError):
    """What is asked for was cut out of the history; `earliest` in the context is what can still be read."""

    code = "OXF-4005"
    hint = "Go on from `earliest`; the snapshot has what came before."


class StoreLocked(Coded, HandlerInitializationError):
    """Another process has the store open."""

    code = "OXF-5001"
    hint = "One orchestrator at a time owns a SQLite store. Stop the other, or give another path."


class StoreUnusable(Coded, HandlerInitializationError):
    """The store cannot be used."""

    code = "OXF-5002"


class RegistryUnavailable(Coded, HandlerInitializationError):
    """etcd cannot be reached."""

    code = "OXF-5003"
    hint = "Check the endpoints, or use `memory:` to run without etcd."


class PortBusy(Coded, HandlerInitializationError):
    """The address is in use."""

    code = "OXF-5004"
    hint = "Give another port, or 0 for any free one."


class ModuleNotImportable(Coded, HandlerInitializationError):
    """The handlers' module cannot be imported."""

    code = "OXF-5005"
    hint = "Run from the folder that holds it, or set PYTHONPATH."


class InvalidConfiguration(Coded, HandlerInitializationError):
    """A setting is wrong."""

    code = "OXF-5006"
    hint = "The message names the setting and where it came from."


class UnsupportedPython(Coded, HandlerInitializationError):
    """This Python is too old."""

    code = "OXF-5007"
    hint = "CPython 3.11 to 3.13 are supported."


class RoleNotSupported(Coded, HandlerInitializationError):
    """A node of this role cannot be registered."""

    code = "OXF-5008"


def _tree(base: type[Coded]) -> list[type[Coded]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _tree(child))]


#: Every error class by its code.
BY_CODE: Final[dict[str, type[Coded]]] = {cls.code: cls for child in Coded.__subclasses__() for cls in _tree(child)}
