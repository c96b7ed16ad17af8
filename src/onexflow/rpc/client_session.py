"""The orchestrator's end of a client's stream (the protocol is at the head of proto/onexflow/v1/workflow.proto).

Each call is a small object in a dictionary, no task: the engine answers by callback, and the answers of a turn of the
loop leave in one message.

The calls of a message are begun as it comes. Under a flood (one full message after the other) only a few are begun for each
message that is read, so that what waits then waits here, where the engine is told for how long, and not unseen in the
network and in the client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final, TypeAlias

from onexflow.codec.wire import common
from onexflow.codec.wire import workflow as wire
from onexflow.core.errors import (
    Draining,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    ProtocolViolation,
    RunFailed,
)
from onexflow.core.identity import ANYBODY, CALLER, Identity, passed_on
from onexflow.ports.client_link import OrchestratorService, RunOutcome, ShardMap, StartOutcome
from onexflow.rpc.status import judged
from onexflow.rpc.stream import HELLO_WITHIN, Context, ServerStream
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import workflow_pb2 as pb

PROTOCOL_VERSION: Final = 1
#: Calls that may be open at a time on one stream.
WINDOW: Final = 8192
#: Answers that may wait before the stream is no longer read.
MAX_ANSWERS: Final = 1024
#: So many full messages in a row are a flood; calls that are begun for each then, and in so many seconds without one.
FLOOD: Final = 4
FLOOD_CALLS: Final = 16
FLOOD_SECONDS: Final = 0.002
#: Bytes of an answer that still fits into a message with what surrounds it.
_LARGEST: Final = common.MAX_MESSAGE * 3 // 4

Outcome: TypeAlias = StartOutcome | RunOutcome | SPIError


class _Call:
    """An open call. Answers that come after it was abandoned find it gone."""

    __slots__ = ("call_id", "give_up", "stream")

    def __init__(self, stream: ClientStream, call_id: int) -> None:
        self.stream = stream
        self.call_id = call_id
        self.give_up: Callable[[], None] | None = None

    def answer(self, outcome: Outcome) -> None:
        self.stream.answer(self, outcome)

    def started(self, outcome: StartOutcome | SPIError) -> None:
        """The start of a call with `wait`: now its end is waited for."""
        if isinstance(outcome, SPIError):
            self.stream.answer(self, outcome)
        else:
            self.stream.wait(self, outcome)


class ClientStream(ServerStream):
    """One client's stream."""

    method: ClassVar[str] = "WorkflowService.Connect"

    def __init__(
        self,
        context: Context,
        service: OrchestratorService,
        *,
        window: int = WINDOW,
        hello_within: float = HELLO_WITHIN,
    ) -> None:
        super().__init__(context, hello_within=hello_within)
        self._service = service
        self._window = window
        self._caller = CALLER.get()
        self._welcomed = False
        self._told = ShardMap()
        self._calls: dict[int, _Call] = {}
        #: Calls that are not begun, with the loop time at which they came; what was abandoned, in its place among them.
        self._arrived: deque[tuple[float, pb.StartCall | pb.WaitCall | Sequence[int]]] = deque()
        #: How long the one that is begun now has been among them.
        self._waited = 0.0
        self._full_messages = 0
        self._later: asyncio.Handle | None = None
        self._answers: deque[tuple[int, Outcome]] = deque()
        self._control: list[pb.ConnectResponse] = []
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._half_closed = False
        self._finished = False

    def drain(self, reason: str) -> None:
        """Tell the client to go elsewhere; open calls are still answered."""
        if self._welcomed:
            self._control.append(pb.ConnectResponse(drain=pb.ConnectDrain(reason=reason)))
            self._wake.set()

    def tell_owners(self, shards: ShardMap) -> None:
        """Who owns what, if that is not what it was told last."""
        if self._welcomed and shards.shards and shards != self._told:
            self._told = shards
            owners = pb.ConnectOwners(
                orchestrators=shards.orchestrators, shards=shards.shards, owners=dict(shards.owners)
            )
            self._control.append(pb.ConnectResponse(owners=owners))
            self._wake.set()

    def close(self, reason: str = "") -> None:
        """End the stream after the answers that are ready."""
        self.end(Draining(reason or "The orchestrator ended the stream."))

    # ---- calls

    def answer(self, call: _Call, outcome: Outcome) -> None:
        if self._calls.get(call.call_id) is not call:
            return
        del self._calls[call.call_id]
        self._answers.append((call.call_id, outcome))
        if len(self._answers) >= MAX_ANSWERS:
            self._has_room.clear()
        self._wake.set()

    def wait(self, call: _Call, started: StartOutcome) -> None:
        if self._calls.get(call.call_id) is call:
            call.give_up = self._service.wait_run(started.key, call.answer)

    def _on_message(self, message: pb.ConnectRequest) -> None:
        if self._end.done():
            return
        kind = message.WhichOneof("message")
        if not self._welcomed:
            self._welcome(kind, message.hello)
        elif kind == "batch":
            self._on_batch(message.batch)
        else:
            raise ProtocolViolation(
                "Hello may be said once a stream." if kind else "A message holds nothing.", {"field": "message"}
            )

    def _welcome(self, kind: str | None, hello: pb.ConnectHello) -> None:
        if kind != "hello":
            raise ProtocolViolation(f"The first message must be hello; it is {kind}.", {"field": "message"})
        if hello.protocol_version != PROTOCOL_VERSION:
            raise ProtocolViolation(
                f"Protocol version {hello.protocol_version} is not spoken here; {PROTOCOL_VERSION} is.",
                {"field": "hello.protocol_version", "spoken": PROTOCOL_VERSION},
            )
        self._welcomed = True
        welcome = pb.ConnectWelcome(
            protocol_version=PROTOCOL_VERSION, orchestrator_id=self._service.orchestrator_id, window=self._window
        )
        self._control.append(pb.ConnectResponse(welcome=welcome))
        self.tell_owners(self._service.shard_map())
        self._wake.set()

    def _on_batch(self, batch: pb.CallBatch) -> None:
        if len(batch.starts) + len(batch.waits) > common.MAX_BATCH:
            raise ProtocolViolation(
                f"A batch has {len(batch.starts) + len(batch.waits)} calls; {common.MAX_BATCH} is the most.",
                {"field": "batch"},
            )
        is_full = len(batch.starts) + len(batch.waits) == common.MAX_BATCH
        self._full_messages = self._full_messages + 1 if is_full else 0
        now = self._loop.time()
        if batch.abandoned:
            self._arrived.append((now, batch.abandoned))
        for start in batch.starts:
            self._arrived.append((now, start))
        for wait in batch.waits:
            self._arrived.append((now, wait))
        if len(self._arrived) >= self._window:
            self._has_room.clear()
        self._work()

    def _work(self) -> None:
        """Begin what has arrived, or some of it; refusals cost little, and do not count."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        is_flood = self._full_messages >= FLOOD
        room = FLOOD_CALLS if is_flood else common.MAX_BATCH
        looked = 0
        now, arrived = self._loop.time(), self._arrived
        while arrived and room and looked < 2 * common.MAX_BATCH and not self._end.done():
            looked += 1
            came_at, item = arrived.popleft()
            if isinstance(item, pb.StartCall):
                self._waited = now - came_at
                self._begin(item.call_id, self._start, item)
            elif isinstance(item, pb.WaitCall):
                self._begin(item.call_id, self._wait, item)
            else:
                self._abandon(item)
                continue
            room -= item.call_id in self._calls
        if arrived:
            self._later = self._loop.call_later(FLOOD_SECONDS if is_flood else 0.0, self._go_on)
        if len(arrived) < self._window and len(self._answers) < MAX_ANSWERS:
            self._has_room.set()
        if self._half_closed:
            self._wake.set()

    def _go_on(self) -> None:
        self._later = None
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - as in the reader: it ends this stream and no other
            self.end(judged(error, self.method))

    def _abandon(self, call_ids: Sequence[int]) -> None:
        for call_id in call_ids:
            if (call := self._calls.pop(call_id, None)) is not None and call.give_up is not None:
                call.give_up()

    def _begin(self, call_id: int, begin: Callable[[_Call, Any], None], message: Any) -> None:
        if call_id == 0 or call_id in self._calls:
            story = "0 is no call id." if call_id == 0 else f"Call {call_id} is open already."
            raise ProtocolViolation(story, {"field": "batch.call_id", "call_id": call_id})
        call = self._calls[call_id] = _Call(self, call_id)
        if len(self._calls) > self._window:
            call.answer(Overloaded(f"{self._window} calls are open on this stream.", {"window": self._window}))
            return
        try:
            begin(call, message)
        except Exception as error:  # noqa: BLE001 - one bad call is its own affair
            call.answer(judged(error, self.method))

    def _start(self, call: _Call, message: pb.StartCall) -> None:
        if not message.HasField("start"):
            raise InvalidArgument("A start has no run.", field="start")
        principal = self._caller_of(message).name
        request = wire.start(message.start, principal=principal, waited=self._waited, behind=len(self._arrived))
        self._service.start_run(request, call.started if message.start.wait else call.answer)

    def _wait(self, call: _Call, message: pb.WaitCall) -> None:
        self._caller_of(message)
        call.give_up = self._service.wait_run(wire.key(message), call.answer)

    def _caller_of(self, message: pb.StartCall | pb.WaitCall) -> Identity:
        """Whose call it is: the stream's, or of whom an orchestrator passes it on for. Raises PermissionDenied."""
        if self._caller is ANYBODY or not message.HasField("principal"):
            return self._caller
        if not self._caller.has("member"):
            raise PermissionDenied(
                f"{self._caller.name} is no orchestrator of this cluster, and may not say for whom it asks.",
                {"principal": self._caller.name, "needed": ["member"], "method": self.method},
            )
        caller = passed_on(message.principal.name, message.principal.roles)
        if not caller.has("client"):
            raise PermissionDenied(
                f"{caller.name} may not start or await runs: it needs the role client.",
                {"principal": caller.name, "roles": sorted(caller.roles), "needed": ["client"], "method": self.method},
            )
        return caller

    # ---- ServerStream

    def _room(self) -> Awaitable[object] | None:
        return None if self._has_room.is_set() else self._has_room.wait()

    def _on_half_close(self) -> None:
        self._half_closed = True
        self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._control or self._answers:
                message = self._control.pop(0) if self._control else self._next_batch()
                await self._send(message)
            if self._finished:
                return
            if self._half_closed and not self._calls and not self._arrived:
                self.end()
                return
            self._wake.clear()
            await self._wake.wait()

    def _next_batch(self) -> pb.ConnectResponse:
        response = pb.ConnectResponse()
        messages = response.batch.answers
        size = 0
        while self._answers and len(messages) < common.MAX_BATCH:
            call_id, outcome = self._answers[0]
            needed = wire.answer_size(outcome)
            size += needed
            if messages and size > common.MAX_BATCH_BYTES:
                break
            self._answers.popleft()
            wire.fill_answer(messages.add(), call_id, outcome if needed <= _LARGEST else _too_large(needed))
        if len(self._answers) < MAX_ANSWERS and len(self._arrived) < self._window:
            self._has_room.set()
        return response

    def _finish(self) -> None:
        self._finished = True
        self._wake.set()

    def _ended(self) -> None:
        calls = list(self._calls.values())
        self._calls.clear()
        self._arrived.clear()
        if self._later is not None:
            self._later.cancel()
        for call in calls:
            if call.give_up is not None:
                call.give_up()


def _too_large(size: int) -> SPIError:
    return RunFailed(f"The run ended with {size} bytes, more than a message holds.", {"bytes": size})
