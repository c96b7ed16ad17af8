"""A client that is started with its cluster: `python -m benchmarks.bench.first_result ADDRESS` says "done" when it has its
first result."""

from __future__ import annotations

import asyncio
import sys

import onexflow


async def main(address: str) -> None:
    flow = onexflow.workflow("bench-first")
    flow.compute("only", handler="noop", input="input")
    async with await onexflow.connect(address, timeout=30.0) as client:
        await client.register(flow.build())
        await client.run("bench-first", input={})
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
