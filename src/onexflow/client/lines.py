"""Calls of a client on their way to the owners of their runs.

Every orchestrator answers every call, so one stream is enough: the main one. When that says who owns what
(`ConnectOwners`), the client has a stream to each owner too, and asks the owners themselves. A stream to an owner is used
while it is up and never waited for: what it leaves without an answer goes over the main stream, starts under their
request_id, waits as they were.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from onexflow.client.calls import Calls
from onexflow.client.channels import Channels
from onexflow.client.stream import ConnectStream
from onexflow.core.errors import Unavailable
from onexflow.core.ids import RunKey, instance_of_request, shard_of_slot
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import common_pb2
from onexflow.v1 import workflow_pb2 as pb

#: Seconds before an owner whose stream has ended is tried again.
OWNER_AGAIN_SECONDS: Final = 1.0


class _Line:
    """The stream to one owner."""

    def __init__(self, channels: Channels, client_id: str) -> None:
        self.calls = Calls(ask_again=())
        self._stream = ConnectStream(self.calls, channels, client_id=client_id, patience=0.0)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="onexflow-client-line")

    @property
    def is_up(self) -> bool:
        return self.calls.is_connected

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._stream.once()
                except SPIError as error:
                    self.calls.fail_all(error if isinstance(error, Unavailable) else Unavailable(str(error)))
                else:
                    self.calls.fail_all(Unavailable("the stream ended"))
                await asyncio.sleep(OWNER_AGAIN_SECONDS)
        finally:
            self.calls.close(Unavailable("the owner has gone"))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class Lines:
    """`call` as of `Calls`. `main` is that of the main stream."""

    def __init__(self, channels: Channels, main: Calls, client_id: str) -> None:
        self._channels = channels
        self._main = main
        self._client_id = client_id
        self._shards = 0
        self._owners: dict[int, str] = {}
        self._lines: dict[str, _Line] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def learn(self, told: pb.ConnectOwners) -> None:
        """What the orchestrator of the main stream has said."""
        self._channels.learn(told.orchestrators)
        self._shards, self._owners = told.shards, dict(told.owners)
        wanted = (set(self._owners.values()) & set(self._channels.addresses)) - {self._channels.address}
        for address in self._lines.keys() - wanted:
            task = asyncio.get_running_loop().create_task(self._lines.pop(address).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for address in wanted - self._lines.keys():
            self._lines[address] = _Line(self._channels.at(address), self._client_id)

    def owner_of(self, key: RunKey) -> str:
        """The address of the run's owner; "" when it is not known, or is the main stream's orchestrator."""
        if not self._lines:
            return ""
        address = self._owners.get(shard_of_slot(key.slot, self._shards), "")
        return address if address in self._lines and self._lines[address].is_up else ""

    async def call(
        self,
        start: pb.StartWorkflowRequest | None = None,
        key: common_pb2.RunKey | None = None,
        timeout: float | None = None,
    ) -> pb.Answer:
        """As `Calls.call`."""
        if not self._lines:
            return await self._main.call(start=start, key=key, timeout=timeout)
        name = _key_of(start, key)
        line = self._lines.get(self.owner_of(name)) if name is not None else None
        if line is not None:
            loop = asyncio.get_running_loop()
            asked_at = loop.time()
            try:
                return await line.calls.call(start=start, key=key, timeout=timeout)
            except Unavailable:
                if timeout is not None:
                    timeout = max(0.001, timeout - (loop.time() - asked_at))
        return await self._main.call(start=start, key=key, timeout=timeout)

    async def close(self) -> None:
        self._main.close(Unavailable("the client is closed"))
        lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            await line.close()
        await asyncio.gather(*self._closing)


def _key_of(start: pb.StartWorkflowRequest | None, key: common_pb2.RunKey | None) -> RunKey | None:
    """The key that a start will have, or of the run that is waited for; None when it says nothing that can be one."""
    try:
        if start is not None:
            instance = UUID(start.instance_id) if start.instance_id else instance_of_request(start.request_id)
            return RunKey(start.namespace, start.workflow_type, instance)
        if key is not None:
            return RunKey(key.namespace, key.workflow_type, UUID(key.instance_id))
    except ValueError:
        pass
    return None
