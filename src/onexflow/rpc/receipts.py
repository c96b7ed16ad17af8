"""Receipts: how far the other end of a stream has come with what it was sent.

A message costs whoever takes it as much as the work for several tasks, and small messages breed small ones: what comes in
one is answered in one. So a sender whose last messages have not been taken yet waits, and what it has to say meanwhile
goes in one message. Who talks to an idle end never waits, and who talks to a busy one sends as often as that one can take
it: no time is set, and nothing to be tuned. A message that is full has no company to wait for, and goes earlier.

The receiver says in each message how many it has taken, and, when a sender may wait for it, in one of its own. It does so
only for a sender that has asked for it in its first message.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from onexflow.codec.wire.common import MAX_BATCH

#: Messages that may be on their way: one that is being taken, and one that is there when it is.
WINDOW: Final = 2
#: The same where one more is full, of as many entries as a message may have: nothing could be joined to it, and an end that
#: is busy with many entries is not to run out of them while its receipt is on its way.
FULL_WINDOW: Final = 4
#: A receipt leaves by itself after so many turns of the loop if they took no longer than a loop takes that has nothing to do,
#: or else after so many seconds: then there will be something for it to go with.
TURNS: Final = 8
IDLE_SECONDS: Final = 0.0002
PATIENCE: Final = 0.005


class Untaken:
    """The sender's side. Without a word of the other end there is always room."""

    __slots__ = ("_on_their_way", "_sent", "_taken")

    def __init__(self) -> None:
        self._sent = 0
        self._taken: int | None = None
        #: Numbers of the messages that are not taken, of those that wait for room.
        self._on_their_way: deque[int] = deque()

    def sent(self, *, waits: bool = True) -> None:
        """A message is on its way. Not `waits`: one for which no room is needed, as no other could go with it."""
        self._sent += 1
        if waits and self._taken is not None:
            self._on_their_way.append(self._sent)

    def told(self, taken: int) -> bool:
        """The other end has said how many it has taken; 0 when it says nothing of it. Is there more room now, for one who
        may have waited for it?"""
        if not taken:
            return False
        self._taken = taken
        before = len(self._on_their_way)
        while self._on_their_way and self._on_their_way[0] <= taken:
            self._on_their_way.popleft()
        return len(self._on_their_way) < before >= WINDOW

    def has_room(self, entries: int) -> bool:
        """May one more be sent that waits for room, when so many entries are there for it?"""
        return len(self._on_their_way) < (WINDOW if entries < MAX_BATCH else FULL_WINDOW)


class Taken:
    """The receiver's side: says with a message of its own how many it has taken, when the sender may wait for that and no
    other message has said so."""

    __slots__ = ("_count", "_is_planned", "_loop", "_patience", "_say", "_told", "wanted")

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[], None], patience: Callable[[], float]) -> None:
        """`say` sends some message, with what `tell` gives in it. `patience` gives the seconds that a receipt may wait for
        something to go with, while there is much to do."""
        self._loop = loop
        self._say = say
        self._patience = patience
        #: The sender wants to be told.
        self.wanted = False
        self._count = 0
        self._told = 0
        #: A receipt is planned.
        self._is_planned = False

    def took(self) -> None:
        """A message was taken. Cheap, and called for every one."""
        self._count += 1
        if not self._is_planned and self.is_due:
            self._is_planned = True
            self._say_soon(TURNS, time.monotonic())

    @property
    def is_due(self) -> bool:
        """Does the sender wait to be told?"""
        return self.wanted and self._count - self._told >= WINDOW

    def tell(self) -> int:
        """What to write into the message that goes out now."""
        if not self.wanted:
            return 0
        self._told = self._count
        return self._count

    def _say_soon(self, turns: int, since: float) -> None:
        # By the system's clock: uvloop's counts milliseconds, and stands still within a turn.
        if turns:
            self._loop.call_soon(self._say_soon, turns - 1, since)
        elif time.monotonic() - since < IDLE_SECONDS:
            self._say_now()
        else:
            self._loop.call_later(self._patience(), self._say_now)

    def _say_now(self) -> None:
        self._is_planned = False
        if self.is_due:
            self._say()
