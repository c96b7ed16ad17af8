"""What this process was told is stored, held against every server that it comes back to.

A failover to a standby that lagged, or a restore, can lose what was acknowledged, epochs among it. Such a server is
never written to: what it would store in the place of what it lost could contradict what was told to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from onexflow.core.errors import StoreUnavailable
from onexflow.storage.postgres.server import Server

_log = structlog.get_logger("onexflow.store")


class Promises:
    """The highest epoch and head of each shard that an append or a claim of ours returned."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._server: Server | None = None
        self._heads: dict[int, tuple[int, int]] = {}

    def keep(self, shard: int, epoch: int, head: int) -> None:
        self._heads[shard] = (epoch, head)

    def forget(self) -> None:
        """The heads were set anew, by ourselves."""
        self._heads.clear()

    def current(self) -> Mapping[int, tuple[int, int]]:
        """As they are now; later ones are not in it."""
        return dict(self._heads)

    def recognise(self, server: Server) -> None:
        """Raises a fatal StoreUnavailable when it is not the server that was promised to, nor a copy of it."""
        known, self._server = self._server or server, server
        if known.system != server.system:
            raise self._lost("is another database than before", {"system": server.system, "before": known.system})
        if known.timeline != server.timeline:
            _log.warning("store.failed_over", store=self._shown, timeline=server.timeline, before=known.timeline)

    def hold_against(self, found: Iterable[tuple[int, int, int]], promised: Mapping[int, tuple[int, int]]) -> None:
        """`found` are (shard, epoch, head), read after `promised` was taken. Raises a fatal StoreUnavailable when
        anything is missing."""
        has = {shard: (epoch, head) for shard, epoch, head in found}
        for shard, (epoch, head) in promised.items():
            epoch_there, head_there = has.get(shard, (0, 0))
            if epoch_there < epoch or head_there < head:
                raise self._lost(
                    f"has lost acknowledged events: shard {shard} is at epoch {epoch_there}, head {head_there}",
                    {"shard": shard, "epoch": epoch_there, "head": head_there, "promised": [epoch, head]},
                )

    def _lost(self, what: str, context: dict[str, object]) -> StoreUnavailable:
        _log.critical("store.lost_events", store=self._shown, problem=what, **context)
        hint = (
            "Nothing is written to it. Bring back the server that has everything (failover needs a synchronous "
            "standby: docs/operations.md), then start again."
        )
        message = f"The store {self._shown} {what}. {hint}"
        return StoreUnavailable(message, {"store": self._shown, "fatal": True, **context})
