"""Flight delays: departures, cancellations and delay of the flights that left New York in 2013, by carrier and by hour.

    chunks (effect) ─▶ read (effect, mapped over the chunks) ─▶ aggregate (compute, mapped) ─▶ merge (reducer)

January comes with the package. Another file of the same columns, `.csv` or `.csv.xz`: `{"path": …}` as input, or the
worker's `ONEXFLOW_FLIGHTS`. All sums are whole minutes, so the order in which parts are merged changes nothing.
"""

from __future__ import annotations

import csv
import lzma
import os
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any, Final

import onexflow

TYPE: Final = "flight-delays"
CHUNK_ROWS: Final = 2000
#: What stands for the delay of a flight that never departed.
MISSING: Final = ("NA", "")
DATA: Final = files("onexflow.examples") / "data"

worker = onexflow.Worker(TYPE)
_reading = Lock()


@worker.effect("chunks", idempotent=True)
def chunks(options: Any) -> list[dict[str, Any]]:
    """How the file is cut: every chunk names its file, its first row and its number of rows."""
    wanted = options or {}
    path = wanted.get("path") or os.environ.get("ONEXFLOW_FLIGHTS") or str(DATA / "flights-2013-01.csv.xz")
    size = int(wanted.get("chunk_rows") or CHUNK_ROWS)
    if size < 1:
        raise ValueError(f"chunk_rows: {size}, at least 1 is needed")
    total = len(_rows(path))
    return [{"path": path, "first": first, "rows": min(size, total - first)} for first in range(0, total, size)]


@worker.effect("read", idempotent=True)
def read(chunk: Any) -> str:
    """The rows of a chunk, as lines of carrier, scheduled hour and departure delay (NA: cancelled)."""
    return "\n".join(_rows(chunk.path)[chunk.first : chunk.first + chunk.rows])


@worker.compute("aggregate")
def aggregate(lines: str) -> dict[str, Any]:
    """Sums of one chunk: [departures, cancelled, minutes of delay] by carrier and by hour."""
    carriers: dict[str, list[int]] = {}
    hours: dict[str, list[int]] = {}
    for line in lines.splitlines():
        carrier, hour, delay = line.split(",")
        flight = [0, 1, 0] if delay in MISSING else [1, 0, int(delay)]
        _add(carriers, carrier, flight)
        _add(hours, hour, flight)
    return {"carriers": carriers, "hours": hours}


@worker.reducer("merge")
async def merge(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sums of all chunks, with the mean delay of what departed."""
    carriers: dict[str, list[int]] = {}
    hours: dict[str, list[int]] = {}
    for part in parts:
        for code, sums in part["carriers"].items():
            _add(carriers, code, sums)
        for hour, sums in part["hours"].items():
            _add(hours, hour, sums)
    names = airline_names()
    everything = [sum(column) for column in zip(*carriers.values(), strict=True)] or [0, 0, 0]
    return {
        **_figures(everything),
        "carriers": {code: {"name": names.get(code, code), **_figures(carriers[code])} for code in sorted(carriers)},
        "hours": {hour: _figures(hours[hour]) for hour in sorted(hours, key=int)},
    }


def definition() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow(TYPE, description="Departures, cancellations and delay by carrier and by hour.")
    cut = flow.effect("chunks")
    part = flow.effect("read", depends_on=[cut], map="tasks.chunks")
    sums = flow.compute("aggregate", depends_on=[part], map="tasks.read")
    flow.reducer("merge", depends_on=[sums])
    return flow.build(output="tasks.merge")


def airline_names() -> dict[str, str]:
    with (DATA / "airlines.csv").open(encoding="utf-8") as file:
        return {row["carrier"]: row["name"] for row in csv.DictReader(file)}


def _rows(path: str) -> tuple[str, ...]:
    # xz cannot be entered in the middle, so a process unpacks its file once, whichever chunk comes first.
    with _reading:
        return _unpacked(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _unpacked(path: str, modified: int) -> tuple[str, ...]:  # noqa: ARG001 - a changed file is another entry
    raw = Path(path).read_bytes()
    text = lzma.decompress(raw) if path.endswith(".xz") else raw
    with StringIO(text.decode(), newline="") as file:
        return tuple(f"{row['carrier']},{row['hour']},{row['dep_delay']}" for row in csv.DictReader(file))


def _add(sums: dict[str, list[int]], key: str, more: Iterable[int]) -> None:
    sums[key] = [have + new for have, new in zip(sums.get(key, (0, 0, 0)), more, strict=True)]


def _figures(sums: list[int]) -> dict[str, Any]:
    departures, cancelled, minutes = sums
    return {
        "departures": departures,
        "cancelled": cancelled,
        "delay_minutes": minutes,
        "mean_delay": round(minutes / departures, 2) if departures else None,
    }
