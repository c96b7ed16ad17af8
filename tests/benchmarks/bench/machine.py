"""What machine this is, and how fast it is at this moment."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path


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


def machine() -> str:
    """The moment, the commit, the machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, {os.cpu_count()} CPUs ({model}), "
        f"Python {platform.python_version()}, fdatasync p50 {fsync_ms():.2f} ms, spin {spin_ms():.0f} ms"
    )
