"""Sending what waits, as fast as NATS takes it and no faster; and what becomes of it when NATS is slow, full or away.

One coroutine owns the link. A link that breaks, or on which nothing was acknowledged for `ACK_WITHIN`, is given up, and
everything that was on it is sent again on the next one: JetStream knows what it has already by the message's id. What is
refused is tried again, first one message alone, then more and more, until NATS takes them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal, NamedTuple, Protocol

import structlog

from onexflow.bridge.lanes import Entry, Lanes
from onexflow.bridge.message import Message
from onexflow.core.errors import Coded
from onexflow.core.payload import Failure

log = structlog.get_logger("onexflow.bridge")

#: Seconds without the oldest message's acknowledgement after which a link is given up.
ACK_WITHIN: Final = 10.0
#: Seconds before the first try after a failure, and the most.
FIRST_TRY: Final = 0.1
LAST_TRY: Final = 5.0
#: Seconds between two lines about one trouble, and about different ones.
SAID_EVERY: Final = 30.0
SAID_AGAIN: Final = 1.0


class Refusal(NamedTuple):
    """Why a message was not stored. `again`: it may be, later; `never`: not this message; `gone`: there is no stream."""

    reason: str
    kind: Literal["again", "never", "gone"] = "again"


class Link(Protocol):
    """One connection, on which messages are sent."""

    @property
    def max_size(self) -> int:
        """Of a message: `Message.size`."""

    async def send(self, number: int, message: Message) -> None:
        """Put it on the wire. Returns at once, and tells of its end by an answer. Raises ConnectionError."""

    async def close(self) -> None:
        """End it; nothing is told afterwards. Idempotent, and never waits for the other end."""


class Ear(Protocol):
    """Who hears what happens on a link: called on the event loop."""

    def answered(self, number: int, refusal: Refusal | None) -> None:
        """What became of that message: stored (None), or not."""

    def denied(self, subject: str, reason: str) -> None:
        """What was sent to that subject (in lower case: so the library tells it) will not be answered."""

    def lost(self, reason: str) -> None:
        """The link is no more."""


#: Opens a link. Raises NatsUnavailable, NatsUnusable.
Dial = Callable[[Ear], Awaitable[Link]]


class Publisher:
    """Implements `Ear`."""

    def __init__(
        self,
        dial: Dial,
        window: int,
        *,
        on_stored: Callable[[Entry], None],
        on_parked: Callable[[Entry, Failure], None],
    ) -> None:
        """`on_stored`: JetStream has acknowledged it. `on_parked`: it never will."""
        self._dial = dial
        self._window = self._allowed = window
        self._on_stored = on_stored
        self._on_parked = on_parked
        self._lanes = Lanes()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._answer = asyncio.Event()
        self._finishing = False
        self._link: Link | None = None
        self._lost = ""
        self._tries = 0
        #: Nothing is sent before that loop time.
        self._not_before = 0.0
        #: The oldest try that is not answered, and since when it is that.
        self._oldest = 0
        self._oldest_since = 0.0
        self._said_at = float("-inf")
        self._said = False
        #: What is wrong now.
        self.trouble = ""
        #: Messages stored, and tries that were refused or lost with their link.
        self.stored = 0
        self.repeated = 0
        self.parked = 0

    @property
    def waiting(self) -> int:
        """Messages that are not stored yet."""
        return len(self._lanes)

    def add(self, entry: Entry) -> None:
        self._lanes.add(entry)
        self._wake.set()

    async def start(self) -> None:
        """The first link. Raises what `Dial` raises."""
        self._link = await self._dial(self)

    async def run(self) -> None:
        """Send, for ever."""
        try:
            while True:
                if self._link is None:
                    await self._connect()
                else:
                    await self._serve(self._link)
                    await self._give_up()
        finally:
            await self.close()

    async def finish(self, seconds: float) -> None:
        """Send nothing more, and return when what was sent is answered, or after so many seconds."""
        self._finishing = True
        try:
            async with asyncio.timeout(seconds):
                while self._lanes.sent and self._link is not None:
                    self._answer.clear()
                    await self._answer.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    # ---- what is heard

    def answered(self, number: int, refusal: Refusal | None) -> None:
        if refusal is None or refusal.kind == "never":
            entry = self._lanes.done(number)
            if entry is not None and refusal is None:
                self._stored(entry)
            elif entry is not None and refusal is not None:
                self._park(entry, refusal.reason)
        elif number in self._lanes.sent:
            self._refused(number, refusal)
        self._answer.set()
        self._wake.set()

    def denied(self, subject: str, reason: str) -> None:
        for number in [
            number for number, entry in self._lanes.sent.items() if entry.message.subject.lower() == subject
        ]:
            self._refused(number, Refusal(reason))
        self._wake.set()

    def lost(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._wake.set()

    # ---- helpers

    async def _connect(self) -> None:
        try:
            self._lost = ""
            self._link = await self._dial(self)
        except Coded as error:
            self._troubled(str(error))
            await asyncio.sleep(self._delay())

    async def _serve(self, link: Link) -> None:
        """Until it is lost."""
        while True:
            try:
                await self._send(link)
            except ConnectionError as error:
                self.lost(str(error))
            now = self._loop.time()
            oldest = next(iter(self._lanes.sent), 0)
            if oldest != self._oldest:  # answers come in about the order of sending: its turn begins now
                self._oldest, self._oldest_since = oldest, now
            due = [self._oldest_since + ACK_WITHIN] if oldest else []
            if due and due[0] <= now:
                self.lost(f"no acknowledgement within {ACK_WITHIN:g} s")
            if self._lanes.is_ready and self._not_before > now and not self._finishing:
                due.append(self._not_before)
            if self._lost:
                return
            try:
                async with asyncio.timeout_at(min(due, default=None)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _send(self, link: Link) -> None:
        """What may be sent now."""
        if self._finishing:
            return
        while self._loop.time() >= self._not_before and len(self._lanes.sent) < self._allowed and not self._lost:
            entry = self._lanes.take()
            if entry is None:
                return
            if entry.message.size > link.max_size:
                self._lanes.done(entry.number)
                self._park(entry, f"{entry.message.size:,} bytes, and NATS takes {link.max_size:,} (max_payload)")
                continue
            await link.send(entry.number, entry.message)

    async def _give_up(self) -> None:
        link, self._link = self._link, None
        assert link is not None, "it was served"
        await link.close()
        self.repeated += len(self._lanes.sent)
        self._lanes.reset()
        self._allowed = 1
        self._troubled(self._lost)
        await asyncio.sleep(self._delay())

    def _stored(self, entry: Entry) -> None:
        self.stored += 1
        self._tries = 0
        self._not_before = 0.0
        self._allowed = min(self._window, 2 * self._allowed)
        if self._said:
            log.info("nats.back", waiting=self.waiting)
        self.trouble, self._said = "", False
        self._on_stored(entry)

    def _park(self, entry: Entry, reason: str) -> None:
        self.parked += 1
        log.error("event.parked", position=str(entry.position), run=str(entry.key), reason=reason)
        self._on_parked(entry, Failure("NatsRefused", reason))

    def _refused(self, number: int, refusal: Refusal) -> None:
        self.repeated += 1
        self._lanes.again(number)
        self._allowed = 1
        now = self._loop.time()
        if now >= self._not_before:  # the others of the same moment are one failure
            self._not_before = now + self._delay()
        self._troubled(refusal.reason)
        if refusal.kind == "gone":
            self.lost(refusal.reason)

    def _delay(self) -> float:
        """Seconds before the next try."""
        delay = min(FIRST_TRY * 2.0**self._tries, LAST_TRY)
        self._tries = min(self._tries + 1, 20)
        return delay

    def _troubled(self, reason: str) -> None:
        now = self._loop.time()
        if now - self._said_at >= (SAID_EVERY if reason == self.trouble else SAID_AGAIN):
            self._said_at, self._said = now, True
            log.warning("nats.lagging", reason=reason, waiting=self.waiting)
        self.trouble = reason
