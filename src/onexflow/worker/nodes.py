"""Bases for class nodes: all that the specification's node protocols and the published package's `protocols.nodes` want,
so that a node only says what it does.

    class ApiCall(BaseEffectNode):
        node_id = "effect-api-call-1"

        async def execute_effect(self, contract): ...

Their life is the worker's to lead: it awaits `initialize()` before the first call and `shutdown()` after the last.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class Node:
    """What nodes of all roles have. Override `execute`, or in the base of a role its own method; the other calls it.

    `node_id` and `version` are class attributes of the subclass, or given to the constructor. Without either the id is
    the class's name in lower case with dashes (`ApiCall`: `api-call`).
    """

    _role: ClassVar[str] = ""
    _method: ClassVar[str] = ""

    def __init__(self, node_id: str = "", *, version: str = "") -> None:
        self._node_id = node_id
        self._version = version

    @property
    def node_id(self) -> str:
        """The name that callers know it by."""
        return getattr(self, "_node_id", "") or re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    def node_type(self) -> str:
        """Its role."""
        return self._role

    @property
    def version(self) -> str:
        """Of the node's own, for people."""
        return getattr(self, "_version", "") or "1.0.0"

    async def initialize(self) -> None:
        """Called once by the worker, before any call. Calls are refused until it has returned; raises: the worker ends."""

    async def shutdown(self, timeout_seconds: float = 30.0) -> None:
        """Called once by the worker, after the last call has ended."""

    async def execute(self, input_data: Any) -> Any:
        """Do the node's work."""
        if not self._method:
            raise NotImplementedError(f"{type(self).__name__} has no `execute`")
        return await getattr(self, self._method)(input_data)

    async def _by_execute(self, contract: Any) -> Any:
        if type(self).execute is Node.execute:
            raise NotImplementedError(f"{type(self).__name__} has neither `execute` nor `{self._method}`")
        return await self.execute(contract)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.node_id}>"


class BaseEffectNode(Node):
    """A node that touches the world."""

    _role, _method = "effect", "execute_effect"

    async def execute_effect(self, contract: Any) -> Any:
        """Do it once."""
        return await self._by_execute(contract)


class BaseComputeNode(Node):
    """A node whose result depends on its contract alone."""

    _role, _method = "compute", "execute_compute"

    @property
    def is_deterministic(self) -> bool:
        """That is what the role promises."""
        return True

    async def execute_compute(self, contract: Any) -> Any:
        """Compute it; any number of times."""
        return await self._by_execute(contract)


class BaseReducerNode(Node):
    """A node that folds many results into one."""

    _role, _method = "reducer", "execute_reduction"

    async def execute_reduction(self, contract: Any) -> Any:
        """Fold them; any number of times."""
        return await self._by_execute(contract)


class BaseOrchestratorNode(Node):
    """A node that has other nodes work. Let its method take `ctx: Context | None = None`: what calls them is
    `ctx.node(…)` and `ctx.run(…)`."""

    _role, _method = "orchestrator", "execute_orchestration"

    async def execute_orchestration(self, contract: Any) -> Any:
        """Call other nodes; each call is made once, however often this is run."""
        return await self._by_execute(contract)
