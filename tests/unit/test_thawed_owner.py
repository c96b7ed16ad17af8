"""An orchestrator that was stopped for a while and goes on: it is a member again, and is given shards."""

from __future__ import annotations

import pytest

from onexflow.engine.placement import MOVE_SECONDS, SETTLED_SECONDS
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
