"""Proof of death: a port that answers with the incarnation of the process behind it, and the look at it.

The answer needs no gRPC: connect, read a line, done. A refused connection at the process's own address, or another
incarnation, prove that it is gone; silence proves nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final

from onexflow.core.address import is_loopback
from onexflow.core.errors import PortBusy, Unavailable

TIMEOUT: Final = 0.15
_LONGEST: Final = 512


class LivenessServer:
    """Answers every connection with `incarnation` and a newline, and closes it."""

    def __init__(self, incarnation: str) -> None:
        self._answer = incarnation.encode() + b"\n"
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; returns host:port. Raises PortBusy."""
        try:
            self._server = await asyncio.start_server(self._reply, host, port, backlog=128)
        except OSError as error:
            raise PortBusy(f"The liveness port {host}:{port} cannot be opened: {error.strerror}.") from error
        bound = self._server.sockets[0].getsockname()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _reply(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self._answer)
            async with asyncio.timeout(1.0):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # whoever asked has gone
        finally:
            writer.close()


class TcpProber:
    """ports.registry.Prober over TCP."""

    def __init__(self, timeout: float = TIMEOUT, *, here: bool = True) -> None:
        """`here`: everybody who is probed is on this machine. Else its loopback address is that of another machine's
        process, and refuses whatever that does."""
        self._timeout = timeout
        self._here = here

    async def probe(self, address: str) -> str | None:
        """The incarnation at `address`; None when the connection is refused. Raises Unavailable for anything else."""
        if not self._here and is_loopback(address):
            raise Unavailable(f"{address} is an address of another machine's own.", {"address": address})
        host, _, port = address.rpartition(":")
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                line = await reader.readline()
        except ConnectionRefusedError:
            return None
        except (OSError, TimeoutError, ValueError) as error:
            raise Unavailable(
                f"{address} gave no answer: {str(error) or 'timed out'}.", {"address": address}
            ) from error
        finally:
            if writer is not None:
                writer.close()
        if not line.endswith(b"\n") or len(line) > _LONGEST:
            raise Unavailable(f"{address} answered with no incarnation.", {"address": address})
        return line.decode(errors="replace").strip()
