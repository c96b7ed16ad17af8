"""What the comparison with other systems does around them: load, processes, what is skipped, the table."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import comparison
from benchmarks.peers.drive import WARM, Driver
from benchmarks.peers.peer import Figures, Plan, Wait

TESTS = Path(__file__).parents[1]


def plan(**changes: Any) -> Plan:
    usual = {
        "length": 10,
        "width": 7,
        "in_flight": 5,
        "singles": 12,
        "chains": 3,
        "samples": 4,
        "rounds": 3,
        "seconds": 60.0,
    }
    return Plan(payload={}, url="", beside=[], **{**usual, **changes})


class Counted:
    """A peer that does nothing, and counts."""

    def __init__(self, lost: int = 0) -> None:
        self.lost = lost
        self.started: dict[str, int] = {}
        self.open = self.most = 0

    def _start(self, kind: str, result: object = None) -> Wait:
        self.started[kind] = self.started.get(kind, 0) + 1
        self.open += 1
        self.most = max(self.most, self.open)

        def wait() -> object:
            self.open -= 1
            return result

        return wait

    def prepare(self, folder: Path, url: str) -> str:
        return "counted"

    def single(self, payload: dict[str, Any]) -> Wait:
        return self._start("single")

    def chain(self, payload: dict[str, Any], length: int) -> Wait:
        return self._start(f"chain of {length}")

    def fan(self, items: list[dict[str, Any]]) -> Wait:
        return self._start("fan", len(items) - self.lost)

    def stop(self) -> None: ...


def test_a_peer_gets_the_workloads_with_so_many_in_flight_and_all_are_waited_for() -> None:
    peer = Counted()
    figures = Driver(peer, plan(rounds=2)).run()
    assert peer.started == {"single": WARM + 2 * (12 + 4), "chain of 10": 1 + 2 * 3, "fan": 2}
    assert (peer.most, peer.open) == (5, 0)
    assert [(one.workload, one.tasks) for one in figures[:4]] == [
        ("W1 single", 12), ("W2 chain", 30), ("W3 fan", 8), ("W4 latency", 4),
    ]  # fmt: skip
    assert [len(one.latencies_ms) for one in figures] == [0, 0, 0, 4] * 2


def test_no_round_is_begun_when_the_time_is_up() -> None:
    peer = Counted()
    Driver(peer, plan(seconds=0.0)).run()
    assert peer.started["fan"] == 1


def test_a_fan_that_lost_a_result_is_no_figure() -> None:
    with pytest.raises(AssertionError):
        Driver(Counted(lost=1), plan()).run()


def test_the_cpu_and_the_end_of_a_process_are_those_of_its_orphans_too() -> None:
    program = """
import os, subprocess, time
from benchmarks.peers import tree
tree.adopt_orphans()
subprocess.run(["sh", "-c", "(i=0; while [ $i -lt 2000000 ]; do i=$((i+1)); done) & sleep 10 & exit 0"], check=True)
left = tree.descendants(os.getpid())
assert len(left) == 2, left
while tree.cpu_seconds([os.getpid()]) < time.process_time() + 0.1:
    os.sched_yield()
tree.end(left)
for _ in left:
    os.wait()
assert tree.descendants(os.getpid()) == set()
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(TESTS)}, timeout=20)


def test_a_peer_that_needs_what_is_not_there_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    line = "celery: skipped: it needs `redis-server` on PATH"
    assert asyncio.run(comparison._compare(comparison.chosen(["celery"]), 1)) == ({}, [line])
    assert capsys.readouterr().err == f"{line}\n"


def test_a_peer_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match="unknown peer 'airflow': dbos-sqlite"):
        comparison.chosen(["airflow"])
    assert list(comparison.chosen([])) == list(comparison.PEERS)


def test_each_peer_has_its_module_and_its_lock() -> None:
    for entry in comparison.PEERS.values():
        assert (TESTS / "benchmarks" / "peers" / f"{entry.module}.py").is_file()
        assert (comparison.ROOT / "requirements" / f"peer-{entry.module}.lock").is_file()


def figures(*rates: float) -> list[Figures]:
    return [
        Figures(title, 100, 100 / rate, rate / 2, [1000.0 / rate, 2000.0 / rate] if title == "W4 latency" else [])
        for rate in rates
        for title in comparison.WORKLOADS.values()
    ]


def test_the_tables_have_onexflow_first_medians_and_how_many_times_it_was_faster_beside_each() -> None:
    ours, theirs = comparison.Row("yes", figures(9000, 10, 1000)), comparison.Row("no", figures(20), figures(50, 70))
    lines = comparison._text({"other 1": theirs, "onexflow on SQLite": ours}).splitlines()
    assert lines[2:4] == [
        "| onexflow on SQLite | yes | 3 | 1,000 | 1,000 | 1,000 | 2.0 / 200.0 | 500 / 500 / 500 / 500 |",
        "| other 1 | no | 1 | 20 | 20 | 20 | 100.0 / 100.0 | 10 / 10 / 10 / 10 |",
    ]
    assert [line for line in lines[4:] if line.startswith(("| other", "| onexflow"))] == [
        "| other 1 | 3.0 | 3.0 | 3.0 | 3.5 | 0.3 |"
    ]
