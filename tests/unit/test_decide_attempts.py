"""Attempts: how they begin and end, and what becomes of their items, role by role."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.builder import workflow
from onexflow.core.commands import (
    CompleteItems,
    FailAttempt,
    FireTimer,
    LoseAttempt,
    PauseRun,
    ResolveItem,
    ResumeRun,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.definition import RetryPolicy, RunRetry, Timeouts
from onexflow.core.errors import InvalidArgument, InvalidTransition, UnknownTask
from onexflow.core.events import TaskCompleted
from onexflow.core.evolve import FOLDS
from onexflow.core.ids import Token
from onexflow.core.instructions import CancelAttempt, Dispatch, SendAuthorised
from onexflow.core.payload import Failure, Payload
from support.core_driver import BOOM, Model, graph_of, one_task, value

AT_ONCE = RetryPolicy(policy="fixed", initial_delay=0.0, jitter=0.0, max_attempts=3)
CRASH = Failure("WorkerLost", "the child process died", code="OXF-4003")


def lost_effect() -> Model:
    """A non-idempotent effect whose worker was lost while it ran."""
    model = Model(one_task("effect"))
    model.authorise(idempotent=False)
    model.on_attempt(LoseAttempt, worker="w1")
    assert model.item().status == "waiting_for_input"
    return model


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


# ---- retries


def test_an_orchestration_is_tried_again_when_a_call_could_not_be_made() -> None:
    model = Model(one_task("orchestrator"))
    model.fail(error=Failure("UnknownNode", "no worker serves it"))
    assert model.item().status == "retrying"
    model = Model(one_task("orchestrator"))
    model.fail(error=Failure("ValueError", "what it called has failed"))
    assert model.task().status == "failed"


def test_a_failed_attempt_is_tried_again_after_its_delay() -> None:
    model = Model(one_task(retry=RetryPolicy(policy="exponential", initial_delay=2.0, multiplier=3.0, jitter=0.0)))
    model.fail()
    assert model.item().status == "retrying"
    assert model.timers() == [("retry", 2.0)]
    model.later(2)
    model.fire("retry")
    assert model.item().attempt == 2
    model.fail()
    assert model.timers() == [("retry", 6.0)]


def test_a_retry_timer_that_comes_early_does_nothing() -> None:
    model = Model(one_task())
    model.fail()
    assert not model.fire("retry").events


def test_attempts_end_with_the_policys_number() -> None:
    model = Model(one_task(retry=AT_ONCE))
    for _ in range(3):
        model.fail()
    assert model.task().status == "failed"
    assert model.types().count("task.retry") == 2


def test_jitter_shortens_the_delay_within_its_bounds() -> None:
    graph = one_task(retry=RetryPolicy(policy="fixed", initial_delay=10.0, jitter=0.3))
    for jitter, seconds in ((0.0, 10.0), (0.5, 8.5), (1.0, 7.0)):
        model = Model(graph, jitter=jitter)
        model.fail()
        [(_, wait)] = model.timers()
        assert wait == pytest.approx(seconds)


def test_a_handlers_word_ends_retries() -> None:
    model = Model(one_task(retry=AT_ONCE))
    model.fail(error=Failure("Boom", "no use", retryable=False))
    assert model.task().status == "failed"


def test_retry_after_goes_before_the_policys_delay() -> None:
    model = Model(one_task())
    model.fail(error=Failure("Busy", "later", context={"retry_after": 42.0}))
    assert model.timers() == [("retry", 42.0)]


@pytest.mark.parametrize("wait", [-5.0, float("nan"), float("inf"), 1e300, True])
def test_a_senseless_retry_after_hurts_nobody(wait: float) -> None:
    model = Model(one_task())
    model.fail(error=Failure("Busy", "later", context={"retry_after": wait}))
    assert model.item().status in {"retrying", "scheduled"}
    assert model.item().due_at < 2**63


def test_a_non_idempotent_effect_is_not_retried_unless_its_definition_says_so() -> None:
    silent = Model(one_task("effect"))
    silent.authorise(idempotent=False)
    silent.fail()
    assert silent.task().status == "failed"
    told = Model(one_task("effect", retry=AT_ONCE))
    told.authorise(idempotent=False)
    told.fail()
    assert told.item().status == "scheduled"


# ---- the run's own retry


def two_tasks(rounds: int = 2, delay: float = 5.0) -> Model:
    flow = workflow("pair", retry=RunRetry(max_attempts=rounds, delay=delay))
    flow.compute("a", retry=RetryPolicy(policy="none"))
    flow.compute("b", retry=RetryPolicy(policy="none"))
    return Model(graph_of(flow))


def test_a_run_goes_back_to_its_failed_task() -> None:
    model = two_tasks()
    model.complete("a", result=1)
    model.fail("b")
    assert model.state.status == "retrying"
    assert model.timers() == [("run_retry", 5.0)]
    model.later(5)
    model.fire("run_retry")
    assert model.state.status == "running"
    assert model.dispatched() == [("b", 0, 1)]
    model.complete("b", result=2)
    assert model.state.status == "completed"


def test_rounds_are_counted_and_the_last_one_fails_the_run() -> None:
    model = two_tasks(rounds=3)
    for _ in range(2):
        model.fail("b")
        assert model.state.status == "retrying"
        model.later(5)
        model.fire("run_retry")
    model.fail("b")
    assert model.state.status == "failed"


def test_two_tasks_that_fail_in_one_round_share_the_next() -> None:
    model = two_tasks()
    model.fail("a")
    model.fail("b")
    assert model.state.status == "retrying"
    model.later(5)
    model.fire("run_retry")
    assert model.dispatched() == [("a", 0, 1), ("b", 0, 1)]
    model.complete("a")
    model.complete("b")
    assert model.state.status == "completed"


def test_a_task_that_fails_while_paused_is_retried_after_the_pause() -> None:
    model = two_tasks()
    model.do(PauseRun())
    model.fail("a")
    model.fail("b")
    assert model.state.status == "paused"
    model.do(ResumeRun())
    assert model.state.status == "retrying"


# ---- timeouts


def test_schedule_to_start() -> None:
    model = Model(one_task(timeouts=Timeouts(schedule_to_start=3)))
    assert model.timers() == [("schedule_to_start", 3.0)]
    model.fire("schedule_to_start")
    assert model.task().status == "timeout"
    assert model.types()[-2:] == ["task.failed/timeout", "workflow.failed"]
    assert model.task().error.context["timeout"] == "schedule_to_start"


def test_start_to_close_of_a_pure_task_counts_as_an_attempt_and_the_next_begins_at_once() -> None:
    model = Model(one_task(timeouts=Timeouts(start_to_close=3), retry=AT_ONCE))
    model.fire("start_to_close")
    assert [type(i).__name__ for i in model.turn.instructions] == ["CancelAttempt", "Dispatch"]
    assert model.item().attempt == 2


@pytest.mark.parametrize("timeout", ["start_to_close", "heartbeat"])
def test_the_next_attempt_of_an_effect_begins_when_the_one_before_has_stopped(timeout: str) -> None:
    model = Model(one_task("effect", timeouts=Timeouts(**{timeout: 3}), retry=AT_ONCE))
    model.authorise()
    assert model.timers() == [(timeout, 3.0)]
    model.later(3)
    model.fire(timeout)
    assert model.instructions(CancelAttempt)
    assert model.timers() == [("cancel_grace", 10.0)]
    assert model.item().status == "running"
    model.on_attempt(StopAttempt)
    assert model.types()[-2:] == ["task.retry/timeout", "task.scheduled/again"]


def test_an_idempotent_effect_that_does_not_stop_is_overtaken_after_its_grace() -> None:
    model = Model(one_task("effect", timeouts=Timeouts(start_to_close=3), retry=AT_ONCE))
    model.authorise()
    model.fire("start_to_close")
    model.fire("cancel_grace")
    assert model.item().attempt == 2
    assert model.item().status == "scheduled"


def test_a_non_idempotent_effect_is_never_overtaken() -> None:
    model = Model(one_task("effect", timeouts=Timeouts(start_to_close=3), retry=AT_ONCE))
    model.authorise(idempotent=False)
    model.fire("start_to_close")
    assert not model.timers()
    assert not model.fire("cancel_grace").events


def test_an_effect_that_ends_while_it_is_told_to_stop_has_its_result() -> None:
    model = Model(one_task("effect", timeouts=Timeouts(start_to_close=3)))
    model.authorise()
    model.fire("start_to_close")
    model.complete(result=1)
    assert model.state.status == "completed"


def test_schedule_to_close_ends_the_task_in_whatever_state() -> None:
    timeouts = Timeouts(schedule_to_close=9)
    running = Model(one_task("effect", timeouts=timeouts))
    running.authorise()
    running.fire("schedule_to_close", "a")
    assert running.task().status == "timeout"
    assert running.instructions(CancelAttempt)
    retrying = Model(one_task(timeouts=timeouts))
    retrying.fail()
    retrying.fire("schedule_to_close", "a")
    assert retrying.task().status == "timeout"
    waiting = Model(one_task("effect", timeouts=timeouts))
    waiting.authorise(idempotent=False)
    waiting.on_attempt(LoseAttempt, worker="w1")
    waiting.fire("schedule_to_close", "a")
    assert waiting.task().status == "timeout"


def test_a_runs_retry_never_starts_an_effect_beside_one_that_still_runs() -> None:
    flow = workflow("single", retry=RunRetry(max_attempts=2, delay=0.0))
    flow.effect("a", timeouts=Timeouts(schedule_to_close=9))
    model = Model(graph_of(flow))
    model.authorise(idempotent=False)
    model.fire("schedule_to_close", "a")
    assert "task.scheduled/again" not in model.types()
    assert model.instructions(CancelAttempt)


def test_a_timer_of_an_attempt_before_does_nothing() -> None:
    model = Model(one_task(timeouts=Timeouts(start_to_close=3), retry=AT_ONCE))
    stale = model.item().epoch, model.item().offset
    model.fail()
    assert not model.do(FireTimer("start_to_close", 0, 0, *stale)).events


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
