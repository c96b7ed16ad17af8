"""What becomes of a run that is cancelled, fails or times out when its effects can be undone: every path, without a shell."""

from __future__ import annotations

import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.builder import workflow
from onexflow.core.commands import CancelRun, LoseAttempt, PauseRun, ResolveItem, ResumeRun, StopAttempt
from onexflow.core.definition import Compensation, RunRetry
from onexflow.core.errors import InvalidTransition
from onexflow.core.instructions import CancelAll, FinishRun
from onexflow.core.payload import Failure
from onexflow.engine.views import outcome_of
from support.core_driver import Model, graph_of, value
from support.saga_kit import ONCE, at_pay, at_send, end, saga, undo


def test_a_cancelled_run_undoes_the_last_first_and_keeps_its_outcome() -> None:
    model = at_send()
    since = len(model.log)
    model.do(CancelRun("changed my mind"))
    assert model.types(since) == ["workflow.cancelled/compensating", "compensation.started/cancelled", "task.scheduled"]
    assert model.instructions(CancelAll)
    assert (model.state.status, model.state.open_tasks) == ("compensating", 2)
    assert model.task("send").status == "cancelled"
    assert model.dispatched() == [("pay.undo", 0, 1)]
    assert value(model.item("pay.undo").input) == {
        "id": 9, "why": "changed my mind", "how": "cancelled", "seat": 3, "trip": 7,
    }  # fmt: skip
    undo(model, "pay.undo")
    assert model.dispatched() == [("book.undo", 0, 1)]
    assert value(model.item("book.undo").input) == {"input": 7, "result": {"seat": 3}}
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")
    assert model.types()[-1] == "compensation.completed/cancelled"
    assert model.instructions(FinishRun)
    outcome = outcome_of(model.state.key, model.state)
    assert (outcome.state, outcome.result) == ("compensated", None)
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("Cancelled", "changed my mind")
    assert outcome.error.context == {"outcome": "cancelled"}


def test_nothing_to_undo_is_cancelled_at_once() -> None:
    model = Model(saga(), {"trip": 7})
    model.do(CancelRun("no"))
    assert end(model) == ("cancelled", "")
    assert model.types()[-1] == "workflow.cancelled"


def test_a_scheduled_effect_that_nobody_began_is_not_waited_for() -> None:
    model = Model(saga(), {"trip": 7})
    assert model.task("book").status == "scheduled"
    model.do(CancelRun())
    assert end(model) == ("cancelled", "")


def test_a_run_that_fails_for_good_is_undone_and_keeps_its_error() -> None:
    model = at_send()
    model.fail("send")
    assert "workflow.failed" not in model.types()
    assert model.types()[-2:] == ["compensation.started/failed", "task.scheduled"]
    assert value(model.item("pay.undo").input)["why"] == "Boom: it broke"
    undo(model, "pay.undo")
    undo(model, "book.undo")
    assert end(model) == ("compensated", "failed")
    assert model.state.error is not None
    assert model.state.error.type == "Boom"
    error = outcome_of(model.state.key, model.state).error
    assert error is not None
    assert error.context == {"task": "send", "outcome": "failed"}


def test_the_runs_own_retry_goes_first() -> None:
    model = at_send(retry=RunRetry(max_attempts=2, delay=5))
    model.fail("send")
    assert model.state.status == "retrying"
    model.later(5)
    model.fire("run_retry")
    model.authorise("send")
    model.fail("send")
    assert (model.state.status, model.state.outcome) == ("compensating", "failed")


def test_a_run_that_times_out_is_undone() -> None:
    model = at_send(timeout=60)
    model.later(60)
    model.fire("run_timeout")
    assert (model.state.status, model.state.outcome) == ("compensating", "timeout")
    model.fire("run_timeout")
    assert not model.turn.events, "it has timed out already"
    undo(model, "pay.undo")
    undo(model, "book.undo")
    assert end(model) == ("compensated", "timeout")


def test_an_output_that_cannot_be_made_fails_the_run_and_so_undoes_it() -> None:
    flow = workflow("w")
    flow.effect("a", compensation="unmake")
    model = Model(graph_of(flow, output="length(`5`)"), 1)
    model.authorise()
    model.complete(result=1)
    assert (model.state.status, model.state.outcome) == ("compensating", "failed")


@pytest.mark.parametrize("status", ["paused", "retrying", "initializing"])
def test_undoing_begins_from_every_state(status: str) -> None:
    if status == "initializing":
        flow = workflow("w")
        flow.effect("rent", setup=True, compensation="give-back")
        flow.effect("clean", setup=True, after=["rent"])
        flow.compute("use")
        model = Model(graph_of(flow), 1)
        model.authorise("rent")
        model.complete("rent")
        name = "rent.undo"
    else:
        model, name = at_send(retry=RunRetry(delay=5)), "pay.undo"
        if status == "paused":
            model.do(PauseRun())
        else:
            model.fail("send")
    assert model.state.status == status
    model.do(CancelRun())
    assert model.state.status == "compensating"
    undo(model, name)
    if status != "initializing":
        undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")


