"""What an orchestration's calls are known by, and how it makes them.

The worker runtime begins an execution around the handler (`begin`); every call that is made inside, through whatever
object, takes the next number (`next_call`). The engine gives the run of a call an id made of these (`Caller`), so a
second execution of the same code gets the runs that the first one started.

Calls are numbered in the order in which they are made, for each asyncio task by itself: the first task to call beside
the handler's own (by `gather`, a task group, `create_task`) has the numbers "1.1", "1.2" … if that was the execution's
first call, and so on within it. So two chains of calls side by side have the same numbers whichever is faster.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Protocol

from onexflow.core.ids import RunKey
from onexflow.ports.client_link import Caller


class Branch:
    """The calls that one asyncio task makes in an execution."""

    __slots__ = ("_made", "_prefix", "item", "owner", "run", "task")

    def __init__(self, run: RunKey, task: str, item: int, prefix: str = "") -> None:
        self.run = run
        self.task = task
        self.item = item
        self.owner = asyncio.current_task()
        self._prefix = prefix
        self._made = 0

    def number(self) -> str:
        """The next number."""
        self._made += 1
        return f"{self._prefix}{self._made}"

    def child(self) -> Branch:
        """The branch of the running task, which takes one of this branch's numbers."""
        return Branch(self.run, self.task, self.item, f"{self.number()}.")


_branch: ContextVar[Branch | None] = ContextVar("onexflow_orchestration", default=None)


def begin(run: RunKey, task: str, item: int) -> None:
    """What the current context calls from now on are calls of this orchestration, counted from the first."""
    _branch.set(Branch(run, task, item))


def is_running() -> bool:
    """Whether the current context is that of an orchestration."""
    return _branch.get() is not None


def next_call() -> Caller | None:
    """The name of the call that is made now; None outside of orchestrations. To be asked before anything is awaited."""
    branch = _branch.get()
    if branch is None:
        return None
    if branch.owner is not asyncio.current_task():
        branch = branch.child()
        _branch.set(branch)
    return Caller(branch.run, branch.task, branch.item, branch.number())


class NodeCaller(Protocol):
    """How what runs on a worker calls: what the worker's app gives the runtime."""

    async def node(self, namespace: str, node_id: str, node_type: str, timeout: float) -> Any:
        """The node, to be called as if it were here. Raises UnknownNode."""

    async def run(self, namespace: str, workflow_type: str, input: Any, version: int, timeout: float) -> Any:
        """Run a workflow to its end; its decoded result. Raises RunFailed when it has none."""

    async def close(self) -> None:
        """End its connection, if it has made one."""
