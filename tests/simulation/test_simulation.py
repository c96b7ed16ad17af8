"""Simulations find nothing in the code as it is, find known bugs that are put back, and do the same for the same seed."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.testing.simulation import FAULTS, BrokenPromise, Ended, Report, simulate
from onexflow.worker.handlers import Worker
from simulation.scenarios import SCENARIOS
from support.mutants import BUGS, planted

_BUG = {bug.name: bug for bug in BUGS}
#: Known bugs, with a scenario that meets each of them soon.
FOUND = [
    ("blind write", "steps"),
    ("no epoch check", "steps"),
    ("acknowledged before it is stored", "steps"),
    ("ambiguous append sent again", "steps"),
    ("effect sent before it is written", "fan"),
    ("no epoch barrier", "steps"),
    ("timer lost on failover", "saga"),
    ("lost wake-up", "calls"),
    ("superseded result accepted", "steps"),
]
#: Rounds in which a known bug must be found.
SOON = 40


def play(name: str, *, seed: int, rounds: int = 1, **options: Any) -> Report:
    one = SCENARIOS[name]()
    return simulate(one.worker, one.workflow, one.inputs, others=one.others, seed=seed, rounds=rounds, **options)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_promise_holds(name: str, rounds: Callable[..., int]) -> None:
    count = rounds(8, 60)
    report = play(name, seed=1000, rounds=count)
    assert [one.seed for one in report.rounds] == list(range(1000, 1000 + count))
    assert all(one.runs == len(SCENARIOS[name]().inputs) for one in report.rounds)
    assert all(one.events > 0 for one in report.rounds)
    assert set(report.faults) <= set(FAULTS)
    assert report.faults.total() >= count


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str) -> None:
    report = play("steps", seed=7, rounds=2, faults=[fault])
    assert set(report.faults) == {fault}


@pytest.mark.parametrize(("bug", "name"), FOUND, ids=[bug for bug, _ in FOUND])
def test_a_known_bug_is_found(bug: str, name: str) -> None:
    with pytest.raises(BrokenPromise) as caught:
        for seed in range(1, 1 + SOON):
            with planted(_BUG[bug]):
                play(name, seed=seed)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("seed ")
    assert "What was done:" in rest


def test_the_same_seed_is_the_same_round() -> None:
    [first], [again], [other] = (play("calls", seed=seed).rounds for seed in (3, 3, 4))
    assert first == again
    assert first.fingerprint != other.fingerprint


def test_what_handlers_draw_is_of_the_seed() -> None:
    worker = Worker()
    worker.compute("draw")(lambda _: random.random())
    flow = workflow("draw")
    flow.compute("draw")
    found = []
    for seed in (3, 3, 4):
        random.seed()
        [one] = simulate(worker, flow, seed=seed, rounds=1, expect=lambda _, ended: ended.result < 1).rounds
        found.append(one.fingerprint)
    assert found[0] == found[1] != found[2]


def test_the_same_seed_is_the_same_round_in_another_process() -> None:
    code = "from simulation.test_simulation import play; print(play('fan', seed=5).rounds[0].fingerprint)"
    path = [place for place in sys.path if place]
    found = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
            env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=60,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_what_should_have_come_out_can_be_said() -> None:
    seen: list[Ended] = []

    def expect(input: Any, ended: Ended) -> bool:
        seen.append(ended)
        return ended.state == "completed" and ended.result == input["number"] + 1

    worker = Worker()
    worker.compute("add")(lambda contract: contract["number"] + 1)
    flow = workflow("add")
    flow.compute("add")
    simulate(worker, flow, [{"number": 1}, {"number": 2}], rounds=2, expect=expect)
    assert [ended.result for ended in seen] == [2, 3, 2, 3]
    with pytest.raises(BrokenPromise, match=r"the run of \{'number': 1\} ended as"):
        simulate(worker, flow, [{"number": 1}], rounds=1, expect=lambda _, ended: ended.result == 7)


def test_a_handler_that_keeps_something_in_its_process_is_found() -> None:
    """What a task counts in memory is gone, or wrong, when its worker is killed: a round without faults ends otherwise."""

    def make() -> Worker:
        worker = Worker()
        seen: list[Any] = []

        @worker.compute("remember")
        def remember(contract: Any) -> Any:
            seen.append(contract)
            return contract

        worker.compute("count")(lambda _: len(seen))
        return worker

    flow = workflow("forgetful")
    flow.compute("count", depends_on=[flow.compute("remember", input="input")])
    with pytest.raises(BrokenPromise, match="without faults it ends as"):
        simulate(make, flow, range(5), rounds=20)


def test_a_handler_that_nobody_has_is_named() -> None:
    flow = workflow("lonely")
    flow.compute("missing")
    with pytest.raises(BrokenPromise, match="no worker with compute handler missing"):
        simulate(Worker(), flow, rounds=1)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="no such fault: earthquake; there are orchestrator killed"):
        play("steps", seed=1, faults=["earthquake"])


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("calls", 28),  # a call of what was registered through another orchestrator was refused
        ("calls", 155),  # an orchestration that waits for a commit of other runs was called stalled
        ("calls", 209),
        ("fan", 59),  # a fold that asked for its items while its shard was read back waited for ever
        ("fan", 389),
        ("fan", 207),  # a result whose run was read back for it was decided beside its attempt
    ],
)
def test_a_round_that_has_found_something_finds_nothing_any_more(name: str, seed: int) -> None:
    play(name, seed=seed)


def test_an_effect_that_is_called_idempotent_and_is_not_is_found() -> None:
    def make() -> Worker:
        worker = Worker()
        worker.effect("charge", idempotent=True)(charged.append)
        return worker

    def expect(order: Any, ended: Ended) -> bool:
        return charged.count(order) == 2  # once in the calm round before, and once in this one

    def play_it(seed: int, faults: list[str]) -> None:
        charged.clear()
        simulate(make, flow, range(20), seed=seed, rounds=1, faults=faults, expect=expect)

    charged: list[Any] = []
    flow = workflow("charge")
    flow.effect("charge", input="input")
    play_it(1, [])
    with pytest.raises(BrokenPromise, match="it is not as expected"):
        for seed in range(1, 41):
            play_it(seed, ["worker killed"])


def test_what_is_expected_may_go_wrong_itself() -> None:
    worker = Worker()
    worker.compute("add")(lambda contract: contract + 1)
    flow = workflow("add")
    flow.compute("add")
    with pytest.raises(BrokenPromise, match="KeyError"):
        simulate(worker, flow, [1], rounds=1, expect=lambda _, ended: {}["missing"])


def test_there_must_be_something_to_play() -> None:
    nothing: list[dict[str, Any]] = [{"rounds": 0}, {"orchestrators": 0}, {"inputs": []}]
    for options in nothing:
        one = SCENARIOS["steps"]()
        with pytest.raises(ValueError, match="at least"):
            simulate(one.worker, one.workflow, **{"inputs": one.inputs, **options})
