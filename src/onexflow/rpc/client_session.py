"""The orchestrator's end of a client's stream (the protocol is at the head of proto/onexflow/v1/workflow.proto).

Each call is a small object in a dictionary, no task: the engine answers by callback, and the answers of a turn of the
loop leave in one message.

The calls of a message are begun as it comes. In a flood what there is is read first, and begun a few at a time: what waits
then waits here, where the engine is told for how long, and not unseen in the network and in the client.
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
#: With so many calls, open or not begun, a stream is flooded: only a few are begun at a time then, every so many seconds; and
#: while so many are open, which keeps everybody busy, what there is to read is read first, for so many seconds.
FLOOD_CALLS: Final = 256
FLOOD_BEGINS: Final = 16
FLOOD_SECONDS: Final = 0.001
BUSY_CALLS: Final = 128
READ_SECONDS: Final = 0.05
#: Calls that are begun or refused at a time.
MAX_LOOKS: Final = 512
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
        #: Messages that have come, and those that had when `_look` was planned.
        self._messages = self._seen_messages = 0
        self._later: asyncio.Handle | None = None
        self._answers: deque[tuple[int, Outcome]] = deque()
        #: Answers to what was refused unseen: they fill up messages of the others.
        self._refusals: deque[tuple[int, SPIError]] = deque()
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
        call.give_up = None  # which may know of it: no cycle is to be left
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
        self._taken.wanted = hello.receipts
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
        now = self._loop.time()
        if batch.abandoned:
            self._arrived.append((now, batch.abandoned))
        for start in batch.starts:
            self._arrived.append((now, start))
        for wait in batch.waits:
            self._arrived.append((now, wait))
        if len(self._arrived) >= self._window:
            self._has_room.clear()
        self._messages += 1
        if not self._is_flooded or (self._later is None and len(self._arrived) <= FLOOD_BEGINS):
            self._work()
        elif self._later is None:
            self._look_later()

    @property
    def _is_flooded(self) -> bool:
        return len(self._calls) + len(self._arrived) >= FLOOD_CALLS

    def _look_later(self) -> None:
        self._seen_messages = self._messages
        self._later = self._loop.call_later(FLOOD_SECONDS, self._look)

    def _look(self) -> None:
        """Begin some of what has arrived; but read first, while there is something to read, if that does not take long."""
        self._later = None
        goes_on = self._messages > self._seen_messages and len(self._arrived) >= common.MAX_BATCH
        is_busy = self._is_flooded and len(self._calls) >= BUSY_CALLS
        if goes_on and is_busy and self._loop.time() - self._arrived[0][0] < READ_SECONDS:
            self._look_later()
            return
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - as in the reader: it ends this stream and no other
            self.end(judged(error, self.method))

    def _work(self) -> None:
        """Begin what has arrived, or some of it; refusals cost little, and do not count."""
        room = common.MAX_BATCH
        if self._is_flooded:
            room = max(FLOOD_BEGINS, min(BUSY_CALLS - len(self._calls), room))
        looked = 0
        now, arrived = self._loop.time(), self._arrived
        while arrived and room and looked < MAX_LOOKS and not self._end.done():
            looked += 1
            came_at, item = arrived.popleft()
            if isinstance(item, pb.StartCall):
                is_call = item.start.HasField("caller")  # of an orchestration, which has begun already
                refusal = None if is_call else self._service.refusal(now - came_at, len(arrived))
                if refusal is not None:
                    self._refuse(item.call_id, refusal)
                    continue
                self._begin(item.call_id, self._start, item)
            elif isinstance(item, pb.WaitCall):
                self._begin(item.call_id, self._wait, item)
            else:
                self._abandon(item)
                continue
            room -= item.call_id in self._calls
        if arrived and self._later is None:
            self._look_later()
        self._look_for_room()
        if self._half_closed:
            self._wake.set()

    def _refuse(self, call_id: int, refusal: SPIError) -> None:
        """Answer a start that is not even looked at."""
        self._refusals.append((call_id, refusal))
        if len(self._refusals) >= self._window:
            self._has_room.clear()
        self._wake.set()

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
        request = wire.start(message.start, principal=self._caller_of(message).name)
        self._service.start_run(request, call.started if request.wait else call.answer)

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

    def _receipt(self) -> None:
        if not (self._control or self._answers or self._refusals):  # else what waits to be written tells it
            self._control.append(pb.ConnectResponse(batch=pb.AnswerBatch()))
            self._wake.set()

    def _receipt_patience(self) -> float:
        return 0.0 if self._is_flooded else super()._receipt_patience()  # a flood is read first, and waits here

    def _room(self) -> Awaitable[object] | None:
        return None if self._has_room.is_set() else self._has_room.wait()

    def _on_half_close(self) -> None:
        self._half_closed = True
        self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._control or self._answers or self._refusals:
                message = self._control.pop(0) if self._control else self._next_batch()
                message.taken = self._taken.tell()
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
        while self._refusals and len(messages) < common.MAX_BATCH:  # small, all of them
            wire.fill_answer(messages.add(), *self._refusals.popleft())
        self._look_for_room()
        return response

    def _look_for_room(self) -> None:
        """Read on, where what was read before has been dealt with."""
        if len(self._answers) < MAX_ANSWERS and max(len(self._arrived), len(self._refusals)) < self._window:
            self._has_room.set()

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
