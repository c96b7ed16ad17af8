"""What a worker serves: its handlers made ready to run, and where each class node is in its life.

A class node is told to orchestrators as `initializing`, then `ready` or `failed`, at last `shutdown`; it is sent nothing
before it is ready. Functions have no life: they are ready at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from typing import Any

import msgspec
import structlog

from onexflow.core.errors import NodeNotReady
from onexflow.core.payload import Failure
from onexflow.ports.worker_link import FromWorker, HandlerInfo, Lifecycle, NodeState, Role, TaskInfo
from onexflow.spi.exceptions import HandlerInitializationError
from onexflow.worker.handlers import Handler, Worker
from onexflow.worker.lanes import Program
from onexflow.worker.programs import Programs

_log = structlog.get_logger("onexflow.worker")


class ServedHandlers:
    """The handlers of the roles that have slots."""

    def __init__(self, worker: Worker, worker_id: str, broadcast: Callable[[FromWorker], None]) -> None:
        """`broadcast` tells all orchestrators how the class nodes are."""
        self.ready: dict[tuple[Role, str], tuple[Handler, Program]] = {}
        #: Of the class nodes: where they are in their life.
        self.states: dict[tuple[Role, str], NodeState] = {}
        self._worker = worker
        self._worker_id = worker_id
        self._broadcast = broadcast
        self._initialized: list[Any] = []

    def open(self, programs: Programs, roles: Container[Role]) -> None:
        """Make the handlers of these roles ready. Raises InvalidConfiguration when one cannot be run."""
        for handler in self._worker.handlers:
            if handler.role in roles:
                self.ready[handler.role, handler.name] = (handler, programs.program(handler))
                if handler.node is not None:
                    self.states[handler.role, handler.name] = "initializing"

    async def initialize(self) -> None:
        """Initialise the class nodes, one after the other. Raises HandlerInitializationError naming the one that failed,
        after the others were shut down."""
        try:
            for handler in self._worker.handlers:
                if handler.node is not None and handler.node not in self._initialized:
                    await self._initialize(handler)
                    self._tell(handler.node, "ready")
        except HandlerInitializationError:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        """Shut down the class nodes that were initialised, the last one first. What they raise is logged."""
        while self._initialized:
            node = self._initialized.pop()
            self._tell(node, "shutdown")
            try:
                shutdown = getattr(node, "shutdown", None)
                answer = shutdown() if callable(shutdown) else None
                if asyncio.iscoroutine(answer):
                    await answer
            except Exception as error:  # noqa: BLE001 — the other nodes are to be shut down all the same
                _log.warning("shutdown.failed", node=str(getattr(node, "node_id", "?")), error=str(error))

    def infos(self) -> tuple[HandlerInfo, ...]:
        """What orchestrators are told of the handlers, as they are now."""
        return tuple(self._info(*key) for key in self.ready)

    def is_ready(self, info: TaskInfo) -> bool:
        """Its handler is no class node, or one that is ready."""
        return self.states.get((info.role, info.handler), "ready") == "ready"

    def refusal(self, info: TaskInfo) -> Failure:
        """Why an attempt of that handler cannot be run here: there is none, or it is a class node that is not ready."""
        told, state = f"{info.role} {info.handler!r}", self.states.get((info.role, info.handler))
        if state is None:
            return Failure(
                "UnknownHandler", f"worker {self._worker_id} serves no {told}", context={"worker": self._worker_id}
            )
        return Failure(  # to an orchestrator that does not know of states
            NodeNotReady.__name__,
            f"{told} of worker {self._worker_id} is {state}",
            code=NodeNotReady.code,
            context={"worker": self._worker_id, "current_state": state, "required_state": "ready"},
        )

    async def _initialize(self, handler: Handler) -> None:
        initialize = getattr(handler.node, "initialize", None)
        try:
            if callable(initialize):
                answer = initialize()
                if asyncio.iscoroutine(answer):
                    await answer
        except Exception as error:
            self._tell(handler.node, "failed")
            raise HandlerInitializationError(
                f"initialize() of node {handler.name!r} failed: {error}",
                {"handler": handler.name, "role": handler.role},
            ) from error
        self._initialized.append(handler.node)

    def _tell(self, node: Any, state: NodeState) -> None:
        """Say that a class node has come to that state."""
        served = [(h.role, h.name) for h in self._worker.handlers if h.node is node and (h.role, h.name) in self.states]
        for key in served:
            self.states[key] = state
        self._broadcast(Lifecycle(tuple(self._info(*key) for key in served)))

    def _info(self, role: Role, name: str) -> HandlerInfo:
        handler, _ = self.ready[role, name]
        return msgspec.structs.replace(handler.info, state=self.states.get((role, name), ""))
