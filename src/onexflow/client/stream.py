"""The client's end of `WorkflowService.Connect` (the protocol is at the head of workflow.proto).

`run` keeps one stream up for all calls of the client. A stream that is lost or drained is replaced by another one, at
the next of the orchestrators, and `Calls` sends again what has no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from traceback import clear_frames
from typing import Any, Final

import grpc
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay

from onexflow.client.calls import Calls
from onexflow.client.channels import Channels
from onexflow.core.errors import ProtocolViolation, Unavailable
from onexflow.rpc.channel import pause
from onexflow.rpc.receipts import Untaken
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import workflow_pb2 as pb

PROTOCOL_VERSION: Final = 1
#: Seconds in which an orchestrator that took the stream must have said Welcome.
WELCOME_WITHIN: Final = 5.0
#: A stream that brought no answer and lived no longer than this counts as not opened: the pauses between attempts go on
#: growing, and patience goes on running out.
SHORT_LIVED: Final = 1.0
#: Seconds before the next one after a short-lived stream that brought answers.
BREATH: Final = 0.05


class _StreamEndedError(Exception):
    """The orchestrator ended the stream in an orderly way."""


class ConnectStream:
    """Owner of the stream. `patience`: seconds without any orchestrator after which the waiting calls fail. One
    that answers some calls and dies of others, again and again, is there."""

    def __init__(
        self,
        calls: Calls,
        channels: Channels,
        *,
        client_id: str,
        patience: float,
        on_owners: Callable[[pb.ConnectOwners], None] | None = None,
    ) -> None:
        """`on_owners` is told who owns what, of several orchestrators."""
        self._on_owners = on_owners
        self._calls = calls
        self._channels = channels
        self._client_id = client_id
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        #: Done when the first stream is up. Fails when an orchestrator refuses this client.
        self.up: asyncio.Future[None] = self._loop.create_future()
        #: Why the newest stream ended or could not be opened.
        self.last_error: SPIError | None = None
        self._has_answered = False  #: the present stream, or the last one

    async def run(self) -> None:
        """Keep a stream up until cancelled. When the waiting calls had to fail, the next call tries again."""
        try:
            while True:
                try:
                    await self._keep_up()
                except SPIError as error:
                    if not self.up.done():
                        self.up.set_exception(error)
                        self.up.exception()  # whom nobody awaits (an orchestrator's, of another one) is no warning
                    self._calls.fail_all(error)
                    await self._calls.work.wait()
        finally:
            self._calls.close(Unavailable("the client is closed"))

    async def _keep_up(self) -> None:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            wait=pause,
            stop=stop_after_delay(self._patience),
        )
        try:
            async for attempt in attempts:
                with attempt:
                    try:
                        await self.once()
                    except BaseException as error:
                        _let_go(error)
                        raise
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise self._channels.unavailable(cause) from cause

    async def once(self) -> None:
        """One stream from Hello to its end. Returns when it was good for something, raises Unavailable when not."""
        self._channels.follow_certificates()
        address = self._channels.address
        opened = self._loop.time()
        self._has_answered = False
        lost: SPIError = Unavailable(f"{address}: the stream ended")
        try:
            async with self._open() as stream:
                untaken = Untaken()
                self._calls.connected(await self._welcome(stream, untaken))
                opened = self._loop.time()
                if not self.up.done():
                    self.up.set_result(None)
                await self._serve(stream, untaken)
        except grpc.aio.AioRpcError as error:
            lost = self._channels.error_of(error)
            if not isinstance(lost, Unavailable):
                raise lost from error
        except (_StreamEndedError, TimeoutError) as error:
            lost = Unavailable(f"{address}: {error}")
        finally:
            self._calls.lost()
        self.last_error = lost
        self._channels.failed(address)
        if self._loop.time() - opened < SHORT_LIVED:
            if not self._has_answered:
                raise lost
            await asyncio.sleep(BREATH)  # or who answers once and hangs up would be asked as fast as it can

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Any]:
        stream = self._channels.workflows.Connect()
        try:
            yield stream
        finally:
            stream.cancel()

    async def _welcome(self, stream: Any, untaken: Untaken) -> int:
        hello = pb.ConnectHello(protocol_version=PROTOCOL_VERSION, client_id=self._client_id, receipts=True)
        try:
            async with asyncio.timeout(WELCOME_WITHIN):
                untaken.sent()
                await stream.write(pb.ConnectRequest(hello=hello))
                message = await stream.read()
        except TimeoutError:
            raise TimeoutError(f"no Welcome within {WELCOME_WITHIN:g} s") from None
        except asyncio.InvalidStateError as error:
            # How grpc.aio says that the stream ended before the write: its status has the reason.
            raise _StreamEndedError(await stream.details()) from error
        if message is grpc.aio.EOF:
            raise _StreamEndedError("ended before its Welcome")
        if not message.HasField("welcome") or message.welcome.protocol_version != PROTOCOL_VERSION:
            raise ProtocolViolation("the orchestrator's first message is no Welcome of protocol version 1")
        untaken.told(message.taken)
        return max(1, int(message.welcome.window))

    async def _serve(self, stream: Any, untaken: Untaken) -> None:
        """Carry calls and answers until the stream ends. Raises why it did."""
        writer = self._loop.create_task(self._write(stream, untaken), name="onexflow-client-writer")
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                if untaken.told(message.taken):
                    self._calls.work.set()
                kind = message.WhichOneof("message")
                if kind == "batch":
                    if self._calls.answered(message.batch):
                        self._has_answered = True
                elif kind == "owners":
                    if self._on_owners is not None:
                        self._on_owners(message.owners)
                elif kind == "drain":
                    raise _StreamEndedError(message.drain.reason or "the orchestrator is going away")
        finally:
            writer.cancel()
            await asyncio.wait([writer])
        raise _StreamEndedError("the orchestrator ended the stream")

    async def _write(self, stream: Any, untaken: Untaken) -> None:
        """Ends with the stream: the reader learns why and tells."""
        work = self._calls.work
        try:
            while True:
                await work.wait()
                work.clear()
                while untaken.has_room(self._calls.sendable) and (batch := self._calls.next_batch()) is not None:
                    untaken.sent()
                    await stream.write(batch)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream.cancel()


def _let_go(error: BaseException | None) -> None:
    """Have the frames of an error hold nothing any more. It is kept for later, and tenacity's frames hold it and it them;
    the call in them would keep the connection up until the collector comes, whatever is closed."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
