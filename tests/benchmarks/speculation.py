"""What a chain of ten tasks waits for, with speculation and without: commits, and time at several speeds of the store.

    PYTHONPATH=tests python tests/benchmarks/speculation.py

In virtual time: the real engine and worker, a store whose commits take exactly so long, and nothing else that takes any. So
the figures are the same on every machine.
"""

from __future__ import annotations

import logging

import structlog

from onexflow.testing import run_virtual
from support.slow_store import STEPS, Waited, waited

COMMIT_MS = (1, 5, 20)
ROWS = (
    ("compute, speculation on", "compute", True),
    ("compute, speculation off", "compute", False),
    ("effect, on or off", "effect", True),
)


def table() -> str:
    times = "ms, a commit takes " + " | ".join(f"{ms} ms" for ms in COMMIT_MS)
    lines = [f"| chain of {STEPS} tasks | commits waited for | {times} |", "|---|---|" + "---|" * len(COMMIT_MS)]
    for name, role, speculation in ROWS:
        found = [run_virtual(waited(role, ms / 1e3, speculation=speculation)) for ms in COMMIT_MS]
        cells = [_commits(found), *(f"{one.seconds * 1e3:.0f}" for one in found)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _commits(found: list[Waited]) -> str:
    return " to ".join(dict.fromkeys(f"{commits:.0f}" for commits in sorted(one.commits for one in found)))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(table())
