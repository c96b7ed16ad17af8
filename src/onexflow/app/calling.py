"""How orchestrations of a worker process call: through a client of the orchestrators that its streams go to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from onexflow.client import Client, connect
from onexflow.client.remote import RemoteService
from onexflow.config import Tls
from onexflow.core.errors import Unavailable
from onexflow.engine.protocols import ServiceCaller


def caller_over(
    addresses: Callable[[], Iterable[str]], *, tls: Tls | None = None, token: str = "", token_file: str = ""
) -> ServiceCaller:
    """A `NodeCaller` that connects when it is first used, and again after that failed, to the orchestrators of then."""
    connecting: asyncio.Task[Client] | None = None

    async def client() -> Client:
        nonlocal connecting
        if connecting is None or (connecting.done() and (connecting.cancelled() or connecting.exception() is not None)):
            known = sorted(addresses())
            if not known:
                raise Unavailable("the worker is connected to no orchestrator")
            connecting = asyncio.get_running_loop().create_task(
                connect(known, tls=tls or Tls(), token=token, token_file=token_file), name="onexflow-calls"
            )
        return await asyncio.shield(connecting)

    service = RemoteService(client)

    async def close() -> None:
        await service.close()
        if connecting is None:
            return
        if not connecting.done():
            connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled() and connecting.exception() is None:
            await connecting.result().close()

    return ServiceCaller(service, close)
