"""The shards that this process has claimed: read back, handed over, or lost to another owner.

The store is the only truth of who owns a shard. `Shard.moved` is set from the moment nothing more is decided for one here,
`Shard.lost` when what was decided and is not durable never will be. Which shards to claim and to hand over is decided
elsewhere (`engine.placement`), and so is what else has to be done with one that comes or goes (`engine.ownership`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import islice

import structlog

from onexflow.core.errors import Coded, InternalError, ShardMoved, Unavailable
from onexflow.core.ids import RunKey
from onexflow.core.queue_state import QUEUE_TYPE, is_system_type
from onexflow.engine.background import Background
from onexflow.engine.catalog import Catalog
from onexflow.engine.lane import CommitLane
from onexflow.engine.loader import READ_AGAIN_SECONDS, READ_TOGETHER, Loader
from onexflow.engine.recovery import RecentRuns, hot_runs
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import EventStore

log = structlog.get_logger("onexflow.shards")

#: Runs whose start is remembered, so that the next one needs no look-up: of all shards together, and of each at least.
KEPT_STARTS = 50_000
KEPT_OF_SHARD = 100


class Claims:
    """Of one kernel. `read_queue` has a work queue in memory that was read back."""

    def __init__(
        self,
        store: EventStore,
        catalog: Catalog,
        lane: CommitLane,
        loader: Loader,
        *,
        now: Callable[[], int],
        read_queue: Callable[[RunKey, str], Awaitable[object]],
        shared: bool,
    ) -> None:
        """`shared`: as of the kernel."""
        self._store = store
        self._catalog = catalog
        self._lane = lane
        self._loader = loader
        self._now = now
        self._read_queue = read_queue
        self._is_shared = shared
        #: Those that are served, by number.
        self.shards: dict[int, Shard] = {}
        #: Shards that are handed over: nothing is decided for them any more, what was decided is still to be stored.
        self.leaving: dict[int, Shard] = {}
        self._background = Background()
        #: Called with a shard that was claimed, before anything of it is read back.
        self.on_claimed: Callable[[Shard], None] = _ignore
        #: Called once with a shard for which nothing more is decided here; `shard.moved` says why.
        self.on_left: Callable[[Shard], None] = _ignore
        #: (owner, address) of a shard that is not owned here, as far as is known.
        self.locate: Callable[[int], tuple[str, str]] = _nowhere
        #: Loop time at which the store last confirmed all epochs.
        self.confirmed_at = 0.0

    # ---- a shard comes

    async def begin(self, owner: str) -> None:
        """Claim every shard (the store's lock, or its epochs, proves that the owner before is gone); of a store that is
        shared, none yet."""
        self.confirmed_at = asyncio.get_running_loop().time()
        if not self._is_shared:
            for number, epoch, _ in await self._store.owners():
                if await self.claim(number, epoch, owner) is None:
                    raise ShardMoved(f"shard {number} was claimed by another orchestrator", {"shard": number})

    async def claim(self, number: int, epoch: int, owner: str) -> Shard | None:
        """Claim one shard, if its epoch in the store is still `epoch`; else None. It serves at once; `recover` is still to
        be called."""
        claim = await self._store.claim(number, epoch, owner)
        if claim is None:
            return None
        self.drop(number, ShardMoved(f"shard {number} was claimed anew", {"shard": number}))
        shard = Shard(claim, self._lane.touched)
        self.shards[number] = shard
        limit = max(KEPT_OF_SHARD, KEPT_STARTS // self._store.shards)
        shard.recent = RecentRuns(self._now() if claim.head > 1 else 0, limit)
        self.on_claimed(shard)
        return shard

    async def recover(self, shard: Shard) -> int:
        """Read back the runs of a shard that were at work, then hear what workers have said of it meanwhile. Returns how
        many. Raises ShardMoved when it was lost meanwhile."""
        if self._is_shared:
            await self._catalog.refresh()  # what its owner before has registered
        hot, unread = await hot_runs(self._store, shard)
        shard.check()
        shard.unread |= unread
        records = []
        for record in hot:
            key = RunKey.from_bytes(record.key)
            if key.workflow_type == QUEUE_TYPE:
                with suppress(InternalError):  # told; it hurts nothing else
                    await self._read_queue(key, "")
            elif not is_system_type(key.workflow_type):  # streams are read back when they are asked for
                records.append(record)
        count = await self._loader.load_all(shard, records)
        shard.check()
        early, shard.early = shard.early or [], None
        self._lane.mark()  # what waited for the shard to be whole
        for said in early:
            said()
        if shard.unread:
            self._background.spawn(self._read_rest(shard))
        return count

    async def _read_rest(self, shard: Shard) -> None:
        """Read back those that wait, while the shard is served: a timer of theirs may be due."""
        while shard.unread and shard.moved is None:
            try:
                iids = list(islice(shard.unread, READ_TOGETHER))
                await self._loader.load_all(shard, await self._store.get_runs(shard.id, iids))
                shard.unread.difference_update(iids)
            except ShardMoved:
                return
            except Unavailable as error:
                log.warning("runs.not_read_back", shard=shard.id, error=str(error))
                await asyncio.sleep(READ_AGAIN_SECONDS)

    # ---- a shard goes

    async def release(self, number: int) -> bool:
        """Hand a shard over in good order: decide nothing more, store what is decided, and say so in the store: anybody
        may claim it from then on. False when it was not owned (any more)."""
        shard = self.shards.get(number)
        if shard is None:
            return False
        self._leave(shard, self.moved(number))
        self.leaving[number] = shard
        try:
            await self._lane.durable(shard)
            return await self._store.claim(number, shard.epoch, "") is not None
        except ShardMoved:
            return False
        finally:
            self.leaving.pop(number, None)
            self._lose(shard)

    def drop(self, number: int, error: Coded) -> None:
        """Another owner has the shard: what was decided and is not durable never will be."""
        shard = self.shards.get(number) or self.leaving.get(number)
        if shard is not None:
            self._leave(shard, error)
            self.leaving.pop(number, None)
            self._lose(shard)

    def fenced(self, shard: Shard, error: Coded) -> bool:
        """The store has refused an append of the shard. False when that is the end, as nobody else should be there."""
        if not self._is_shared:
            return False
        log.warning("shard.fenced", shard=shard.id, epoch=shard.epoch, error=str(error))
        self.drop(shard.id, error)
        return True

    def _leave(self, shard: Shard, error: Coded) -> None:
        if shard.moved is None:
            shard.moved = error
            del self.shards[shard.id]
            self.on_left(shard)

    def _lose(self, shard: Shard) -> None:
        if shard.lost is None:
            shard.lost = shard.moved
            self._lane.give_up(shard)

    # ---- what the store says

    async def confirm(self, within: float) -> None:
        """Have the store confirm, not longer than `within` seconds ago, that the shards here are still this owner's: those
        that are not are dropped. Who is alone on its store has nothing to ask."""
        if self._is_shared and asyncio.get_running_loop().time() - self.confirmed_at > within:
            began = asyncio.get_running_loop().time()
            self.compare(await self._store.owners(), began)

    def compare(self, owners: Sequence[tuple[int, int, str]], asked_at: float) -> None:
        """Drop the shards that the store, asked at that loop time, says are another owner's."""
        for number, epoch, owner in owners:
            shard = self.shards.get(number)
            if shard is not None and epoch > shard.epoch:
                log.warning("shard.taken", shard=number, epoch=shard.epoch, by=owner, at=epoch)
                self.drop(number, self.moved(number))
        self.confirmed_at = max(self.confirmed_at, asked_at)

    def moved(self, number: int) -> ShardMoved:
        """Why nothing is decided here for a shard of that number, with its owner as far as is known."""
        owner, address = self.locate(number)
        context = {"shard": number, "owner": owner, "address": address}
        where = f": {owner or 'somebody'} at {address} does" if address else ""
        return ShardMoved(f"this orchestrator does not own shard {number}{where}", context)

    async def stop(self) -> None:
        """Read nothing more back."""
        await self._background.stop()


def _ignore(_: Shard) -> None:
    """Until the real one is set."""


def _nowhere(_: int) -> tuple[str, str]:
    return "", ""
