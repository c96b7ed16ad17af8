"""How far a reader is in one shard, and which of its members has the shard."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappush
from typing import TYPE_CHECKING

from onexflow.engine.events.names import Standing
from onexflow.ports.events import Delivery

if TYPE_CHECKING:
    from onexflow.engine.events.member import Member


class Open:
    """An event that was delivered and is not dealt with: a member has it, or it waits for coming again."""

    __slots__ = ("attempts", "delivery", "member")

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.member: Member | None = None
        self.delivery: Delivery | None = None


class Cursor:
    """All below `next` but the open ones is dealt with, and what is `ahead`."""

    __slots__ = (
        "ahead", "begins", "cuts", "heir", "next", "not_before", "open", "out", "owner", "reached", "saved", "shard",
        "told", "waiting", "written",
    )  # fmt: skip

    def __init__(self, shard: int, next_: int) -> None:
        self.shard = shard
        self.next = self.begins = next_
        self.open: dict[int, Open] = {}
        #: Acknowledged, but not read since the engine was started: who had it before has said so.
        self.ahead: set[int] = set()
        #: How many of the open ones a member has.
        self.out = 0
        #: (loop time, offset) of those that come again.
        self.waiting: list[tuple[float, int]] = []
        self.owner: Member | None = None
        #: Gets the shard once its owner has answered everything of it.
        self.heir: Member | None = None
        #: Up to where the owner was told that there is nothing else.
        self.reached = 0
        #: Nothing is delivered before that loop time (a projection whose event was rejected).
        self.not_before = 0.0
        #: Of a projection: its stored position.
        self.saved = 0
        #: The stored `next`.
        self.written = 0
        #: Cuts of the shard that were looked at, and up to which store time its readers know of them.
        self.cuts = -1
        self.told = 0

    @property
    def low(self) -> int:
        """The first offset that may not be dealt with."""
        return min(self.open, default=self.next)

    @property
    def candidate(self) -> Member | None:
        return self.heir or self.owner

    def advance(self, next_: int) -> None:
        """All before that offset is read."""
        self.next = next_
        if self.ahead:
            self.ahead = {offset for offset in self.ahead if offset >= next_}

    def wait(self, offset: int, due: float) -> None:
        heappush(self.waiting, (due, offset))

    def standing(self, born: int, now: int) -> Standing:
        opened = [(offset, entry.attempts) for offset, entry in self.open.items()]
        return Standing(born, self.next, now, opened, self.begins, self.told, sorted(self.ahead))

    def restore(self, standing: Standing) -> None:
        """Go on from what was stored: what was open comes again."""
        self.next = self.written = max(1, standing.next)
        self.saved = standing.next
        self.begins, self.told = standing.begins, standing.told
        self.ahead = set(standing.ahead)
        for offset, attempts in standing.open:
            self.open[offset] = Open(attempts)
            self.wait(offset, 0.0)

    def give_to(self, member: Member | None, *, rewind: bool) -> None:
        """The shard changes hands. `rewind`: its next owner gets all again that is not saved (a projection)."""
        self.owner, self.heir, self.reached = member, None, 0
        if rewind and member is not None:
            self.forget_open()
            self.next = max(1, self.saved)

    def inherit(self, *, rewind: bool) -> None:
        """Once the owner has answered everything, the heir gets the shard."""
        if self.heir is not None and not self.out:
            self.give_to(self.heir, rewind=rewind)

    def forget_open(self, first: int = 0) -> None:
        """Take back all deliveries from that offset on, without a word to their members."""
        for offset in [offset for offset in self.open if offset >= first]:
            entry = self.open.pop(offset)
            if entry.member is not None:
                entry.member.release((self.shard, offset))
                self.out -= 1


def shares(cursors: Sequence[Cursor], members: Sequence[Member]) -> list[tuple[Cursor, Member]]:
    """Which shards change hands so that everybody has as many as the others, and as few as possible move."""
    if not members:
        return []
    held: dict[Member, list[Cursor]] = {member: [] for member in members}
    free: list[Cursor] = []
    for cursor in cursors:
        holder = cursor.candidate
        if holder is not None and holder in held:
            held[holder].append(cursor)
        else:
            free.append(cursor)
    least, more = divmod(len(cursors), len(members))
    by_load = sorted(members, key=lambda member: -len(held[member]))
    quota = {member: least + (rank < more) for rank, member in enumerate(by_load)}
    for member in members:
        mine = sorted(held[member], key=lambda cursor: cursor.out, reverse=True)
        free.extend(mine[quota[member] :])
        held[member] = mine[: quota[member]]
    moves: list[tuple[Cursor, Member]] = []
    for member in members:
        while len(held[member]) < quota[member] and free:
            cursor = free.pop()
            held[member].append(cursor)
            moves.append((cursor, member))
    return moves
