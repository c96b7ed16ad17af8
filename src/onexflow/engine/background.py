"""Work that nobody waits for, and that ends with its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from onexflow.spi.exceptions import SPIError


class Background:
    """Of one owner, who stops it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def spawn(self, work: Coroutine[None, None, object]) -> None:
        """Do it from the next turn of the loop on."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def answer(self, work: Awaitable[None], reply: Callable[[SPIError], None]) -> None:
        """The same; what it raises of ours goes to the reply."""

        async def guarded() -> None:
            try:
                await work
            except SPIError as error:
                reply(error)

        self.spawn(guarded())

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
