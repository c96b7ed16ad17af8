"""How long a call waits for the owner of its shard, and how often it looks for him meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from onexflow.core.errors import ShardMoved, Unavailable
from onexflow.engine.routing import LOOK_SECONDS, PATIENCE, Router
from onexflow.testing.clock import virtual_time


class Nobody:
    """Owns nothing, and says that another one does, or that nobody does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.looks: list[float] = []
        self.whereabouts = self

    async def ask(self) -> None:
        self.looks.append(asyncio.get_running_loop().time())
        raise ShardMoved("elsewhere", {"address": self.address, "shard": 3})

    def owner_address(self, number: int) -> str:
        return self.address


class Gone:
    async def ask(self) -> None:
        raise Unavailable("nobody is there")


@pytest.mark.parametrize("address", ["", "other:1"], ids=["no-owner", "owner-does-not-answer"])
def test_a_call_waits_ten_seconds_and_looks_less_often_the_longer_it_waits(address: str) -> None:
    @virtual_time
    async def scenario() -> None:
        local = Nobody(address)
        router = Router(cast(Any, local), lambda _: cast(Any, Gone()), lambda: False, lambda: None)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await router.ask(lambda peer: cast(Any, peer).ask())
        waited = asyncio.get_running_loop().time() - began
        assert PATIENCE <= waited < PATIENCE + 1.5
        gaps = [later - sooner for sooner, later in zip(local.looks, local.looks[1:], strict=False)]
        assert gaps[0] == pytest.approx(LOOK_SECONDS)
        assert gaps == sorted(gaps)
        assert len(local.looks) < 30

    scenario()


@virtual_time
async def test_an_owner_who_had_it_for_a_while_gives_a_waiting_call_its_patience_back() -> None:
    """Which looks for him as often as at first, and is not taken for one that has waited all the time."""
    local = Nobody("other:1")
    asked = 0

    class Slow:
        async def ask(self) -> None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(8)
            raise Unavailable("it has handed the shard over")

    router = Router(cast(Any, local), lambda _: cast(Any, Slow()), lambda: False, lambda: None)
    asking = asyncio.ensure_future(router.ask(lambda peer: cast(Any, peer).ask()))
    await asyncio.sleep(60)
    assert not asking.done()
    assert 6 <= asked <= 8
    asking.cancel()
