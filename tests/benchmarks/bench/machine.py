"""What machine this is, and how fast it is at this moment."""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, Self

#: What was measured is thrown away when the machine was slower by so much before or after it than it has been at its best.
SLOWER_CPU: Final = 1.25
SLOWER_DISK: Final = 3.0
SLOWER_MEMORY: Final = 2.5


def fsync_ms() -> float:
    """Median time of an fdatasync after a 4 KiB append on this disk."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="onexflow-fsync-") as file:
        for _ in range(50):
            os.write(file.fileno(), b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def spin_ms() -> float:
    """Time of a fixed piece of pure Python: how fast this machine is at this moment."""
    began = time.perf_counter()
    sum(range(2_000_000))
    return (time.perf_counter() - began) * 1e3


@cache
def _scattered() -> list[float]:
    values = [float(number) for number in range(400_000)]
    random.Random(1).shuffle(values)
    return values


def walk_ns() -> float:
    """Time for each of many objects that lie anywhere in 13 MB: how far memory is, and how much of the last cache others
    on this machine leave. Programs feel it that are larger than the caches; a spin does not."""
    values = _scattered()
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        sum(values)
        best = min(best, time.perf_counter() - began)
    return best / len(values) * 1e9


def machine() -> str:
    """The moment, the commit, the machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, {os.cpu_count()} CPUs ({model}), "
        f"Python {platform.python_version()}, fdatasync p50 {fsync_ms():.2f} ms, spin {spin_ms():.0f} ms, "
        f"walk {walk_ns():.0f} ns"
    )


class Check(NamedTuple):
    """How fast the machine is."""

    spin: float
    fsync: float
    walk: float

    @classmethod
    def now(cls) -> Self:
        return cls(min(spin_ms() for _ in range(3)), fsync_ms(), walk_ns())


class Form:
    """Whether the machine was in form, going by its best until now."""

    def __init__(self) -> None:
        self._best = Check.now()

    def was_fit(self, *checks: Check) -> bool:
        self._best = best = Check(*map(min, zip(self._best, *checks, strict=True)))
        limits = Check(best.spin * SLOWER_CPU, best.fsync * SLOWER_DISK, best.walk * SLOWER_MEMORY)
        return all(found <= limit for one in checks for found, limit in zip(one, limits, strict=True))
