"""A run that can be undone, taken to where a test begins."""

from __future__ import annotations

from typing import Any

from onexflow.core.builder import workflow
from onexflow.core.definition import Compensation, RetryPolicy
from onexflow.core.graph import Graph
from support.core_driver import Model, graph_of, same

ONCE = RetryPolicy(policy="none")


def saga(**options: Any) -> Graph:
    """book and pay, each with a compensation, then send without one."""
    flow = workflow("saga", **options)
    book = flow.effect("book", input="input.trip", compensation="unbook")
    paid = {"id": "result.id", "why": "reason", "how": "outcome", "seat": "tasks.book.seat", "trip": "input.trip"}
    pay = flow.effect("pay", depends_on=[book], compensation=Compensation(handler="refund", input=paid), retry=ONCE)
    flow.effect("send", depends_on=[pay], retry=ONCE)
    return graph_of(flow)


def at_pay(**options: Any) -> Model:
    """book is done, pay is authorised."""
    model = Model(saga(**options), {"trip": 7})
    model.authorise("book")
    model.complete("book", result={"seat": 3})
    model.authorise("pay", idempotent=False)
    return model


def at_send(**options: Any) -> Model:
    """book and pay are done, send is authorised."""
    model = at_pay(**options)
    model.complete("pay", result={"id": 9})
    model.authorise("send")
    return model


def undo(model: Model, name: str) -> None:
    """Carry out the undoing that is scheduled."""
    assert model.task(name).status == "scheduled"
    model.authorise(name)
    model.complete(name)


def end(model: Model) -> tuple[str, str]:
    """State and outcome, the same when folded anew."""
    assert same(model.fold(), model.state)
    return model.state.status, model.state.outcome
