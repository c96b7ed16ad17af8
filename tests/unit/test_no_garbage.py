"""Calls leave nothing for the cycle collector: its looks at everything that is alive would be the cost of every call."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from onexflow.ports.client_link import StartRequest
from onexflow.testing import Cluster, virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from support.engine_kit import Script, ready, single
from unit.test_shard_ownership import three

CALLS = 200
#: Objects in cycles, a call.
MOST = 0.5


async def garbage(work: Callable[[int], Awaitable[Any]]) -> tuple[float, Counter[str]]:
    """Objects in cycles that so many calls leave, a call; and what they are."""
    for number in range(20):
        await work(number)
    await asyncio.sleep(1)
    gc.collect()
    gc.disable()
    try:
        for number in range(CALLS):
            await work(number)
        await asyncio.sleep(1)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = Counter(type(found).__qualname__ for found in gc.garbage)
        return sum(kinds.values()) / CALLS, kinds
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def started(engine: Any, **fields: Any) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    engine.start_run(StartRequest(workflow_type="single", instance_id=uuid4(), wait=True, **fields), answer.set_result)
    return await answer


@virtual_time
async def test_a_run_leaves_nothing() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        left, kinds = await garbage(lambda number: cluster.run("single", number))
    assert left < MOST, kinds


@virtual_time
async def test_a_call_that_is_passed_on_leaves_nothing() -> None:
    script = Script()
    async with MultiCluster(seed=3) as cluster:
        await three(cluster, script, single("compute", "calc"))
        gateway = next(iter(cluster.members.values())).engine.gateway
        left, kinds = await garbage(lambda _: started(gateway))
    assert left < MOST, kinds
