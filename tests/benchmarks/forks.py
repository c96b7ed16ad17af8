"""How many programs begin that a process starts on uvloop while its gRPC streams are busy: docs/decisions/0014.

    [GRPC_ENABLE_FORK_SUPPORT=0] [GRPC_EXPERIMENTS=…] PYTHONPATH=tests python tests/benchmarks/forks.py [SECONDS]

Prints exit codes and how often each came: 0 is a program that ran, -11 one that ended with SIGSEGV before it began.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from typing import Any, Final

import grpc
import uvloop

STREAMS: Final = 12
METHOD: Final = "/bench/Echo"


class _Echo(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(_echo)


async def _echo(_: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def _talk(channel: Any) -> None:
    call = channel.stream_stream(METHOD)()
    while True:
        await call.write(bytes(100))
        await call.read()


async def main(seconds: float) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    codes: Counter[int] = Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        talks = [asyncio.ensure_future(_talk(channel)) for _ in range(STREAMS)]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            process = await asyncio.create_subprocess_exec("true")
            codes[await process.wait()] += 1
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
    await server.stop(0.0)
    settings = {name: os.environ.get(name) for name in ("GRPC_ENABLE_FORK_SUPPORT", "GRPC_EXPERIMENTS")}
    print(f"grpcio {grpc.__version__}, {settings}: exit codes {dict(sorted(codes.items()))}")


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
