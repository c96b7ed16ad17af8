"""How commands show what they found: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from onexflow.codec.plain import plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES: Final = {
    "completed": "green", "running": "cyan", "ready": "green", "scheduled": "cyan", "retrying": "yellow",
    "paused": "yellow", "waiting_for_input": "yellow", "draining": "yellow", "blocked": "dim", "pending": "dim",
    "skipped": "dim", "failed": "red", "timeout": "red", "cancelled": "magenta",
    "compensating": "yellow", "compensated": "magenta",
}  # fmt: skip


class Output:
    """Standard output in one of two forms. Everything that is not data goes to stderr (`note`)."""

    def __init__(self, form: Literal["table", "json"]) -> None:
        self.json = form == "json"

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        # A table that is piped must not be cut to a terminal's width that is not there.
        return Console(width=None if sys.stdout.isatty() else 1000, highlight=False, soft_wrap=True)

    def data(self, value: Any) -> None:
        """One JSON document on one line."""
        print(json.dumps(plain(value), ensure_ascii=False))

    def show(self, what: RenderableType) -> None:
        if self.console.is_terminal:
            self.console.print(what)
            return
        with self.console.capture() as captured:
            self.console.print(what)
        # The padding of the last column is of no use to a program that reads lines.
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def line(self, text: str) -> None:
        print(text)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def fields(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and values, one a line; empty values are left out."""
        rows = [(name, value) for name, value in pairs if value]
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"{name:<{width}}  {value}")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "nothing") -> None:
        listed = [list(row) for row in rows]
        if not listed:
            self.note(empty)
            return
        from onexflow.cli.tables import table

        self.show(table(columns, listed))


def when(nanoseconds: int) -> str:
    """A time for people: in their own zone."""
    if not nanoseconds:
        return ""
    return f"{datetime.fromtimestamp(nanoseconds / 1e9).astimezone():%Y-%m-%d %H:%M:%S}"


def span(first: int, last: int) -> str:
    """How long something took."""
    if not first or not last:
        return ""
    seconds = max(0, last - first) / 1e9
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def short(value: Any, length: int = 100) -> str:
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= length else text[: length - 1] + "…"
