"""An in-process worker's stream: both ends of a WorkerLink, with delivery on the loop, in order, and faults on demand."""

from __future__ import annotations

import asyncio
from collections import deque

from onexflow.ports.worker_link import AcceptWorker, FromWorker, ToWorker, WorkerPeer
from onexflow.spi.exceptions import SPIError
from onexflow.worker.peers import OrchestratorPeer
from onexflow.worker.runtime import WorkerRuntime


class InProcessStream:
    """Connects a worker runtime with an orchestrator. `cut()` breaks it as a network would, `held` keeps what is sent."""

    def __init__(self, accept: AcceptWorker, runtime: WorkerRuntime) -> None:
        self._loop = asyncio.get_running_loop()
        self._to_worker: deque[ToWorker] = deque()
        self._to_orchestrator: deque[FromWorker] = deque()
        self._scheduled = False
        self.is_open = True
        #: Set at the end of the stream, just before both ends hear of it.
        self.ended = asyncio.Event()
        #: While True nothing is delivered in either direction (a silent network).
        self.held = False
        #: Everything that was delivered, for assertions.
        self.log: list[FromWorker | ToWorker] = []
        self._peer: WorkerPeer = accept(_Down(self))
        self._worker: OrchestratorPeer = runtime.attach(_Up(self))

    def put(self, message: FromWorker | ToWorker, *, down: bool) -> None:
        if self.is_open:
            (self._to_worker if down else self._to_orchestrator).append(message)  # type: ignore[arg-type]  # each direction has its own messages
            self._schedule()

    def pending_down(self, kind: type[ToWorker]) -> list[ToWorker]:
        """The messages of that kind that the worker has not got yet."""
        return [message for message in self._to_worker if isinstance(message, kind)]

    def release(self) -> None:
        """Deliver again, what was held first."""
        self.held = False
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self.held:
            return
        while self._to_orchestrator and self.is_open:
            message = self._to_orchestrator.popleft()
            self.log.append(message)
            try:
                self._peer.on_message(message)
            except SPIError as error:
                self.cut(str(error))
                return
        while self._to_worker and self.is_open:
            order = self._to_worker.popleft()
            self.log.append(order)
            self._worker.on_message(order)

    def cut(self, reason: str = "cut", *, planned: bool = False) -> None:
        """End the stream; what was not delivered is lost. Both ends are told."""
        if not self.is_open:
            return
        self.is_open = False
        self.ended.set()
        self._to_worker.clear()
        self._to_orchestrator.clear()
        self._loop.call_soon(self._peer.on_close, planned)
        self._loop.call_soon(self._worker.on_close, reason)

    def cut_worker_side(self) -> None:
        """Only the worker notices: the orchestrator is gone without a word."""
        self.is_open = False
        self.ended.set()
        self._loop.call_soon(self._worker.on_close, "cut")

    def cut_orchestrator_side(self) -> None:
        """Only the orchestrator notices: the worker is gone without a word."""
        self.is_open = False
        self.ended.set()
        self._loop.call_soon(self._peer.on_close, False)


class _Down:
    """The orchestrator's end."""

    def __init__(self, stream: InProcessStream) -> None:
        self._stream = stream

    def send(self, message: ToWorker) -> None:
        self._stream.put(message, down=True)

    def close(self, reason: str = "") -> None:
        self._stream.cut(reason)


class _Up:
    """The worker's end."""

    def __init__(self, stream: InProcessStream) -> None:
        self._stream = stream

    def send(self, message: FromWorker) -> None:
        self._stream.put(message, down=False)

    def close(self) -> None:
        self._stream._loop.call_soon(self._stream.cut, "closed by the worker")  # noqa: SLF001 — its own other half
