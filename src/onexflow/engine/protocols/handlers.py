"""What users write to handle an event, made callable in one way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from onexflow.core.errors import InvalidArgument
from onexflow.ports.events import EventRecord
from onexflow.spi.types import Context


class Handler:
    """A user's handler, async or sync, that takes (event, context) or (event). A sync one runs on threads of its own, so
    that one which blocks holds up nobody else."""

    def __init__(
        self,
        handler: Callable[..., Any],
        content: Callable[[EventRecord], Any],
        *,
        plain: bool = False,
        wanted: Callable[[Any], bool] | None = None,
    ) -> None:
        """`content`: what of the event it gets. `plain`: it gets no context, whatever it takes. `wanted`: whether it is
        called at all."""
        if not callable(handler):
            raise InvalidArgument(f"handler: {type(handler).__name__} cannot be called", field="handler")
        self._handler = handler
        self._content = content
        self._wanted = wanted
        self._takes_context = not plain and _takes_two(handler)
        self._threads = None if _is_async(handler) else ThreadPoolExecutor(64, thread_name_prefix="onexflow-handler")

    async def __call__(self, record: EventRecord, context: Context) -> None:
        await self.handle(self._content(record), context)

    async def handle(self, content: Any, context: Context) -> None:
        if self._wanted is not None and not self._wanted(content):
            return
        arguments = (content, context) if self._takes_context else (content,)
        if self._threads is None:
            done = self._handler(*arguments)
        else:
            within = copy_context()
            done = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: within.run(self._handler, *arguments)
            )
        if inspect.isawaitable(done):
            await done

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _is_async(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - whether it is async, not whether it can be called


def _takes_two(handler: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # of a builtin
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True
