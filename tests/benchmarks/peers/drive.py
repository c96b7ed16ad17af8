"""Drives one peer through the workloads: `python -m benchmarks.peers.drive MODULE FOLDER OUTPUT`, the plan as its input.

The peer may write to FOLDER. Versions and figures go to OUTPUT, as JSON; a peer's own words go where they like.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .peer import Figures, Peer, Plan, Wait
from .tree import adopt_orphans, cpu_seconds, descendants, end, end_with_parent

WARM = 20  #: single tasks, before anything is measured


class Driver:
    """One peer that is ready, and the plan."""

    def __init__(self, peer: Peer, plan: Plan) -> None:
        self._peer = peer
        self._plan = plan
        self._processes = [os.getpid(), *plan.beside]

    def run(self) -> list[Figures]:
        """Rounds of all workloads, as many as were planned and begin in time."""
        began = time.perf_counter()
        self._in_flight(WARM, self._single)
        self._in_flight(1, self._chain)
        figures: list[Figures] = []
        for _ in range(self._plan.rounds):
            figures += self._round()
            if time.perf_counter() - began > self._plan.seconds:
                break
        return figures

    def _round(self) -> list[Figures]:
        plan = self._plan
        return [
            self._measure("W1 single", plan.singles, lambda: self._in_flight(plan.singles, self._single)),
            self._measure("W2 chain", plan.chains * plan.length, lambda: self._in_flight(plan.chains, self._chain)),
            self._measure("W3 fan", plan.width + 1, self._fan),
            self._measure("W4 latency", plan.samples, self._latencies),
        ]

    def _measure(self, workload: str, tasks: int, work: Callable[[], list[float]]) -> Figures:
        before, began = cpu_seconds(self._processes), time.perf_counter()
        latencies = work()
        seconds = time.perf_counter() - began
        return Figures(workload, tasks, seconds, (cpu_seconds(self._processes) - before) / tasks * 1e6, latencies)

    def _in_flight(self, total: int, start: Callable[[], Wait]) -> list[float]:
        """Start so many, the next one when the oldest of those in flight has ended. No single one is timed."""
        waits: deque[Wait] = deque()
        for _ in range(total):
            if len(waits) == self._plan.in_flight:
                waits.popleft()()
            waits.append(start())
        for wait in waits:
            wait()
        return []

    def _single(self) -> Wait:
        return self._peer.single(self._plan.payload)

    def _chain(self) -> Wait:
        return self._peer.chain(self._plan.payload, self._plan.length)

    def _fan(self) -> list[float]:
        results = self._peer.fan([self._plan.payload] * self._plan.width)()
        assert results == self._plan.width, results
        return []

    def _latencies(self) -> list[float]:
        latencies = []
        for _ in range(self._plan.samples):
            began = time.perf_counter()
            self._single()()
            latencies.append((time.perf_counter() - began) * 1e3)
        return sorted(latencies)


def main(module: str, folder: str, output: str) -> None:
    plan = Plan(**json.load(sys.stdin))
    adopt_orphans()
    end_with_parent()
    peer: Peer = importlib.import_module(f"benchmarks.peers.{module}").peer()
    try:
        try:
            versions = peer.prepare(Path(folder), plan.url)
            figures = Driver(peer, plan).run()
        finally:
            peer.stop()
        Path(output).write_text(json.dumps({"versions": versions, "figures": [asdict(one) for one in figures]}))
    finally:
        end(descendants(os.getpid()))


if __name__ == "__main__":
    main(*sys.argv[1:])
