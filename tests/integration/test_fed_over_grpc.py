"""A fed reducer over real streams: small items and large ones, on a worker of its own."""

from __future__ import annotations

from typing import Any

import onexflow
from onexflow.worker.context import Context
from support.grpc_cluster import grpc_cluster


async def test_items_reach_the_fold_over_grpc_while_they_come() -> None:
    computes, reduces = onexflow.Worker("computes"), onexflow.Worker("reduces")
    done = first = 0

    @computes.compute("item")
    async def item(number: int) -> Any:
        nonlocal done
        done += 1
        return {"number": number, "text": "x" * (300_000 if number % 50 == 1 else 10)}

    @reduces.reducer("total")
    async def total(limits: Any, ctx: Context) -> Any:
        nonlocal first
        result = 0
        async for index, value in ctx.items():
            first = first or done
            assert value.number == index
            result += len(value.text)
        return {"sum": result, "limits": limits}

    flow = onexflow.workflow("fed")
    items = flow.compute("item", map="input.numbers")
    flow.reducer("total", feed=True, depends_on=[items], input="input.limits")
    count = 2_000
    async with grpc_cluster(computes, reduces) as client:
        await client.register(flow.build())
        answer = await client.run("fed", {"numbers": list(range(count)), "limits": [1, 2]})
    assert answer == {"sum": 40 * 300_000 + (count - 40) * 10, "limits": [1, 2]}
    assert 0 < first < count
