"""`onex-worker --processes N`: workers in processes of their own under one parent, which starts again whichever dies.

The parent runs no handler and has no stream: it reads the settings, starts `onex-worker` with the same arguments once for
each, and waits. Its children are nodes like any other. They end with it, however it ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from onexflow.app import exits, system
from onexflow.app.processes import ChildProcess
from onexflow.app.signals import StopSignals
from onexflow.config import WorkerSettings
from onexflow.core.address import split_address
from onexflow.telemetry import logging

#: Seconds that a process has to stop, beyond its own drain time.
STOP_GRACE: Final = 5.0

_log = structlog.get_logger("onexflow.worker")


class Child(Protocol):
    """What is asked of `ChildProcess` here."""

    @property
    def said(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def exit_code(self) -> int | None: ...
    async def start(self) -> None: ...
    async def stop(self, within: float) -> None: ...


def number(settings: WorkerSettings) -> int:
    """How many processes the settings ask for."""
    return settings.processes or os.cpu_count() or 1


def arguments_of(settings: WorkerSettings, arguments: Sequence[str], name: str, index: int) -> list[str]:
    """The arguments of the process `index` (from 0) of the worker `name`: those of the parent, and what is its own."""
    own = ["--processes=1", f"--worker-id={name}-{index + 1}"]
    _, port = split_address(settings.liveness) or ("", 0)
    if port:
        own.append(f"--liveness={settings.liveness.rpartition(':')[0]}:{port + index}")
    if not settings.slots.compute:
        own.append(f"--slots-compute={-(-(os.cpu_count() or 1) // number(settings))}")
    given = list(arguments)
    place = given.index("--") if "--" in given else len(given)
    return [*given[:place], *own, *given[place:]]  # of a flag that is given twice the last counts


async def serve(settings: WorkerSettings, arguments: Sequence[str]) -> int:
    """Serve until a signal. Raises StartFailed, with its exit code, when a process ends before it has ever served."""
    name = settings.worker_id or f"worker-{system.host()}-{os.getpid()}"
    logging.configure(settings.log.level, settings.log.format, node=name)
    children = [
        ChildProcess(
            f"{name}-{index + 1}",
            ["onexflow.app.worker", *arguments_of(settings, arguments, name, index)],
            log=None,
            restart=True,
            report=lambda told: _log.warning("process.changed", told=told),
            on_change=_nothing,
        )
        for index in range(number(settings))
    ]

    def serving(roles: str) -> None:
        _log.info("worker.serving", modules=list(settings.modules), roles=roles, processes=len(children))
        print(f"onex-worker {name} serves {roles} in {len(children)} processes", flush=True)

    with StopSignals() as stop:
        code = await keep(children, stop.requested, settings.drain_timeout + STOP_GRACE, serving)
    _log.info("worker.stopped", reason=stop.reason)
    return code


async def keep(
    children: Sequence[Child], stop: asyncio.Event, stop_within: float, serving: Callable[[str], None]
) -> int:
    """Start them, say with their roles when all serve, and stop them when told to. Returns the exit code: FAILED when one
    that ran then did not end well by itself. Raises what kept one from its first start; then none runs any more."""
    starting = asyncio.create_task(_start(children), name="start-workers")
    stopping = asyncio.create_task(stop.wait(), name="stop-workers")
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            serving(children[0].said.partition(" serves ")[2])
            await stopping
        running = [child for child in children if starting.done() and child.pid is not None]
    finally:
        stopping.cancel()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.gather(*(child.stop(stop_within) for child in children))
    return exits.FAILED if any(child.exit_code for child in running) else exits.OK


async def _start(children: Sequence[Child]) -> None:
    """The first alone: what keeps it from serving, a module that cannot be imported, is said once and not by each."""
    await children[0].start()
    others = [asyncio.create_task(child.start()) for child in children[1:]]
    try:
        await asyncio.gather(*others)
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _nothing() -> None:
    """Nobody is told which processes run."""
