"""A clock that says what it is told."""

from __future__ import annotations

import asyncio


class SettableClock:
    """Setting `value` is a jump of the wall clock; time passes in `sleep` alone."""

    def __init__(self, value: int = 1_700_000_000_000_000_000) -> None:
        self.value = value
        self._slept = 0.0

    def now(self) -> int:
        return self.value

    def monotonic(self) -> float:
        return self._slept

    async def sleep(self, seconds: float) -> None:
        self.value += round(seconds * 1e9)
        self._slept += seconds
        await asyncio.sleep(0)
