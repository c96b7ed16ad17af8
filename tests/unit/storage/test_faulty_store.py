"""The shim does to appends what it says."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.core.errors import StoreFull, StoreUnavailable
from onexflow.storage.memory import MemoryStore
from onexflow.testing.conformance.event_store import EventStoreSuite
from onexflow.testing.conformance.store_kit import one_row
from onexflow.testing.faults.store import Fault, FaultyStore
from support.store_clock import SettableClock


@pytest.fixture
async def store():
    store = FaultyStore(MemoryStore(SettableClock()))
    await store.open()
    await store.claim(0, 0, "me")
    return store


async def test_what_is_held_waits_until_released(store: FaultyStore) -> None:
    store.hold()
    append = asyncio.create_task(store.append([one_row(0, 1, 1)]))
    await store.wait_held()
    assert await store.read_shard(0, 1) == []
    store.release()
    assert (await append).stored == {0}
    assert store.waiting == 0
    await store.wait_asked(1)


@pytest.mark.parametrize(
    ("fault", "error", "stored", "fatal"),
    [
        (Fault.FULL, StoreFull, 0, False),
        (Fault.LOST, StoreUnavailable, 0, False),
        (Fault.UNANSWERED, StoreUnavailable, 1, False),
        (Fault.FATAL, StoreUnavailable, 0, True),
    ],
)
async def test_faults(store: FaultyStore, fault: Fault, error: type[Exception], stored: int, fatal: bool) -> None:
    store.fail(fault)
    with pytest.raises(error) as raised:
        await store.append([one_row(0, 1, 1)])
    assert bool(raised.value.context.get("fatal")) is fatal  # type: ignore[attr-defined]  # ours all have one
    assert len(await store.read_shard(0, 1)) == stored
    again = await store.append([one_row(0, 1, 1)])
    assert again.stored == (set() if stored else {0})


async def test_a_lasting_fault_lasts_until_healed(store: FaultyStore) -> None:
    store.fail(Fault.FULL, times=None)
    for _ in range(3):
        with pytest.raises(StoreFull):
            await store.append([one_row(0, 1, 1)])
    store.heal()
    assert (await store.append([one_row(0, 1, 1)])).stored == {0}


async def test_a_power_cut_loses_what_waits_and_ends_the_process(store: FaultyStore) -> None:
    store.hold()
    append = asyncio.create_task(store.append([one_row(0, 1, 1)]))
    await store.wait_held()
    store.cut_power()
    with pytest.raises(StoreUnavailable):
        await append
    with pytest.raises(StoreUnavailable):
        await store.read_shard(0, 1)
    successor = FaultyStore(store.inner)
    await successor.open()
    assert await successor.read_shard(0, 1) == []


class TestTheShimItself(EventStoreSuite):
    """Without faults it is a store like any other."""

    @pytest.fixture
    def stores(self):
        clock = SettableClock()
        inner = MemoryStore(clock)

        class Stores:
            def make(self):
                return FaultyStore(inner)

            async def fill(self, store):
                inner.capacity = 1 << 10

            async def free(self, store):
                inner.capacity = None

            def set_clock(self, nanoseconds):
                clock.value = nanoseconds

        return Stores()
