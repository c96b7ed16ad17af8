"""Virtual time: an event loop whose clock jumps to the next timer whenever nothing else is left to do.

A test of an hour-long workflow takes milliseconds, and the same seed gives the same run. Nothing real (sockets,
threads, processes) may take part: the loop would not wait for it.
"""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

T = TypeVar("T")
P = ParamSpec("P")

#: Where virtual time begins, UTC ns: 2026-01-01T00:00:00Z.
EPOCH_NS = 1_767_225_600_000_000_000

#: Seconds of real time that one virtual loop may run.
PATIENCE = 120.0


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: tells the loop how far it would have slept."""

    def __init__(self, jump: Callable[[float | None], None], look: Callable[[], None]) -> None:
        super().__init__()
        self._jump = jump
        self._look = look

    def select(self, timeout: float | None = None) -> list[Any]:
        self._look()
        ready = super().select(0)
        if not ready:
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`run_virtual` makes one; `loop.time()` is virtual seconds since its start. After `patience` seconds of real time it
    raises RuntimeError: something turns round and round, and a test's own time limit may have been swallowed by a task."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._virtual_now = 0.0
        self._patience = patience
        self._ends_at = time.monotonic() + patience
        super().__init__(_JumpingSelector(self._jump, self._look))

    def time(self) -> float:
        return self._virtual_now

    def _look(self) -> None:
        if time.monotonic() > self._ends_at:
            self._ends_at = time.monotonic() + self._patience  # to cancel what is left
            tasks = "; ".join(sorted(str(task.get_coro()) for task in asyncio.all_tasks(self)))
            message = f"virtual time is {self._virtual_now} s, and no end in sight: {tasks}"
            raise RuntimeError(message)

    def _jump(self, timeout: float | None) -> None:
        if timeout is None:
            message = "virtual time stands still: everything waits for something that will never happen"
            raise RuntimeError(message)
        # A little past the due time, so that rounding never leaves a timer just ahead.
        self._virtual_now += timeout + (1e-9 if timeout else 0.0)


class VirtualClock:
    """`ports.clock.Clock` on the running virtual loop. `skew` moves the wall clock, not the monotonic one."""

    def __init__(self) -> None:
        self.skew = 0.0

    def now(self) -> int:
        return EPOCH_NS + int((self.monotonic() + self.skew) * 1e9)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SeededIds:
    """`ports.clock.IdSource` from a seed: UUIDv7 in order of creation, on virtual time."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._count = 0

    def uuid(self) -> UUID:
        self._count += 1
        milliseconds = EPOCH_NS // 1_000_000 + int(asyncio.get_running_loop().time() * 1000)
        value = milliseconds << 80 | 0x7 << 76 | self._count % 4096 << 64 | 0b10 << 62
        return UUID(int=value | self._random.getrandbits(62))

    def random(self) -> float:
        return self._random.random()


def run_virtual(main: Coroutine[Any, Any, T], patience: float = PATIENCE) -> T:
    """Run a coroutine to its end on a virtual loop. A standstill raises RuntimeError in the caller, and so does one that has
    not ended after `patience` seconds of real time."""
    with asyncio.Runner(loop_factory=functools.partial(VirtualTimeLoop, patience)) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Decorator: run an async test on a virtual loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run
