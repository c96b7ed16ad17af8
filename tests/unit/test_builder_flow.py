"""The Python builder makes the same definitions as files do."""

from __future__ import annotations

import pytest

from onexflow.codec.definitions import load_definition
from onexflow.core.builder import Task, workflow
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import RetryPolicy, RunRetry, TaskSpec, Timeouts
from onexflow.core.errors import InvalidDefinition

YAML = b"""
workflow_type: order-processing
version: 2
description: One order
timeout: 3600
retry: {max_attempts: 3, delay: 5}
tasks:
  - {name: warm-up, role: effect, setup: true, allow_failure: true}
  - name: reserve-stock
    role: effect
    handler: stock.reserve
    input: input.order
    retry: {policy: fixed, max_attempts: 5, initial_delay: 1}
    timeouts: {start_to_close: 10}
    priority: high
  - name: price
    role: compute
    depends_on: [reserve-stock]
    map: input.order.lines
    max_parallel: 10
    input: {line: item, stock: 'tasks."reserve-stock"'}
  - {name: summary, role: reducer, depends_on: [price], after: [reserve-stock], when: input.order.summary}
output: {total: tasks.summary.total}
"""


def test_builder_and_file_say_the_same() -> None:
    flow = workflow(
        "order-processing", 2, description="One order", timeout=3600, retry=RunRetry(max_attempts=3, delay=5)
    )
    flow.effect("warm-up", setup=True, allow_failure=True)
    reserve = flow.effect(
        "reserve-stock",
        "stock.reserve",
        input="input.order",
        retry=RetryPolicy(policy="fixed", max_attempts=5, initial_delay=1),
        timeouts=Timeouts(start_to_close=10),
        priority="high",
    )
    price = flow.compute(
        "price",
        depends_on=[reserve],
        map="input.order.lines",
        max_parallel=10,
        input={"line": "item", "stock": reserve},
    )
    summary = flow.reducer("summary", depends_on=price, after=["reserve-stock"], when="input.order.summary")
    definition = flow.build(output={"total": f"{summary.result}.total"})
    assert definition == load_definition(YAML, "yaml")
    assert compile_graph(definition).hash == compile_graph(load_definition(YAML, "yaml")).hash


def test_tasks_stand_for_their_names_and_results() -> None:
    task = Task("a-b")
    assert (str(task), task.result, Task("a").result) == ("a-b", 'tasks."a-b"', "tasks.a")
    flow = workflow("w")
    a = flow.effect("a")
    b = flow.compute("b", depends_on=a, when=a, map=a)
    assert flow.build(output=b).tasks[1] == TaskSpec(
        name="b", role="compute", depends_on=("a",), when="tasks.a", map="tasks.a"
    )
    assert flow.build(output=b).output == "tasks.b"
    assert flow.build().output is None


def test_one_name_is_a_list_of_one() -> None:
    flow = workflow("w")
    flow.effect("long-name")
    flow.task("b", "compute", depends_on="long-name", after=())
    assert flow.build().tasks[1].depends_on == ("long-name",)


def test_a_function_may_say_its_handlers_name_and_default_is_the_tasks() -> None:
    flow = workflow("w")
    flow.effect("a")
    flow.effect("b", handler="other")
    assert [task.handler for task in flow.build().tasks] == ["a", "other"]


def test_build_reports_every_problem() -> None:
    flow = workflow("w", version=0)
    flow.effect("a", depends_on="b")
    flow.effect("a")
    with pytest.raises(InvalidDefinition) as caught:
        flow.build(output="tasks.c")
    assert [one["place"] for one in caught.value.context["problems"]] == [
        "version", "tasks[1].name", "tasks[0].depends_on[0]", "output"
    ]  # fmt: skip


def test_build_may_be_called_again_after_more_tasks() -> None:
    flow = workflow("w")
    flow.effect("a")
    first = flow.build()
    flow.effect("b")
    assert (len(first.tasks), len(flow.build().tasks)) == (1, 2)


@pytest.mark.parametrize("role", ["effect", "compute", "reducer", "orchestrator"])
def test_an_unknown_option_is_an_error(role: str) -> None:
    with pytest.raises(TypeError, match="retries"):
        getattr(workflow("w"), role)("a", retries=3)