def test_undoing_is_retried_like_any_effect() -> None:
    model = at_pay()
    model.do(CancelRun())
    model.on_attempt(StopAttempt, "pay")
    model.authorise("book.undo", idempotent=True)
    model.fail("book.undo")
    assert model.task("book.undo").status == "retrying"
    model.later(1)
    model.fire("retry", "book.undo")
    model.authorise("book.undo")
    model.on_attempt(LoseAttempt, "book.undo", worker="w1")
    assert model.dispatched() == [("book.undo", 0, 1)]
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")


def test_an_undoing_of_unknown_outcome_waits_for_input() -> None:
    model = at_pay()
    model.do(CancelRun())
    model.on_attempt(StopAttempt, "pay")
    model.authorise("book.undo", idempotent=False)
    model.on_attempt(LoseAttempt, "book.undo", worker="w1")
    assert (model.state.status, model.task("book.undo").status) == ("compensating", "waiting_for_input")
    model.do(ResolveItem(model.graph.index["book.undo"], 0, result=encode_value("done by hand")))
    assert end(model) == ("compensated", "cancelled")


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
def test_what_cannot_be_undone_fails_the_run_with_both_errors(outcome: str) -> None:
    model = at_send()
    model.do(CancelRun("enough")) if outcome == "cancelled" else model.fail("send")
    model.authorise("pay.undo", idempotent=False)
    model.fail("pay.undo", error=Failure("BankClosed", "it is Sunday"))
    assert end(model) == ("failed", outcome)
    assert model.types()[-2:] == ["task.failed", "workflow.failed"]
    assert model.instructions(FinishRun)
    error = model.state.error
    assert error is not None
    assert error.context is not None
    assert error.type == "CompensationFailed"
    cause = "enough" if outcome == "cancelled" else "Boom: it broke"
    assert error.message == (
        f"pay could not be undone: BankClosed: it is Sunday; the run was to be undone as {outcome} ({cause})"
    )
    assert error.context == {
        "task": "pay.undo", "outcome": outcome, "cause": cause, "not_undone": ["pay", "book"],
        "error_type": "BankClosed",
    }  # fmt: skip
    assert model.task("book.undo").status == "cancelled"
    with pytest.raises(InvalidTransition):
        model.do(CancelRun())


def test_a_mapping_that_fails_fails_the_undoing() -> None:
    flow = workflow("w")
    flow.effect("a", compensation=Compensation(handler="unmake", input="length(result)"))
    flow.effect("b", depends_on=["a"])
    model = Model(graph_of(flow), 1)
    model.authorise()
    model.complete(result=5)
    model.do(CancelRun())
    assert end(model) == ("failed", "cancelled")
    assert model.state.error is not None
    assert "tasks[0].compensation.input" in model.state.error.message


def test_people_while_a_run_is_undone() -> None:
    model = at_send()
    model.do(CancelRun())
    assert not model.do(CancelRun("again")).events, "a second cancel changes nothing"
    for command in (PauseRun(), ResumeRun()):
        with pytest.raises(InvalidTransition) as refused:
            model.do(command)
        assert refused.value.context["current_state"] == "compensating"
    undo(model, "pay.undo")
    undo(model, "book.undo")
    assert not model.do(CancelRun("again")).events
    failed = at_send()
    failed.fail("send")
    undo(failed, "pay.undo")
    undo(failed, "book.undo")
    with pytest.raises(InvalidTransition):
        failed.do(CancelRun())


def test_the_order_is_that_of_completion_reversed_whatever_the_definitions() -> None:
    flow = workflow("w")
    for name in ("a", "b", "c"):
        flow.effect(name, compensation="undo")
    flow.effect("last", after=["a", "b", "c"])
    model = Model(graph_of(flow), 1)
    for name in ("b", "c", "a"):
        model.authorise(name)
        model.complete(name)
    model.do(CancelRun())
    for name in ("a", "c", "b"):
        undo(model, f"{name}.undo")
    assert end(model) == ("compensated", "cancelled")


def test_a_compensation_of_a_task_that_failed_or_was_skipped_is_not_called() -> None:
    flow = workflow("w")
    flow.effect("skipped", when="input.no", compensation="undo")
    flow.effect("failed", compensation="undo", allow_failure=True, retry=ONCE)
    flow.effect("done", after=["failed"], compensation="undo")
    flow.effect("last", after=["done"])
    model = Model(graph_of(flow), {"no": False})
    model.authorise("failed")
    model.fail("failed")
    model.authorise("done")
    model.complete("done")
    model.do(CancelRun())
    undo(model, "done.undo")
    assert end(model) == ("compensated", "cancelled")


def test_results_that_are_no_json_can_be_passed_on_alone() -> None:
    from onexflow.core.commands import CompleteItems
    from onexflow.core.ids import Token
    from onexflow.core.payload import Payload

    for mapping, expected in (("result", "compensating"), (None, "failed")):
        flow = workflow("w")
        flow.effect("a", compensation=Compensation(handler="unmake", input=mapping))
        flow.effect("b", depends_on=["a"], input="`1`")
        model = Model(graph_of(flow), 1)
        model.authorise()
        at = model.item()
        picture = Payload(b"\x00", "png")
        model.do(CompleteItems(0, [Token(0, at.epoch, at.offset, 0)], [picture], "w1", "w1.1"))
        model.do(CancelRun())
        assert model.state.status == expected
        if expected == "compensating":
            assert model.item("a.undo").input == picture
