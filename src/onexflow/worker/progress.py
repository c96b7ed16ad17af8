"""Progress reports on their way: as many as the handler likes come in, about one a second goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from onexflow.core.ids import Token
from onexflow.core.payload import NULL, Payload
from onexflow.ports.clock import Clock
from onexflow.ports.worker_link import Assignment, Progress

#: Seconds between two messages with the same details, and with different ones.
SAME: Final = 1.0
CHANGED: Final = 0.2


class _Reported:
    __slots__ = ("at", "details", "held", "same")

    def __init__(self, at: float, details: Payload, same: float) -> None:
        self.at = at  #: when something was sent last
        self.details = details  #: what was sent last
        self.held: Payload | None = None  #: newer details that wait for their time
        self.same = same  #: seconds between messages with the same details


class ProgressReports:
    """Limits the messages of each attempt. The last details of an attempt always go out, while it runs."""

    def __init__(self, clock: Clock, send: Callable[[int, Progress], None]) -> None:
        self._clock = clock
        self._send = send
        self._reported: dict[Token, _Reported] = {}
        self._ticker: asyncio.Task[None] | None = None

    def report(self, assignment: Assignment, details: Payload) -> None:
        """The handler says how far it is."""
        now, token = self._clock.monotonic(), assignment.token
        known = self._reported.get(token)
        if known is None:
            # A heartbeat timeout below two seconds wants reports more often than once a second.
            heartbeat = assignment.info.heartbeat
            same = min(SAME, heartbeat / 2) if heartbeat > 0 else SAME
            self._reported[token] = _Reported(now, details, same)
            self._send(token.shard, Progress(token, details))
            return
        if details == NULL:
            details = known.held or known.details  # alive, and no further
        if now - known.at >= (known.same if details == known.details else min(CHANGED, known.same)):
            known.at, known.details, known.held = now, details, None
            self._send(token.shard, Progress(token, details))
        elif details != known.details:
            known.held = details
            if self._ticker is None:
                self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="progress")

    def forget(self, token: Token) -> None:
        """The attempt has ended: its result says more."""
        if self._reported:
            self._reported.pop(token, None)

    def close(self) -> None:
        """Send nothing more."""
        self._reported.clear()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    async def _tick(self) -> None:
        while any(known.held is not None for known in self._reported.values()):
            await self._clock.sleep(CHANGED)
            now = self._clock.monotonic()
            for token, known in self._reported.items():
                if known.held is not None and now - known.at >= min(CHANGED, known.same):
                    known.at, known.details, known.held = now, known.held, None
                    self._send(token.shard, Progress(token, known.details))
        self._ticker = None
