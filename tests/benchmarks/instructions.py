"""Print how many instructions of the processor a no-op task costs, without gRPC: a figure that other load on the machine
hardly moves.

    PYTHONPATH=tests python tests/benchmarks/instructions.py [single | chain | worker]...

It runs the loops of `engine_loop.py` (with its clients and its worker) and `worker_loop.py` under valgrind, which must be
installed, with few tasks and with many, and tells the difference. What waits for memory or in the kernel is not seen; and
as the loop is many times as slow as it is, and the disk is not, there is a commit to fewer tasks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple


class Loop(NamedTuple):
    """Code that does `size` of something, `tasks` tasks each."""

    code: str
    few: int
    many: int
    tasks: int


_ENGINE: Final = (
    "import asyncio, sys; from benchmarks.engine_loop import measure; sys.setswitchinterval(0.0005);"
    " asyncio.run(measure({shape!r}, {{size}}))"
)
LOOPS: Final = {
    "single": Loop(_ENGINE.format(shape="single"), 400, 2400, 1),
    "chain": Loop(_ENGINE.format(shape="chain"), 200, 500, 10),
    "worker": Loop(
        "import asyncio; from benchmarks.worker_loop import measure; asyncio.run(measure({size}))", 10, 60, 64
    ),
}
_REFS: Final = re.compile(r"I\s+refs:\s+([\d,]+)")


def instructions(code: str) -> int:
    """That Python executes for this code, its start included."""
    told = subprocess.run(
        ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    found = _REFS.search(told.stderr)
    if told.returncode or found is None:
        raise SystemExit(f"instructions: the loop failed:\n{told.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def a_task(loop: Loop) -> float:
    """Instructions for one task."""
    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(instructions, [loop.code.format(size=size) for size in (loop.few, loop.many)])
    return (many - few) / ((loop.many - loop.few) * loop.tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Instructions of the processor for one no-op task, without gRPC")
    parser.add_argument("loops", nargs="*", metavar="LOOP", help=", ".join(LOOPS))
    wanted = parser.parse_args().loops or list(LOOPS)
    if unknown := [name for name in wanted if name not in LOOPS]:
        parser.error(f"there is no loop {unknown[0]!r}; there are {', '.join(LOOPS)}")
    if shutil.which("valgrind") is None:
        raise SystemExit("instructions: valgrind is not installed (on Debian and Ubuntu: the package valgrind)")
    for name in wanted:
        sys.stdout.write(f"{name}: {a_task(LOOPS[name]):,.0f} instructions a task\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
