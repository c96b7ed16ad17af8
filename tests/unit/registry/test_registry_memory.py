"""What the in-memory registry can do beside the port: be cut off and come back, with its content or without."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from memory_registry_support import MemoryHarness
from onexflow.core.errors import RegistryUnavailable
from onexflow.ports.registry import MemberEvent, ShardAnnouncement
from onexflow.testing.conformance.registry import node


@pytest.fixture
async def harness() -> AsyncIterator[MemoryHarness]:
    harness = MemoryHarness()
    yield harness
    for registry in harness.registries:
        await registry.close()


async def test_cut_off_for_less_than_a_lease_nobody_notices(harness: MemoryHarness) -> None:
    one, two = await harness.started(), await harness.started()
    await one.register(node())
    await harness.pass_time(0.1)
    seen: list[MemberEvent] = []
    two.subscribe(seen.append)
    harness.hub.cut(one)
    assert not one.health().connected
    await harness.pass_time(3.0)
    harness.hub.heal(one)
    await harness.pass_time(10.0)
    assert not seen
    assert list(two.members()) == [node()]


async def test_cut_off_for_longer_what_was_asked_meanwhile_is_done_after(harness: MemoryHarness) -> None:
    one, two = await harness.started(), await harness.started()
    await one.register(node())
    harness.hub.cut(one)
    await one.register(node("w2"))
    await one.announce([ShardAnnouncement(shard=1, owner="w1", epoch=1)])
    await harness.until(lambda: not two.members())
    assert list(one.members()) == [node()]
    harness.hub.heal(one)
    await harness.until(lambda: len(two.members()) == 2)
    assert [item.shard for item in await two.announcements()] == [1]


async def test_a_wiped_hub_is_filled_again_and_nobody_hears_of_deaths(harness: MemoryHarness) -> None:
    one, two, gone = [await harness.started() for _ in range(3)]
    await one.register(node())
    await gone.register(node("gone"))
    await harness.pass_time(0.1)
    seen: list[MemberEvent] = []
    two.subscribe(seen.append)
    await gone.crash()
    harness.hub.wipe()
    await harness.pass_time(harness.hub.ttl)
    assert not seen
    assert len(two.members()) == 2
    await harness.pass_time(2.0)
    assert [(event.type, event.record.node_id) for event in seen] == [("down", "gone")]
    assert list(two.members()) == [node()]


async def test_all_cut_off_for_long_and_back(harness: MemoryHarness) -> None:
    """Every lease has ended, and no process has: nobody hears of a death."""
    one, two = await harness.started(), await harness.started()
    await one.register(node())
    await harness.pass_time(0.1)
    seen: list[MemberEvent] = []
    two.subscribe(seen.append)
    for registry in (one, two):
        harness.hub.cut(registry)
    await harness.pass_time(20.0)
    harness.hub.heal(two)
    await harness.pass_time(1.0)
    harness.hub.heal(one)
    await harness.pass_time(20.0)
    assert not seen
    assert list(two.members()) == [node()]


async def test_revoked_while_cut_off_is_revoked_after(harness: MemoryHarness) -> None:
    one, two, dead = [await harness.started() for _ in range(3)]
    await dead.register(node())
    await harness.pass_time(0.1)
    await dead.crash()
    harness.hub.cut(one)
    await one.revoke(node())
    assert not one.members()
    assert two.members()
    harness.hub.heal(one)
    await harness.until(lambda: not two.members())


async def test_starting_while_cut_off_is_refused(harness: MemoryHarness) -> None:
    one = await harness.open()
    harness.hub.cut(one)
    with pytest.raises(RegistryUnavailable):
        await one.start()
