"""A consumer that is opened again when its orchestrator is lost: what subscriptions and projections read from."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from onexflow.core.errors import Coded, Unavailable
from onexflow.core.payload import Failure
from onexflow.ports.events import Begun, Consume, Consumer, Delivery, Done, EventService, Left, Position, Reached, Told
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.bus")

#: Seconds between two tries to open a consumer again.
_FIRST_TRY: Final = 0.05
_LAST_TRY: Final = 5.0


class Listener:
    """Who reads: called on the event loop. Nothing of it may raise."""

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """More to be dealt with, each answered by `Feed.ack` or `Feed.bury`."""

    def reached(self, positions: dict[int, int]) -> None:
        """All that matches before these positions has been delivered."""

    def interrupted(self) -> None:
        """The orchestrator was lost: what was not acknowledged will come again."""

    def ended(self, error: SPIError) -> None:
        """There will be nothing more."""


class Feed:
    """Deliveries of one consumer, over losses of its orchestrator. An answer that was under way when it was lost is said
    again, and what was acknowledged does not come twice to this process."""

    def __init__(
        self,
        service: EventService,
        request: Consume,
        listener: Listener,
        *,
        again: Callable[[SPIError], bool] | None = None,
    ) -> None:
        """`again`: whether to open again after this error; by default after those that say so themselves."""
        self._service = service
        self._request = request
        self._listener = listener
        self._again = again or _may_try_again
        self._consumer: Consumer | None = None
        self._begun: asyncio.Future[Begun] = asyncio.get_running_loop().create_future()
        self._life = 0
        self._tries = 0
        self._retry: asyncio.TimerHandle | None = None
        self._live = False
        #: Why it could not be opened the last time.
        self._refused: SPIError | None = None
        #: Why there will be nothing more.
        self._end: SPIError | None = None
        #: Where a reader for himself goes on: next offsets, and what of the offsets before is not answered.
        self._next: dict[int, int] = dict(request.positions)
        self._open: dict[int, set[int]] = {}
        #: Where the present consumer began, where the one before had come to, and what this one has given of that.
        self._begins: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        #: Acknowledged, but not said to be durable; and, bounded, what needs no second look when it comes again.
        self._unconfirmed: dict[Position, list[Done]] = {}
        self._acknowledged: OrderedDict[Position, None] = OrderedDict()
        #: Given up, but not yet kept as dead letters; still open, so that they come again after a loss.
        self._burying: dict[Position, Failure] = {}
        self._quiet = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the present consumer is in force."""
        return self._live and self._consumer is not None

    async def start(self, patience: float) -> Begun:
        """Return when the consumer is in force. Raises what it was refused with, after `patience` if that might have
        passed; Unavailable when nobody has answered."""
        self._connect()
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(self._begun)
        except TimeoutError:
            self.close()
            raise self._refused or Unavailable(f"no orchestrator has answered within {patience:g} s") from None
        except BaseException:
            self.close()
            raise

    def ack(self, position: Position, done: Done | None = None) -> None:
        """This is dealt with. `done` is called when that is durable, after a loss of the orchestrator too."""
        self._answered(position)
        if self._end is not None:
            if done is not None:
                done(self._end)
            return
        self._acknowledged[position] = None
        if len(self._acknowledged) > 4 * self._request.window:
            self._acknowledged.popitem(last=False)
        waiting = self._unconfirmed.setdefault(position, [])
        if done is not None:
            waiting.append(done)
        self._send_ack(position)

    def bury(self, position: Position, failure: Failure) -> None:
        """Keep it as a dead letter; when the orchestrator is lost before that is durable, said to the next one."""
        if self._end is None:
            self._burying[position] = failure
            self._send_bury(position)

    async def settle(self, seconds: float) -> None:
        """Return when what was answered is durable, or after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while (self._unconfirmed or self._burying) and self.connected:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            return

    def close(self) -> None:
        """End; idempotent."""
        self._end = self._end or Unavailable("the subscription was closed")
        self._life += 1
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._give_up(self._end)
        if not self._begun.done():
            self._begun.set_exception(self._end)
        self._begun.exception()  # looked at: nobody may be waiting any more

    # ---- helpers

    def _connect(self) -> None:
        self._retry = None
        self._live = False
        self._life += 1
        life = self._life
        request = self._request
        if not request.group and self._next:
            request = msgspec.structs.replace(request, positions=self._resume())
            self._before, self._seen = dict(self._next), {}

        def listen(told: Told) -> None:
            if life == self._life:
                self._told(told)

        try:
            consumer = self._service.consume(request, listen)
        except SPIError as error:
            self._told(error)
            return
        if life == self._life:
            self._consumer = consumer
            if self.connected:  # it was told its begin at once
                self._send_acks()
        else:  # it was told its end at once
            consumer.close()

    def _resume(self) -> dict[int, int]:
        return {shard: min(self._open.get(shard) or {next_}) for shard, next_ in self._next.items()}

    def _told(self, told: Told) -> None:
        match told:
            case Begun():
                self._tries, self._live = 0, True
                self._begins = dict(told.positions)
                for shard, offset in told.positions.items():
                    self._next.setdefault(shard, offset)
                if not self._begun.done():
                    self._begun.set_result(told)
                self._send_acks()
            case Reached():
                for shard, offset in told.positions.items():
                    self._next[shard] = max(offset, self._next.get(shard, 0))
                self._listener.reached(told.positions)
            case Left():  # between orchestrators alone
                pass
            case SPIError():
                self._lost(told)
            case _:
                self._delivered(told)

    def _delivered(self, deliveries: Sequence[Delivery]) -> None:
        fresh = []
        for delivery in deliveries:
            position = delivery.position
            shard, offset = position
            if position in self._burying:
                self._send_bury(position)
                continue
            if position in self._acknowledged:
                self._send_ack(position)
                continue
            if self._is_repeated(position) and offset not in self._open.get(
                shard, ()
            ):  # acknowledged long before the loss
                self._send_ack(position)
                continue
            self._next[shard] = max(offset + 1, self._next.get(shard, 0))
            self._open.setdefault(shard, set()).add(offset)
            fresh.append(delivery)
        if fresh:
            self._listener.deliver(fresh)

    def _is_repeated(self, position: Position) -> bool:
        """Does a reader for himself get this only because he had to go back to what he had not answered? A dead letter
        that comes again is none of these: it stands before where he began, or was passed in this life already."""
        shard, offset = position
        seen = self._seen.get(shard, -1)
        if self._request.group or not self._begins.get(shard, 0) <= offset < self._before.get(shard, 0):
            return False
        self._seen[shard] = max(seen, offset)
        return offset > seen

    def _lost(self, error: SPIError) -> None:
        self._life += 1
        self._consumer = None
        self._quiet.set()
        if self._end is not None:
            return
        if not self._again(error):
            self._end = error
            self._give_up(error)
            if self._begun.done():
                self._listener.ended(error)
            else:
                self._begun.set_exception(error)
            return
        self._refused = error
        if self._begun.done():
            if self._tries == 0:
                log.warning("consumer.lost", group=self._request.group, error=str(error))
            self._listener.interrupted()
        delay = min(_FIRST_TRY * 2**self._tries, _LAST_TRY)
        self._tries = min(self._tries + 1, 20)
        self._retry = asyncio.get_running_loop().call_later(delay, self._connect)

    def _send_acks(self) -> None:
        for position in list(self._unconfirmed):
            self._send_ack(position)

    def _send_ack(self, position: Position) -> None:
        if self._consumer is None:
            return

        def confirmed(error: SPIError | None) -> None:
            if error is not None and self._end is None and self._again(error):
                return  # said again to the next consumer
            for done in self._unconfirmed.pop(position, ()):
                done(error)
            self._quiet.set()

        self._consumer.ack((position,), confirmed)

    def _send_bury(self, position: Position) -> None:
        def kept(error: SPIError | None) -> None:
            if error is None:
                self._burying.pop(position, None)
                self._answered(position)
                self._quiet.set()

        if self._consumer is not None:
            self._consumer.bury(position, self._burying[position], kept)

    def _answered(self, position: Position) -> None:
        self._open.get(position.shard, set()).discard(position.offset)

    def _give_up(self, error: SPIError) -> None:
        waiting, self._unconfirmed = self._unconfirmed, {}
        for dones in waiting.values():
            for done in dones:
                done(error)


def _may_try_again(error: SPIError) -> bool:
    return isinstance(error, Coded) and error.retryable
