"""One consumer: what it was given and has not answered, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog

from onexflow.core.errors import Unavailable
from onexflow.core.payload import Failure
from onexflow.ports.events import Consume, ConsumeListener, Done, Position, Told
from onexflow.spi.exceptions import SPIError

if TYPE_CHECKING:
    from onexflow.engine.events.reader import Reader

#: Bytes of what a consumer has not answered, beyond which it is given nothing more.
WINDOW_BYTES: Final = 16 << 20

log = structlog.get_logger("onexflow.events")


class Member:
    """Implements `ports.events.Consumer`."""

    def __init__(self, request: Consume, listener: ConsumeListener) -> None:
        #: None until it has joined.
        self.reader: Reader | None = None
        self._listener = listener
        self.request = request
        #: (shard, offset) → loop time at which it comes again, in the order of delivery.
        self.unanswered: dict[tuple[int, int], float] = {}
        self._sizes: dict[tuple[int, int], int] = {}
        self._bytes = 0
        #: Why there is nothing more.
        self.end: SPIError | None = None
        self.is_over = False

    @property
    def room(self) -> int:
        """How many more it may be given now. What it has is bounded in bytes too, but for one that is larger alone."""
        return self.request.window - len(self.unanswered) if self._bytes < WINDOW_BYTES else 0

    def hold(self, place: tuple[int, int], deadline: float, size: int) -> None:
        self.unanswered[place] = deadline
        self._sizes[place] = size
        self._bytes += size

    def release(self, place: tuple[int, int]) -> None:
        if self.unanswered.pop(place, None) is not None:
            self._bytes -= self._sizes.pop(place)

    def tell(self, told: Told) -> None:
        """One that fails hurts nobody else."""
        if self.is_over:
            return
        if isinstance(told, SPIError):
            self.is_over, self.end = True, told
        try:
            self._listener(told)
        except Exception:
            log.exception("consumer.failed", group=self.request.group)
            self.close()

    # ---- what the consumer says

    def ack(self, positions: Sequence[Position], done: Done | None = None) -> None:
        if self.reader is not None:
            self.reader.deliveries.ack(self, positions, done)
        else:
            self._too_early(done)

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        if self.reader is not None:
            self.reader.deliveries.reject(self, position, error, max(0.0, delay))

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        if self.reader is not None:
            self.reader.deliveries.bury(self, position, error, done)
        else:
            self._too_early(done)

    def close(self) -> None:
        self.is_over = True
        if self.reader is not None:
            self.reader.leave(self)

    def _too_early(self, done: Done | None) -> None:
        if done is not None:
            done(self.end or Unavailable("the consumer has not begun"))
