"""One consumer of the shards of several orchestrators (decisions/0006).

Each owner reads its own shards and keeps where a group stands in them: a *part*, one at every orchestrator, held as any
consumer is. The orchestrator that has the consumer joins the parts. It gives out what they bring, as far as the window
allows, takes every answer to the owner of its shard, and says again to the next owner what the last one had not stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from onexflow.core.errors import ShardMoved, Unavailable
from onexflow.core.identity import ON_BEHALF, Identity
from onexflow.core.payload import Failure
from onexflow.engine.events.deliveries import NOT_GIVEN
from onexflow.engine.events.reader import BATCH
from onexflow.ports.events import (
    Begun,
    Consume,
    ConsumeListener,
    Consumer,
    Delivery,
    Done,
    EventService,
    Left,
    Position,
    Reached,
    Told,
)
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.events")

#: Seconds in which all shards must have had an owner that answers, before the consumer is sent away to try again.
BEGUN_WITHIN: Final = 10.0
#: Seconds before a part that was lost is opened again: the first and the longest.
FIRST_TRY: Final = 0.05
LAST_TRY: Final = 1.0
#: Seconds before answers are said again that were not stored.
ANSWER_AGAIN_SECONDS: Final = 0.05

_LATE: Final = Failure("AckTimeout", "the consumer did not answer in time")

#: The event services of the orchestrators that are there, by address; this one's own is at "".
Services = Callable[[], Mapping[str, EventService]]


class _Part:
    """What one orchestrator brings."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.consumer: Consumer | None = None
        self.is_over = False

    def close(self) -> None:
        self.is_over = True
        if self.consumer is not None:
            self.consumer.close()


class _Answers:
    """Acknowledgements that were said together, and who waits for them."""

    __slots__ = ("done", "left")

    def __init__(self, positions: Iterable[Position], done: Done | None) -> None:
        self.left = set(positions)
        self.done = done


