"""A TCP relay on loopback that misbehaves on demand: between a client and a server, needing no rights.

    async with Relay("127.0.0.1:2379") as relay:
        ...                      # talk to relay.address
        relay.hold()             # silent: connections stay open, nothing passes, new ones are taken and wait
        relay.resume()           # what was held arrives
        relay.drop()             # what is sent is lost; `resume` then breaks those connections, as TCP would
        relay.delay(0.2)         # everything arrives this much later, in order
        relay.cut()              # break the open connections (RST), or those of some clients; new ones are served
        await relay.refuse()     # and take no new ones: connection refused, until `listen`

It works on real time, on the event loop it was started on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Container
from types import TracebackType
from typing import Final, Literal, Self

Direction = Literal["both", "to_server", "to_client"]
_Way = Literal["to_server", "to_client"]

_CHUNK: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST


class _Link:
    """One relayed connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.client_port = int(writer.get_extra_info("peername")[1])
        self.pumps: list[asyncio.Task[None]] = []
        self.served_by = asyncio.current_task()
        self.lost_bytes = False

    def reset(self) -> None:
        for task in (self.served_by, *self.pumps):
            if task is not None:
                task.cancel()
        for writer in self.writers:
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Relay:
    """Relays `host`:<port> to `target` ("host:port"). The port is chosen once and kept."""

    def __init__(self, target: str, *, host: str = "127.0.0.1") -> None:
        self.host = host
        self.target = target
        there, _, port = target.rpartition(":")
        self._target = (there, int(port))
        self.port = 0
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._open: dict[_Way, asyncio.Event] = {"to_server": asyncio.Event(), "to_client": asyncio.Event()}
        self._dropping: set[_Way] = set()
        self._delay = 0.0
        #: How many connections were taken so far.
        self.taken = 0
        self.resume()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def listen(self) -> None:
        """Take connections (again, on the same port). Idempotent."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Break what is open and refuse what comes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        serving = {link.served_by for link in self._links if link.served_by is not None}
        self.cut()
        if serving:
            await asyncio.wait(serving, timeout=5)

    async def close(self) -> None:
        """End it. Idempotent."""
        await self.refuse()

    def hold(self, direction: Direction = "both") -> None:
        """Let nothing pass, and lose nothing."""
        for way in _ways(direction):
            self._open[way].clear()

    def drop(self, direction: Direction = "both") -> None:
        """Lose what is sent."""
        self._dropping.update(_ways(direction))

    def delay(self, seconds: float) -> None:
        """Let everything arrive so much later; 0 ends it."""
        self._delay = seconds

    def resume(self) -> None:
        """End `hold`, `drop` and `delay`. Connections that lost something break."""
        self._delay = 0.0
        self._dropping.clear()
        for link in tuple(self._links):
            if link.lost_bytes:
                link.reset()
        for gate in self._open.values():
            gate.set()

    def cut(self, ports: Container[int] | None = None) -> int:
        """Break the open connections, or those whose client's end has one of these ports. Returns how many."""
        links = [link for link in self._links if ports is None or link.client_port in ports]
        for link in links:
            link.reset()
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        link = _Link(writer)
        self._links.add(link)
        try:
            await self._open["to_server"].wait()
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            link.writers.append(there_writer)
            link.pumps = [
                *self._pump(link, "to_server", reader, there_writer),
                *self._pump(link, "to_client", there_reader, writer),
            ]
            await asyncio.gather(*link.pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):  # nobody else awaits this task: `reset` ended it
            pass
        finally:
            link.served_by = None
            link.reset()
            self._links.discard(link)

    def _pump(
        self, link: _Link, way: _Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> list[asyncio.Task[None]]:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        loop = asyncio.get_running_loop()

        async def take() -> None:
            data = b"-"
            while data:
                try:
                    data = await source.read(_CHUNK)
                except OSError:
                    link.reset()
                    return
                if way in self._dropping and data:
                    link.lost_bytes = True
                else:
                    await queue.put((loop.time() + self._delay, data))

        async def give() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                await self._open[way].wait()
                with contextlib.suppress(OSError, RuntimeError):
                    if not data:
                        sink.write_eof()
                        return
                    sink.write(data)
                    await sink.drain()

        return [loop.create_task(take()), loop.create_task(give())]


def _ways(direction: Direction) -> tuple[_Way, ...]:
    return ("to_server", "to_client") if direction == "both" else (direction,)
