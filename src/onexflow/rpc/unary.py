"""What every unary call shares: a deadline, and errors that come out as status."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from onexflow.core.errors import DeadlineExceeded
from onexflow.engine.routing import PASSED_ON
from onexflow.rpc.status import judged
from onexflow.rpc.stream import Context, abort, mark
from onexflow.spi.exceptions import SPIError

#: Seconds that a call without deadline is given.
DEFAULT_DEADLINE: Final = 30.0

#: Metadata of an answer that came from another orchestrator: its address.
OWNER: Final = "onexflow-owner"

Endpoint = TypeVar("Endpoint")
Request = TypeVar("Request")
Response = TypeVar("Response")


def unary(
    method: Callable[[Endpoint, Request, Context], Awaitable[Response]],
) -> Callable[[Endpoint, Request, Context], Awaitable[Response]]:
    """The gRPC handler of a method that raises errors of ours."""

    @functools.wraps(method)
    async def handler(self: Endpoint, request: Request, context: Context) -> Response:
        remaining: float | None = context.time_remaining()
        limit = asyncio.timeout(DEFAULT_DEADLINE if remaining is None else remaining)
        error: SPIError
        mark(context)
        owner: list[str] = []
        PASSED_ON.set(owner)
        try:
            async with limit:
                answer = await method(self, request, context)
            if owner:
                context.set_trailing_metadata(((OWNER, owner[0]),))
            return answer
        except Exception as raised:  # noqa: BLE001 - every other error is told as InternalError
            if isinstance(raised, TimeoutError) and limit.expired():
                error = DeadlineExceeded(f"{method.__name__} was not answered in time.", {"method": method.__name__})
            else:
                error = judged(raised, method.__name__)
        await abort(context, error)
        raise error

    return handler


def traceparent(context: Context) -> str:
    """The W3C traceparent of the call's metadata; empty when there is none that could be one."""
    metadata: Any = context.invocation_metadata() or ()
    for name, value in metadata:
        if name == "traceparent" and isinstance(value, str) and len(value) == 55:
            return value
    return ""
