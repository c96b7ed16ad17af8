"""Proof of death: a port that answers with the incarnation of the process behind it, and the look at it.

The answer needs no gRPC: connect, read a line, done. A refused connection at the process's own address, or another
incarnation, prove that it is gone; silence proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Final

from onexflow.core.address import is_loopback
from onexflow.core.errors import PortBusy, Unavailable

TIMEOUT: Final = 0.15
#: An event loop that has not turned for so many seconds hangs: nobody is told that its process lives.
HANGS_SECONDS: Final = 2.0
_LONGEST: Final = 512
_BACKLOG: Final = 128
#: Pause after a connection that could not be accepted (no file descriptor left).
_PAUSE_SECONDS: Final = 0.1


class LivenessServer:
    """Answers every connection with `incarnation` and a newline, and closes it.

    From a thread of its own: a handler that keeps the event loop busy for a moment does not make its process look
    dead. One that hangs does: after HANGS_SECONDS connections are closed without a word.
    """

    def __init__(self, incarnation: str, *, hangs_after: float = HANGS_SECONDS) -> None:
        self._answer = incarnation.encode() + b"\n"
        self._hangs_after = hangs_after
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_over = threading.Event()
        #: Since when the loop has owed a turn; None: it owes none. Written by the thread, and by the loop for None.
        self._owed_since: float | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; returns host:port. Raises PortBusy."""
        self._loop = asyncio.get_running_loop()
        try:
            family, _, _, _, address = (await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
            self._listening = socket.create_server(address, family=family, backlog=_BACKLOG)
        except OSError as error:
            raise PortBusy(f"The liveness port {host}:{port} cannot be opened: {error.strerror}.") from error
        bound = self._listening.getsockname()
        self._thread = threading.Thread(
            target=self._serve, args=(self._listening,), name="onexflow-liveness", daemon=True
        )
        self._thread.start()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._listening is not None and self._thread is not None:
            self._is_over.set()
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._thread.join()
            self._listening.close()
            self._listening = None

    def _serve(self, listening: socket.socket) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                self._is_over.wait(_PAUSE_SECONDS)
                continue
            with connection, contextlib.suppress(OSError):  # whoever asked may have gone
                connection.setblocking(False)
                if not self._hangs():
                    connection.send(self._answer)

    def _hangs(self) -> bool:
        """Whether the loop has not turned since it was asked to some time ago. Asks it to."""
        now, owed_since = time.monotonic(), self._owed_since
        if owed_since is not None:
            return now - owed_since >= self._hangs_after
        self._owed_since = now
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._turned)
        return False

    def _turned(self) -> None:
        self._owed_since = None


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
