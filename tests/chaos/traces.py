"""What the handlers' traces and the ledger say, and what the event log says: the facts that scenarios are judged by."""

from __future__ import annotations

import itertools
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from onexflow.client import Client
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES


@dataclass(frozen=True)
class Execution:
    """One execution of a handler's body. `end_ns` is 0 when it was never finished."""

    key: str
    token: str
    start_ns: int
    end_ns: int
    pid: int


def executions(folder: Path) -> list[Execution]:
    """All executions that any process began, by start."""
    found = []
    for file in folder.glob("trace-*.log"):
        open_ones: dict[tuple[str, str], int] = {}
        for line in file.read_text().splitlines():
            what, key, token, at, pid = line.split()
            if what == "start":
                open_ones[key, token] = int(at)
            else:
                found.append(Execution(key, token, open_ones.pop((key, token)), int(at), int(pid)))
        own = int(file.stem.rpartition("-")[2])
        found.extend(Execution(key, token, at, 0, own) for (key, token), at in open_ones.items())
    return sorted(found, key=lambda execution: execution.start_ns)


def by_key(found: list[Execution]) -> dict[str, list[Execution]]:
    """Executions of the same task of the same run."""
    grouped: dict[str, list[Execution]] = defaultdict(list)
    for execution in found:
        grouped[execution.key].append(execution)
    return grouped


def overlapping(found: list[Execution], killed_at: int = 0) -> list[str]:
    """Keys whose body ran twice at the same time. An execution without an end lasted until its process was killed."""
    guilty = []
    for key, runs in by_key(found).items():
        for before, after in itertools.pairwise(runs):
            end = before.end_ns or killed_at or after.start_ns
            if end > after.start_ns:
                guilty.append(key)
    return guilty


def ledger_keys(folder: Path) -> set[str]:
    """The keys that were charged."""
    with sqlite3.connect(folder / "ledger.db") as ledger:
        return {row[0] for row in ledger.execute("SELECT key FROM charge")}


async def audit(client: Client, workflow_type: str) -> dict[str, int]:
    """Read every run's history: sequence without gap, exactly one terminal event, each task completed once.

    Returns counts of runs, events and violations."""
    counts = {"runs": 0, "events": 0, "violations": 0}
    ends = {f"workflow.{'timeout' if state == 'timeout' else state}" for state in TERMINAL_WORKFLOW_STATES}
    async for summary in client.list(workflow_type):
        history = await client.get(workflow_type, summary.key.instance_id).history()
        counts["runs"] += 1
        counts["events"] += len(history)
        dense = [event.sequence for event in history] == list(range(1, len(history) + 1))
        terminal = [event for event in history if event.type in ends]
        completed = [(event.task, item) for event in history if event.type == "task.completed"
                     for item in event.data["items"]]  # fmt: skip
        one_end = len(terminal) == (1 if summary.state in TERMINAL_WORKFLOW_STATES else 0)
        ends_last = not terminal or history[-1] is terminal[-1]
        counts["violations"] += not (dense and one_end and ends_last and len(completed) == len(set(completed)))
    return counts
