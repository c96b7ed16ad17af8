"""The demo's report, from made-up figures: what people read, and when it says that a promise did not hold."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from onexflow.examples.ledger import Totals
from onexflow.examples.report import Kill, Orders, Report, render

TEXT = Path(__file__).parents[1] / "transcripts" / "demo_report.txt"
REPORT = Report(
    orders=Orders(80, 80, [], 7999.2, charges=Totals(80, 93, 799920), reservations=Totals(80, 82, 0)),
    kill=Kill("effect-1", 4711, 1, interrupted=3, noticed_after=[43.2, 44.0], again_after=[77.4, 80.0, 371.0]),
    flights={
        "departures": 3,
        "cancelled": 1,
        "mean_delay": -1.5,
        "carriers": {
            code: {"name": f"Airline {code}", "departures": number, "cancelled": 1, "mean_delay": None}
            for number, code in enumerate("ABCDEFGH")
        },
    },
    seconds=2.64,
    processes=[("etcd", 1, 1), ("orchestrator-1", 2, 1), ("effect-1", 4712, 2)],
)


def test_the_report_reads_well() -> None:
    text = render(REPORT) + "\n"
    if os.environ.get("ONEXFLOW_REWRITE"):
        TEXT.write_text(text)
    assert text == TEXT.read_text()
    assert REPORT.held


def test_a_broken_promise_is_said() -> None:
    orders = replace(REPORT.orders, completed=79, failures=["run x ended as failed"])
    double = replace(REPORT.orders, charges=Totals(81, 81, 809919))
    lost = replace(REPORT.kill, again_after=[77.4])
    broken = [replace(REPORT, orders=orders), replace(REPORT, orders=double), replace(REPORT, kill=lost)]
    for report in broken:
        assert not report.held
        assert "FAILED" in render(report)
    assert "run x ended as failed" in render(broken[0])
