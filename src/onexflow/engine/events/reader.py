"""A reader of the log: a group with its members, or one consumer for itself.

One coroutine a reader, while it has members, gives out what is durable: first what comes again, then what is new, shard
by shard, each to the member that has the shard, as far as that member's window allows. Where a group stands is written
with the next append whenever something was answered; that of a consumer for itself is nobody's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from heapq import heappop
from typing import Final

import msgspec
import structlog

from onexflow.core.errors import Coded, InternalError, OutOfRange, Unavailable
from onexflow.core.payload import Failure
from onexflow.engine.events import names
from onexflow.engine.events.checks import size_of_group
from onexflow.engine.events.cursor import Cursor, Open, shares
from onexflow.engine.events.log import Located, Log, matches, size_of
from onexflow.engine.events.member import Member
from onexflow.engine.events.names import GroupConfig
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import Tombstone
from onexflow.ports.events import Begun, Delivery, Done, Filter, Position, Reached
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.events")

#: Events of one shard that may be open (answers are missing, or they come again later) before nothing new is given out.
MAX_OPEN: Final = 4096
#: Events given out in one message.
BATCH: Final = 128
#: Seconds between two words of having reached the end.
REACHED_SECONDS: Final = 0.02
#: A group that has read so much that it had not to deal with writes down where it is.
WRITTEN_EVENTS: Final = 10_000

_LOST: Final = Failure("ConsumerLost", "the consumer that had it is gone")
_LATE: Final = Failure("AckTimeout", "the consumer did not answer in time")


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
        self.config = config
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
        self._dirty: dict[int, Cursor] = {}
        self._dones: list[Done] = []
        self._flushing = False
        #: Store time of the last sign of life, as far as it is stored.
        self.seen_at = config.born if config is not None else 0

    @property
    def is_projection(self) -> bool:
        return self.config is not None and self.config.projection

    @property
    def is_group(self) -> bool:
        """Its positions are stored as they are acknowledged."""
        return self.config is not None and not self.config.projection

    # ---- members

    def join(self, member: Member) -> None:
        """It has been told where it begins: give it its part."""
        self.members.append(member)
        self._rebalance()
        if self._pump is None:
            self._pump = self._loop.create_task(self._run(), name="onexflow-events")
        self._wake.set()

    def begun(self) -> Begun:
        shards = self._kernel.shards
        positions = {
            shard: max(1, cursor.saved) if self.is_projection else cursor.low for shard, cursor in self.cursors.items()
        }
        return Begun(positions=positions, heads={shard: shards[shard].durable for shard in self.cursors})

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
            cursor.owner, cursor.heir = cursor.heir, None
            cursor.reached = 0
            self._taken_over(cursor)
        for shard, offset in list(member.unanswered):
            self._again(self.cursors[shard], offset, self._loop.time(), _LOST)
        self._rebalance()
        self._wake.set()
        if not self.members:
            for cursor in self.cursors.values():
                if cursor.next != cursor.written:
                    self._changed(cursor)
            self._flush()  # the engine may be stopping
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
        error = shard.moved
        if cursor is None or error is None:
            return
        cursor.forget_open()
        self._dirty.pop(shard.id, None)
        dones, self._dones = self._dones, []
        for done in dones:
            _tell(done, error)
        self.end(error)

    def _rebalance(self) -> None:
        for cursor, member in shares(list(self.cursors.values()), self.members):
            if cursor.owner is member:
                cursor.heir = None
            elif cursor.owner is None or not cursor.out:
                cursor.owner, cursor.heir, cursor.reached = member, None, 0
                self._taken_over(cursor)
            else:
                cursor.heir = member

    def _taken_over(self, cursor: Cursor) -> None:
        if self.is_projection and cursor.owner is not None:
            cursor.forget_open()
            cursor.next = max(1, cursor.saved)

    def _inherit(self, cursor: Cursor) -> None:
        if cursor.heir is not None and not cursor.out:
            cursor.owner, cursor.heir, cursor.reached = cursor.heir, None, 0
            self._taken_over(cursor)

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
        cursor = self.cursors[shard]
        if not concerns and cursor.next == before:
            cursor.advance(head)
        self._wake.set()

    async def _run(self) -> None:
        me = asyncio.current_task()
        try:
            while self._pump is me:
                await self._wake.wait()
                self._wake.clear()
                self._expire()
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
        member = cursor.owner
        now = self._loop.time()
        if member is None or cursor.heir is not None or cursor.not_before > now:
            return False
        if not await self._check_cuts(cursor):
            return True
        while cursor.waiting and cursor.waiting[0][0] <= now and member.room > 0:
            due, offset = heappop(cursor.waiting)
            entry = cursor.open.get(offset)
            if entry is None or entry.member is not None:
                continue
            located = await self._log.at(cursor.shard, offset)
            if cursor.open.get(offset) is not entry:
                continue
            if not _serves(cursor, member):
                cursor.wait(offset, due)
                return True
            if located is None or self._log.is_over(cursor.shard, located):
                del cursor.open[offset]
                self._changed(cursor)
                if located is None:
                    self.end(self._out_of_range(cursor.shard, offset, offset + 1, 1))
                    return True
                continue
            self._deliver(cursor, member, [located])
        start, head = cursor.next, self._kernel.shards[cursor.shard].durable
        room = min(member.room, BATCH, MAX_OPEN - len(cursor.open))
        if room <= 0 or start >= head:
            return False
        found, following = await self._log.page(cursor.shard, start, self.where, room)
        if not _serves(cursor, member) or cursor.next != start or cursor.not_before > now:
            return True
        if self._kernel.shards[cursor.shard].cuts != cursor.cuts:
            return True  # what the page misses may have been cut while it was read
        found = [located for located in found if located.offset not in cursor.ahead]
        cursor.advance(following)
        if found:
            self._deliver(cursor, member, found)
        if self.is_group and cursor.next - cursor.written > WRITTEN_EVENTS:
            self._changed(cursor)
        return member.room > 0 and cursor.next < head

    def _deliver(self, cursor: Cursor, member: Member, found: Sequence[Located]) -> None:
        timeout = 0.0 if self.is_projection else member.request.ack_timeout
        deadline = self._loop.time() + timeout if timeout else float("inf")
        deliveries = []
        for offset, event, topic, partition, partition_key in found:
            entry = cursor.open.setdefault(offset, Open(0))
            entry.attempts += 1
            entry.member = member
            entry.delivery = Delivery(
                position=Position(cursor.shard, offset),
                event=event,
                topic=topic,
                partition=partition,
                partition_key=partition_key,
                attempt=entry.attempts,
            )
            cursor.out += 1
            member.hold((cursor.shard, offset), deadline, size_of(event))
            deliveries.append(entry.delivery)
        member.tell(deliveries)

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

    def _expire(self) -> None:
        now = self._loop.time()
        for member in self.members:
            late = []
            for place, deadline in member.unanswered.items():
                if deadline > now:
                    break
                late.append(place)
            for shard, offset in late:
                self._again(self.cursors[shard], offset, now, _LATE)

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

    # ---- answers

    def ack(self, member: Member, positions: Sequence[Position], done: Done | None) -> None:
        if member.is_over:
            _tell(done, member.end or Unavailable("the consumer is closed"))
            return
        forgotten = False
        for shard, offset in positions:
            cursor = self.cursors.get(shard)
            if cursor is None:
                continue
            if self._closed(cursor, offset) is not None:
                self._changed(cursor)
            elif self.is_group and cursor.next <= offset < self._kernel.shards[shard].durable:
                # It was delivered before the engine was started again, and has not been read since.
                if len(cursor.ahead) < MAX_OPEN:
                    cursor.ahead.add(offset)
                    self._changed(cursor)
                else:
                    forgotten = True
        if forgotten:
            _tell(done, Unavailable("too many acknowledgements of what was not delivered: it comes again"))
        else:
            self._when_written(done)

    def reject(self, member: Member, position: Position, error: Failure, delay: float) -> None:
        cursor, entry = self._held(member, position)
        if cursor is None or entry is None:
            return
        due = self._loop.time() + delay
        if not self.is_projection:
            self._again(cursor, position.offset, due, error)
            return
        # Events of a projection come in order: what follows comes again too.
        attempts = entry.attempts
        cursor.forget_open(position.offset)
        cursor.open[position.offset] = Open(attempts)
        cursor.wait(position.offset, due)
        cursor.next, cursor.not_before, cursor.reached = position.offset + 1, due, 0
        self._wake.set()

    def bury(self, member: Member, position: Position, error: Failure, done: Done | None) -> None:
        cursor, entry = self._held(member, position)
        if cursor is None or entry is None:
            comes = cursor is not None and (
                position.offset in cursor.open
                or cursor.next <= position.offset < self._kernel.shards[cursor.shard].durable
            )
            if member.is_over or comes:
                _tell(done, member.end or Unavailable("this consumer does not have the delivery: it comes again"))
            else:
                self._when_written(done)
            return
        self._give_up(cursor, position.offset, error)
        if done is not None:
            self._flush()
            self._kernel.lane.when_durable(done)

    def _held(self, member: Member, position: Position) -> tuple[Cursor | None, Open | None]:
        """The delivery, if this member has it."""
        cursor = self.cursors.get(position.shard)
        entry = cursor.open.get(position.offset) if cursor is not None else None
        return cursor, entry if entry is not None and entry.member is member and not member.is_over else None

    def _closed(self, cursor: Cursor, offset: int) -> Open | None:
        """It is dealt with."""
        entry = cursor.open.pop(offset, None)
        if entry is not None and entry.member is not None:
            entry.member.release((cursor.shard, offset))
            cursor.out -= 1
            self._inherit(cursor)
        self._wake.set()
        return entry

    def _again(self, cursor: Cursor, offset: int, due: float, error: Failure) -> None:
        """It was not dealt with: it comes again, or has come often enough."""
        entry = cursor.open[offset]
        member = entry.member
        assert member is not None, "a member had it"
        if member.request.max_deliveries and entry.attempts >= member.request.max_deliveries:
            self._give_up(cursor, offset, error)
            return
        member.release((cursor.shard, offset))
        cursor.out -= 1
        entry.member = entry.delivery = None
        cursor.wait(offset, due)
        self._inherit(cursor)
        self._changed(cursor)
        self._wake.set()

    def _give_up(self, cursor: Cursor, offset: int, error: Failure) -> None:
        """Keep it as a dead letter, and go on."""
        entry = self._closed(cursor, offset)
        assert entry is not None, "it was open"
        assert entry.delivery is not None, "a member had it"
        name = names.dead_letter(self.where.namespace, self.name, offset)
        data = names.encode_dead(entry.delivery, error, self._kernel.now())
        self._kernel.shards[cursor.shard].put(name, data)
        self._kernel.lane.mark()
        self._changed(cursor)
        log.warning("delivery.given_up", group=self.name, shard=cursor.shard, offset=offset, error=error.type)

    def reopen(self, shard: int, offset: int) -> None:
        """A dead letter comes again, as if for the first time."""
        cursor = self.cursors[shard]
        if offset not in cursor.open:
            cursor.open[offset] = Open(0)
            cursor.wait(offset, self._loop.time())
            self._changed(cursor)
        self._flush()
        self._wake.set()

    # ---- what is stored

    def _changed(self, cursor: Cursor) -> None:
        if self.is_group:
            self._dirty[cursor.shard] = cursor
            self._soon()

    def _when_written(self, done: Done | None) -> None:
        if done is None:
            return
        if self.is_group:
            self._dones.append(done)
            self._soon()
        else:
            _tell(done, None)

    def _soon(self) -> None:
        """What is said in one turn of the loop is written together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        dirty, self._dirty = self._dirty, {}
        dones, self._dones = self._dones, []
        for cursor in dirty.values():
            self.write(cursor)
        for done in dones:
            self._kernel.lane.when_durable(done)

    def write(self, cursor: Cursor) -> None:
        """Write where the group stands with the next append."""
        assert self.config is not None, "a consumer for itself has no positions"
        standing = cursor.standing(self.config.born, self._kernel.now())
        if self.is_projection:
            standing = msgspec.structs.replace(standing, next=cursor.saved, open=[])
        cursor.written = cursor.next
        self.seen_at = standing.at
        self._kernel.shards[cursor.shard].put(
            names.position(self.where.namespace, self.name), names.encode(standing)
        )  # fmt: skip
        self._kernel.lane.mark()

    def saved(self, cursor: Cursor, offset: int) -> None:
        """A projection has stored its states up to there."""
        cursor.saved = offset
        for done in [done for done in cursor.open if done < offset]:
            self._closed(cursor, done)
        cursor.next = max(cursor.next, offset)
        self.write(cursor)
        self._wake.set()

    # ---- cuts

    async def _check_cuts(self, cursor: Cursor) -> bool:
        """Were events cut that this reader had still to read? Then its members are told, once. False: look again."""
        cuts = self._kernel.shards[cursor.shard].cuts
        if cuts == cursor.cuts:
            return True
        error = await self.lost(cursor)
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
            if self.config is not None:
                self.write(cursor)
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


def _tell(done: Done | None, error: SPIError | Coded | None) -> None:
    if done is not None:
        done(error)
