"""Fed reducers, decided: when they begin, when they may end, and what the mapped task's end means for them."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.codec.payload import encode_value
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.commands import CancelRun, PauseRun, ResumeRun
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import RetryPolicy, RunRetry
from onexflow.core.errors import InvalidDefinition
from onexflow.core.instructions import CancelAttempt
from support.core_driver import Model, graph_of, same, value

ONCE = RetryPolicy(policy="none")
AT_ONCE = RetryPolicy(policy="fixed", initial_delay=0.0, jitter=0.0, max_attempts=3)


def fed(flow: WorkflowBuilder | None = None, *, mapped: Any = None, **options: Any) -> WorkflowBuilder:
    """`items`, mapped over the run's input, and `total`, which it feeds."""
    flow = flow or workflow("fed")
    options.setdefault("depends_on", [flow.compute("items", **{"map": "input", "retry": ONCE, **(mapped or {})})])
    flow.reducer("total", feed=True, **options)
    return flow


def problem(flow: WorkflowBuilder) -> str:
    with pytest.raises(InvalidDefinition) as raised:
        flow.build()
    return str(raised.value)


# ---- definitions


def test_a_fed_reducer_is_refused_where_it_cannot_be_fed() -> None:
    flow = workflow("fed")
    flow.compute("total", feed=True, depends_on=[flow.compute("items", map="input")])
    assert "only a reducer is fed, and this task is of role 'compute'" in problem(flow)

    flow = workflow("fed")
    flow.reducer("total", feed=True, depends_on=[flow.compute("items")])
    assert "'items' has no `map`" in problem(flow)

    flow = workflow("fed")
    flow.reducer("total", feed=True, after=[flow.compute("items", map="input")])
    assert "tasks[1].feed: a fed reducer has one task in depends_on, the mapped one; this has 0" in problem(flow)

    flow = workflow("fed")
    two = [flow.compute("one", map="input"), flow.compute("two", map="input")]
    flow.reducer("total", feed=True, depends_on=two)
    assert "this has 2" in problem(flow)

    assert "cannot be fed: it has an input for each of its items" in problem(fed(map="input"))
    flow = workflow("fed")
    flow.reducer("total", feed="yes", depends_on=[flow.compute("items", map="input")])
    assert "'yes' is neither true nor false" in problem(flow)


@pytest.mark.parametrize("role", ["reducer", "orchestrator"])
def test_what_may_wait_for_the_slot_of_a_reducer_cannot_feed_one(role: str) -> None:
    flow = workflow("fed")
    items = getattr(flow, role)("items", map="input")
    flow.reducer("total", feed=True, depends_on=[items])
    assert "Only effect or compute can feed" in problem(flow)


@pytest.mark.parametrize(
    "options", [{"input": "tasks.items"}, {"input": {"all": "tasks"}}, {"when": "tasks.items"}, {"input": "tasks.*"}]
)
def test_it_cannot_read_as_a_whole_what_it_is_fed(options: dict[str, Any]) -> None:
    assert "'total' begins before 'items' has ended: its items come by `ctx.items()`" in problem(fed(**options))


def test_definitions_without_fed_reducers_keep_their_hash() -> None:
    """As of the release before."""
    flow = workflow("plain")
    flow.reducer("total", depends_on=[flow.compute("items", map="input")])
    assert compile_graph(flow.build()).hash == "0229efa5edf293d09df76ac8843cfd09a843cb20fb4d18ca182741255095669d"


def test_the_list_of_results_is_made_only_where_something_reads_it() -> None:
    assert graph_of(fed()).unlisted == {0}
    assert graph_of(fed(), output="tasks.items").unlisted == set()
    for options in ({}, {"when": "tasks.items"}, {"input": "input", "after": ["total"]}):
        flow = fed()
        flow.compute("other", **{"depends_on": ["items"], **options})
        assert graph_of(flow).unlisted == ({0} if "input" in options else set())


# ---- when it begins


def test_it_is_scheduled_with_the_mapped_task_and_has_null_for_an_input() -> None:
    model = Model(graph_of(fed()), [1, 2, 3])
    assert model.dispatched() == [("items", 0, 3), ("total", 0, 1)]
    assert value(model.item("total").input) is None
    assert same(model.fold(), model.state)


def test_its_input_and_condition_read_what_comes_before() -> None:
    flow = workflow("fed")
    first = flow.compute("first")
    items = flow.compute("items", depends_on=[first], map="input.list")
    flow.reducer("total", feed=True, depends_on=[items], input={"limit": "tasks.first"}, when="input.wanted")
    graph = graph_of(flow)
    model = Model(graph, {"list": [1], "wanted": True})
    model.complete("first", result=7)
    assert value(model.item("total").input) == {"limit": 7}
    other = Model(graph, {"list": [1], "wanted": False})
    other.complete("first", result=7)
    assert other.task("total").status == "skipped"
    other.complete("items", 0, result=1)
    assert other.state.status == "completed"


def test_it_waits_for_tasks_that_it_comes_after() -> None:
    flow = workflow("fed")
    gate = flow.compute("gate")
    model = Model(graph_of(fed(flow, after=[gate])), [1])
    assert model.task("total").status == "blocked"
    model.complete("gate")
    assert model.dispatched() == [("total", 0, 1)]
    assert same(model.fold(), model.state)


