"""Attempts: how they begin and end, and what becomes of their items, role by role; without a shell."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.builder import workflow
from onexflow.core.commands import (
    CompleteItems,
    FailAttempt,
    LoseAttempt,
    PauseRun,
    ResolveItem,
    ResumeRun,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidArgument, InvalidTransition, UnknownTask
from onexflow.core.events import TaskCompleted
from onexflow.core.evolve import FOLDS
from onexflow.core.ids import Token
from onexflow.core.instructions import Dispatch, SendAuthorised
from onexflow.core.payload import Failure, Payload
from support.core_driver import BOOM, Model, graph_of, one_task, value

CRASH = Failure("WorkerLost", "the child process died", code="OXF-4003")


def lost_effect() -> Model:
    """A non-idempotent effect whose worker was lost while it ran."""
    model = Model(one_task("effect"))
    model.authorise(idempotent=False)
    model.on_attempt(LoseAttempt, worker="w1")
    assert model.item().status == "waiting_for_input"
    return model


# ---- scheduling


def test_what_is_ready_is_not_scheduled_any_more_once_a_mapping_has_failed_the_run() -> None:
    flow = workflow("w")
    flow.compute("first")
    flow.compute("wrong", map="input")  # is no list
    flow.compute("last")
    model = Model(graph_of(flow), input=5)
    assert model.state.status == "failed"
    assert model.types().count("task.scheduled") == 2, "the first, and the one whose mapping failed"
    assert [model.task(name).status for name in ("first", "wrong", "last")] == ["cancelled", "failed", "cancelled"]


# ---- effects


def test_an_effect_is_authorised_before_it_is_sent_and_then_runs_under_the_token_of_that_event() -> None:
    model = Model(one_task("effect"))
    scheduled = model.item().offset
    model.authorise()
    assert model.types()[-1] == "task.started"
    [sent] = model.instructions(SendAuthorised)
    assert (sent.epoch, sent.offset) == (model.item().epoch, model.item().offset) != (1, scheduled)
    assert model.item().worker == "w1"


def test_an_effect_is_authorised_once() -> None:
    model = Model(one_task("effect"))
    model.authorise()
    assert not model.authorise(worker="w2").events
    assert model.item().worker == "w1"


def test_a_paused_run_authorises_nothing() -> None:
    model = Model(one_task("effect"))
    model.do(PauseRun())
    assert not model.authorise().events


def test_a_result_under_the_token_of_the_scheduling_is_not_an_effects() -> None:
    model = Model(one_task("effect"))
    place = model.item().epoch, model.item().offset
    model.authorise()
    turn = model.do(CompleteItems(0, [Token(0, *place, 0)], [Payload(b"1")], "w1", "w1.1"))
    assert not turn.events
    assert turn.superseded == [(0, *place)]


def test_an_idempotent_effect_runs_again_when_its_worker_is_lost() -> None:
    model = Model(one_task("effect"))
    model.authorise()
    model.on_attempt(LoseAttempt, worker="w1")
    assert model.types()[-2:] == ["task.retry/lost", "task.scheduled/again"]
    assert model.dispatched() == [("a", 0, 1)]
    assert model.item().attempt == 2
    assert model.item().counted == 1, "a lost attempt does not count against the policy"


def test_a_non_idempotent_effect_waits_for_input_when_its_worker_is_lost() -> None:
    model = lost_effect()
    assert model.types()[-1] == "state.transitioned/task.waiting_for_input"
    assert not model.dispatched()
    assert model.state.status == "running"


def test_the_late_result_of_exactly_that_attempt_resolves_the_wait() -> None:
    model = lost_effect()
    model.complete(result=7)
    assert model.state.status == "completed"
    assert value(model.state.result) == 7


def test_of_several_results_those_that_are_not_waited_for_are_left_out() -> None:
    flow = workflow("w")
    flow.compute("a", map="input")
    model = Model(graph_of(flow), [1, 2, 3])
    items = model.task().items
    tokens = [Token(0, item.epoch, item.offset + (index == 1), index) for index, item in enumerate(items)]
    turn = model.do(CompleteItems(0, tokens, [encode_value(index) for index in range(3)], "w1", "w1.1"))
    assert turn.superseded == [(1, items[1].epoch, items[1].offset + 1)]
    assert [(item.status, item.result) for item in items] == [
        ("completed", encode_value(0)),
        ("scheduled", None),
        ("completed", encode_value(2)),
    ]


def test_a_decision_that_fails_halfway_has_counted_what_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise InvalidTransition("a bug")

    model = Model(one_task("compute"))
    before = model.state.seq
    monkeypatch.setitem(FOLDS, TaskCompleted, fails)  # type: ignore[misc]  # its keys are classes of events
    with pytest.raises(InvalidTransition):
        model.complete()
    assert model.state.seq == before + 2  # task.started, and what could not be folded


def test_a_late_result_of_another_attempt_is_superseded() -> None:
    model = lost_effect()
    item = model.item()
    turn = model.do(CompleteItems(0, [Token(0, item.epoch, item.offset + 1, 0)], [Payload(b"1")], "w1", "w1.1"))
    assert not turn.events
    assert len(turn.superseded) == 1


@pytest.mark.parametrize(
    ("late", "fields"),
    [(StopAttempt, {}), (LoseAttempt, {"worker": "w1"}), (FailAttempt, {"error": CRASH, "worker": "w1"})],
)
def test_what_says_nothing_new_of_a_waited_for_effect_leaves_it_waiting(late: type, fields: dict[str, Any]) -> None:
    model = lost_effect()
    turn = model.on_attempt(late, **fields)
    assert not turn.events
    assert not turn.superseded
    assert model.item().status == "waiting_for_input"
    assert model.state.seq == len(model.log)


def test_a_late_failure_resolves_the_wait_too() -> None:
    model = lost_effect()
    model.fail()
    assert model.task().status == "failed"
    assert model.state.status == "failed"


def test_a_late_word_that_it_never_began_sends_it_again() -> None:
    model = lost_effect()
    model.on_attempt(ReturnAttempt)
    assert model.item().status == "scheduled"
    assert model.dispatched() == [("a", 0, 1)]


def test_a_late_failure_of_a_waited_for_effect_obeys_its_retry_policy() -> None:
    model = Model(one_task("effect", retry=RetryPolicy(policy="fixed", initial_delay=0.0, jitter=0.0, max_attempts=2)))
    for _ in range(2):
        model.authorise(idempotent=False)
        model.on_attempt(LoseAttempt, worker="w1")
        model.fail()
    assert model.task().status == "failed", "two attempts have failed: the policy allows no third"


def test_an_interrupted_non_idempotent_effect_waits_and_an_idempotent_one_runs_again() -> None:
    careful = Model(one_task("effect"))
    careful.authorise(idempotent=False)
    careful.on_attempt(StopAttempt)
    assert careful.item().status == "waiting_for_input"
    bold = Model(one_task("effect"))
    bold.authorise()
    bold.on_attempt(StopAttempt)
    assert bold.item().status == "scheduled"
    assert bold.item().attempt == 2


def test_a_returned_effect_is_sent_again_whatever_it_is() -> None:
    model = Model(one_task("effect"))
    model.authorise(idempotent=False)
    model.on_attempt(ReturnAttempt)
    assert model.types()[-2:] == ["task.retry/returned", "task.scheduled/again"]


# ---- losses


@pytest.mark.parametrize("role", ["effect", "compute", "reducer", "orchestrator"])
def test_three_lost_workers_end_a_task(role: str) -> None:
    model = Model(one_task(role))
    for number in (1, 2, 3):
        if role == "effect":
            model.authorise(worker=f"w{number}")
        model.on_attempt(LoseAttempt, worker=f"w{number}")
    error = model.task().error
    assert error is not None
    assert (error.type, error.code) == ("WorkerLost", "OXF-4003")
    assert error.context is not None
    assert error.context["workers"] == ["w1", "w2", "w3"]
    assert model.types()[-2:] == ["task.failed/lost", "workflow.failed"]


def test_a_child_process_that_dies_is_a_lost_worker() -> None:
    model = Model(one_task())
    for _ in range(3):
        model.fail(error=CRASH)
    assert model.task().status == "failed"
    assert "task.retry" not in model.types(), "not counted as failures"


# ---- owners


def test_what_an_owner_before_scheduled_is_dispatched_under_its_epoch() -> None:
    flow = workflow("w")
    flow.compute("a", map="input", max_parallel=1)
    model = Model(graph_of(flow), [1, 2, 3])
    model.epoch = 2
    model.do(PauseRun())
    model.do(ResumeRun())
    assert [i.epoch for i in model.instructions(Dispatch)] == [1]
    model.on_attempt(ReturnAttempt, "a", 0)
    assert [i.epoch for i in model.instructions(Dispatch)] == [1]
    model.complete("a", 0)
    assert [(i.first, i.epoch) for i in model.instructions(Dispatch)] == [(1, 1)]
    model.complete("a", 1)
    model.complete("a", 2)
    assert model.state.status == "completed"


# ---- people


def test_a_person_may_retry_give_a_result_or_fail() -> None:
    again = lost_effect()
    again.do(ResolveItem(0, 0, retry=True))
    assert again.types()[-1] == "task.scheduled/resolved"
    given = lost_effect()
    given.do(ResolveItem(0, 0, result=Payload(b"5")))
    assert value(given.state.result) == 5
    failed = lost_effect()
    failed.do(ResolveItem(0, 0, fail="it was charged twice"))
    assert failed.state.status == "failed"
    assert "charged twice" in failed.task().error.message


def test_a_resolved_item_makes_room_for_the_next_one() -> None:
    flow = workflow("w")
    flow.effect("a", map="input", max_parallel=1)
    model = Model(graph_of(flow), [1, 2])
    model.authorise(idempotent=False)
    model.on_attempt(LoseAttempt, worker="w1")
    model.do(ResolveItem(0, 0, result=Payload(b"1")))
    assert model.dispatched() == [("a", 1, 1)]


def test_only_what_waits_can_be_resolved() -> None:
    model = Model(one_task("effect"))
    with pytest.raises(InvalidTransition, match="only one that waits for input") as raised:
        model.do(ResolveItem(0, 0, retry=True))
    assert raised.value.context["required_state"] == "waiting_for_input"
    with pytest.raises(UnknownTask):
        model.do(ResolveItem(7, 0, retry=True))
    with pytest.raises(InvalidTransition):
        model.do(ResolveItem(0, 5, retry=True))
    with pytest.raises(InvalidArgument):
        lost_effect().do(ResolveItem(0, 0))


def test_a_resolution_while_paused_is_sent_after_the_pause() -> None:
    model = lost_effect()
    model.do(PauseRun())
    model.do(ResolveItem(0, 0, retry=True))
    assert not model.dispatched()
    model.do(ResumeRun())
    assert model.dispatched() == [("a", 0, 1)]


def test_the_error_of_a_failed_task_names_it() -> None:
    model = Model(one_task(retry=RetryPolicy(policy="none")))
    model.fail(error=BOOM)
    assert model.state.error is not None
    assert (model.state.error.context or {})["task"] == "a"
