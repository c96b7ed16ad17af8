"""Time and identity as ports: nobody else reads a clock or draws a random number."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    """The one source of time."""

    def now(self) -> int:
        """Wall-clock time, UTC nanoseconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean anything."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock. Cancellation ends it at once."""


class IdSource(Protocol):
    """The one source of randomness."""

    def uuid(self) -> UUID:
        """A new UUIDv7: unique, ordered by creation."""

    def random(self) -> float:
        """A number in [0, 1)."""
