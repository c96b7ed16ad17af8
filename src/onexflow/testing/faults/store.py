"""FaultyStore: a shim over any event store that holds, fails or cuts off what is written.

`kill -9` proves nothing about fsync, since the kernel keeps what was written. A power cut is this: the append has
been asked for, nothing of it is on the disk, and the process is gone (`hold`, then `cut_power`; then open a new
FaultyStore over the same inner store).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from enum import Enum

from onexflow.core.errors import Coded, StoreFull, StoreUnavailable
from onexflow.ports.event_store import (
    AppendOutcome,
    CheckpointRecord,
    DefinitionRecord,
    EventStore,
    ParkedRecord,
    RegisterRecord,
    RequestRecord,
    Row,
    RunCount,
    RunFilter,
    RunPage,
    RunRecord,
    ShardAppend,
    ShardClaim,
    SnapshotRecord,
    StoredRun,
    Tombstone,
)


class Fault(Enum):
    """What happens to an append."""

    FULL = "full"  #: nothing stored, StoreFull: known not to be stored
    LOST = "lost"  #: nothing stored, StoreUnavailable: the caller cannot know
    UNANSWERED = "unanswered"  #: stored, StoreUnavailable: the caller cannot know
    FATAL = "fatal"  #: nothing stored, the disk has failed: the process must end


class FaultyStore:
    """`ports.EventStore` over `inner`. Reads and claims pass, until the power is cut."""

    def __init__(self, inner: EventStore) -> None:
        self.inner = inner
        #: Every batch that was asked for, in order.
        self.asked: list[Sequence[ShardAppend]] = []
        #: Number of appends that wait at the moment.
        self.waiting = 0
        self._faults: deque[Fault] = deque()
        self._every: Fault | None = None
        self._cut = False
        self._free = asyncio.Event()
        self._free.set()
        self._changed = asyncio.Condition()

    # ----------------------------------------------------------------------------------------------- the faults

    def hold(self) -> None:
        """From now on appends wait, before anything is stored."""
        self._free.clear()

    def release(self) -> None:
        """Let the waiting appends go on."""
        self._free.set()

    def fail(self, fault: Fault, times: int | None = 1) -> None:
        """Fail the next `times` appends; None: all, until `heal`."""
        if times is None:
            self._every = fault
        else:
            self._faults.extend([fault] * times)

    def heal(self) -> None:
        """No more failures, and nothing is held."""
        self._faults.clear()
        self._every = None
        self.release()

    def cut_power(self) -> None:
        """End this store's process: what waits is not stored, and nothing passes any more. `inner` lives on."""
        self._cut = True
        self._free.set()

    async def wait_asked(self, count: int) -> None:
        """Return when `count` appends were asked for since the beginning."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.asked) >= count)

    async def wait_held(self, count: int = 1) -> None:
        """Return when `count` appends wait."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.waiting >= count)

    # ------------------------------------------------------------------------------------------------- the port

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        self._powered()
        self.asked.append(batch)
        await self._waits(1)
        try:
            await self._free.wait()
        finally:
            await self._waits(-1)
        self._powered()
        fault = self._faults.popleft() if self._faults else self._every
        if fault is None:
            return await self.inner.append(batch)
        if fault is Fault.UNANSWERED:
            await self.inner.append(batch)
        raise _error(fault)

    async def _waits(self, change: int) -> None:
        self.waiting += change
        async with self._changed:
            self._changed.notify_all()

    def _powered(self) -> None:
        if self._cut:
            raise StoreUnavailable("The power was cut.", {"fatal": True})

    @property
    def shards(self) -> int:
        return self.inner.shards

    async def open(self) -> None:
        self._powered()
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    def now(self) -> int:
        return self.inner.now()

    async def owners(self) -> Sequence[tuple[int, int, str]]:
        self._powered()
        return await self.inner.owners()

    async def heads(self) -> dict[int, int]:
        self._powered()
        return await self.inner.heads()

    async def claim(self, shard: int, epoch: int, owner: str) -> ShardClaim | None:
        self._powered()
        return await self.inner.claim(shard, epoch, owner)

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        self._powered()
        return await self.inner.read_shard(shard, offset, limit)

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        self._powered()
        return await self.inner.read_run(shard, iid, from_seq, limit)

    async def find_run(self, shard: int, key: bytes) -> RunRecord | None:
        self._powered()
        return await self.inner.find_run(shard, key)

    async def get_runs(self, shard: int, iids: Sequence[int]) -> list[RunRecord]:
        self._powered()
        return await self.inner.get_runs(shard, iids)

    async def list_runs(self, where: RunFilter, cursor: str = "", limit: int = 100) -> RunPage:
        self._powered()
        return await self.inner.list_runs(where, cursor, limit)

    async def count_runs(self, where: RunFilter) -> list[RunCount]:
        self._powered()
        return await self.inner.count_runs(where)

    async def load_snapshot(self, shard: int, iid: int, max_seq: int | None = None) -> SnapshotRecord | None:
        self._powered()
        return await self.inner.load_snapshot(shard, iid, max_seq)

    async def load_checkpoint(self, shard: int) -> CheckpointRecord | None:
        self._powered()
        return await self.inner.load_checkpoint(shard)

    async def due_parked(self, shard: int, until: int, limit: int = 1024) -> list[ParkedRecord]:
        self._powered()
        return await self.inner.due_parked(shard, until, limit)

    async def get_parked(self, shard: int, iid: int) -> ParkedRecord | None:
        self._powered()
        return await self.inner.get_parked(shard, iid)

    async def read_back(self, shard: int, iids: Sequence[int], limit: int = 64) -> list[StoredRun]:
        self._powered()
        return await self.inner.read_back(shard, iids, limit)

    async def get_register(self, shard: int, name: str) -> bytes | None:
        self._powered()
        return await self.inner.get_register(shard, name)

    async def list_registers(
        self, shard: int, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[RegisterRecord]:
        self._powered()
        return await self.inner.list_registers(shard, prefix, after, limit)

    async def find_register(self, name: str) -> list[tuple[int, bytes]]:
        self._powered()
        return await self.inner.find_register(name)

    async def tombstones(self, shard: int, from_offset: int = 0, iid: int = 0) -> list[Tombstone]:
        self._powered()
        return await self.inner.tombstones(shard, from_offset, iid)

    async def find_request(self, shard: int, namespace: str, request_id: str) -> RequestRecord | None:
        self._powered()
        return await self.inner.find_request(shard, namespace, request_id)

    async def forget_requests(self, before: int) -> int:
        self._powered()
        return await self.inner.forget_requests(before)

    async def save_definition(self, record: DefinitionRecord) -> DefinitionRecord:
        self._powered()
        return await self.inner.save_definition(record)

    async def load_definitions(self) -> list[DefinitionRecord]:
        self._powered()
        return await self.inner.load_definitions()

    async def statistics(self) -> dict[str, int]:
        self._powered()
        return await self.inner.statistics()


def _error(fault: Fault) -> Coded:
    if fault is Fault.FULL:
        return StoreFull()
    if fault is Fault.FATAL:
        return StoreUnavailable("The disk has failed.", {"fatal": True})
    return StoreUnavailable()
