"""Compensations in definitions: how they are written, and what is refused with its place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onexflow.codec.definitions import definition_of, dump_definition, load_definition
from onexflow.core.builder import workflow
from onexflow.core.definition import Compensation, RetryPolicy, Timeouts
from onexflow.core.errors import InvalidDefinition
from support.core_driver import BEGIN, Model, graph_of


def test_a_compensation_is_written_in_every_way() -> None:
    flow = workflow("w", version=1)
    full = Compensation(
        handler="undo", input={"a": "result"}, retry=RetryPolicy(max_attempts=9), timeouts=Timeouts(heartbeat=1)
    )
    flow.effect("a", compensation="undo")
    flow.effect("b", compensation=full)
    built = flow.build()
    assert load_definition(dump_definition(built)) == built
    text = b"""
workflow_type: w
tasks:
  - {name: a, role: effect, compensation: undo}
  - name: b
    role: effect
    compensation: {handler: undo, input: {a: result}, retry: {max_attempts: 9}, timeouts: {heartbeat: 1}}
"""
    assert load_definition(text, "yaml") == built
    graph = graph_of(flow)
    assert (len(graph), graph.names) == (2, ("a", "b", "a.undo", "b.undo"))
    assert graph.specs[3].retry == full.retry
    plain = workflow("w", version=1)
    plain.effect("a")
    assert b"compensation" not in dump_definition(plain.build())


@pytest.mark.parametrize(
    ("task", "place", "problem"),
    [
        ({"role": "compute", "compensation": "x"}, "tasks[0].compensation", "only an effect"),
        ({"role": "effect", "map": "input", "compensation": "x"}, "tasks[0].compensation", "item by item"),
        ({"role": "effect", "compensation": "no name"}, "tasks[0].compensation.handler", "no handler name"),
        ({"role": "effect", "compensation": ""}, "tasks[0].compensation.handler", "no handler name"),
        ({"role": "effect", "compensation": {"handler": "x", "input": "item"}},
         "tasks[0].compensation.input", "exists only in the input of a task with `map`"),
        ({"role": "effect", "input": "result"}, "tasks[0].input", "exists only in the input of a compensation"),
        ({"role": "effect", "compensation": {"handler": "x", "input": "tasks.b"}},
         "tasks[0].compensation.input", "unknown task 'b'"),
        ({"role": "effect", "compensation": {"handler": "x", "retry": {"max_attempts": 0}}},
         "tasks[0].compensation.retry.max_attempts", "whole number"),
        ({"role": "effect", "compensation": {"handler": "x", "timeouts": {"heartbeat": -1}}},
         "tasks[0].compensation.timeouts.heartbeat", "negative"),
    ],
)  # fmt: skip
def test_a_senseless_compensation_is_refused_with_its_place(task: dict[str, Any], place: str, problem: str) -> None:
    from onexflow.core.compiler import compile_graph

    with pytest.raises(InvalidDefinition) as refused:
        compile_graph(definition_of({"workflow_type": "w", "tasks": [{"name": "a", **task}]}))
    assert [one["place"] for one in refused.value.context["problems"]] == [place]
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({}, "tasks[0].compensation.handler"),
        ({"handler": "x", "undo": 1}, "tasks[0].compensation.undo"),
        (5, "tasks[0].compensation"),
    ],
)
def test_the_shape_of_a_compensation_is_judged(given: Any, place: str) -> None:
    with pytest.raises(InvalidDefinition) as refused:
        definition_of({"workflow_type": "w", "tasks": [{"name": "a", "role": "effect", "compensation": given}]})
    assert [one["place"] for one in refused.value.context["problems"]] == [place]


def test_a_compensation_of_another_class_is_refused() -> None:
    flow = workflow("w")
    flow.effect("a", compensation={"handler": "x"})
    with pytest.raises(InvalidDefinition, match="is not a Compensation"):
        flow.build()


def test_a_run_without_compensations_is_stored_as_it_was() -> None:
    """The fields that compensation needs (and who paused it, behind them) cost a few bytes, and no more."""
    flow = workflow("w")
    flow.effect("a")
    state = Model(graph_of(flow), start_at=BEGIN + 1).state
    assert msgspec.msgpack.encode(state).endswith(msgspec.msgpack.encode(["", "", [], 0, ""])[1:])
