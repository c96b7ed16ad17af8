"""Tables by rich; imported only when one is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from onexflow.cli.output import STYLES, span
from onexflow.ports.client_link import RunView, TaskView

TASK_COLUMNS = ("TASK", "ROLE", "STATE", "ATTEMPT", "ITEMS", "WORKER", "TOOK", "WAITS FOR")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without frame. Words that are states get their colour."""
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return shown


def tasks(run: RunView) -> Table:
    return table(TASK_COLUMNS, [task_row(task) for task in run.tasks])


def task_row(task: TaskView) -> Sequence[str]:
    waits_for = task.blocked_because
    if task.error is not None and not waits_for:
        waits_for = f"{task.error.type}: {task.error.message}"
    return (
        task.name,
        task.role,
        task.state,
        str(task.attempt or ""),
        f"{task.items_done}/{task.items}" if task.items != 1 else "",
        task.worker,
        span(task.started_at or task.scheduled_at, task.finished_at),
        waits_for,
    )
