"""An orchestrator that was stopped for a while and goes on: it is a member again, and is given shards."""

from __future__ import annotations

import pytest

from onexflow.engine.placement import MOVE_AGAIN_SECONDS, MOVE_SECONDS, SETTLED_SECONDS
from onexflow.testing.clock import virtual_time
from onexflow.testing.multi_cluster import MultiCluster


@pytest.mark.parametrize("stopped", [3.0, 7.0, 10.0, 60.0])
@virtual_time
async def test_a_thawed_orchestrator_is_given_shards_again(stopped: float) -> None:
    async with MultiCluster(seed=1) as cluster:
        for name in "abc":
            await cluster.add_orchestrator(name)
        await cluster.settled()
        before = len((await cluster.owned())["c"])
        for _ in range(3):  # and again: nothing of the last time stays
            cluster.freeze("c")
            await cluster.clock.sleep(stopped)
            cluster.thaw("c")
            await cluster.clock.sleep(SETTLED_SECONDS + (before + 1) * (MOVE_SECONDS + 0.5))
            await cluster.settled()
            assert len((await cluster.owned())["c"]) == before


@virtual_time
async def test_one_that_loses_its_membership_over_and_over_is_given_shards_when_that_ends() -> None:
    """A registry that breaks its connection again and again: while it does, the others leave it alone."""
    async with MultiCluster(seed=1) as cluster:
        for name in "abc":
            await cluster.add_orchestrator(name)
        await cluster.settled()
        before = len((await cluster.owned())["c"])
        member = cluster.members["c"]
        for _ in range(4):
            cluster.hub.cut(member.registry)
            await cluster.clock.sleep(7.0)
            cluster.hub.heal(member.registry)
            await cluster.clock.sleep(2.0)
        await cluster.clock.sleep(SETTLED_SECONDS + (before + 1) * (MOVE_SECONDS + 0.5))
        await cluster.settled()
        assert len((await cluster.owned())["c"]) == before


@virtual_time
async def test_a_shard_that_its_new_home_does_not_claim_comes_back_and_stays_for_a_while() -> None:
    """The two do not agree whose it is: it is not to wander between them."""
    async with MultiCluster(seed=1) as cluster:
        await cluster.add_orchestrator("a")
        await cluster.settled()
        await cluster.add_orchestrator("b")
        other = cluster.members["b"].engine._ownership._placement
        assert other is not None
        other.is_suspended = True
        began = cluster.clock.monotonic()
        await cluster.clock.sleep(SETTLED_SECONDS + 30.0)
        await cluster.settled()
        assert list(await cluster.owned()) == ["a"]
        epochs = [epoch for _, epoch, _ in await cluster.store.owners()]
        assert sorted(epochs) == [1, 1, 1, 1, 3, 3, 3, 3], "four were handed over, once each"
        other.is_suspended = False
        await cluster.clock.sleep(began + SETTLED_SECONDS + MOVE_AGAIN_SECONDS + 30.0 - cluster.clock.monotonic())
        await cluster.settled()
        assert len((await cluster.owned())["b"]) == 4
