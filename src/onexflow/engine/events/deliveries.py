"""What a reader has given out, and what comes of it: an answer, another try, or a dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from onexflow.core.errors import ShardMoved, Unavailable
from onexflow.core.payload import Failure
from onexflow.engine.events import names
from onexflow.engine.events.cursor import Cursor, Open
from onexflow.engine.events.log import Located, size_of
from onexflow.engine.events.member import Member
from onexflow.engine.events.standings import Standings
from onexflow.engine.kernel import Kernel
from onexflow.ports.events import Delivery, Done, Filter, Position
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.events")

#: Events of one shard that may be open (answers are missing, or they come again later) before nothing new is given out.
MAX_OPEN: Final = 4096

_LOST: Final = Failure("ConsumerLost", "the consumer that had it is gone")
_LATE: Final = Failure("AckTimeout", "the consumer did not answer in time")
#: Why a delivery is rejected by an orchestrator that had not given it to its consumer yet: it does not count.
NOT_GIVEN: Final = Failure("onexflow.NotGiven", "the consumer has ended before it was given this")


class Deliveries:
    """Those of one reader. `cursors` are the reader's own, `wake` tells it that there may be something to give out."""

    def __init__(
        self,
        kernel: Kernel,
        where: Filter,
        name: str,
        cursors: Mapping[int, Cursor],
        standings: Standings,
        wake: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._where = where
        self._name = name
        self._cursors = cursors
        self._standings = standings
        self._wake = wake
        self._loop = asyncio.get_running_loop()

    # ---- given out

    def give(self, cursor: Cursor, member: Member, found: Sequence[Located]) -> None:
        timeout = 0.0 if self._standings.is_projection else member.request.ack_timeout
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

    def lose(self, member: Member) -> None:
        """It is gone: what it has not answered comes again, in order, with what others before it have lost."""
        for shard, offset in list(member.unanswered):
            self._again(self._cursors[shard], offset, 0.0, _LOST)

    def expire(self, members: Sequence[Member]) -> None:
        """What was not answered in time comes again."""
        now = self._loop.time()
        for member in members:
            late = []
            for place, deadline in member.unanswered.items():
                if deadline > now:
                    break
                late.append(place)
            for shard, offset in late:
                self._again(self._cursors[shard], offset, now, _LATE)

    def reopen(self, shard: int, offset: int) -> None:
        """A dead letter comes again, as if for the first time."""
        cursor = self._cursors.get(shard)
        if cursor is not None and offset not in cursor.open:
            cursor.open[offset] = Open(0)
            cursor.wait(offset, self._loop.time())
            self._standings.changed(cursor)
        self._standings.flush()
        self._wake()

    # ---- answers

    def ack(self, member: Member, positions: Sequence[Position], done: Done | None) -> None:
        if member.is_over:
            _tell(done, member.end or Unavailable("the consumer is closed"))
            return
        forgotten = False
        moved: ShardMoved | None = None
        for shard, offset in positions:
            cursor = self._cursors.get(shard)
            if cursor is None:
                moved = moved or self._moved(shard)
                continue
            if self._closed(cursor, offset) is not None:
                self._standings.changed(cursor)
            elif self._standings.is_group and cursor.next <= offset < self._kernel.shards[shard].durable:
                # It was delivered before the engine was started again, and has not been read since.
                if len(cursor.ahead) < MAX_OPEN:
                    cursor.ahead.add(offset)
                    self._standings.changed(cursor)
                else:
                    forgotten = True
        if moved is not None:
            _tell(done, moved)
        elif forgotten:
            _tell(done, Unavailable("too many acknowledgements of what was not delivered: it comes again"))
        else:
            self._standings.when_written(done)

    def reject(self, member: Member, position: Position, error: Failure, delay: float) -> None:
        cursor, entry = self._held(member, position)
        if cursor is None or entry is None:
            return
        due = self._loop.time() + delay
        if error.type == NOT_GIVEN.type:
            entry.attempts -= 1
            due = 0.0  # in order, with what others before it have lost
        if not self._standings.is_projection:
            self._again(cursor, position.offset, due, error)
            return
        # Events of a projection come in order: what follows comes again too.
        attempts = entry.attempts
        cursor.forget_open(position.offset)
        cursor.open[position.offset] = Open(attempts)
        cursor.wait(position.offset, due)
        cursor.next, cursor.not_before, cursor.reached = position.offset + 1, due, 0
        self._wake()

    def bury(self, member: Member, position: Position, error: Failure, done: Done | None) -> None:
        cursor, entry = self._held(member, position)
        moved = self._moved(position.shard) if cursor is None else None
        if moved is not None:
            _tell(done, moved)
            return
        if cursor is None or entry is None:
            comes = cursor is not None and (
                position.offset in cursor.open
                or cursor.next <= position.offset < self._kernel.shards[cursor.shard].durable
            )
            if member.is_over or comes:
                _tell(done, member.end or Unavailable("this consumer does not have the delivery: it comes again"))
            else:
                self._standings.when_written(done)
            return
        self._give_up(cursor, position.offset, error)
        if done is not None:
            self._standings.flush()
            self._kernel.lane.when_durable(done)

    def saved(self, cursor: Cursor, offset: int) -> None:
        """A projection has stored its states up to there."""
        cursor.saved = offset
        for done in [done for done in cursor.open if done < offset]:
            self._closed(cursor, done)
        cursor.next = max(cursor.next, offset)
        self._standings.write(cursor)
        self._wake()

    def _moved(self, shard: int) -> ShardMoved | None:
        """What is said of a shard that this reader does not have; None when there is no such shard."""
        if not 0 <= shard < self._kernel.store.shards:
            return None
        return ShardMoved(f"shard {shard} is not read here", {"shard": shard})

    def _held(self, member: Member, position: Position) -> tuple[Cursor | None, Open | None]:
        """The delivery, if this member has it."""
        cursor = self._cursors.get(position.shard)
        entry = cursor.open.get(position.offset) if cursor is not None else None
        return cursor, entry if entry is not None and entry.member is member and not member.is_over else None

    # ---- what comes of them

    def _closed(self, cursor: Cursor, offset: int) -> Open | None:
        """It is dealt with."""
        entry = cursor.open.pop(offset, None)
        if entry is not None and entry.member is not None:
            entry.member.release((cursor.shard, offset))
            cursor.out -= 1
            cursor.inherit(rewind=self._standings.is_projection)
        self._wake()
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
        cursor.inherit(rewind=self._standings.is_projection)
        self._standings.changed(cursor)
        self._wake()

    def _give_up(self, cursor: Cursor, offset: int, error: Failure) -> None:
        """Keep it as a dead letter, and go on."""
        entry = self._closed(cursor, offset)
        assert entry is not None, "it was open"
        assert entry.delivery is not None, "a member had it"
        name = names.dead_letter(self._where.namespace, self._name, offset)
        data = names.encode_dead(entry.delivery, error, self._kernel.now())
        self._kernel.shards[cursor.shard].put(name, data)
        self._kernel.lane.mark()
        self._standings.changed(cursor)
        log.warning("delivery.given_up", group=self._name, shard=cursor.shard, offset=offset, error=error.type)


def _tell(done: Done | None, error: SPIError | None) -> None:
    if done is not None:
        done(error)
