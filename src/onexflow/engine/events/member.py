"""One consumer: what it was given and has not answered, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from onexflow.core.payload import Failure
from onexflow.ports.events import Consume, ConsumeListener, Done, Position, Told
from onexflow.spi.exceptions import SPIError

if TYPE_CHECKING:
    from onexflow.engine.events.reader import Reader

log = structlog.get_logger("onexflow.events")


class Member:
    """Implements `ports.events.Consumer`."""

    def __init__(self, reader: Reader, request: Consume, listener: ConsumeListener) -> None:
        self.reader = reader
        self._listener = listener
        self.request = request
        #: (shard, offset) → loop time at which it comes again, in the order of delivery.
        self.unanswered: dict[tuple[int, int], float] = {}
        #: Why there is nothing more.
        self.end: SPIError | None = None
        self.is_over = False

    @property
    def room(self) -> int:
        return self.request.window - len(self.unanswered)

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
        self.reader.ack(self, positions, done)

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        self.reader.reject(self, position, error, max(0.0, delay))

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        self.reader.bury(self, position, error, done)

    def close(self) -> None:
        self.is_over = True
        self.reader.leave(self)
