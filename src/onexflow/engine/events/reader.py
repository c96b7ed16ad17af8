"""A reader of the log: a group with its members, or one consumer for itself.

One coroutine a reader, while it has members, gives out what is durable: first what comes again, then what is new, shard
by shard, each to the member that has the shard, as far as that member's window allows. What comes of a delivery is
`Deliveries`' business. Where a group stands (`Standings`) is written with the next append whenever something was answered;
that of a consumer for itself is nobody's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from heapq import heappop
from typing import Final

import structlog

from onexflow.core.errors import InternalError, OutOfRange, ShardMoved
from onexflow.engine.events.checks import size_of_group
from onexflow.engine.events.cursor import Cursor, shares
from onexflow.engine.events.deliveries import MAX_OPEN, Deliveries
from onexflow.engine.events.log import Log, matches
from onexflow.engine.events.member import Member
from onexflow.engine.events.names import GroupConfig
from onexflow.engine.events.standings import Standings
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import Tombstone
from onexflow.ports.events import Begun, Filter, Left, Reached
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.events")

#: Events given out in one message.
BATCH: Final = 128
#: Seconds between two words of having reached the end.
REACHED_SECONDS: Final = 0.02
#: A group that has read so much that it had not to deal with writes down where it is.
WRITTEN_EVENTS: Final = 10_000


class Reader:
    """See the module's text. `config` None: a consumer for itself."""

    def __init__(
        self,
        kernel: Kernel,
        events: Log,
        where: Filter,
        name: str,
        config: GroupConfig | None,
        cursors: dict[int, Cursor],
        on_idle: Callable[[Reader], None],
    ) -> None:
        self.where = where
        self.name = name
        #: In a list of groups, without its positions.
        self.size = size_of_group(name, where)
        self.cursors = cursors
        self.members: list[Member] = []
        self._kernel = kernel
        self._log = events
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reached_at = 0.0
        #: Where it stands, and what came of what it has given out.
        self.standings = Standings(kernel, where, name, config)
        self.deliveries = Deliveries(kernel, where, name, cursors, self.standings, self._wake.set)

    @property
    def config(self) -> GroupConfig | None:
        return self.standings.config

    @property
    def is_projection(self) -> bool:
        return self.standings.is_projection

    # ---- members

    def join(self, member: Member) -> None:
        """It has been told where it begins: give it its part."""
        self.members.append(member)
        self._rebalance()
        if self._pump is None:
            self._pump = self._loop.create_task(self._run(), name="onexflow-events")
        self._wake.set()

    def begun(self) -> Begun:
        return self._begun(self.cursors)

    def _begun(self, cursors: Mapping[int, Cursor]) -> Begun:
        shards = self._kernel.shards
        positions = {
            shard: max(1, cursor.saved) if self.is_projection else cursor.low for shard, cursor in cursors.items()
        }
        return Begun(
            positions=positions,
            heads={shard: shards[shard].durable for shard in cursors},
            epochs={shard: shards[shard].epoch for shard in cursors},
        )

    def gained(self, cursor: Cursor) -> None:
        """The shard is owned here from now on, and where the reader stands in it is durable."""
        self.cursors[cursor.shard] = cursor
        for member in list(self.members):
            member.tell(self._begun({cursor.shard: cursor}))
        self._rebalance()
        self._wake.set()

    def leave(self, member: Member) -> None:
        """What it has not answered goes to others, or waits for the next one."""
        if member not in self.members:
            return
        self.members.remove(member)
        for cursor in self.cursors.values():
            if cursor.heir is member:
                cursor.heir = None
            if cursor.owner is not member:
                continue
            if self.is_projection:
                cursor.forget_open()
            cursor.give_to(cursor.heir, rewind=self.is_projection)
        self.deliveries.lose(member)
        self._rebalance()
        self._wake.set()
        if not self.members:
            for cursor in self.cursors.values():
                if cursor.next != cursor.written:
                    self.standings.changed(cursor)
            self.standings.flush()  # the engine may be stopping
            self._stop_pump()
            self._on_idle(self)

    def end(self, error: SPIError) -> None:
        """The last word to all members."""
        for member in list(self.members):
            member.tell(error)
            self.leave(member)

    def left(self, shard: Shard) -> None:
        """The shard is not owned here any more: its next owner goes on from what is stored."""
        cursor = self.cursors.pop(shard.id, None)
        if cursor is None:
            return
        cursor.forget_open()
        self.standings.left(shard)
        for member in list(self.members):
            member.tell(Left(shards=(shard.id,)))
        self._rebalance()
        self._wake.set()

    def _rebalance(self) -> None:
        for cursor, member in shares(list(self.cursors.values()), self.members):
            if cursor.owner is member:
                cursor.heir = None
            elif cursor.owner is None or not cursor.out:
                cursor.give_to(member, rewind=self.is_projection)
            else:
                cursor.heir = member

    def _stop_pump(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pump, self._pump = self._pump, None
        if pump is not None and pump is not asyncio.current_task():
            pump.cancel()

    async def stop(self) -> None:
        pump = self._pump
        self._stop_pump()
        if pump is not None and pump is not asyncio.current_task():
            await asyncio.gather(pump, return_exceptions=True)

    # ---- new events

    def on_commit(self, shard: int, before: int, head: int, *, concerns: bool) -> None:
        """The shard's log has grown, perhaps by what matches."""
        cursor = self.cursors.get(shard)
        if cursor is None:
            return
        if not concerns and cursor.next == before:
            cursor.advance(head)
        self._wake.set()

    async def _run(self) -> None:
        me = asyncio.current_task()
        try:
            while self._pump is me:
                await self._wake.wait()
                self._wake.clear()
                self.deliveries.expire(self.members)
                more = [await self._serve(cursor) for cursor in list(self.cursors.values())]
                self._tell_reached()
                if any(more):
                    self._wake.set()
                    await asyncio.sleep(0)
                else:
                    self._arm()
        except SPIError as error:
            self.end(error)
        except Exception as error:
            log.exception("reader.failed", group=self.name)
            self.end(InternalError(f"reading events failed: {error!r}"))

    async def _serve(self, cursor: Cursor) -> bool:
        """Give out what may be. True when there is more at once."""
        try:
            return await self._serve_owned(cursor)
        except ShardMoved:
            if self._has(cursor):
                raise
            return False

    def _has(self, cursor: Cursor) -> bool:
        """Is its shard still owned here?"""
        return self.cursors.get(cursor.shard) is cursor

    async def _serve_owned(self, cursor: Cursor) -> bool:
        """As `_serve`. Raises ShardMoved when the shard has gone meanwhile."""
        member = cursor.owner
        now = self._loop.time()
        if not self._has(cursor) or member is None or cursor.heir is not None or cursor.not_before > now:
            return False
        if not await self._check_cuts(cursor):
            return True
        while cursor.waiting and cursor.waiting[0][0] <= now and member.room > 0:
            due, offset = cursor.waiting[0]  # where it stays until it is given out: the pump may be ended meanwhile
            entry = cursor.open.get(offset)
            if entry is None or entry.member is not None:
                heappop(cursor.waiting)
                continue
            located = await self._log.at(cursor.shard, offset)
            if not self._has(cursor):
                return False
            if cursor.open.get(offset) is not entry or not cursor.waiting or cursor.waiting[0] != (due, offset):
                continue
            if not _serves(cursor, member):
                return True
            heappop(cursor.waiting)
            if located is None or self._log.is_over(cursor.shard, located):
                del cursor.open[offset]
                self.standings.changed(cursor)
                if located is None:
                    self.end(self._out_of_range(cursor.shard, offset, offset + 1, 1))
                    return True
                continue
            self.deliveries.give(cursor, member, [located])
        start, head = cursor.next, self._kernel.owned(cursor.shard).durable
        room = min(member.room, BATCH, MAX_OPEN - len(cursor.open))
        if room <= 0 or start >= head:
            return False
        found, following = await self._log.page(cursor.shard, start, self.where, room)
        if not self._has(cursor):
            return False
        if not _serves(cursor, member) or cursor.next != start or cursor.not_before > now:
            return True
        if self._kernel.shards[cursor.shard].cuts != cursor.cuts:
            return True  # what the page misses may have been cut while it was read
        found = [located for located in found if located.offset not in cursor.ahead]
        cursor.advance(following)
        if found:
            self.deliveries.give(cursor, member, found)
        if self.standings.is_group and cursor.next - cursor.written > WRITTEN_EVENTS:
            self.standings.changed(cursor)
        return member.room > 0 and cursor.next < head

    def _tell_reached(self) -> None:
        now = self._loop.time()
        if now - self._reached_at < REACHED_SECONDS:
            return
        ends: dict[Member, dict[int, int]] = {}
        for cursor in self.cursors.values():
            if cursor.owner is not None and self._has_reached(cursor):
                cursor.reached = cursor.next
                ends.setdefault(cursor.owner, {})[cursor.shard] = cursor.next
        for member, positions in ends.items():
            self._reached_at = now
            member.tell(Reached(positions=positions))

    def _has_reached(self, cursor: Cursor) -> bool:
        """Does the shard's member have all there is, and does not know it?"""
        if cursor.owner is None or cursor.heir is not None or cursor.waiting or cursor.reached >= cursor.next:
            return False
        return self._kernel.shards[cursor.shard].durable <= cursor.next

    # ---- time

    def _arm(self) -> None:
        """Look again when the next thing is due."""
        due = [deadline for member in self.members for deadline in list(member.unanswered.values())[:1]]
        for cursor in self.cursors.values():
            if cursor.owner is not None and cursor.not_before > self._loop.time():
                due.append(cursor.not_before)
            elif cursor.owner is not None and cursor.waiting and cursor.owner.room > 0 and cursor.heir is None:
                due.append(cursor.waiting[0][0])
            if self._has_reached(cursor):
                due.append(self._reached_at + REACHED_SECONDS)
        first = min(due, default=float("inf"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if first != float("inf"):
            self._timer = self._loop.call_at(first, self._wake.set)

    # ---- cuts

    async def _check_cuts(self, cursor: Cursor) -> bool:
        """Were events cut that this reader had still to read? Then its members are told, once. False: look again."""
        cuts = self._kernel.owned(cursor.shard).cuts
        if cuts == cursor.cuts:
            return True
        error = await self.lost(cursor)
        self._kernel.owned(cursor.shard)
        cursor.cuts = cuts
        if error is not None:
            self.end(error)
        return error is None

    async def lost(self, cursor: Cursor) -> OutOfRange | None:
        """What was cut away from under the reader in this shard, if anything: told once."""
        if self.is_projection:
            low = max(1, cursor.saved)
        else:
            low = min((offset for offset, entry in cursor.open.items() if entry.member is None), default=cursor.next)
        await self._kernel.lane.durable()  # a cut may be on its way
        graves = await self._kernel.store.tombstones(cursor.shard, low)
        fresh = [grave for grave in graves if grave.at > cursor.told]
        missed = [grave for grave in fresh if await self._concerns(cursor.shard, grave)]
        if fresh:
            cursor.told = max(grave.at for grave in fresh)
            if self.config is not None and self._has(cursor):
                self.standings.write(cursor)
        if not missed:
            return None
        earliest = max(grave.last_offset for grave in missed) + 1
        return self._out_of_range(cursor.shard, low, earliest, sum(grave.count for grave in missed))

    def _out_of_range(self, shard: int, position: int, earliest: int, events: int) -> OutOfRange:
        return OutOfRange(
            f"events before {shard}:{earliest} were cut out of histories before they were read here",
            {"shard": shard, "earliest": earliest, "position": position, "group": self.name, "events": events},
        )

    async def _concerns(self, shard: int, grave: Tombstone) -> bool:
        return any(matches(source, self.where) for source in await self._log.sources(shard, [grave.iid]))


def _serves(cursor: Cursor, member: Member) -> bool:
    """Has the member the shard, and nobody waits for getting it?"""
    return cursor.owner is member and cursor.heir is None
