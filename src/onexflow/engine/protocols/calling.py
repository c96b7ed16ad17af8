"""How orchestrations on a worker call, over any `RunService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.errors import RunFailed
from onexflow.engine import asking
from onexflow.engine.protocols.nodes import Node, OrchestratorNode, called_node
from onexflow.ports.client_link import RunService, StartRequest
from onexflow.ports.orchestration import calling
from onexflow.telemetry import tracing

#: Node objects that are kept.
KEPT: Final = 1000


class ServiceCaller:
    """Implements `ports.orchestration.NodeCaller`."""

    def __init__(self, service: RunService, close: Callable[[], Awaitable[None]] | None = None) -> None:
        """`close` ends what belongs to the service."""
        self._service = service
        self._close = close
        #: Those whose type was said: each registers the definition of its calls once.
        self._nodes: dict[tuple[str, str, str, float], Node] = {}

    async def node(self, namespace: str, node_id: str, node_type: str, timeout: float) -> Node:
        key = (namespace, node_id, node_type, timeout)
        node = self._nodes.get(key)
        if node is None:
            node = await called_node(self._service, node_id, node_type, namespace, timeout)
            if node_type and not isinstance(node, OrchestratorNode) and len(self._nodes) < KEPT:
                self._nodes[key] = node  # what it is depends on nothing else
        return node

    async def run(self, namespace: str, workflow_type: str, input: Any, version: int, timeout: float) -> Any:
        payload = encode_value(input)
        with calling() as caller:
            request = StartRequest(
                namespace=namespace,
                workflow_type=workflow_type,
                input=payload,
                version=version,
                timeout=timeout,
                trace=tracing.traceparent(),
                caller=caller,
            )
            started = await asking.start(self._service, request)
            outcome = await asking.end_of(self._service, started.key)
        if outcome.state == "completed":
            return None if outcome.result is None else decode_value(outcome.result)
        failure = outcome.error
        why = f": {failure.type}: {failure.message}" if failure is not None else ""
        raise RunFailed(
            f"run {outcome.key} ended as {outcome.state}{why}",
            {
                "run": str(outcome.key),
                "state": outcome.state,
                "error_type": failure.type if failure is not None else "",
                "error_context": (failure.context or {}) if failure is not None else {},
            },
        )

    async def close(self) -> None:
        if self._close is not None:
            await self._close()
