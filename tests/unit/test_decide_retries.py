"""Decisions about retries of tasks and of the run, and about timeouts, without a shell."""

from __future__ import annotations

import pytest

from onexflow.core.builder import workflow
from onexflow.core.commands import FireTimer, LoseAttempt, PauseRun, ResumeRun, StopAttempt
from onexflow.core.definition import RetryPolicy, RunRetry, Timeouts
from onexflow.core.instructions import CancelAttempt
from onexflow.core.payload import Failure
from support.core_driver import Model, graph_of, one_task

AT_ONCE = RetryPolicy(policy="fixed", initial_delay=0.0, jitter=0.0, max_attempts=3)


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
