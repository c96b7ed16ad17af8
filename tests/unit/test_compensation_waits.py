"""What is waited for before anything is undone: the end of every effect that may have happened."""

from __future__ import annotations

import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.builder import workflow
from onexflow.core.commands import CancelRun, LoseAttempt, ResolveItem, ReturnAttempt, StopAttempt
from onexflow.core.definition import Timeouts
from support.core_driver import Model, graph_of
from support.saga_kit import at_pay, end, saga, undo


def test_a_running_effect_is_waited_for_and_its_late_result_is_undone_first() -> None:
    model = at_pay()
    model.do(CancelRun())
    assert (model.state.status, model.state.awaited) == ("compensating", 1)
    assert model.item("pay").stopping == "compensation"
    assert not model.dispatched(), "nothing is undone before it is known what to undo"
    model.complete("pay", result={"id": 1})
    assert model.dispatched() == [("pay.undo", 0, 1)]
    undo(model, "pay.undo")
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")


@pytest.mark.parametrize("ending", ["stop", "fail", "return"])
def test_a_running_effect_that_stops_fails_or_never_began_has_nothing_to_undo(ending: str) -> None:
    model = at_pay()
    model.do(CancelRun())
    if ending == "fail":
        model.fail("pay")
    else:
        model.on_attempt(StopAttempt if ending == "stop" else ReturnAttempt, "pay")
    assert model.task("pay").status == ("failed" if ending == "fail" else "cancelled")
    assert model.dispatched() == [("book.undo", 0, 1)]
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")
    assert model.task("pay.undo").status == "skipped"


def test_only_a_running_effect_and_it_stops_is_compensated_all_the_same() -> None:
    model = Model(saga(), {"trip": 7})
    model.authorise("book")
    model.do(CancelRun())
    model.on_attempt(StopAttempt, "book")
    assert end(model) == ("compensated", "cancelled")


@pytest.mark.parametrize("answer", ["late", "result", "retry", "fail", "returned"])
def test_an_unknown_outcome_waits_for_its_result_or_a_persons_word(answer: str) -> None:
    model = at_pay()
    model.do(CancelRun())
    model.on_attempt(LoseAttempt, "pay", worker="w1")
    assert model.task("pay").status == "waiting_for_input"
    assert model.state.status == "compensating"
    task = model.graph.index["pay"]
    if answer == "late":
        model.complete("pay", result={"id": 2})
    elif answer == "result":
        model.do(ResolveItem(task, 0, result=encode_value({"id": 2})))
    elif answer == "retry":
        model.do(ResolveItem(task, 0, retry=True))
        assert model.dispatched() == [("pay", 0, 1)]
        model.authorise("pay")
        model.complete("pay", result={"id": 2})
    elif answer == "fail":
        model.do(ResolveItem(task, 0, fail="the bank says no"))
    else:
        model.on_attempt(ReturnAttempt, "pay")
    if answer in {"late", "result", "retry"}:
        undo(model, "pay.undo")
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")


def test_an_idempotent_effect_whose_worker_is_lost_is_run_again_so_that_its_end_is_known() -> None:
    model = Model(saga(), {"trip": 7})
    model.authorise("book")
    model.do(CancelRun())
    model.on_attempt(LoseAttempt, "book", worker="w1")
    assert model.dispatched() == [("book", 0, 1)]
    model.authorise("book", worker="w2")
    model.complete("book", result={"seat": 1}, worker="w2")
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")


def test_what_was_lost_before_the_cancel_is_run_again_too() -> None:
    model = Model(saga(), {"trip": 7})
    model.authorise("book")
    model.on_attempt(LoseAttempt, "book", worker="w1")
    assert model.item("book").status == "scheduled"
    model.do(CancelRun())
    assert model.state.status == "compensating"
    assert model.dispatched() == [("book", 0, 1)], "its place in the queue was given up with the rest"
    model.authorise("book", worker="w2")
    model.complete("book", result={"seat": 1}, worker="w2")
    undo(model, "book.undo")
    assert end(model) == ("compensated", "cancelled")


def test_timers_of_what_is_waited_for_mean_nothing() -> None:
    flow = workflow("w")
    limits = Timeouts(start_to_close=1, schedule_to_close=2, heartbeat=1)
    flow.effect("a", compensation="unmake", timeouts=limits)
    model = Model(graph_of(flow), 1)
    model.authorise()
    model.do(CancelRun())
    model.later(100)
    for kind in ("start_to_close", "heartbeat", "cancel_grace", "schedule_to_close"):
        model.fire(kind)
        assert not model.turn.events, kind
    model.complete(result=1)
    undo(model, "a.undo")
    assert end(model) == ("compensated", "cancelled")
