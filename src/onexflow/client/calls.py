"""The calls of a client that have no answer yet: queued, batched, answered, given up. No I/O.

A call costs one future. Calls made in one turn of the loop leave in one message; while a message is being written the
next ones collect. When a stream is lost, every call without an answer goes back to the head of the queue, to be sent
again on the next one: starts under their request_id, waits as they were.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from onexflow.codec.wire import common as wire_common
from onexflow.codec.wire.common import MAX_BATCH, MAX_BATCH_BYTES, MAX_PAYLOAD
from onexflow.core.errors import DeadlineExceeded, Draining, InvalidArgument, Overloaded, ShardMoved, StoreFull
from onexflow.core.identity import ON_BEHALF
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import common_pb2
from onexflow.v1 import workflow_pb2 as pb

#: What a call takes on the wire beside its request: its id and lengths.
OVERHEAD: Final = 24
#: No call is larger: a payload, and room for names. A message beyond gRPC's own limit would end the stream of all.
MAX_CALL: Final = MAX_PAYLOAD + (64 << 10)
#: Answers that say nothing of the call itself, only that this orchestrator has no room for it now; and that it is not the one
#: to ask.
ASK_LATER: Final = (Overloaded,)
ASK_AGAIN: Final = (*ASK_LATER, Draining, ShardMoved)
#: Seconds before such a call is sent again.
ASK_AGAIN_AFTER: Final = 0.1


class Call:
    """A start (then `start` is set) or a wait for a run's end."""

    __slots__ = ("future", "id", "key", "principal", "refusal", "size", "start")

    def __init__(
        self,
        id: int,
        future: asyncio.Future[pb.Answer],
        start: pb.StartWorkflowRequest | None,
        key: common_pb2.RunKey | None,
        size: int,
        principal: pb.Principal | None,
    ) -> None:
        self.id = id
        self.future = future
        self.start = start
        self.key = key
        self.size = size
        self.principal = principal
        #: Why it waits to be sent again.
        self.refusal: SPIError | None = None


class Calls:
    """The table. The stream asks it for batches and tells it answers; `work` is set when there may be a batch."""

    def __init__(self, *, ask_again: tuple[type[SPIError], ...] = ASK_AGAIN) -> None:
        """`ask_again`: errors that are no answer, so that the call is sent again."""
        self._loop = asyncio.get_running_loop()
        self._ask_again = ask_again
        self._last_id = 0
        #: Not sent on the present stream, in order. A call that was given up stays until it is met here.
        self._queue: deque[Call] = deque()
        #: Sent on the present stream.
        self._open: dict[int, Call] = {}
        #: Sent on the present stream, given up since: the orchestrator is told.
        self._abandoned: list[int] = []
        self._window = 0
        self._closed: SPIError | None = None
        self.work = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Is a stream up?"""
        return self._window > 0

    @property
    def unanswered(self) -> bool:
        return bool(self._queue or self._open)

    async def call(
        self,
        start: pb.StartWorkflowRequest | None = None,
        key: common_pb2.RunKey | None = None,
        timeout: float | None = None,
    ) -> pb.Answer:
        """The answer to a start or a wait. Raises the error that the orchestrator answered, DeadlineExceeded, or
        Unavailable. Overloaded is raised when it was the last answer within `timeout`: until then the call is sent again,
        after the pause that was asked for. Cancelling gives the call up: a start may have happened all the same."""
        if self._closed is not None:
            raise self._closed
        what = start if start is not None else key
        size = OVERHEAD + (what.ByteSize() if what is not None else 0)
        if size > MAX_CALL:
            raise InvalidArgument(f"the call has {size:,} bytes; {MAX_CALL:,} is the most", field="start")
        self._last_id += 1
        call = Call(self._last_id, self._loop.create_future(), start, key, size, _principal())
        self._queue.append(call)
        self.work.set()
        timer = None if timeout is None else self._loop.call_later(timeout, self._expire, call, timeout)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._give_up(call)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, call: Call, timeout: float) -> None:
        if not call.future.done():
            refusal = call.refusal if isinstance(call.refusal, Overloaded) else None
            call.future.set_exception(refusal or DeadlineExceeded(f"no answer within {timeout:g} s"))
            self._give_up(call)

    def _give_up(self, call: Call) -> None:
        if self._open.pop(call.id, None) is not None:
            self._abandoned.append(call.id)
            self.work.set()

    # ---- for the stream

    @property
    def sendable(self) -> int:
        """How many calls may be sent now; those count that were given up meanwhile."""
        return min(len(self._queue), self._window - len(self._open))

    def connected(self, window: int) -> None:
        """A stream is up, and so many calls may be open on it."""
        self._window = window
        self.work.set()

    def lost(self) -> None:
        """The stream is gone, and with it what the orchestrator knew of these calls."""
        self._window = 0
        self._abandoned.clear()
        self._queue.extendleft(reversed(self._open.values()))
        self._open.clear()

    def next_batch(self) -> pb.ConnectRequest | None:
        """The next message to write, or None while there is nothing that may be sent."""
        request = pb.ConnectRequest()
        batch = request.batch
        if self._abandoned:
            batch.abandoned.extend(self._abandoned)
            self._abandoned.clear()
        starts, waits, queue, opened = batch.starts, batch.waits, self._queue, self._open
        count = size = 0
        while queue and count < MAX_BATCH and len(opened) < self._window:
            call = queue[0]
            if call.future.done():
                queue.popleft()
                continue
            size += call.size
            if count and size > MAX_BATCH_BYTES:
                break
            queue.popleft()
            if call.start is not None:
                starts.add(call_id=call.id, start=call.start, principal=call.principal)
            else:
                waits.add(call_id=call.id, key=call.key, principal=call.principal)
            opened[call.id] = call
            count += 1
        return request if count or batch.abandoned else None

    def answered(self, answers: pb.AnswerBatch) -> bool:
        """Wake those who wait; was it an answer to any of them, and not only word to ask again? An answer to nobody's
        call (it was given up) is dropped."""
        ended = False
        for answer in answers.answers:
            call = self._open.pop(answer.call_id, None)
            if call is None or call.future.done():
                continue
            if not answer.HasField("error"):
                call.future.set_result(answer)
                ended = True
            elif _is(error := wire_common.error(answer.error), self._ask_again):
                call.refusal = error
                self._loop.call_later(answer.error.retry_after or ASK_AGAIN_AFTER, self._again, call)
            else:
                call.future.set_exception(error)
                ended = True
        if self._queue:
            self.work.set()
        return ended

    def _again(self, call: Call) -> None:
        call.refusal = None
        if self._closed is not None and not call.future.done():
            call.future.set_exception(self._closed)
        self._queue.append(call)
        self.work.set()

    def fail_all(self, error: SPIError) -> None:
        """End every call that has no answer with `error`."""
        self.lost()
        for call in self._queue:
            if not call.future.done():
                call.future.set_exception(error)
        self._queue.clear()
        self.work.clear()

    def close(self, error: SPIError) -> None:
        """End every call, and every later one, with `error`."""
        self._closed = error
        self.fail_all(error)


def _is(error: SPIError, kinds: tuple[type[SPIError], ...]) -> bool:
    """A store without space is for people to see to: it is told at once."""
    return isinstance(error, kinds) and not isinstance(error, StoreFull)


def _principal() -> pb.Principal | None:
    """For whom this process, an orchestrator, passes the present call on."""
    caller = ON_BEHALF.get()
    if caller is None or not caller.name:
        return None
    return pb.Principal(name=caller.name, roles=sorted(caller.roles))
