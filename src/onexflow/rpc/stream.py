"""What the orchestrator's end of every bidirectional stream does: hello in time, one reader, one writer, one end.

A stream that breaks the protocol, is malformed or is too large ends with a status that says why. Nothing else is hurt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from onexflow.core.errors import ProtocolViolation, Unavailable
from onexflow.engine.routing import FORWARDED
from onexflow.rpc.channel import FORWARDED_MARK
from onexflow.rpc.receipts import PATIENCE, Taken
from onexflow.rpc.status import judged, to_status
from onexflow.spi.exceptions import SPIError

#: Seconds for the first message.
HELLO_WITHIN: Final = 5.0
#: Seconds for what is queued when the stream is ended from here.
FLUSH_WITHIN: Final = 1.0

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def mark(context: Context) -> None:
    """Remember for the present call, and what is done for it, whether another orchestrator has passed it on."""
    metadata: Any = context.invocation_metadata() or ()
    FORWARDED.set(any(name == FORWARDED_MARK for name, _ in metadata))


async def abort(context: Context, error: SPIError) -> None:
    """End the call with the status of `error`. Does not return."""
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)


class ServerStream:
    """One stream, from its opening to its end. Subclasses say what messages mean and how answers are written."""

    #: Name in logs and errors.
    method: ClassVar[str] = ""

    def __init__(self, context: Context, *, hello_within: float = HELLO_WITHIN) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[SPIError | None] = self._loop.create_future()
        self._hello_within = hello_within
        self.heard_at = self._loop.time()
        self._taken = Taken(self._loop, self._say_taken, self._receipt_patience)
        #: Set when the peer has been told the end, or is gone.
        self.over = asyncio.Event()

    def end(self, error: SPIError | None = None) -> None:
        """End the stream, with OK or with the status of `error`. What is queued is written first. Once only."""
        if not self._end.done():
            self._end.set_result(error)

    async def serve(self) -> None:
        """Until the end. Returns for OK, aborts the call otherwise."""
        mark(self._context)
        try:
            if (error := await self._serve()) is not None:
                await abort(self._context, error)
        finally:
            self.over.set()

    async def _serve(self) -> SPIError | None:
        hello = self._loop.call_later(self._hello_within, self._no_hello)
        writer = self._loop.create_task(self._guard(self._write))
        tasks = [writer, *(self._loop.create_task(self._guard(part)) for part in self._parts())]
        reader = self._loop.create_task(self._guard(lambda: self._read(hello)))
        try:
            error = await self._end
            self._finish()
            await asyncio.wait([writer], timeout=FLUSH_WITHIN)
        finally:
            hello.cancel()
            for task in (reader, *tasks):
                task.cancel()
            self._ended()
            await asyncio.gather(reader, *tasks, return_exceptions=True)
        return error

    async def _send(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except Exception as error:
            raise Unavailable(f"The stream is broken: {error}") from error

    def _say_taken(self) -> None:
        if not self._end.done():
            self._receipt()

    # ---- for subclasses

    def _receipt(self) -> None:
        """The peer waits to be told what was taken: say something."""

    def _receipt_patience(self) -> float:
        """Seconds that a receipt may wait for something to go with, while there is much to do."""
        return PATIENCE

    def _on_message(self, message: Any) -> None:
        """A message, in order. Whatever it raises ends the stream."""
        raise NotImplementedError

    def _on_half_close(self) -> None:
        """The peer has said its last."""
        self.end()

    def _room(self) -> Awaitable[object] | None:
        """What to wait for before the next message is read; None: nothing."""
        return None

    async def _write(self) -> None:
        """Write what is queued until `_finish`, and then what is left."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Nothing more will be queued."""
        raise NotImplementedError

    def _ended(self) -> None:
        """The stream is over."""
        raise NotImplementedError

    def _parts(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Further coroutines that live as long as the stream."""
        return ()

    # ---- inside

    def _no_hello(self) -> None:
        self.end(ProtocolViolation(f"No first message came within {self._hello_within:g} s."))

    async def _read(self, hello: asyncio.TimerHandle) -> None:
        while True:
            if (room := self._room()) is not None:
                await room
            message = await self._receive()
            if message is grpc.aio.EOF:
                self._on_half_close()
                return
            hello.cancel()
            self.heard_at = self._loop.time()
            self._on_message(message)
            self._taken.took()

    async def _receive(self) -> Any:
        try:
            return await self._context.read()
        except DecodeError as error:
            raise ProtocolViolation(f"A message cannot be read: {error}", {"field": "message"}) from error
        except Exception as error:
            raise Unavailable(f"The stream is broken: {error}") from error

    async def _guard(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this stream and no other
            self.end(judged(error, self.method))
