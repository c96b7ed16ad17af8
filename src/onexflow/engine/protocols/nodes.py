"""The node protocols on the caller's side: a node that runs on workers, called as if it were here.

A call is a run of a workflow of one task, so it is durable: it survives the loss of any process, it can be looked at
afterwards, and whichever worker serves the node does it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeAlias

from onexflow.codec.definitions import dump_definition
from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import BY_CODE, HandlerFailed, InvalidArgument, TaskTimedOut, UnknownNode, UnknownWorkflowType
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.core.payload import Payload
from onexflow.engine import asking
from onexflow.engine.one_task import one_task
from onexflow.ports.client_link import Caller, RunOutcome, RunService, StartRequest
from onexflow.ports.orchestration import calling, outside
from onexflow.ports.registry import role_of
from onexflow.ports.worker_link import Role
from onexflow.spi.exceptions import InvalidProtocolStateError, ProtocolHandlerError, RegistryError, SPIError
from onexflow.spi.types import Context
from onexflow.telemetry import tracing

_PASSED_ON: Final[tuple[type[SPIError], ...]] = (InvalidProtocolStateError, ProtocolHandlerError, RegistryError)
_ALL: Final[tuple[type[SPIError], ...]] = (*_PASSED_ON, *BY_CODE.values())
#: Errors that a node may raise and its caller gets as the same class, by the name that they have in a failure.
_RAISED: Final = {cls.__name__: cls for cls in _ALL if issubclass(cls, _PASSED_ON)}


class _Node:
    """What the four kinds have in common."""

    role: ClassVar[Role]
    _definition: WorkflowDefinition | None

    def __init__(
        self, service: RunService, node_id: str, *, namespace: str = DEFAULT_NAMESPACE, timeout: float = 0.0
    ) -> None:
        """`timeout`: seconds that a call may take, the wait for a worker included; 0: it waits for ever."""
        self._service = service
        self._node_id = node_id
        self._namespace = namespace
        self._timeout = timeout
        self._definition = one_task("node", self.role, node_id, f"One call to node {node_id}")
        self._workflow_type = self._definition.workflow_type
        self._is_registered = False

    @property
    def node_id(self) -> str:
        return self._node_id

    @property
    def node_type(self) -> str:
        return self.role

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._node_id}>"

    async def _execute(self, contract: Any) -> Any:
        """The node's result. Raises ProtocolHandlerError when it failed or took too long, and as the same class what it
        raised of the specification's errors; their context has node_id, node_type and run. A caller that is cancelled
        leaves the run to itself; in an orchestration the same call of another execution has the same run."""
        payload = encode_value(contract)
        with calling() as caller:
            outcome = await self._outcome(payload, caller)
        if outcome.state == "completed":
            return None if outcome.result is None else decode_value(outcome.result)
        facts: Context = {"node_id": self._node_id, "node_type": self.role, "run": str(outcome.key)}
        if outcome.state == "timeout":
            what = f"node {self._node_id} has not answered within {self._timeout:g} s"
            raise TaskTimedOut(what, {**facts, "timeout": self._timeout}) from TimeoutError(what)
        raise _failed(outcome, facts)

    async def _outcome(self, payload: Payload, caller: Caller | None) -> RunOutcome:
        request = StartRequest(
            namespace=self._namespace,
            workflow_type=self._workflow_type,
            input=payload,
            timeout=self._timeout,
            trace=tracing.traceparent(),
            caller=caller,
        )
        if not self._is_registered:
            await self._register()
        try:
            started = await asking.start(self._service, request)
        except UnknownWorkflowType:
            if self._definition is None:
                raise
            await self._register()  # the orchestrator has another store than when it was registered
            started = await asking.start(self._service, request)
        return await asking.end_of(self._service, started.key)

    async def _register(self) -> None:
        if self._definition is not None:
            await self._service.register_definition(self._namespace, dump_definition(self._definition))
        self._is_registered = True


class EffectNode(_Node):
    """A node of role effect. One that is not idempotent and whose worker is lost while it runs waits for somebody to
    resolve the run; give a timeout if a call must end."""

    role = "effect"

    async def execute_effect(self, contract: Any) -> Any:
        """Run it once; see the class."""
        return await self._execute(contract)


class ComputeNode(_Node):
    """A node of role compute."""

    role = "compute"

    async def execute_compute(self, contract: Any) -> Any:
        """Run it; when its worker is lost, again on another."""
        return await self._execute(contract)


class ReducerNode(_Node):
    """A node of role reducer."""

    role = "reducer"

    async def execute_reduction(self, contract: Any) -> Any:
        """Run it; when its worker is lost, again on another."""
        return await self._execute(contract)


class OrchestratorNode(_Node):
    """A node of role orchestrator; or, as one, a workflow: `workflow_type` is then what is run, with the contract as its
    input."""

    role = "orchestrator"

    def __init__(
        self,
        service: RunService,
        node_id: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout: float = 0.0,
        workflow_type: str = "",
    ) -> None:
        super().__init__(service, node_id, namespace=namespace, timeout=timeout)
        if workflow_type:
            self._workflow_type, self._definition = workflow_type, None

    async def execute_orchestration(self, contract: Any) -> Any:
        """Run it; when its worker is lost, again on another, where it gets the results of the calls that it has made."""
        return await self._execute(contract)


Node: TypeAlias = EffectNode | ComputeNode | ReducerNode | OrchestratorNode
_KINDS: Final[dict[str, type[Node]]] = {
    cls.role: cls for cls in (EffectNode, ComputeNode, ReducerNode, OrchestratorNode)
}


async def find_node(
    service: RunService,
    node_id: str,
    node_type: str = "",
    *,
    namespace: str = DEFAULT_NAMESPACE,
    timeout: float = 0.0,
) -> Node:
    """The node of that id that workers serve: a class node by its node_id, a handler by its name. `node_type` is
    needed when two roles have one of that name; it is compared without case, a subtype (`compute:gpu`) is left out.
    With `node_type` orchestrator it may be the type of a registered workflow, which goes before a node of that name.

    A class node that is not initialised yet, or was shut down, is found: its calls tell. Raises UnknownNode (a
    RegistryError) when no worker serves it.
    """
    with outside():
        return await _found(service, node_id, node_type, namespace, timeout)


async def _found(service: RunService, node_id: str, node_type: str, namespace: str, timeout: float) -> Node:
    wanted = _role_of(node_type)
    if wanted == "orchestrator" and await _is_workflow(service, namespace, node_id):
        return OrchestratorNode(service, node_id, namespace=namespace, timeout=timeout, workflow_type=node_id)
    served = {
        (role, name) for view in await service.list_nodes() if (role := role_of(view.kind)) for name in view.handlers
    }
    roles = sorted(role for role, name in served if name == node_id and wanted in {"", role})
    if not roles:
        known = sorted(name for _, name in served)
        raise UnknownNode(f"no worker serves {wanted or 'a'} node {node_id}", {"node_id": node_id, "known": known[:20]})
    if len(roles) > 1:
        raise InvalidArgument(f"{node_id} is served as {' and as '.join(roles)}: say which", field="node_type")
    return _KINDS[roles[0]](service, node_id, namespace=namespace, timeout=timeout)


async def called_node(service: RunService, node_id: str, node_type: str, namespace: str, timeout: float) -> Node:
    """As `find_node` for orchestrations: when its type is said, whether a worker serves the node now is not asked, for
    the answer may be another one in the next execution. A call waits for a worker."""
    wanted = _role_of(node_type)
    with outside():
        if not wanted or (wanted == "orchestrator" and await _is_workflow(service, namespace, node_id)):
            return await _found(service, node_id, node_type, namespace, timeout)
    return _KINDS[wanted](service, node_id, namespace=namespace, timeout=timeout)


def _role_of(node_type: str) -> str:
    wanted = node_type.partition(":")[0].strip().lower()
    if wanted and wanted not in _KINDS:
        raise InvalidArgument(f"node_type {node_type!r} is none of {', '.join(_KINDS)}", field="node_type")
    return wanted


async def _is_workflow(service: RunService, namespace: str, name: str) -> bool:
    try:
        await service.get_definition(namespace, name)
    except (UnknownWorkflowType, InvalidArgument):
        return False
    return True


def _failed(outcome: RunOutcome, facts: Context) -> SPIError:
    failure = outcome.error
    if failure is None:
        return HandlerFailed(f"the call to node {facts['node_id']} ended as {outcome.state}", dict(facts))
    context = {**(failure.context or {}), **facts, "error": failure.type}
    if failure.code:
        context["code"] = failure.code
    raised = _RAISED.get(failure.type, HandlerFailed)
    return raised(f"node {facts['node_id']} failed: {failure.type}: {failure.message}", context)
