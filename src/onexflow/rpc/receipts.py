"""Receipts: how far the other end of a stream has come with what it was sent.

A message costs whoever takes it as much as the work for several tasks, and small messages breed small ones: what comes in
one is answered in one. So a sender whose last messages have not been taken yet waits, and what it has to say meanwhile
goes in one message. Who talks to an idle end never waits, and who talks to a busy one sends as often as that one can take
it: no time is set, and nothing to be tuned.

The receiver says in each message how many it has taken, and, when a sender may wait for it, in one of its own. It does so
only for a sender that has asked for it in its first message.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: Messages that may be on their way: one that is being taken, and one that is there when it is.
WINDOW: Final = 2


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
        """The other end has said how many it has taken; 0 when it says nothing of it. Is there room now, where there was
        none?"""
        if not taken:
            return False
        had_room, self._taken = self.has_room, taken
        while self._on_their_way and self._on_their_way[0] <= taken:
            self._on_their_way.popleft()
        return not had_room and self.has_room

    @property
    def has_room(self) -> bool:
        """May one more be sent that waits for room?"""
        return len(self._on_their_way) < WINDOW


class Taken:
    """The receiver's side."""

    __slots__ = ("_count", "_told", "wanted")

    def __init__(self) -> None:
        #: The sender wants to be told.
        self.wanted = False
        self._count = 0
        self._told = 0

    def took(self) -> None:
        """A message was taken."""
        self._count += 1

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
