"""A clock that says what it is told."""

from __future__ import annotations

import asyncio


class SettableClock:
    def __init__(self, value: int = 1_700_000_000_000_000_000) -> None:
        self.value = value

    def now(self) -> int:
        return self.value

    def monotonic(self) -> float:
        return self.value / 1e9

    async def sleep(self, seconds: float) -> None:
        self.value += round(seconds * 1e9)
        await asyncio.sleep(0)
