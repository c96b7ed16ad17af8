"""What moves while a command waits: progress on stderr, and the live table of `run watch`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.text import Text

from onexflow.cli.output import STYLES
from onexflow.cli.tables import tasks
from onexflow.spi.exceptions import SPIError

if TYPE_CHECKING:
    from onexflow.client import RunHandle
    from onexflow.ports.client_link import RunView

#: Seconds between two looks at a run; a run with a thousand events a second is not asked a thousand times.
LOOK_EVERY: Final = 0.25


@asynccontextmanager
async def progress(handle: RunHandle) -> AsyncIterator[None]:
    """While the block waits for the run, say on stderr how far it is. Silent where nobody looks."""
    if not sys.stderr.isatty():
        yield
        return
    with Status("waiting …", console=Console(stderr=True)) as status:
        looking = asyncio.create_task(_look(handle, status))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])


async def _look(handle: RunHandle, status: Status) -> None:
    # What fails here is told by the wait itself.
    with suppress(SPIError):
        while True:
            await asyncio.sleep(LOOK_EVERY)
            status.update(summary(await handle.state()))


def summary(run: RunView) -> str:
    """How far a run is, in one line."""
    total = sum(max(1, task.items) for task in run.tasks)
    done = sum(task.items_done if task.items > 1 else task.finished_at > 0 for task in run.tasks)
    now = ", ".join(task.name for task in run.tasks if task.state in {"running", "scheduled", "retrying"})
    doing = f", now {now}" if now else f" – {run.blocked_because}" if run.blocked_because else ""
    return f"{run.state}: {done} of {total} done{doing}"


async def watch_tasks(handle: RunHandle, console: Console) -> None:
    """The run's tasks, drawn again as its events come, until its last."""
    with Live(_picture(await handle.state()), console=console, auto_refresh=False) as live:
        changed, ended = asyncio.Event(), asyncio.Event()

        async def follow() -> None:
            async for _ in handle.follow():
                changed.set()
            ended.set()
            changed.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            while not ended.is_set():
                await changed.wait()
                changed.clear()
                live.update(_picture(await handle.state()), refresh=True)
                if not ended.is_set():
                    await asyncio.sleep(LOOK_EVERY)
            live.update(_picture(await handle.state()), refresh=True)


def _picture(run: RunView) -> Group:
    head = Text(f"{run.key.workflow_type}/{run.key.instance_id}  ")
    head.append(run.state, style=STYLES.get(run.state, ""))
    return Group(head, Text(run.blocked_because, style="dim"), tasks(run))
