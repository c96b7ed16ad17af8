"""The other orchestrators, as one of them asks them: a connection each, made when it is first needed."""

from __future__ import annotations

import asyncio
from typing import Final

from onexflow.client.channels import Channels
from onexflow.client.client import Client
from onexflow.client.remote import RemoteService
from onexflow.core.identity import ON_BEHALF
from onexflow.core.ids import DEFAULT_NAMESPACE
from onexflow.rpc.tls import ClientSecurity

#: Seconds for a call that is passed on.
CALL_TIMEOUT: Final = 30.0


class PeerPool:
    """`engine.routing.Peers` over gRPC. What it asks is marked as passed on, and is not repeated by itself."""

    def __init__(self, own_id: str, security: ClientSecurity | None = None) -> None:
        """`security`: by what the others know this orchestrator as one of them."""
        self._own_id = own_id
        self._security = security
        self._peers: dict[str, tuple[Client, RemoteService]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __call__(self, address: str) -> RemoteService:
        known = self._peers.get(address)
        if known is None:
            channels = Channels((address,), forwarding=True, security=self._security)
            behalf = ON_BEHALF.set(None)  # the stream is for all: each call on it says for whom it is
            # No patience: who passes a call on looks for its owner anew, which may be another by then.
            client = Client(channels, DEFAULT_NAMESPACE, CALL_TIMEOUT, 0.0, self._own_id)
            ON_BEHALF.reset(behalf)
            known = self._peers[address] = client, RemoteService.of(client)
        return known[1]

    def forget(self, address: str) -> None:
        """That orchestrator has gone: what it was asked is given back at once."""
        known = self._peers.pop(address, None)
        if known is not None:
            task = asyncio.get_running_loop().create_task(_close(*known))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all connections."""
        for address in list(self._peers):
            self.forget(address)
        await asyncio.gather(*self._closing, return_exceptions=True)


async def _close(client: Client, service: RemoteService) -> None:
    await service.close()
    await client.close()
