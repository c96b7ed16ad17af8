"""What a shard's checkpoint says while its runs are still being read back."""

from __future__ import annotations

from onexflow.engine.shard import Shard
from onexflow.ports.event_store import ParkedRecord
from onexflow.storage.memory import MemoryStore
from onexflow.testing import VirtualClock, virtual_time


@virtual_time
async def test_no_checkpoint_is_written_before_the_runs_of_the_owner_before_are_read_back() -> None:
    """It would name those that are in memory, and whoever takes the shard next would never hear of the others."""
    store = MemoryStore(VirtualClock())
    await store.open()
    claim = await store.claim(0, 0, "a")
    assert claim is not None
    shard = Shard(claim, lambda _: None)
    shard.next += 2  # events of a run that was started meanwhile
    shard.pending.parked[7] = ParkedRecord(7, 0, "")
    early = shard.take(100.0)
    assert early.checkpoint is None
    assert not early.parked, "who was parked is found by its parked row until there is a checkpoint that names it"

    shard.early = None
    shard.next += 1
    whole = shard.take(101.0)
    assert whole.checkpoint is not None
    assert whole.checkpoint.offset == shard.next
    assert [one.iid for one in whole.parked] == [7]
