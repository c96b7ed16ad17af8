"""The demo: a cluster, both larger examples, and one worker killed in the middle with `kill -9`.

`./scripts/demo` runs it. It starts the processes of a cluster file (two workers for effects, so that one can die), takes
orders and counts flights, kills a worker that is charging customers, and reports what became of everything. The exit
code is 0 when what docs/guarantees.md promises held.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

import onexflow
from onexflow.app import exits, launch
from onexflow.app.signals import StopSignals
from onexflow.app.supervisor import Supervisor
from onexflow.config import Cluster, load_cluster
from onexflow.examples import flight_delays, order_processing
from onexflow.examples.ledger import Ledger
from onexflow.examples.report import Kill, Orders, Report, render
from onexflow.telemetry import logging

ORDERS: Final = 80
#: Seconds that the payment provider takes: long enough to be interrupted.
PROVIDER_DELAY: Final = 0.3
#: Orders that are done when the worker is killed.
KILL_AFTER: Final = 10
#: Seconds in which everything must have come to its end.
DEADLINE: Final = 45.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser("demo", description="Run both examples, kill a worker, report what happened.")
    parser.add_argument("--cluster", type=Path, default=Path("cluster/local.toml"), help="the processes to start")
    parser.add_argument("--data", type=Path, default=Path(".onexflow/demo"), help="made anew: event log, logs, ledger")
    parser.add_argument("--orders", type=int, default=ORDERS, help="how many orders are taken")
    chosen = parser.parse_args(argv)
    try:
        cluster = load_cluster(chosen.cluster)
        shutil.rmtree(chosen.data, ignore_errors=True)
        chosen.data.mkdir(parents=True)
        os.environ["ONEXFLOW_LEDGER"] = str(chosen.data.resolve() / "ledger.sqlite")
        os.environ["ONEXFLOW_PROVIDER_DELAY"] = str(PROVIDER_DELAY)
        return asyncio.run(demo(cluster, chosen.data, chosen.orders))
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a line and an exit code
        return launch.report(error)


async def demo(cluster: Cluster, data: Path, orders: int) -> int:
    """Start the cluster, tell the story, print the report. What the processes inherit is in the environment."""
    logging.configure("error", "auto")
    supervisor = Supervisor(demo_cluster(cluster, data), report=lambda line: say(f"supervisor: {line}"))
    with StopSignals() as stop:
        try:
            say("starting etcd, an orchestrator and the workers …")
            began = time.monotonic()
            await supervisor.start()
            say(f"serving at {supervisor.address} after {time.monotonic() - began:.1f} s")
            telling = asyncio.create_task(_story(supervisor, orders))
            stopping = asyncio.create_task(stop.requested.wait())
            async with asyncio.timeout(DEADLINE):
                await asyncio.wait([telling, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not telling.done():
                telling.cancel()
                return exits.INTERRUPTED
            report = telling.result()
        finally:
            await supervisor.stop()
    print(render(report))
    print(f"Event log, ledger and logs of the processes: {data}/")
    return exits.OK if report.held else exits.FAILED


def demo_cluster(cluster: Cluster, data: Path) -> Cluster:
    """The cluster of the file on free ports, with files of its own, and two processes for effects."""
    workers = tuple(
        msgspec.structs.replace(worker, count=max(2, worker.count)) if "effect" in worker.roles else worker
        for worker in cluster.worker
    )
    orchestrators = tuple(msgspec.structs.replace(one, listen="127.0.0.1:0") for one in cluster.orchestrator)
    return msgspec.structs.replace(cluster, data=str(data), orchestrator=orchestrators, worker=workers)


async def _story(supervisor: Supervisor, orders: int) -> Report:
    async with await onexflow.connect(supervisor.address) as client:
        for example in (order_processing, flight_delays):
            await client.register(example.definition())
        say(f"{orders} orders and one month of flights, at the same time")
        began = time.monotonic()
        flights = asyncio.create_task(client.run(flight_delays.TYPE))
        handles = await asyncio.gather(*(_order(client, number) for number in range(orders)))
        results = [asyncio.create_task(handle.result()) for handle in handles]
        try:
            await _done(results, min(KILL_AFTER, orders))
            kill = await _kill(client, supervisor)
            await asyncio.wait(results)
            seconds = time.monotonic() - began
            figures = await flights
        finally:
            for task in (flights, *results):
                task.cancel()
        say("all ended; reading the histories")
        await _trace(kill, handles)
        return Report(
            orders=_count(results), kill=kill, flights=figures, seconds=seconds, processes=_processes(supervisor)
        )


async def _order(client: onexflow.Client, number: int) -> onexflow.RunHandle:
    order = {**order_processing.EXAMPLE_INPUT, "order_id": f"ORD-{number:03}"}
    return await client.start(order_processing.TYPE, order, correlation_id="demo")


async def _done(tasks: Sequence[asyncio.Task[Any]], count: int) -> None:
    """Return when so many of the tasks are done."""
    pending = set(tasks)
    while pending and len(tasks) - len(pending) < count:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)


async def _kill(client: onexflow.Client, supervisor: Supervisor) -> Kill:
    """`kill -9` the effect worker that is the busiest."""
    busy = [node for node in await client.nodes() if node.kind == "effect"]
    victim = max(busy, key=lambda node: node.running)
    process = next(worker for worker in supervisor.workers if worker.name == victim.node_id)
    assert process.pid is not None, "it was there a moment ago"
    kill = Kill(worker=victim.node_id, pid=process.pid, at=time.time_ns())
    os.kill(process.pid, signal.SIGKILL)
    say(f"kill -9 {process.pid}: {victim.node_id} is gone, with {victim.running} tasks in its hands")
    return kill


async def _trace(kill: Kill, handles: Sequence[onexflow.RunHandle]) -> None:
    """Read from the histories what the kill interrupted and when it went on."""
    for handle in handles:
        lost: dict[str, int] = {}
        for event in await handle.history():
            if event.type == "task.retry" and event.kind == "lost":
                kill.interrupted += 1
                lost[event.task] = event.timestamp
            elif event.type == "task.started" and event.task in lost:
                kill.noticed_after.append((lost.pop(event.task) - kill.at) / 1e6)
                kill.again_after.append((event.timestamp - kill.at) / 1e6)


def _count(results: Sequence[asyncio.Task[Any]]) -> Orders:
    failed = [str(task.exception()) for task in results if task.exception() is not None]
    ledger = Ledger()
    charges, reservations = ledger.totals("charge"), ledger.totals("reservation")
    return Orders(
        taken=len(results),
        completed=len(results) - len(failed),
        failures=failed,
        amount=sum(task.result()["amount"] for task in results if task.exception() is None),
        charges=charges,
        reservations=reservations,
    )


def _processes(supervisor: Supervisor) -> list[tuple[str, int, int]]:
    children = (*supervisor.orchestrators, *supervisor.workers)
    servers = [server for server in (supervisor.etcd, supervisor.postgres) if server is not None]
    return [
        *((server.name, server.pid or 0, 1) for server in servers),
        *((child.name, child.pid or 0, child.lives) for child in children),
    ]


_began = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - _began:5.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
