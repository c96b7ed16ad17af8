"""Asks an orchestrator for its health, again and again: `python -m benchmarks.bench.pulse ADDRESS` until its input ends.

Then it prints, as JSON, when each answer was asked for (`time.perf_counter`) and the ms until it was there. The answer is
given by the orchestrator's loop: it is as late as that is.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

EVERY: Final = 0.02


def main(address: str) -> None:
    found: list[tuple[float, float]] = []
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=20.0, wait_for_ready=True)
        print("asks", flush=True)
        while not select.select([sys.stdin], [], [], EVERY)[0]:
            began = time.perf_counter()
            stub.Check(health_pb2.HealthCheckRequest(), timeout=60.0)
            found.append((began, (time.perf_counter() - began) * 1e3))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
