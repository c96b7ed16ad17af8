"""How fast an orchestrator takes the shards of one that is gone, and what does not hurry it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from onexflow.core.errors import StoreUnavailable
from onexflow.engine.catalog import Catalog
from onexflow.engine.kernel import Kernel
from onexflow.engine.placement import CLAIMS_TOGETHER, Placement, homes, ranking
from onexflow.ports.event_store import EventStore
from onexflow.ports.registry import MemberEvent, NodeRecord, Registry
from onexflow.testing.clock import virtual_time

SHARDS = 20
#: What one claim takes.
CLAIM_SECONDS = 0.02


class Cluster:
    """A store whose shards are all `b`'s, a registry with `b` and `c` in it, and the placement of `a`, alone in its ranking
    once both are dead."""

    def __init__(self, probe: Callable[[str], Awaitable[str | None]]) -> None:
        self.owners = dict.fromkeys(range(SHARDS), (1, "b"))
        self.members = [record("b")]
        self.claimed: list[float] = []
        self.under_way = self.most = 0
        self.failing = False
        self.tell: Callable[[MemberEvent], None] = lambda _: None
        store = SimpleNamespace(shards=SHARDS, owners=self._ask)
        claims = SimpleNamespace(compare=lambda *_: None, claim=self._claim)
        kernel = SimpleNamespace(store=store, shards={}, claims=claims)
        registry = SimpleNamespace(members=lambda _: self.members, subscribe=self._subscribe)
        self.placement = Placement(
            cast("Kernel", kernel),
            cast("Registry", registry),
            SimpleNamespace(probe=probe),
            orchestrator_id="a",
            incarnation="a",
            lease_ttl=5.0,
            serve=lambda _: None,
            announce=self._announce,
        )

    async def _ask(self) -> list[tuple[int, int, str]]:
        return [(shard, *owner) for shard, owner in self.owners.items()]

    async def _claim(self, number: int, epoch: int, owner: str) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(CLAIM_SECONDS)
        self.under_way -= 1
        if self.failing:
            raise StoreUnavailable("the store is away")
        assert self.owners[number][0] == epoch
        self.owners[number] = (epoch + 1, owner)
        self.claimed.append(asyncio.get_running_loop().time())
        return SimpleNamespace(id=number, epoch=epoch + 1)

    def _subscribe(self, tell: Callable[[MemberEvent], None]) -> Callable[[], None]:
        self.tell = tell
        return lambda: None

    async def _announce(self) -> None:
        pass

    def expire(self, name: str) -> None:
        gone = next(one for one in self.members if one.node_id == name)
        self.members.remove(gone)
        self.tell(MemberEvent(type="down", record=gone))


def record(name: str) -> NodeRecord:
    return NodeRecord(kind="orchestrator", node_id=name, incarnation=name, address=f"{name}:1", liveness=name)


async def passes(seconds: float) -> None:
    await asyncio.sleep(seconds)  # virtual


@virtual_time
async def test_shards_of_a_peer_that_refuses_are_taken_within_300_ms_and_several_at_a_time() -> None:
    dead: set[str] = set()

    async def probe(address: str) -> str | None:
        return None if address in dead else address

    cluster = Cluster(probe)
    cluster.placement.start()
    await passes(3.03)
    assert not cluster.claimed
    dead.add("b")
    began = asyncio.get_running_loop().time()
    await passes(2.0)
    await cluster.placement.stop()
    assert len(cluster.claimed) == SHARDS
    assert max(cluster.claimed) - began < 0.3
    assert cluster.most == CLAIMS_TOGETHER


@virtual_time
async def test_a_peer_whose_probe_hangs_does_not_delay_what_the_registry_says() -> None:
    async def probe(address: str) -> str | None:
        await asyncio.Event().wait()
        return address

    cluster = Cluster(probe)
    cluster.placement.start()
    await passes(3.03)
    cluster.expire("b")
    began = asyncio.get_running_loop().time()
    await passes(2.0)
    await cluster.placement.stop()
    assert len(cluster.claimed) == SHARDS
    assert max(cluster.claimed) - began < 0.1


@virtual_time
async def test_word_of_a_death_that_comes_during_a_look_is_not_left_for_a_later_one() -> None:
    async def probe(address: str) -> str | None:
        return address

    cluster = Cluster(probe)
    first = next(shard for shard in range(SHARDS) if ranking(shard, SHARDS, ["a", "b"])[0] == "a")
    cluster.owners[first] = (1, "c")
    cluster.members.append(record("c"))
    cluster.placement.start()
    await passes(3.03)
    cluster.expire("c")
    await passes(CLAIM_SECONDS / 2)  # its shard is being claimed
    assert cluster.under_way == 1
    cluster.expire("b")
    began = asyncio.get_running_loop().time()
    await passes(2.0)
    await cluster.placement.stop()
    assert len(cluster.claimed) == SHARDS
    assert max(cluster.claimed) - began < 0.1


@virtual_time
async def test_when_all_peers_refuse_nothing_is_proven_whichever_answers_first() -> None:
    async def probe(address: str) -> str | None:
        if address == "c":
            await asyncio.sleep(0.1)
        return None

    cluster = Cluster(probe)
    cluster.members.append(record("c"))
    cluster.placement.start()
    await passes(10.0)
    await cluster.placement.stop()
    assert not cluster.claimed


@virtual_time
async def test_claims_that_fail_are_made_again_at_the_next_look() -> None:
    async def probe(address: str) -> str | None:
        return address

    cluster = Cluster(probe)
    cluster.placement.start()
    await passes(1.0)
    cluster.failing = True
    cluster.expire("b")
    await passes(1.0)
    assert not cluster.claimed
    assert cluster.placement.free_since(0) is not None
    cluster.failing = False
    await passes(1.0)
    await cluster.placement.stop()
    assert len(cluster.claimed) == SHARDS
    assert cluster.placement.free_since(0) is None


@virtual_time
async def test_a_takeover_reads_the_definitions_once_for_all_who_ask_before_it_begins() -> None:
    began: list[float] = []
    failing = False

    async def load_definitions() -> list[Any]:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        if failing:
            raise StoreUnavailable("the store is away")
        return []

    catalog = Catalog(cast("EventStore", SimpleNamespace(load_definitions=load_definitions)), lambda: 0)
    first = [asyncio.ensure_future(catalog.refresh()) for _ in range(10)]
    await passes(0.05)
    assert len(began) == 1
    # Who asks now may know of a definition that the load under way has missed.
    later = [asyncio.ensure_future(catalog.refresh()) for _ in range(10)]
    later[0].cancel()
    await asyncio.gather(*first)
    assert not any(one.done() for one in later[1:])
    await asyncio.gather(*later[1:])
    assert len(began) == 2
    failing = True
    for outcome in await asyncio.gather(*(catalog.refresh() for _ in range(3)), return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable)
    failing = False
    await catalog.refresh()
    assert len(began) == 4


@pytest.mark.parametrize(("shards", "count"), [(64, 2), (64, 3), (64, 9), (64, 12), (8, 3), (8, 5), (3, 5), (256, 10)])
def test_each_member_gets_its_even_part_and_one_that_comes_moves_little_else(shards: int, count: int) -> None:
    members = [f"member-{number}" for number in range(count)]
    before, after = homes(shards, members), homes(shards, [*members[::-1], "new"])
    for home, names in ((before, members), (after, [*members, "new"])):
        parts = [home.count(name) for name in names]
        assert max(parts) - min(parts) <= 1
        for shard in range(shards):
            assert ranking(shard, shards, names)[0] == home[shard]
            assert sorted(ranking(shard, shards, names)) == sorted(names)
    moved = [shard for shard in range(shards) if before[shard] != after[shard]]
    assert len(moved) <= after.count("new") + max(shards // 10, 5)
