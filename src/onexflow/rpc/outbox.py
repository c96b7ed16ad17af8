"""The sending half of a stream: a queue that never blocks its callers, and one coroutine that writes it out.

What was queued in one turn of the loop leaves together, or what was queued until the other end has taken what is on its
way (`rpc.receipts`; a full message of results does not wait for so much): neighbours of the same kind are joined
(assignments, results, acks, credits), acks go with assignments and credits with results, and the wire form cuts them at 64
entries and 1 MiB.
A message costs as much as the work for several tasks, so acks wait a little for assignments to go with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from onexflow.codec.wire.common import MAX_BATCH
from onexflow.core.errors import Overloaded
from onexflow.core.ids import Token
from onexflow.ports.worker_link import Ack, Assignment, Assignments, AttemptResult, Credits, Results
from onexflow.rpc.receipts import Untaken
from onexflow.spi.exceptions import SPIError

#: Seconds that acks wait for something to go with. Nobody waits for them: they free the worker's memory.
ACK_PATIENCE: Final = 0.005
#: Tokens of acks that go with assignments.
_MAX_ACKED: Final = 512

#: Messages that may wait. Credits bound what a worker is sent; a queue this long means that nobody reads.
LIMIT: Final = 10_000

Message = TypeVar("Message")


class Outbox(Generic[Message]):
    """Queue and writer of one stream. `failed` is called once, when the queue overflows."""

    def __init__(
        self,
        encode: Callable[[Message], Iterable[Any]],
        write: Callable[[Any], Awaitable[Any]],
        failed: Callable[[SPIError], None],
    ) -> None:
        self._encode = encode
        self._write = write
        self._failed = failed
        self._untaken = Untaken()
        self._queue: deque[Any] = deque()  # of Message
        self._wake = asyncio.Event()
        self._patience: asyncio.TimerHandle | None = None
        self._finished = False
        #: Queued messages of kinds that wait for no room, and of kinds that wait for no company.
        self._others = self._pressing = 0
        #: Results in all queued messages.
        self._results = 0
        #: The acks that are queued have waited for company long enough.
        self._is_due = False

    def put(self, message: Message) -> None:
        """Queue a message; after `finish`: ignored."""
        if self._finished:
            return
        if len(self._queue) >= LIMIT:
            self.finish()
            self._failed(Overloaded(f"{LIMIT} messages wait on this stream and nobody reads them."))
            return
        self._queue.append(message)
        if isinstance(message, Results):  # of whatever kind the messages of this stream are
            self._results += len(message.results)
        self._others += type(message) not in _WAITING
        if type(message) is not Ack:
            self._pressing += 1
            self._wake.set()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(ACK_PATIENCE, self._hurry)

    def hurry(self, message: Message) -> None:
        """Write now what is queued, or this message where nothing is."""
        if not self._queue:
            self.put(message)
        self._hurry()

    def _hurry(self) -> None:
        self._is_due = True
        self._wake.set()

    def told(self, taken: int) -> None:
        """The other end has said how many messages it has taken."""
        if self._untaken.told(taken):
            self._wake.set()

    def finish(self) -> None:
        """Take nothing more; `run` returns when what is queued is written."""
        self._finished = True
        self._wake.set()

    async def run(self) -> None:
        """Write until finished."""
        while True:
            while self._queue and self._may_go():
                waits = type(self._queue[0]) in _WAITING
                joined = self._next()
                if len(self._queue) == self._pressing:  # no ack is left
                    self._wait_no_more()
                for message in self._encode(joined):
                    self._untaken.sent(waits=waits)
                    await self._write(message)
            if self._finished and not self._queue:
                return
            self._wake.clear()
            await self._wake.wait()

    def _wait_no_more(self) -> None:
        self._is_due = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _may_go(self) -> bool:
        """Who waits for room waits for company. With another message behind it, or when no more will come, it can get none,
        and holds up what stands behind it. Acks alone wait for company as long as they may."""
        if not (self._pressing or self._is_due or self._finished):
            return False
        return self._untaken.has_room(self._results) or self._must_go

    @property
    def _must_go(self) -> bool:
        """Nothing that is queued may wait for room."""
        return self._others > 0 or self._finished

    def _pop(self) -> Any:
        message = self._queue.popleft()
        self._others -= type(message) not in _WAITING
        self._pressing -= type(message) is not Ack
        return message

    def _next(self) -> Any:
        head = type(self._queue[0])
        if head is Results or (head is Credits and self._results and not self._others):
            return self._ends()
        message = self._group()
        if type(message) is Assignments and message.ack is None:
            acks = self._acks_behind(message.assignments)
            return message if acks is None else Assignments(message.assignments, acks)
        other = type(self._queue[0]) if self._queue else None
        if type(message) is Ack and other is Assignments and _tokens(message) <= _MAX_ACKED:
            return Assignments(self._group().assignments, message)
        return message

    def _acks_behind(self, assignments: Sequence[Assignment]) -> Ack | None:
        """The acks that stand first, as many as may go with these assignments: none of a token that is assigned there, as
        it would be heard before that."""
        acks: list[Ack] = []
        room = _MAX_ACKED
        assigned: set[Token] = set()
        while self._queue and type(self._queue[0]) is Ack and (count := _tokens(self._queue[0])) <= room:
            ack = self._queue[0]
            assigned = assigned or {one.token for one in assignments}
            if not (assigned.isdisjoint(ack.tokens) and assigned.isdisjoint(ack.discarded)):
                break
            acks.append(self._pop())
            room -= count
        return _acks(acks) if acks else None

    def _ends(self) -> Results:
        """The results and the credits that stand first, or one full message of them where no other has room. Credits may
        wait for results that came after them."""
        results: list[AttemptResult] = []
        credits: list[Credits] = []
        only_full = not (self._untaken.has_room(1) or self._must_go)
        while self._queue and type(self._queue[0]) in _WAITING and not (only_full and len(results) >= MAX_BATCH):
            message = self._pop()
            if type(message) is Results:
                results += message.results
                self._results -= len(message.results)
            else:
                credits.append(message)
        if only_full and len(results) > MAX_BATCH:
            self._put_back(Results(results[MAX_BATCH:]))
            results = results[:MAX_BATCH]
        return Results(results, _credits(credits).granted)

    def _put_back(self, rest: Results) -> None:
        """What is left of a message goes ahead of all others."""
        self._queue.appendleft(rest)
        self._results += len(rest.results)
        self._pressing += 1

    def _group(self) -> Any:
        """The first message, joined with those of its kind behind it."""
        first = self._pop()
        kind = type(first)
        if kind not in _JOINED or not self._queue or type(self._queue[0]) is not kind:
            return first
        group = [first]
        while self._queue and type(self._queue[0]) is kind:
            group.append(self._pop())
        return _JOINED[kind](group)


def _tokens(ack: Ack) -> int:
    return len(ack.tokens) + len(ack.discarded)


def _assignments(group: list[Assignments]) -> Assignments:
    return Assignments([one for message in group for one in message.assignments])


def _acks(group: list[Ack]) -> Ack:
    offsets: dict[int, int] = {}
    for message in group:
        offsets.update(message.offsets)
    return Ack(
        [token for message in group for token in message.tokens],
        [token for message in group for token in message.discarded],
        offsets,
    )


def _credits(group: list[Credits]) -> Credits:
    total: dict[str, int] = {}
    for message in group:
        for role, count in message.granted.items():
            total[role] = total.get(role, 0) + count
    return Credits(total)


#: What workers say all the time, and can say in one message as well.
_WAITING: Final[set[type]] = {Results, Credits}
_JOINED: Final[dict[type, Callable[[Any], Any]]] = {
    Assignments: _assignments,
    Ack: _acks,
    Credits: _credits,
}
