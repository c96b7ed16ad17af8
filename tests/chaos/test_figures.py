"""The arithmetic of the tables, and what a trail of executions tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from onexflow.core.blocked import Blocked
from onexflow.core.errors import Unavailable
from onexflow.core.ids import RunKey

from .figures import Figures, percentile, table
from .reasons import Sampler, Stretches
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


S = 1_000_000_000
ONE, OTHER = (RunKey("default", "chain", UUID(int=number)) for number in (1, 2))


def test_a_run_without_a_reason_is_so_from_one_look_until_the_first_that_shows_one() -> None:
    seen = Stretches()
    seen.answered(1 * S, [ONE, OTHER], set())
    seen.answered(2 * S, [ONE, OTHER], {ONE})
    seen.answered(3 * S, [ONE, OTHER], {ONE, OTHER})
    seen.answered(5 * S, [ONE, OTHER], set())
    seen.answered(6 * S, [ONE, OTHER], {ONE})
    seen.answered(7 * S, [OTHER], set())
    assert seen.seconds({}) == [1.0, 2.0, 3.0]
    assert (seen.samples, seen.unanswered) == (11, 0)


def test_a_run_that_has_ended_needs_no_reason() -> None:
    seen = Stretches()
    seen.answered(1 * S, [ONE, OTHER], {ONE, OTHER})
    seen.answered(4 * S, [ONE, OTHER], {ONE, OTHER})
    assert seen.seconds({ONE: 1 * S, OTHER: 2 * S}) == [1.0]
    assert seen.seconds({ONE: 9 * S}) == [3.0, 3.0]


def test_looks_that_nobody_answered_are_counted_apart() -> None:
    seen = Stretches()
    seen.answered(1 * S, [ONE, OTHER], {ONE, OTHER})
    seen.missed(2 * S)
    seen.missed(3 * S)
    seen.answered(9 * S, [ONE, OTHER], {ONE})  # it goes on; the other one is known to have been without until 2 only
    assert seen.seconds({}) == [1.0, 8.0]
    assert (seen.samples, seen.unanswered) == (4, 2)


def test_a_broken_promise_about_reasons_is_told() -> None:
    seen, figures = Stretches(), Figures()
    figures.promise("without a reason s", 2.0, "p99")
    seen.answered(1 * S, [ONE], {ONE})
    seen.answered(4 * S, [ONE], set())
    figures.add("without a reason s", *seen.seconds({}))
    assert figures.broken()


class Asked:
    """A client: what it says of each run, or that nobody answers."""

    def __init__(self, kinds: dict[RunKey, str] | None) -> None:
        self.kinds = kinds

    async def blocked(self, *, keys: Iterable[RunKey]) -> AsyncIterator[Any]:
        if self.kinds is None:
            raise Unavailable("nobody answers")
        for key in keys:
            if key in self.kinds:
                yield SimpleNamespace(key=key, blocked=Blocked(kind=self.kinds[key]))

    def get(self, workflow_type: str, instance_id: UUID) -> Any:
        async def state() -> Any:
            return SimpleNamespace(completed_at=1 if instance_id == LAST.instance_id else 0)

        return SimpleNamespace(state=state)


LAST = RunKey("default", "chain", UUID(int=3))


async def test_a_sampler_asks_who_answers_and_tells_of_runs_that_are_left_out_or_stalled() -> None:
    valid = RunKey("default", "chain", UUID(int=4))
    keys = [ONE, OTHER, LAST, valid]
    load = SimpleNamespace(open_longest=lambda at_most: keys[:at_most], is_open=keys.__contains__)
    clients = [Asked(None), Asked({OTHER: "stalled", valid: "running"})]
    sampler = Sampler(cast("Any", SimpleNamespace(load=load, askable=lambda: clients)))
    await sampler.look()
    await sampler.look()
    clients.pop()
    await sampler.look()
    assert set(sampler.stretches.by_run) == {ONE, OTHER, LAST}
    figures = Figures()
    clients.append(Asked({}))
    await sampler.report(figures)
    assert len(figures.samples["without a reason s"]) == 2, "the last one had ended before it was left out"
    assert figures.samples["samples of reasons"] == [8]
    assert figures.samples["looks at reasons unanswered"] == [1]
