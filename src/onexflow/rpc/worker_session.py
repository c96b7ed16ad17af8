"""The orchestrator's end of a worker's stream (the protocol is at the head of proto/onexflow/v1/worker.proto).

Decodes what the worker says and hands it, in order, to the peer that `accept_worker` gives; writes what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, Final

from onexflow.codec.wire.worker_request import from_request
from onexflow.codec.wire.worker_response import to_responses
from onexflow.core.errors import PermissionDenied, ProtocolViolation, Unavailable
from onexflow.core.identity import CALLER
from onexflow.ports.worker_link import (
    PROTOCOL_VERSION,
    AcceptWorker,
    Ack,
    Drain,
    Goodbye,
    Hello,
    Ping,
    ToWorker,
    WorkerPeer,
)
from onexflow.rpc.outbox import Outbox
from onexflow.rpc.stream import HELLO_WITHIN, Context, ServerStream
from onexflow.v1 import worker_pb2 as pb

#: Seconds of silence after which the worker is asked, and those in which it must have said something then.
PING_AFTER: Final = 2.0
PING_WITHIN: Final = 5.0
#: When this process itself was late by so much, silence says nothing about the worker: it is asked again.
OWN_STALL: Final = 0.5


class WorkerStream(ServerStream):
    """One worker's stream: a ports.worker_link.WorkerLink."""

    method: ClassVar[str] = "WorkerService.Session"

    def __init__(
        self,
        context: Context,
        accept: AcceptWorker,
        *,
        hello_within: float = HELLO_WITHIN,
        ping_after: float = PING_AFTER,
        ping_within: float = PING_WITHIN,
    ) -> None:
        super().__init__(context, hello_within=hello_within)
        self._accept = accept
        self._ping_after = ping_after
        self._ping_within = ping_within
        self._peer: WorkerPeer | None = None
        self._caller = CALLER.get()
        self._planned = False
        self._shares_tasks = False
        self._outbox: Outbox[ToWorker] = Outbox(self._encode, self._send_telling, self.end)

    # ---- WorkerLink

    def send(self, message: ToWorker) -> None:
        self._outbox.put(message)

    def close(self, reason: str = "") -> None:
        self.end(Unavailable(reason or "The orchestrator ended the stream."))

    def drain(self, reason: str) -> None:
        """Tell the worker that this orchestrator is going away."""
        if self._peer is not None:
            self._outbox.put(Drain(reason))

    # ---- ServerStream

    def _on_message(self, message: Any) -> None:
        if self._end.done():
            return
        value = from_request(message)
        if self._peer is None:
            self._peer = self._welcome(value)
            self._taken.wanted = message.hello.receipts
            self._shares_tasks = message.hello.shares_tasks
        self._planned = type(value) is Goodbye
        self._peer.on_message(value)

    def _welcome(self, value: object) -> WorkerPeer:
        if not isinstance(value, Hello):
            raise ProtocolViolation(
                f"The first message must be Hello; it is {type(value).__name__}.", {"field": "message"}
            )
        if value.protocol_version != PROTOCOL_VERSION:
            raise ProtocolViolation(
                f"Protocol version {value.protocol_version} is not spoken here; {PROTOCOL_VERSION} is.",
                {"field": "hello.protocol_version", "spoken": PROTOCOL_VERSION},
            )
        self._check_rights(value)
        return self._accept(self)

    def _check_rights(self, hello: Hello) -> None:
        """Raises PermissionDenied naming what the worker's identity may not register."""
        refused = self._caller.refused((info.role, info.name) for info in hello.handlers)
        if not refused:
            return
        shown = ", ".join(refused[:10]) + (f" and {len(refused) - 10} more" if len(refused) > 10 else "")
        raise PermissionDenied(
            f"{self._caller.name} may not register {shown}.",
            {
                "principal": self._caller.name,
                "worker": hello.worker_id,
                "refused": refused[:10],
                "node_roles": list(self._caller.node_roles),
                "handlers": list(self._caller.handlers[:20]),
            },
        )

    def _encode(self, message: ToWorker) -> Iterator[pb.SessionResponse]:
        return to_responses(message, shares_tasks=self._shares_tasks)

    def _send_telling(self, message: pb.SessionResponse) -> Awaitable[None]:
        message.taken = self._taken.tell()
        return self._send(message)

    def _receipt(self) -> None:
        self._outbox.hurry(Ack([]))

    def _parts(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (self._watch,)

    async def _watch(self) -> None:
        """Ask a silent worker, and end the stream of one that stays silent."""
        nonce = 0
        while True:
            silent = self._loop.time() - self.heard_at
            if silent < self._ping_after or self._peer is None:
                await asyncio.sleep(max(self._ping_after - silent, self._ping_after / 8))
                continue
            nonce += 1
            asked = self._loop.time()
            self.send(Ping(nonce))
            await asyncio.sleep(self._ping_within)
            was_stopped = self._loop.time() - asked > self._ping_within + OWN_STALL
            if self.heard_at < asked and not was_stopped:  # else its words may wait unread
                raise Unavailable(f"The worker has said nothing for {silent + self._ping_within:.1f} s.")

    async def _write(self) -> None:
        await self._outbox.run()

    def _finish(self) -> None:
        self._outbox.finish()

    def _ended(self) -> None:
        self._outbox.finish()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.on_close(self._planned)
