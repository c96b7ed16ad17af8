"""The real clock, the real source of ids, and the name of this machine: the only place outside adapters that reads them."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from uuid import UUID


class SystemClock:
    """`ports.clock.Clock` of this machine."""

    now = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemIds:
    """`ports.clock.IdSource` of this machine: UUIDv7 from the wall clock and the kernel's randomness."""

    def uuid(self) -> UUID:
        return uuid7(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big"))

    def random(self) -> float:
        return random.random()


def uuid7(milliseconds: int, noise: int) -> UUID:
    """RFC 9562's version 7: 48 bits of time, then 74 of `noise`."""
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 62 & 0xFFF) << 64 | 0b10 << 62
    return UUID(int=value | noise & (1 << 62) - 1)


def host() -> str:
    """A short name of this machine."""
    return socket.gethostname().partition(".")[0] or "localhost"
