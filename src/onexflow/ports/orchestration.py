"""What an orchestration's calls are known by, and how it makes them.

The worker runtime begins an execution around the handler (`begin`); every call that is made inside, through whatever
object, takes the next number (`calling`). The engine gives the run of a call an id made of these (`Caller`), so a second
execution of the same code gets the runs that the first one started.

Calls are numbered in the order in which they are made, each asyncio task by itself: a task that the code begins (by
`gather`, a task group, `create_task`) takes a number as a call would, say 3, and its calls are 3.1, 3.2 … So two lines of
calls side by side have the same numbers whichever is faster. `watch_tasks` sees to it that tasks are numbered when they
are begun.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
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
        #: The asyncio task; None until it has made its first call.
        self.owner: asyncio.Task[Any] | None = None
        self._prefix = prefix
        self._made = 0

    def number(self) -> str:
        """The next number."""
        self._made += 1
        return f"{self._prefix}{self._made}"

    def fork(self) -> Branch:
        """The branch of a task that this one begins."""
        return Branch(self.run, self.task, self.item, f"{self.number()}.")


_branch: contextvars.ContextVar[Branch | None] = contextvars.ContextVar("onexflow_orchestration", default=None)


def begin(run: RunKey, task: str, item: int) -> None:
    """What the current context calls from now on are calls of this orchestration, counted from the first."""
    _branch.set(Branch(run, task, item))


@contextmanager
def calling() -> Iterator[Caller | None]:
    """The name of the call that is made now, None outside of orchestrations. What is awaited to make it is `outside`."""
    caller = _next_call()
    with outside():
        yield caller


@contextmanager
def outside() -> Iterator[None]:
    """What is done within belongs to no orchestration: it calls nothing in its name, and its tasks take no numbers."""
    token = _branch.set(None)
    try:
        yield
    finally:
        _branch.reset(token)


def _next_call() -> Caller | None:
    branch = _branch.get()
    if branch is None:
        return None
    task = asyncio.current_task()
    if branch.owner is None:
        branch.owner = task
    elif branch.owner is not task:  # it was begun in a context of its maker's choice
        branch = branch.fork()
        branch.owner = task
        _branch.set(branch)
    return Caller(branch.run, branch.task, branch.item, branch.number())


def watch_tasks() -> None:
    """Have the tasks that orchestrations begin on the running loop numbered from now on. Idempotent."""
    loop = asyncio.get_running_loop()
    inner: Any = loop.get_task_factory()
    if not isinstance(inner, _NumberedTasks):
        factory: Any = _NumberedTasks(inner)
        loop.set_task_factory(factory)


class _NumberedTasks:
    """A task factory: as `inner`, or as asyncio's own."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> Any:
        branch = _branch.get()
        if branch is not None and options.get("context") is None:
            context = contextvars.copy_context()
            context.run(_branch.set, branch.fork())
            options["context"] = context
        if self._inner is not None:
            return self._inner(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)


class NodeCaller(Protocol):
    """How what runs on a worker calls: what the worker's app gives the runtime."""

    async def node(self, namespace: str, node_id: str, node_type: str, timeout: float) -> Any:
        """The node, to be called as if it were here. Raises UnknownNode."""

    async def run(self, namespace: str, workflow_type: str, input: Any, version: int, timeout: float) -> Any:
        """Run a workflow to its end; its decoded result. Raises RunFailed when it has none."""

    async def close(self) -> None:
        """End its connection, if it has made one."""