def test_a_map_over_nothing_is_a_fold_of_nothing() -> None:
    model = Model(graph_of(fed()), [])
    assert model.dispatched() == [("total", 0, 1)]
    model.complete("total", result=0)
    assert model.state.status == "completed"
    assert value(model.state.result) == 0


# ---- how it ends


def test_it_completes_after_the_mapped_task_and_the_results_are_kept_until_then() -> None:
    model = Model(graph_of(fed()), [1, 2])
    model.complete("items", 1, 0, result=5)
    assert model.task("items").status == "completed"
    assert model.task("items").result is None
    assert model.task("items").results == (encode_value(5),) * 2
    assert same(model.fold(), model.state)
    model.complete("total", result=10)
    assert model.state.status == "completed"
    assert model.task("items").results == ()
    assert same(model.fold(), model.state)


def test_one_that_ends_early_has_failed_and_is_not_tried_again() -> None:
    model = Model(graph_of(fed(retry=AT_ONCE)), [1, 2])
    model.complete("items", 0)
    model.complete("total", result=1)
    assert model.types()[-3:] == ["task.started", "task.failed", "workflow.failed"]
    assert model.state.error is not None
    assert model.state.error.type == "ItemsLeft"
    assert "ended while items, whose items it is fed, had not completed" in model.state.error.message


def test_it_is_tried_again_and_again_from_the_first_item() -> None:
    model = Model(graph_of(fed(retry=AT_ONCE)), [1])
    model.fail("total")
    assert model.dispatched() == [("total", 0, 1)]
    model.complete("items", 0)
    model.fail("total")
    assert model.task("items").results, "its next attempt is fed them"
    model.complete("total", result=1)
    assert model.state.status == "completed"
    assert model.task("items").results == ()


def test_the_failure_of_the_mapped_task_stops_it_and_what_depends_on_it_is_skipped() -> None:
    flow = fed(mapped={"allow_failure": True})
    flow.compute("next", depends_on=["total"])
    flow.compute("cleanup", after=["total"])
    model = Model(graph_of(flow), [1, 2])
    model.fail("items", 1)
    [stop] = [one for one in model.instructions(CancelAttempt) if model.graph.names[one.task] == "total"]
    assert stop.reason == "items, whose items it is fed, has failed"
    assert model.task("total").status == "cancelled"
    assert model.task("next").status == "skipped"
    assert model.dispatched() == [("cleanup", 0, 1)]
    assert same(model.fold(), model.state)
    model.complete("cleanup")
    assert model.state.status == "completed"


def test_its_mapped_task_fails_before_it_has_begun() -> None:
    model = Model(graph_of(fed(mapped={"allow_failure": True})), 5)
    assert model.task("items").status == "failed", "5 is no list"
    assert model.task("total").status == "skipped"
    flow = workflow("fed")
    flow.compute("gate")
    model = Model(graph_of(fed(flow, mapped={"allow_failure": True}, after=["gate"])), [1])
    model.fail("items")
    assert model.task("total").status == "blocked"
    model.complete("gate")
    assert model.task("total").status == "skipped"
    assert same(model.fold(), model.state)


def test_a_skipped_mapped_task_skips_it() -> None:
    model = Model(graph_of(fed(mapped={"when": "input"})), [])
    assert [task.status for task in model.state.tasks] == ["skipped", "skipped"]
    assert model.state.status == "completed"


def test_its_own_failure_leaves_the_mapped_task_alone_where_it_may_fail() -> None:
    flow = fed(retry=ONCE, allow_failure=True)
    model = Model(graph_of(flow, output="input"), [1])
    model.fail("total")
    assert model.state.status == "running"
    model.complete("items", 0)
    assert model.state.status == "completed"
    assert model.task("items").results == ()


def test_two_may_be_fed_by_one() -> None:
    flow = fed()
    flow.reducer("other", feed=True, depends_on=["items"])
    model = Model(graph_of(flow), [1])
    assert model.dispatched() == [("items", 0, 1), ("total", 0, 1), ("other", 0, 1)]
    model.complete("items", 0)
    model.complete("other", result=1)
    assert model.task("items").results
    model.complete("total", result=2)
    assert value(model.state.result) == {"total": 2, "other": 1}


# ---- with the run


def test_a_pause_holds_back_its_next_attempt_and_a_resume_takes_it_up() -> None:
    model = Model(graph_of(fed(retry=AT_ONCE)), [1])
    model.do(PauseRun())
    model.fail("total")
    assert not model.dispatched()
    model.complete("items", 0)
    model.do(ResumeRun())
    assert model.dispatched() == [("total", 0, 1)]
    model.complete("total", result=1)
    assert model.state.status == "completed"


def test_a_cancel_ends_both() -> None:
    model = Model(graph_of(fed()), [1])
    model.do(CancelRun())
    assert {task.status for task in model.state.tasks} == {"cancelled"}
    assert same(model.fold(), model.state)


def test_the_runs_own_retry_takes_it_up_as_any_task() -> None:
    flow = workflow("fed", retry=RunRetry(max_attempts=2))
    model = Model(graph_of(fed(flow, retry=ONCE)), [1])
    model.fail("total")
    assert model.state.status == "retrying"
    model.fire("run_retry")
    model.complete("items", 0)
    model.complete("total", result=1)
    assert model.state.status == "completed"
