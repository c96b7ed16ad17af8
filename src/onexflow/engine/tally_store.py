"""What workers have done, kept over restarts: a register `node/<worker>` for each, at most SAVE_SECONDS behind. Not written
with the results, as that would cost more than counting them."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec
import structlog

from onexflow.codec.payload import UNREADABLE
from onexflow.engine.kernel import Kernel
from onexflow.engine.tally import Tallies, Tally

log = structlog.get_logger("onexflow.nodes")

SAVE_SECONDS: Final = 2.0
PREFIX: Final = "node/"
_PAGE: Final = 1000


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    """What a register says."""

    worker: str
    incarnation: str
    completed: int
    failed: int
    nanoseconds: int


class TallyStore:
    """The tallies of one orchestrator in its first shard."""

    def __init__(self, kernel: Kernel, tallies: Tallies) -> None:
        self._kernel = kernel
        self._tallies = tallies

    async def load(self) -> None:
        """Go on from what the owner before has kept."""
        for shard in list(self._kernel.shards):
            after = ""
            while page := await self._kernel.store.list_registers(shard, PREFIX, after, _PAGE):
                after = page[-1].name
                for record in page:
                    self._take(record.data)

    def _take(self, data: bytes) -> None:
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except UNREADABLE as error:
            log.warning("tally.unreadable", error=str(error))
            return
        tally = Tally(saved.incarnation, saved.completed, saved.failed, saved.nanoseconds)
        tally.saved = tally.ended
        self._tallies.by_worker[saved.worker] = tally

    def save(self) -> None:
        """Write what has changed with the next append."""
        shard = self._kernel.shards.get(min(self._kernel.shards, default=-1))
        if shard is None:
            return
        changed = False
        for worker, tally in self._tallies.by_worker.items():
            if tally.saved != tally.ended:
                tally.saved = tally.ended
                saved = _Saved(worker, tally.incarnation, tally.completed, tally.failed, tally.nanoseconds)
                shard.put(_name(worker), msgspec.msgpack.encode(saved))
                changed = True
        while self._tallies.forgotten:
            shard.put(_name(self._tallies.forgotten.pop()), b"")
            changed = True
        if changed:
            self._kernel.lane.mark()


def _name(worker: str) -> str:
    return PREFIX + quote(worker, safe="")
