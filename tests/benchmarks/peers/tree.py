"""A process with its descendants: what CPU they took, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on a descendant whose parent ends is this process's child, not init's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """From now on this process leaves by SystemExit when it is asked to end, and is asked when its parent has ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(*roots: int) -> set[int]:
    """The children of these processes, theirs and so on; without themselves."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        fields = _stat(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    left = list(roots)
    while left:
        new = [pid for pid in children.get(left.pop(), ()) if pid not in found]
        found.update(new)
        left += new
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of these processes and all their descendants, with those that have ended."""
    roots = set(roots)
    ticks = 0
    for pid in roots | descendants(*roots):
        fields = _stat(pid)
        ticks += sum(int(field) for field in fields[11:15]) if fields else 0
    return ticks / _TICKS


def end(pids: set[int], patience: float = 5.0) -> None:
    """Ask these processes to end, and kill those that have not when the patience has."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + patience
        while (pids := {pid for pid in pids if _lives(pid)}) and time.monotonic() < until:
            time.sleep(0.02)


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _lives(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"
