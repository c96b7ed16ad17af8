"""A program: an orchestrator with a worker over real gRPC; prints its address, ends with its standard input."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import onexflow
from support.grpc_cluster import grpc_cluster

HANDLERS = ("greet", "hang", "fail")


def make_worker() -> onexflow.Worker:
    worker = onexflow.Worker("w")

    @worker.effect("greet", idempotent=True)
    async def greet(contract: Any) -> str:
        return f"hello {contract.name}"

    @worker.effect("hang", idempotent=True)
    async def hang(contract: Any) -> None:
        await asyncio.Event().wait()

    @worker.effect("fail")
    async def fail(contract: Any) -> None:
        raise onexflow.Fatal("no")

    return worker


async def main() -> None:
    async with grpc_cluster(make_worker()) as client:
        for name in HANDLERS:
            flow = onexflow.workflow(name)
            flow.effect("a", handler=name)
            await client.register(flow.build())
        print(f"address {client._channels.addresses[0]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
