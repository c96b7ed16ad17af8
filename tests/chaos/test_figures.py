"""The arithmetic of the tables, and what a trail of executions tells."""

from __future__ import annotations

from pathlib import Path

from .figures import Figures, percentile, table
from .trail import Trail, overlapping


def test_percentiles_are_samples() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7], 0.99) == 7


def test_a_broken_promise_is_told_with_what_was_seen() -> None:
    figures = Figures()
    figures.add("wait ms", *range(1, 101))
    figures.promise("wait ms", 99, "p99")
    assert figures.broken() == []
    figures.promise("wait ms", 99)
    assert figures.broken() == ["wait ms: <= 99 was promised, and 100 samples go from 1 over 99 at p99 to 100"]
    figures.promise("refused", 1, "min")
    assert len(figures.broken()) == 1, "what has no sample breaks nothing"
    assert "| kill | 100 | wait ms | 1 | 50.5 | 99 | 100 | <= 99 |" in table({"kill": figures})


def test_a_trail_is_read_as_it_grows(tmp_path: Path) -> None:
    trail = Trail(tmp_path)
    trace = tmp_path / "trace-7.log"
    trace.write_text("start effect run:first 3.1.9.0 100\nstart eff")
    assert [(ran.key, ran.shard, ran.epoch) for ran in trail.read()] == [(("run", "first"), 3, 1)]
    trace.write_text(
        "start effect run:first 3.1.9.0 100\nstart effect run:second 3.1.12.0 110\nend effect run:first 3.1.9.0 120\n"
    )
    assert [ran.start_ns for ran in trail.read()] == [110]
    assert [ran.key[1] for ran in trail.running(7)] == ["second"]
    assert trail.by_key["run", "first"][0].end_ns == 120


def test_a_killed_process_ends_what_it_ran(tmp_path: Path) -> None:
    (tmp_path / "trace-7.log").write_text("start effect run:first 3.1.9.0 100\n")
    (tmp_path / "trace-8.log").write_text("start effect run:first 3.2.9.0 200\nend effect run:first 3.2.9.0 220\n")
    trail = Trail(tmp_path)
    trail.read()
    [runs] = trail.again(frozenset({"effect"}))
    assert overlapping(runs, {})
    assert overlapping(runs, {7: 210})
    assert not overlapping(runs, {7: 150})
