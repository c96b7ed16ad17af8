"""The probe's worker: `python -m benchmarks.probe.worker PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from onexflow.app.tuning import loop_factory, poll_directly, settle_memory

from . import wire


def noop(_: bytes) -> bytes:
    """The smallest handler."""
    return b'{"ok":true}'


async def main(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(wire.WORKER)()
        await call.wait_for_connection()
        settle_memory()
        print("connected", flush=True)
        while (message := await call.read()) is not grpc.aio.EOF:
            await call.write(
                wire.encode([(number, step, noop(given)) for number, step, given in wire.tasks.decode(message)])
            )


if __name__ == "__main__":
    poll_directly()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(int(sys.argv[1])))
