"""Does this orchestrator still do its work? One that does not must not keep its shards (rule 17 of the protocol).

- One whose loop hangs does not beat (`engine.housekeeping`): its lease ends, and the others take its shards. When it wakes
  it finds their epochs in the store, forgets those shards, and is a member again.
- One that cannot reach the store, while another member can, says so by itself: it takes its record out of the registry,
  which is what the others claim its shards by. What it has decided meanwhile is never stored: the store refuses it. It is
  a member again when its store answers.
- When nobody can reach the store, or its space is used up, nobody is better off, and everything stays where it is.

docs/decisions/0007-hung-owners.md has the reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from onexflow.engine.kernel import Kernel
from onexflow.engine.routing import Peers
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.fitness")

LOOK_SECONDS: Final = 0.5
#: An owner whose store has not answered for so long gives up what it owns, if it has for another one.
STORE_SECONDS: Final = 5.0
#: One that has heard from its store within so long, and has no write that waits for longer, can append.
FRESH_SECONDS: Final = 2.0
#: How long another member may take to say whether it can append.
ASK_SECONDS: Final = 1.0
#: A turn of the loop that is late by so much is told by the health answer, for so long.
LAG_SECONDS: Final = 1.0
TOLD_SECONDS: Final = 60.0
#: An append that takes longer is told by the health answer.
SLOW_APPEND_SECONDS: Final = 1.0


class Fitness:
    """Of one orchestrator. `others` are the addresses of the other members, `peers` asks them; `withdraw` and `rejoin` are
    about its own membership, and `believe` takes the registry's word for who owns what."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        owner: str,
        is_full: Callable[[], bool],
        others: Callable[[], Sequence[str]],
        peers: Peers,
        withdraw: Callable[[], Awaitable[None]],
        rejoin: Callable[[], Awaitable[None]],
        believe: Callable[[], Awaitable[None]],
    ) -> None:
        self._kernel = kernel
        self._owner = owner
        self._is_full = is_full
        self._others = others
        self._peers = peers
        self._withdraw = withdraw
        self._rejoin = rejoin
        self._believe = believe
        self._task: asyncio.Task[None] | None = None
        #: It has said that it cannot do its work, and is no member.
        self.has_withdrawn = False
        #: Loop time since when another member can append, and this one cannot; 0: that is not so.
        self._outdone_since = 0.0
        #: By how much the last turn was late; the longest of late, and the loop time when that was.
        self.lag = 0.0
        self._longest = (0.0, 0.0)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="fitness")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def oldest_append(self) -> float:
        """Seconds that the oldest write has waited for the store; 0 when none does."""
        since = self._kernel.lane.pending_since
        return _now() - since if since else 0.0

    def can_append(self) -> bool:
        """Has the store answered lately, and does no write wait for long?"""
        if self._kernel.lane.is_over or self._is_full() or self.oldest_append > FRESH_SECONDS:
            return False
        return not self._kernel.is_shared or _now() - self._kernel.claims.confirmed_at <= FRESH_SECONDS

    def details(self) -> dict[str, str]:
        """For the health answer."""
        found = {}
        if self.oldest_append > SLOW_APPEND_SECONDS:
            found["store"] = (
                f"has not confirmed a write for {self.oldest_append:.0f} s: nothing is acknowledged meanwhile"
            )
        lag, at = self._longest
        if lag > LAG_SECONDS and _now() - at < TOLD_SECONDS:
            found["loop"] = f"did not turn for {lag:.1f} s, {_now() - at:.0f} s ago"
        if self.has_withdrawn:
            found["member"] = "is none until its store answers: its shards are left to the others"
        return found

    async def _run(self) -> None:
        while True:
            began = _now()
            await asyncio.sleep(LOOK_SECONDS)
            self._measure(_now() - began - LOOK_SECONDS)
            if self._kernel.is_shared:
                try:
                    await self._look()
                except SPIError as error:
                    log.warning("fitness.failed", error=str(error))
                except Exception:
                    log.exception("fitness.failed")

    def _measure(self, lag: float) -> None:
        now = _now()
        self.lag = max(lag, 0.0)
        if lag >= self._longest[0] or now - self._longest[1] > TOLD_SECONDS:
            self._longest = lag, now
        if lag > LAG_SECONDS:
            log.warning("loop.late", seconds=round(lag, 3))

    async def _look(self) -> None:
        silent = max(self.oldest_append, _now() - self._kernel.claims.confirmed_at)
        if not self.has_withdrawn:
            if silent <= STORE_SECONDS or self._is_full() or not await self._can_others():
                self._outdone_since = 0.0
            elif not self._outdone_since:
                self._outdone_since = _now()  # the store may have come back just now, for all of them
            elif _now() - self._outdone_since >= FRESH_SECONDS:
                log.error("owner.withdrew", owner=self._owner, seconds=round(silent, 1), shards=len(self._kernel.shards),
                          hint="this orchestrator cannot reach the store, and another one can")  # fmt: skip
                self.has_withdrawn = True
                await self._withdraw()
        elif self.can_append():
            log.info("owner.rejoined", owner=self._owner)
            self.has_withdrawn = False
            await self._rejoin()
        else:
            await self._believe()  # calls are better sent to who has the shards now

    async def _can_others(self) -> bool:
        """Is there another member that can append?"""
        return any(await asyncio.gather(*(self._ask(address) for address in self._others())))

    async def _ask(self, address: str) -> bool:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._peers(address).can_append()
        except (SPIError, TimeoutError):
            return False


def _now() -> float:
    return asyncio.get_running_loop().time()
