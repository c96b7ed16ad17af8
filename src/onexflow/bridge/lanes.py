"""Which messages may be sent now: those of one run or stream one after the other, those of different ones side by side.

The next message of a run leaves only when the one before it is stored. So whatever is refused, lost or sent again, the
first time that a run's events come to stand in the stream they are in order. Pure.
"""

from __future__ import annotations

from collections import deque

from onexflow.bridge.message import Message
from onexflow.core.ids import RunKey
from onexflow.ports.events import Position


class Entry:
    """A message on its way, for the event at `position` of what is read from `source`."""

    __slots__ = ("key", "message", "number", "position", "source")

    def __init__(self, source: object, position: Position, key: RunKey, message: Message) -> None:
        self.source = source
        self.position = position
        self.key = key
        self.message = message
        self.number = 0  #: of its last try


class Lanes:
    """Every entry is in the lane of its run until it is done."""

    def __init__(self) -> None:
        self._lanes: dict[RunKey, deque[Entry]] = {}
        #: Runs whose first entry is not on the wire, the next to be sent first.
        self._ready: deque[RunKey] = deque()
        #: Entries on the wire by the number of the try, the oldest first.
        self.sent: dict[int, Entry] = {}
        self._last = 0
        self._count = 0

    def __len__(self) -> int:
        """How many are not done."""
        return self._count

    @property
    def is_ready(self) -> bool:
        return bool(self._ready)

    def add(self, entry: Entry) -> None:
        lane = self._lanes.setdefault(entry.key, deque())
        if not lane:
            self._ready.append(entry.key)
        lane.append(entry)
        self._count += 1

    def take(self) -> Entry | None:
        """The next to be sent; it is on the wire from now on."""
        if not self._ready:
            return None
        entry = self._lanes[self._ready.popleft()][0]
        self._last = entry.number = self._last + 1
        self.sent[entry.number] = entry
        return entry

    def done(self, number: int) -> Entry | None:
        """That try was answered for good; None when another try has taken its place."""
        entry = self.sent.pop(number, None)
        if entry is not None:
            lane = self._lanes[entry.key]
            lane.popleft()
            self._count -= 1
            if lane:
                self._ready.append(entry.key)
            else:
                del self._lanes[entry.key]
        return entry

    def again(self, number: int) -> None:
        """That try was refused: the entry is the next of its run again. The other runs come first: they may have more luck."""
        entry = self.sent.pop(number, None)
        if entry is not None:
            self._ready.append(entry.key)

    def reset(self) -> None:
        """The wire is gone: everything on it is to be sent again, in the order of before."""
        self._ready.extendleft(entry.key for entry in reversed(self.sent.values()))
        self.sent.clear()
