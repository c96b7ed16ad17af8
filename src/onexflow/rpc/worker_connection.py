"""The worker's end of its streams: one to every orchestrator, each kept up by itself.

The first addresses are given; the others are learned from Welcome. A stream that is lost is opened again, at first
within 50 ms, then after random pauses that grow to 0.2 s where there was a Welcome (further, where it is long in coming:
whoever has no time to connect must not be made to all the time), and where nobody is with the time for which nobody is,
to 1 s. Attempts go on meanwhile: they belong to the runtime.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Protocol, Self

import grpc
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from onexflow.codec.wire.worker_request import to_requests
from onexflow.codec.wire.worker_response import from_response
from onexflow.core.errors import Unavailable
from onexflow.ports.worker_link import FromWorker, Goodbye, OrchestratorLink, ToWorker, Welcome
from onexflow.rpc.channel import open_channel, pause
from onexflow.rpc.outbox import Outbox
from onexflow.rpc.status import from_rpc_error
from onexflow.rpc.tls import ClientSecurity
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import worker_pb2_grpc

#: Seconds for the connection and Welcome.
WELCOME_WITHIN: Final = 5.0
#: Seconds of silence before a ping of the connection, and those for its answer: how soon a dead one is left.
PING: Final = (2.0, 3.0)
#: A stream that lived shorter than this counts as a failed attempt, so that pauses grow: to no more than this where there
#: was a Welcome, as what the worker holds may run elsewhere soon (`engine.suspects.RETURN_SECONDS`).
SETTLED_AFTER: Final = 1.0
WELCOMED_PAUSE: Final = 0.2
#: But it grows to so many times what the way to Welcome took, and to LONGEST_PAUSE at most.
WELCOME_TIMES: Final = 5.0
LONGEST_PAUSE: Final = 1.0
#: Seconds for what is queued when the worker closes the stream.
FLUSH_WITHIN: Final = 1.0

_log = structlog.get_logger("onexflow.rpc")


class Peer(Protocol):
    """What the runtime gives for a link."""

    def on_message(self, message: ToWorker) -> None: ...
    def on_close(self, reason: str) -> None: ...


class Runtime(Protocol):
    """What is needed of worker.runtime.WorkerRuntime."""

    def attach(self, link: OrchestratorLink) -> Peer: ...


class WorkerConnections:
    """The streams of one worker. `start` and `close` are idempotent; `async with` does both."""

    def __init__(
        self,
        runtime: Runtime,
        addresses: str | Iterable[str],
        *,
        ping: tuple[float, float] = PING,
        security: ClientSecurity | None = None,
    ) -> None:
        given = addresses.split(",") if isinstance(addresses, str) else addresses
        self._security = security or ClientSecurity()
        self._seeds = tuple(dict.fromkeys(self._named(address) for address in given))
        self._runtime = runtime
        self._ping = ping
        for address in self._seeds:
            self._security.check(address)
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._streams: dict[str, _WorkerStream] = {}
        self._closing = False
        self._changed = asyncio.Event()
        self.last_error: SPIError | None = None

    @property
    def connected(self) -> dict[str, str]:
        """Address of each welcomed stream → id of its orchestrator."""
        return {name: stream.orchestrator_id for name, stream in self._streams.items() if stream.orchestrator_id}

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        for address in self._seeds:
            self._keep(address)

    def learn(self, addresses: Iterable[str]) -> None:
        """Connect to these as well, from now on. What is known already is left as it is."""
        for address in addresses:
            self._keep(self._named(address))

    async def wait_connected(self, timeout: float) -> None:
        """Return once a stream is up. Raises the newest error, or Unavailable, when none is in time."""
        try:
            async with asyncio.timeout(timeout):
                while not self.connected:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self.last_error or Unavailable(f"No orchestrator answers at {', '.join(self._seeds)}.") from None

    async def close(self) -> None:
        """End all streams after what is queued was sent, and connect no more."""
        self._closing = True
        for stream in self._streams.values():
            stream.close()
        if self._streams:
            endings = [asyncio.ensure_future(stream.over.wait()) for stream in self._streams.values()]
            _, late = await asyncio.wait(endings, timeout=2 * FLUSH_WITHIN)
            for ending in late:
                ending.cancel()
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        self._keepers.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    def _named(self, address: str) -> str:
        """As it is kept. With TLS the host stays as it was given: it is looked for in the certificate."""
        return address.strip() if self._security.encrypts else canonical(address)

    # ---- one keeper an address

    def _keep(self, address: str) -> None:
        keeper = self._keepers.get(address)
        if not self._closing and (keeper is None or keeper.done()):
            self._keepers[address] = asyncio.create_task(self._keep_connected(address), name=f"stream-{address}")

    async def _keep_connected(self, address: str) -> None:
        """Hold a stream to `address`, for as long as it is a good address."""
        again = True
        while again:
            retrying = AsyncRetrying(retry=retry_if_exception_type(_NotSettledError), wait=_pause)
            async for attempt in retrying:
                with attempt:
                    again = not self._closing and await self._one_stream(address)

    async def _one_stream(self, address: str) -> bool:
        """A stream from Hello to its end. Raises _NotSettledError for one that never settled. False: never again."""
        async with open_channel(address, ping=self._ping, security=self._security) as channel:
            stream = _WorkerStream(self._runtime, channel, self._on_welcome, address)
            self._streams[address] = stream
            began = asyncio.get_running_loop().time()
            try:
                await stream.run()
            except SPIError as error:
                self._ended(stream, error)
                if not (stream.orchestrator_id and asyncio.get_running_loop().time() - began > SETTLED_AFTER):
                    raise _NotSettledError(stream.welcomed_at - began if stream.orchestrator_id else None) from error
            finally:
                if self._streams.get(address) is stream:
                    del self._streams[address]
        if not stream.said_goodbye:
            for seed in self._seeds:
                self._keep(seed)
        return not (stream.superseded or stream.said_goodbye)

    def _ended(self, stream: _WorkerStream, error: SPIError) -> None:
        log = _log.warning if stream.orchestrator_id or self.last_error is None else _log.debug
        self.last_error = error
        if not self._closing and not stream.superseded:
            log("stream.lost", address=stream.address, orchestrator=stream.orchestrator_id, error=str(error))

    def _on_welcome(self, stream: _WorkerStream, welcome: Welcome) -> None:
        """A new stream is up: the same orchestrator under another address needs no second one."""
        for other in self._streams.values():
            if other is not stream and other.orchestrator_id == welcome.orchestrator_id:
                other.superseded = True
                other.close()
        _log.info("stream.opened", address=stream.address, orchestrator=welcome.orchestrator_id)
        for address in welcome.orchestrators:
            self._keep(self._named(address))
        self._changed.set()


class _NotSettledError(Exception):
    """A stream that ended too soon; its cause says why."""

    def __init__(self, welcome_took: float | None) -> None:
        """`welcome_took`: seconds until Welcome; None: there was none."""
        super().__init__()
        self.welcome_took = welcome_took


def _pause(attempts: RetryCallState) -> float:
    error = attempts.outcome.exception() if attempts.outcome is not None else None
    if not isinstance(error, _NotSettledError) or error.welcome_took is None:
        return pause(attempts)
    longest = min(LONGEST_PAUSE, max(WELCOMED_PAUSE, WELCOME_TIMES * error.welcome_took))
    return wait_random_exponential(multiplier=0.05, max=longest)(attempts)


class _WorkerStream:
    """One stream: a ports.worker_link.OrchestratorLink."""

    def __init__(self, runtime: Runtime, channel: grpc.aio.Channel, on_welcome: Any, address: str) -> None:
        self._runtime = runtime
        self._stub = worker_pb2_grpc.WorkerServiceStub(channel)
        self._on_welcome = on_welcome
        self.address = address
        self.orchestrator_id = ""
        #: Loop time; of use when there was a Welcome.
        self.welcomed_at = 0.0
        self.superseded = False
        self.said_goodbye = False
        self.over = asyncio.Event()
        self._closed = asyncio.Event()
        self._outbox: Outbox[FromWorker] | None = None

    def send(self, message: FromWorker) -> None:
        if type(message) is Goodbye:
            self.said_goodbye = True
        if self._outbox is not None:
            self._outbox.put(message)

    def close(self) -> None:
        """End this side, after what is queued was sent."""
        if self._outbox is not None:
            self._outbox.finish()
        self._closed.set()

    async def run(self) -> None:
        """Until the stream ends. Raises why, unless it was to end: after Goodbye, or for a newer stream."""
        call = self._stub.Session()
        failure: list[SPIError] = []

        def failed(error: SPIError) -> None:
            failure.append(error)
            call.cancel()

        self._outbox = Outbox(to_requests, call.write, failed)
        peer = self._runtime.attach(self)
        writer = asyncio.create_task(self._write(call), name=f"writer-{self.address}")
        closer = asyncio.create_task(self._close_after(call, writer), name=f"closer-{self.address}")
        reason = ""
        try:
            await self._read(call, peer)
            raise Unavailable("The orchestrator ended the stream.")
        except (grpc.aio.AioRpcError, SPIError, TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not (failure or self._closed.is_set()):
                raise  # this worker is being ended, not the call
            cause = failure[0] if failure else _cause(error)
            reason = str(cause)
            if not (self.said_goodbye or self.superseded):
                raise cause from error
        finally:
            self._outbox.finish()
            writer.cancel()
            closer.cancel()
            call.cancel()
            await asyncio.gather(writer, closer, return_exceptions=True)
            peer.on_close(reason or "The worker ended the stream.")
            self.over.set()

    async def _read(self, call: Any, peer: Peer) -> None:
        assert self._outbox is not None
        async with asyncio.timeout(WELCOME_WITHIN):
            first = await call.read()
        while first is not grpc.aio.EOF:
            self._outbox.told(first.taken)
            message = from_response(first)
            if type(message) is Welcome and not self.orchestrator_id:
                self.orchestrator_id = message.orchestrator_id
                self.welcomed_at = asyncio.get_running_loop().time()
                self._on_welcome(self, message)
            peer.on_message(message)
            first = await call.read()
        if self._closed.is_set():
            return
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            raise await _status_error(call)

    async def _write(self, call: Any) -> None:
        assert self._outbox is not None
        try:
            await self._outbox.run()
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader learns why the stream has ended

    async def _close_after(self, call: Any, writer: asyncio.Task[None]) -> None:
        """When this side closes: give the queue and the other side a moment, then end the call."""
        await self._closed.wait()
        await asyncio.wait([writer], timeout=FLUSH_WITHIN)
        await asyncio.sleep(FLUSH_WITHIN)
        call.cancel()


async def connect_worker(
    runtime: Runtime, address: str | Iterable[str], *, security: ClientSecurity | None = None
) -> WorkerConnections:
    """Connect a worker to the orchestrator(s) at `address` (host:port, several parted by commas or as a list) and to
    all that they name. Returns at once; `wait_connected` waits for the first. Close it when the runtime has drained.
    Raises InvalidConfiguration where a token would travel in the clear."""
    connections = WorkerConnections(runtime, address, security=security)
    await connections.start()
    return connections


def canonical(address: str) -> str:
    """One spelling for one address, so that it gets one stream."""
    host, _, port = address.strip().rpartition(":")
    return f"127.0.0.1:{port}" if host == "localhost" else f"{host}:{port}"


def _cause(error: BaseException) -> SPIError:
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, SPIError):
        return error
    return Unavailable("No Welcome came in time." if isinstance(error, TimeoutError) else "The stream was cancelled.")


async def _status_error(call: Any) -> SPIError:
    error = grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
    return from_rpc_error(error)