class JoinedConsumer:
    """Implements `ports.events.Consumer`. `look` opens the parts; it is to be called from time to time."""

    def __init__(
        self,
        request: Consume,
        listener: ConsumeListener,
        services: Services,
        shards: int,
        on_over: Callable[[JoinedConsumer], None],
        caller: Identity | None = None,
    ) -> None:
        """`caller`: for whom the parts are; None: for this orchestrator itself."""
        self._caller = caller
        self._request = request
        self._listener = listener
        self._services = services
        self._shards = shards
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._opened_at = self._loop.time()
        self._end: SPIError | None = None
        self._has_begun = False
        self._parts: dict[str, _Part] = {}
        #: Tries to open a part in a row, and when the next one may be.
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        #: Who has a shard, and in which ownership.
        self._holders: dict[int, tuple[int, _Part]] = {}
        self._begun = Begun(positions={}, heads={}, epochs={})
        #: Brought, and not given to the consumer yet.
        self._buffer: dict[Position, Delivery] = {}
        #: Given and not answered: loop time at which it comes again, in the order of giving.
        self._held: dict[Position, float] = {}
        #: Answered, and not said to be stored.
        self._acks: dict[Position, list[_Answers]] = {}
        self._buries: dict[Position, tuple[Failure, list[Done]]] = {}
        self._reached: dict[int, int] = {}
        #: Of a reader for himself: behind what was brought, what of that is not dealt with; and after a new beginning, up
        #: to where it is brought again, and up to where it was.
        self._passed: dict[int, int] = {}
        self._undone: dict[int, set[int]] = {}
        self._repeats: dict[int, tuple[int, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._resend: asyncio.TimerHandle | None = None
        self._giving = False

    # ---- what the consumer says

    def ack(self, positions: Sequence[Position], done: Done | None = None) -> None:
        if self._end is not None:
            _tell(done, self._end)
            return
        known = [place for place in positions if 0 <= place[0] < self._shards]
        answers = _Answers((Position(*place) for place in known), done)
        if not answers.left:
            _tell(done, None)
            return
        for position in answers.left:
            self._answered(position)
            self._acks.setdefault(position, []).append(answers)
        self._send_acks(list(answers.left))
        self._give()

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        position = Position(*position)
        if self._end is not None or position not in self._held:
            return
        if self._request.projection:  # what follows comes again too
            for place in [one for one in self._held if one.shard == position.shard and one.offset >= position.offset]:
                del self._held[place]
            self._drop(position.shard, position.offset)
        else:
            del self._held[position]
        if (consumer := self._at(position.shard)) is not None:
            consumer.reject(position, error, delay)
        self._give()

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        position = Position(*position)
        if self._end is not None or not 0 <= position.shard < self._shards:
            _tell(done, self._end)
            return
        _, dones = self._buries.setdefault(position, (error, []))
        if done is not None:
            dones.append(done)
        self._send_bury(position)

    def close(self) -> None:
        if self._end is None:
            self._finish(Unavailable("the consumer is closed"))

    def end(self, error: SPIError) -> None:
        """The last word to the consumer. Idempotent."""
        if self._end is None:
            self._finish(error)
            self._say(error)

    def _finish(self, error: SPIError) -> None:
        self._end = error
        for timer in (self._timer, self._resend):
            if timer is not None:
                timer.cancel()
        for position in self._buffer:  # it was nobody's fault that these are not dealt with
            if (consumer := self._at(position.shard)) is not None:
                consumer.reject(position, NOT_GIVEN, 0.0)
        for part in list(self._parts.values()):
            part.close()
        self._parts.clear()
        acks, self._acks = self._acks, {}
        buries, self._buries = self._buries, {}
        for answers in dict.fromkeys(one for waiting in acks.values() for one in waiting):
            _tell(answers.done, error)
        for _, dones in buries.values():
            for done in dones:
                _tell(done, error)
        self._on_over(self)

    # ---- parts

    def look(self) -> None:
        """Open the parts that are missing."""
        if self._end is not None:
            return
        now = self._loop.time()
        if not self._has_begun and now - self._opened_at > BEGUN_WITHIN:
            missing = sorted(set(range(self._shards)) - self._begun.positions.keys())
            self.end(Unavailable(f"nobody reads shards {missing} for this consumer", {"shards": missing}))
            return
        services = self._services()
        for address, service in services.items():
            if address not in self._parts and self._not_before.get(address, 0.0) <= now:
                self._open(address, service, max(1, -(-self._request.window // len(services))))

    def _open(self, address: str, service: EventService, window: int) -> None:
        if self._end is not None:
            return
        part = self._parts[address] = _Part(address)
        # Who does not answer in time is found here, where it is known when something was given.
        request = msgspec.structs.replace(self._request, window=window, ack_timeout=0.0)
        if not request.group and self._has_begun:
            request = msgspec.structs.replace(request, positions=self._resume())

        def listen(told: Told) -> None:
            if not part.is_over:
                self._told(part, told)

        behalf = ON_BEHALF.set(self._caller)
        try:
            part.consumer = service.consume(request, listen)
        except SPIError as error:
            listen(error)
        else:
            if part.is_over:  # it was told its end at once
                part.consumer.close()
        finally:
            ON_BEHALF.reset(behalf)

    def _resume(self) -> dict[int, int]:
        return {shard: min(self._undone.get(shard) or {passed}) for shard, passed in self._passed.items()}

    def _told(self, part: _Part, told: Told) -> None:
        match told:
            case Begun():
                self._part_begun(part, told)
            case Left():
                for shard in told.shards:
                    self._part_left(part, shard)
            case Reached():
                for shard, offset in told.positions.items():
                    if self._has(part, shard):
                        self._reached[shard] = max(offset, self._reached.get(shard, 0))
                        self._passed[shard] = max(offset, self._passed.get(shard, 0))
                self._give()
            case SPIError():
                self._part_lost(part, told)
            case _:
                self._brought(part, told)

    def _part_begun(self, part: _Part, begun: Begun) -> None:
        self._tries.pop(part.address, None)
        for shard, position in begun.positions.items():
            epoch = begun.epochs.get(shard, 0)
            holder = self._holders.get(shard)
            if holder is not None and holder[0] > epoch:
                continue  # it does not know yet that it is not the owner any more
            self._drop(shard)
            self._holders[shard] = epoch, part
            if shard not in self._begun.positions:
                self._begun.positions[shard] = position
                self._begun.heads[shard] = begun.heads[shard]
            self._begun.epochs[shard] = epoch
            if not self._request.group:
                self._repeats[shard] = self._passed.setdefault(shard, position), position
        if not self._has_begun and len(self._begun.positions) == self._shards:
            self._has_begun = True
            self._say(self._begun)
        self._send_again()
        self._give()

    def _part_left(self, part: _Part, shard: int) -> None:
        if self._has(part, shard):
            del self._holders[shard]
            self._drop(shard)

    def _part_lost(self, part: _Part, error: SPIError) -> None:
        part.is_over = True
        if self._parts.get(part.address) is part:
            del self._parts[part.address]
        for shard in [shard for shard, (_, holder) in self._holders.items() if holder is part]:
            self._part_left(part, shard)
        is_moved = isinstance(error, ShardMoved)
        if not isinstance(error, Unavailable) or (not part.address and not is_moved):
            self.end(error)  # it says something of the consumer, or this orchestrator is going away
            return
        tries = self._tries.get(part.address, 0)
        self._tries[part.address] = min(tries + 1, 20)
        delay = 0.0 if is_moved and not tries else min(FIRST_TRY * 2**tries, LAST_TRY)
        self._not_before[part.address] = self._loop.time() + delay
        log.debug("part.lost", group=self._request.group, at=part.address, error=str(error))
        self._loop.call_later(delay, self.look)

    def _has(self, part: _Part, shard: int) -> bool:
        holder = self._holders.get(shard)
        return holder is not None and holder[1] is part

    def _at(self, shard: int) -> Consumer | None:
        """Where what is said of that shard is said."""
        holder = self._holders.get(shard)
        return holder[1].consumer if holder is not None else None

    def _drop(self, shard: int, first: int = 0) -> None:
        """What was not given yet of a shard comes from its next owner."""
        for position in [one for one in self._buffer if one.shard == shard and one.offset >= first]:
            del self._buffer[position]
        self._reached.pop(shard, None)

    # ---- deliveries

    def _brought(self, part: _Part, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            position = delivery.position
            if not self._has(part, position.shard):
                continue
            if position in self._acks:
                self._send_acks([position])
            elif position in self._buries:
                self._send_bury(position)
            elif self._is_repeated(position):
                if part.consumer is not None:
                    part.consumer.ack((position,))
            elif position not in self._held:  # else the consumer has it, from the owner before
                self._buffer[position] = delivery
            if not self._request.group:
                self._note(position)
        self._give()

    def _note(self, position: Position) -> None:
        """A reader for himself has to be given this, or has it."""
        shard, offset = position
        self._passed[shard] = max(self._passed.get(shard, 0), offset + 1)
        if position in self._buffer or position in self._held:
            self._undone.setdefault(shard, set()).add(offset)

    def _is_repeated(self, position: Position) -> bool:
        """Does a reader for himself get this only because he had to go back to what he had not answered? A dead letter
        that comes again is none of these: it stands before where he began, or was passed since."""
        shard, offset = position
        until, seen = self._repeats.get(shard, (0, 0))
        if self._request.group or not seen <= offset < until:
            return False
        self._repeats[shard] = until, offset + 1
        return offset not in self._undone.get(shard, ())

    def _give(self) -> None:
        """Give out what the window allows, and tell how far that goes."""
        if not self._has_begun or self._giving:
            return
        self._giving = True  # who is given something may answer at once
        try:
            while self._end is None and self._buffer and len(self._held) < self._request.window:
                count = min(BATCH, self._request.window - len(self._held))
                given = [self._buffer[position] for position, _ in zip(self._buffer, range(count), strict=False)]
                timeout = 0.0 if self._request.projection else self._request.ack_timeout
                deadline = self._loop.time() + timeout if timeout else float("inf")
                for delivery in given:
                    del self._buffer[delivery.position]
                    self._held[delivery.position] = deadline
                self._say(given)
        finally:
            self._giving = False
        if self._end is not None:
            return
        waiting = {position.shard for position in self._buffer}
        ends = {shard: offset for shard, offset in self._reached.items() if shard not in waiting}
        for shard in ends:
            del self._reached[shard]
        if ends:
            self._say(Reached(positions=ends))
        self._arm()

    def _arm(self) -> None:
        first = next(iter(self._held.values()), float("inf"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._end is None and first != float("inf"):
            self._timer = self._loop.call_at(first, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        for position in [position for position, deadline in self._held.items() if deadline <= now]:
            self.reject(position, _LATE, 0.0)
        self._arm()

    def _say(self, told: Told) -> None:
        """One that fails hurts nobody else."""
        try:
            self._listener(told)
        except Exception:
            log.exception("consumer.failed", group=self._request.group)
            self.close()

    # ---- answers

    def _answered(self, position: Position) -> None:
        self._held.pop(position, None)
        self._buffer.pop(position, None)
        self._undone.get(position.shard, set()).discard(position.offset)

    def _send_acks(self, positions: Sequence[Position]) -> None:
        """Say them to the owners of their shards. What has none now, or is not stored, is said again."""
        by_part: dict[_Part, list[Position]] = {}
        for position in positions:
            holder = self._holders.get(position.shard)
            if holder is not None:
                by_part.setdefault(holder[1], []).append(position)
        for part, places in by_part.items():
            if part.consumer is not None:
                part.consumer.ack(places, partial(self._acked, places))

    def _acked(self, positions: Sequence[Position], error: SPIError | None) -> None:
        if isinstance(error, Unavailable):
            self._soon_again()
            return
        for position in positions:
            for answers in self._acks.pop(position, ()):
                answers.left.discard(position)
                if error is not None or not answers.left:
                    done, answers.done = answers.done, None
                    _tell(done, error)

    def _send_bury(self, position: Position) -> None:
        consumer = self._at(position.shard)
        if consumer is None:
            return

        def kept(error: SPIError | None) -> None:
            if isinstance(error, Unavailable):
                return  # it comes again, and is buried then
            _, dones = self._buries.pop(position, (None, []))
            self._answered(position)
            for done in dones:
                _tell(done, error)
            self._give()

        consumer.bury(position, self._buries[position][0], kept)

    def _soon_again(self) -> None:
        if self._resend is None and self._end is None:
            self._resend = self._loop.call_later(ANSWER_AGAIN_SECONDS, self._send_again)

    def _send_again(self) -> None:
        if self._resend is not None:
            self._resend.cancel()
            self._resend = None
        if self._acks:
            self._send_acks(list(self._acks))


def _tell(done: Done | None, error: SPIError | None) -> None:
    if done is not None:
        done(error)
