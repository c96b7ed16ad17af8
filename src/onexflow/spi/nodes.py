"""The four node protocols: what a class must have to do the work of a role."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ProtocolEffectNode(Protocol):
    """A node that touches the world."""

    async def execute_effect(self, contract: Any) -> Any: ...

    @property
    def node_id(self) -> str: ...

    @property
    def node_type(self) -> str: ...


@runtime_checkable
class ProtocolComputeNode(Protocol):
    """A node whose result depends on its contract alone."""

    async def execute_compute(self, contract: Any) -> Any: ...

    @property
    def node_id(self) -> str: ...

    @property
    def node_type(self) -> str: ...


@runtime_checkable
class ProtocolReducerNode(Protocol):
    """A node that folds many results into one."""

    async def execute_reduction(self, contract: Any) -> Any: ...

    @property
    def node_id(self) -> str: ...

    @property
    def node_type(self) -> str: ...


@runtime_checkable
class ProtocolOrchestratorNode(Protocol):
    """A node that awaits other nodes: workflow code."""

    async def execute_orchestration(self, contract: Any) -> Any: ...

    @property
    def node_id(self) -> str: ...

    @property
    def node_type(self) -> str: ...
