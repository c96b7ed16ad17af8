"""What a fed reducer takes its items from: filled by the stream, emptied by the handler, and said so as it is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from onexflow.codec.payload import to_contract
from onexflow.core.errors import Coded
from onexflow.core.payload import PayloadCodec
from onexflow.ports.worker_link import FedItem, Feed
from onexflow.worker.errors import Cancelled, ContractError

#: Taken items are told of in portions: so many, or so many bytes, or fewer when no others are here.
REPORT_ITEMS: Final = 64
REPORT_BYTES: Final = 256 * 1024


class Items:
    """The items of one attempt, in the order in which they come, each once. One that is taken is forgotten here."""

    def __init__(self, codec: PayloadCodec, say: Callable[[int], None]) -> None:
        """`say` tells the orchestrator how many were taken; 0: that the first is waited for."""
        self._codec = codec
        self._say = say
        self._waiting: deque[FedItem] = deque()
        self._taken = self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        #: The first item was asked for.
        self.has_begun = False
        #: The last item has come; and was taken.
        self.has_last = False
        self.is_over = False
        self._is_closed = False

    def put(self, feed: Feed) -> None:
        """More have come."""
        self._waiting.extend(feed.items)
        self.has_last = self.has_last or feed.is_last
        self._wake()

    def close(self) -> None:
        """No more will come: whoever asks is told that the attempt is to stop."""
        self._is_closed = True
        self._waiting.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> tuple[int, Any]:
        if not self.has_begun:
            self.has_begun = True
            self._say(0)
        while not self._waiting:
            if self._is_closed:
                raise Cancelled("its items come no more")
            if self.has_last:
                self.is_over = True
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("the items of an attempt are taken by one at a time")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._waiting.popleft()
        self._taken += 1
        self._bytes += len(item.payload.data)
        if self._taken >= REPORT_ITEMS or self._bytes >= REPORT_BYTES or not self._waiting:
            taken, self._taken, self._bytes = self._taken, 0, 0
            self._say(taken)
        try:
            return item.index, to_contract(self._codec.decode(item.payload))
        except (Coded, ValueError, TypeError) as error:
            raise ContractError(f"item {item.index} cannot be read: {error}") from error
