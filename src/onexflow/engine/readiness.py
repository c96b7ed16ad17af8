"""May anything new be taken? Not by an orchestrator whose store is full, lost or far behind, nor by one that drains."""

from __future__ import annotations

import structlog

from onexflow.core.errors import Coded, Draining, Overloaded, StoreFull
from onexflow.engine.kernel import Kernel

log = structlog.get_logger("onexflow.orchestrator")

#: Decided events that may wait for the store before new runs are refused.
UNDURABLE_EVENTS = 100_000


class Readiness:
    """Of one orchestrator."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        #: Why the store takes nothing more from this orchestrator: it is over.
        self.lost: Coded | None = None
        #: What is under way goes on, and nothing new is taken.
        self.is_draining = False
        self._is_full = False
        kernel.on_full = self._on_full

    def refuse_if_unable(self) -> None:
        """Raises what keeps this orchestrator from taking anything new, if something does."""
        if self.lost is not None:
            raise self.lost
        if self.is_draining:
            raise Draining
        if self._is_full:
            raise StoreFull
        if self._kernel.undurable > UNDURABLE_EVENTS:
            raise Overloaded(
                f"{self._kernel.undurable:,} events wait for the store: new runs are refused until it has caught up"
            )

    def is_able(self) -> bool:
        """Is it only a matter of load whether something new is taken?"""
        return not self.is_draining and not self._is_full and self.lost is None

    def is_full(self) -> bool:
        """Is the store's space used up?"""
        return self._is_full

    def _on_full(self, full: bool) -> None:
        self._is_full = full
        if full:
            log.error("store.full")
        else:
            log.info("store.freed")

    def details(self) -> dict[str, str]:
        """For the health answer."""
        found = {}
        if self._is_full:
            found["store"] = "full: new runs are refused"
        if self.lost is not None:
            found["store"] = f"lost: {self.lost}"
        if self.is_draining:
            found["orchestrator"] = "draining"
        return found
