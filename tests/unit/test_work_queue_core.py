"""The work queue's decisions: order, ageing, the five strategies, and rows that stay readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from onexflow.codec.rows import decode_row
from onexflow.core import queue
from onexflow.core.errors import InvalidArgument, InvalidTransition
from onexflow.core.payload import NULL
from onexflow.core.queue import Taker
from onexflow.core.queue_state import AGEING, KEPT, SECOND, QueueIndex, QueueState, TaskSpec
from onexflow.core.strategies import STRATEGIES, Candidate, choose
from onexflow.engine.queue import fold_queue
from onexflow.ports.event_store import Row
from support.queue_model import T0, Model

FIXTURE = Path(__file__).parent.parent / "fixtures" / "rows" / "release-0.2.queue"


def test_deferred_never_starves() -> None:
    """Urgent tasks come for ever, faster than they are taken; the deferred one is served all the same, and in time."""
    model = Model()
    model.enqueue("deferred", priority="deferred")
    for number in range(10_000):
        model.now += 30 * SECOND
        model.enqueue(f"urgent-{number}", priority="urgent")
        model.enqueue(f"urgent-{number}-too", priority="urgent")
        if model.one() == "deferred":
            break
    else:
        pytest.fail("it starved")
    # Urgent tasks that came up to five priorities' worth of waiting after it go first: at two for each one taken.
    assert model.now - T0 <= 2 * (5 * AGEING) + 60 * SECOND


def test_one_priority_is_in_order_of_age_and_one_higher_goes_first() -> None:
    model = Model()
    for name, priority in (("n1", "normal"), ("n2", "normal"), ("h", "high")):
        model.enqueue(name, priority=priority)
        model.now += SECOND
    assert [model.one() for _ in range(4)] == ["h", "n1", "n2", ""]


def test_a_retry_keeps_its_age() -> None:
    model = Model()
    model.enqueue("old")
    model.one()
    model.now += SECOND
    model.enqueue("new")
    model.fail("old")
    assert model.one() == "new"
    model.enqueue("newer")
    model.now += 2 * SECOND
    assert model.one() == "old"


def test_a_lease_of_the_task_that_had_the_id_before_is_superseded_and_no_error() -> None:
    model = Model()
    model.enqueue("t")
    taker = Taker("w", frozenset(), "w.1", 1)
    model.take(taker)
    (task,) = taker.got
    for completed in (True, False):  # the second time as a repeated call would, after the id was used again
        turn = model.turn()
        assert queue.complete(turn, "t", task.token, NULL) is completed
        model.store(turn)
        if completed:
            model.enqueue("t")
    assert model.one() == "t"


def test_a_task_that_loses_its_workers_is_not_given_away_for_ever() -> None:
    model = Model()
    model.enqueue("poison")
    for _ in range(queue.LOST_LIMIT):
        assert model.one() == "poison"
        model.now += 301 * SECOND
        turn = model.turn()
        queue.expire(turn)
    assert model.state.tasks[1].status == "failed"
    assert model.one() == ""


def test_only_so_many_ended_tasks_are_kept() -> None:
    model = Model()
    model.rows = []
    for number in range(KEPT + 1100):
        model.enqueue(f"t{number}")
        model.one()
        model.complete(f"t{number}")
        model.rows.clear()
    assert KEPT <= len(model.state.tasks) <= KEPT + 1000
    assert model.state.totals == {"completed": KEPT + 1100}
    assert len(model.state.ids) == len(model.state.tasks)


# ---- strategies


def test_each_strategy_differs_from_all_others_on_the_same_load() -> None:
    """One task, five workers: each strategy has another favourite, for the reason in its name."""
    workers = [
        Candidate("rested", frozenset("abcd"), load=9, weight=30, last=1, near=0),
        Candidate("idle", frozenset("abcd"), load=1, weight=6, last=9, near=0),
        Candidate("specialist", frozenset("a"), load=5, weight=25, last=8, near=0),
        Candidate("unhurried", frozenset("abcd"), load=4, weight=4, last=7, near=0),
        Candidate("near", frozenset("abcd"), load=6, weight=20, last=6, near=2),
    ]
    chosen = {strategy: choose(strategy, workers).worker for strategy in STRATEGIES}
    assert chosen == {
        "round_robin": "rested",
        "least_loaded": "idle",
        "capability_based": "specialist",
        "priority_weighted": "unhurried",
        "dependency_optimized": "near",
    }


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("round_robin", "a"),
        ("least_loaded", "b"),
        ("capability_based", "e"),
        ("priority_weighted", "c"),
        ("dependency_optimized", "d"),
    ],
)
def test_each_strategy_in_the_queue_on_the_same_history(strategy: str, expected: str) -> None:
    """The same events before, the same five waiting workers: only the strategy differs, and so does who gets the task."""
    model = Model()
    ability = {"a": "xyz", "b": "xyz", "c": "xyz", "d": "xyz", "e": "x"}
    # In the order of their last assignments: a, d, e, c, b. What they hold then: a 3 normal, d 3 urgent, e 2 urgent,
    # c 2 deferred, b 1 urgent.
    held = {
        "a": ["normal"] * 3, "d": ["urgent"] * 3, "e": ["urgent"] * 2, "c": ["deferred"] * 2, "b": ["urgent"],
    }  # fmt: skip
    model.enqueue("dep")
    model.one("d", *"xyz")
    model.complete("dep")
    for worker, priorities in held.items():
        for number, priority in enumerate(priorities):
            model.enqueue(f"{worker}{number}", priority=priority)
            assert model.one(worker, *ability[worker]) == f"{worker}{number}"
    turn = model.turn()
    queue.set_strategy(turn, strategy)
    model.store(turn)
    model.enqueue("task", capability="x", dependencies=("dep",))
    takers = [Taker(worker, frozenset(can), "", 1) for worker, can in ability.items()]
    got = dict(zip(ability, model.take(*takers), strict=True))
    assert got == {worker: ["task"] if worker == expected else [] for worker in ability}


def test_a_requirement_is_never_given_up() -> None:
    model = Model()
    model.enqueue("t", capability="gpu")
    assert model.one("w", "cpu") == ""
    assert model.one("w", "cpu", "gpu") == "t"


# ---- refusals


def test_what_is_refused_changes_nothing() -> None:
    model = Model()
    model.enqueue("t")
    seq = model.state.seq
    turn = model.turn()
    with pytest.raises(InvalidTransition):
        queue.complete(turn, "t", "", NULL)
    with pytest.raises(InvalidArgument):
        queue.set_strategy(turn, "random")
    with pytest.raises(InvalidArgument):
        queue.enqueue(turn, TaskSpec("self", dependencies=("self",)), NULL)
    assert (turn.events, model.state.seq) == ([], seq)


# ---- rows


def history() -> Model:
    """One event of each kind."""
    model = Model()
    model.enqueue("a", max_retries=1)
    model.enqueue("b", dependencies=("a",), capability="x")
    model.enqueue("c", not_before=T0 + 10 * SECOND)
    model.enqueue("c", priority="high")
    model.one("w1")
    turn = model.turn()
    held = next(task for task in turn.state.tasks.values() if task.status == "running").spec.task_id
    queue.progress(turn, held, "", 0.5)
    queue.pause(turn, "default")
    queue.resume(turn, "default")
    queue.set_strategy(turn, "least_loaded")
    model.store(turn)
    model.fail(held)
    model.now += 5 * SECOND
    turn = model.turn()
    queue.assign(turn, held, "w2", {})
    model.store(turn)
    model.fail(held)
    model.one("w1", "x")
    model.complete("a") if model.state.tasks[1].status == "running" else None
    model.now += 400 * SECOND
    turn = model.turn()
    queue.expire(turn)
    model.store(turn)
    return model


def facts(state: QueueState) -> object:
    return (
        state.seq,
        state.strategy,
        state.totals,
        [(t.spec.task_id, t.status, t.attempt) for t in state.tasks.values()],
    )


def test_folding_the_rows_gives_the_same_state() -> None:
    model = history()
    assert fold_queue(None, model.rows) == model.state
    assert QueueIndex(fold_queue(None, model.rows)).next_due(model.now) == model.index.next_due(model.now)


def test_rows_of_this_release_stay_readable() -> None:
    """The fixture is what release 0.2 stored: length-prefixed rows, each after its time in the queue."""
    data, rows, seq = FIXTURE.read_bytes(), [], 1
    while data:
        size = int.from_bytes(data[:4], "big")
        row, data = data[4 : 4 + size], data[4 + size :]
        count = len(decode_row(row)[1])
        rows.append(Row(seq, count, 1, 1, seq, row))
        seq += count
    assert facts(fold_queue(None, rows)) == facts(history().state)
