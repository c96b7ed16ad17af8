"""JSON and files, as given on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from onexflow.core.errors import InvalidArgument


def read_text(name: str, option: str) -> str:
    """The text of a file; `-` is standard input."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{option}: cannot read {name}: {error}", field=option) from error


def json_value(text: str, option: str) -> Any:
    """The value of an option that takes JSON, or `@FILE` with JSON in it (`@-`: standard input)."""
    where = option
    if text.startswith("@"):
        where = f"{option} {text}"
        text = read_text(text[1:], option)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"{where}: no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}: {_around(text, error.pos)}",
            {"line": error.lineno, "column": error.colno, "hint": "A text needs its double quotes: '\"text\"'."},
            field=option,
        ) from error


def _around(text: str, position: int) -> str:
    """What stands at the fault, with the fault marked."""
    before, after = text[max(0, position - 20) : position], text[position : position + 20]
    return " ".join(f"{before}▸{after}".split()) or "▸(empty)"
