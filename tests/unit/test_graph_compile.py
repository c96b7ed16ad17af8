"""What a good definition is compiled to, and what is said of a bad one."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from onexflow.core.compiler import compile_graph
from onexflow.core.definition import (
    MAX_TASKS,
    Compensation,
    RetryPolicy,
    RunRetry,
    TaskSpec,
    Timeouts,
    WorkflowDefinition,
)
from onexflow.core.errors import InvalidArgument, InvalidDefinition
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.graph import Graph


def task(name: str, role: Any = "compute", **fields: Any) -> TaskSpec:
    return TaskSpec(name=name, role=role, **fields)


def graph(*tasks: TaskSpec, **fields: Any) -> Graph:
    return compile_graph(WorkflowDefinition(**{"workflow_type": "w", **fields}, tasks=tasks))


def problems(*tasks: Any, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidDefinition) as caught:
        graph(*tasks, **fields)
    listed = caught.value.context["problems"]
    assert caught.value.context["field"] == listed[0]["place"]
    return {one["place"]: one["problem"] for one in listed}


def test_diamond() -> None:
    made = graph(
        task("a"),
        task("b", depends_on=("a",)),
        task("c", after=("a",)),
        task("d", depends_on=("b",), after=("c",)),
    )
    assert made.names == ("a", "b", "c", "d")
    assert made.index == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert made.hard_children == ((1,), (3,), (), ())
    assert made.soft_children == ((2,), (), (3,), ())
    assert made.indegree == (0, 1, 1, 2)
    assert (made.roots, made.sinks, made.setup, made.gated) == ((0,), (3,), (), ())
    assert made.parents(3) == (1, 2)
    assert len(made) == 4


def test_setup_gates_every_main_task() -> None:
    made = graph(
        task("s", setup=True),
        task("t", setup=True, depends_on=("s",)),
        task("a"),
        task("b", depends_on=("a", "t")),
    )
    assert (made.setup, made.setup_roots, made.gated, made.roots) == ((0, 1), (0,), (2, 3), (2,))
    assert made.indegree == (0, 1, 1, 3)
    assert made.sinks == (3,)


def test_what_sets_a_task_apart_is_asked_once() -> None:
    made = graph(
        task("a", map="input", timeouts=Timeouts(schedule_to_start=1)),
        task(
            "b",
            role="effect",
            after=("a",),
            compensation=Compensation(handler="undo", timeouts=Timeouts(schedule_to_close=1)),
        ),
        task("c", role="reducer", depends_on=("a",), feed=True),
        task("d", depends_on=("a",), timeouts=Timeouts(start_to_close=1)),
    )
    assert made.names[4] == "b.undo"
    assert [set(one) for one in (made.mapped, made.effects, made.timed)] == [{0}, {1, 4}, {0, 4}]
    assert made.released == ((3, 1), (), (), (), ()), "hard before soft, and no reducer that was fed"
    assert [("scheduled" in states) for states in made.ending] == [True, False, True, True, False]


def test_main_tasks_may_read_results_of_the_setup_without_naming_it() -> None:
    assert graph(task("s", setup=True), task("a", input="tasks.s.x")).inputs[1] is not None


@pytest.mark.parametrize(
    ("text", "source"),
    [("input", RUN_INPUT), ("tasks.a", 0), ('tasks."a"', 0), (' "tasks".a ', 0), ("input.x", INLINE), ("tasks.a.x", INLINE),
     ("tasks", INLINE), ("run", INLINE), ("input || tasks.a", INLINE)],
)  # fmt: skip
def test_pass_through_is_seen(text: str, source: int) -> None:
    rule = graph(task("a"), task("b", depends_on=("a",), input=text)).inputs[1]
    assert rule is not None
    assert rule.whole is not None
    assert rule.whole.source == source


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("input.x", ()),
        ("tasks.a.x", (0,)),
        ("tasks.{x: a, y: b.z}", (0, 1)),
        ("tasks.[a, b]", (0, 1)),
        ("tasks.*.x", (1,)),
        ("keys(tasks)", (1,)),
        ("[tasks][0].a", (1,)),
        ("input.list[?x == `1`].y | [0]", ()),
        ("input.list[?tasks == `1`].tasks.zz", ()),
        ("map(&tasks, tasks.a.list)", (0,)),
        ("sort_by(tasks.b, &a)[0].tasks.zz", (1,)),
        ("input && !(tasks.a) && tasks.b[1:2][].x", (0, 1)),
        ("tasks.a[*].b.c | [0]", (0,)),
        ("length(tasks.a) > `3` || run.namespace == 'x'", (0,)),
        ("@.tasks.a", (0,)),
        ("join('-', [input.x, tasks.b])", (1,)),
    ],
)
def test_only_what_an_expression_names_is_read(text: str, reads: tuple[int, ...]) -> None:
    rule = graph(task("a"), task("b", depends_on=("a",)), task("c", depends_on=("b",), input=text)).inputs[2]
    assert rule is not None
    assert rule.whole is not None
    assert rule.whole.tasks == reads


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks.rezerve", "unknown task 'rezerve'; did you mean 'reserve'?"),
        ("tasks.reserve-stock", 'a name with "-" needs quotes'),
        ("tasks.later.x", "'me' does not wait for 'later': name it in depends_on or after"),
        ("tasks.me", "'me' cannot read its own result"),
        ("order_id", "did you mean 'input.order_id'?"),
        ("reserve", "did you mean 'tasks.reserve'?"),
        ("item.x", "'item' exists only in the input of a task with `map`"),
        ("@", "the document itself cannot be used; name input, run, tasks"),
        ("merge(@, `{}`)", "the document itself cannot be used"),
        ("input.[", "Incomplete expression"),
        ("", "cannot be empty"),
        ("foo(input)", "unknown function foo()"),
        ("length(input, input)", "length() takes 1 argument(s), not 2"),
        ("!tasks.reserve.ok", "write `!(a.b)`"),
        ("!input.list[0] || input.x", "write `!(a.b)`"),
        ("!input.list[*].x", "write `!(a.b)`"),
        ("input.total > 5", "a number is written in backticks: `5`"),
        ("input.flag == true", "a constant is written in backticks: `true`"),
        ('input.status == "paid"', "a text is written in single quotes: 'paid'"),
        ("merge()", "merge() takes at least 1 argument(s), not 0"),
        ("input" + ".x" * 3000, "the expression is longer than 4096 bytes"),
        ("[" * 2000 + "input" + "]" * 2000, "nested too deeply"),
    ],
)
def test_wrong_expressions_are_named(text: str, said: str) -> None:
    found = problems(
        task("reserve"), task("me", depends_on=("reserve",), input={"field": text}), task("later", depends_on=("me",))
    )
    assert said in found["tasks[1].input.field"]


def test_every_expression_is_judged_at_its_place() -> None:
    found = problems(
        task("a", when="tasks.x", map="item", input={"ok": "item", "no": 5}),
        task("b", input=7),
        output={"x": "tasks.q"},
    )
    assert list(found) == ["tasks[0].input.no", "tasks[0].when", "tasks[0].map", "tasks[1].input", "output.x"]
    assert found["tasks[0].input.no"] == "5 is no expression; a constant is written in backticks: `5`"


def test_output_may_read_every_task_and_item_only_exists_in_mapped_inputs() -> None:
    made = graph(
        task("a"),
        task("b", map="input.list", input={"x": "item.y", "n": "index"}),
        output={"a": "tasks.a", "b": "tasks.b"},
    )
    assert made.output is not None
    assert [rule.source for _, rule in made.output.fields] == [0, 1]
    assert "exists only in" in problems(task("a", map="input", when="item"))["tasks[0].when"]


def test_ancestors_are_found_through_many_levels_and_both_kinds_of_edge() -> None:
    chain = [task("t0")]
    for number in range(1, 50):
        edge = "after" if number % 2 else "depends_on"
        chain.append(task(f"t{number}", **{edge: (f"t{number - 1}",)}))
    assert graph(*chain, task("end", depends_on=("t49",), input="tasks.t0"))
    assert "does not wait" in problems(*chain, task("end", depends_on=("t30",), input="tasks.t31"))["tasks[50].input"]


def test_cycle_is_printed_and_what_hangs_on_it_is_listed() -> None:
    found = problems(
        task("a", depends_on=("c",)), task("b", depends_on=("a",)), task("c", after=("b",)), task("d", depends_on=("c",)),
        task("free"),
    )  # fmt: skip
    assert found == {
        "tasks[0]": "cycle, each waits for the next: a → c → b → a",
        "tasks": "never begun, for they hang on a cycle: d",
    }


def test_two_cycles_are_both_named() -> None:
    found = problems(
        task("a", depends_on=("b",)),
        task("b", depends_on=("a",)),
        task("x", depends_on=("y",)),
        task("y", after=("x",)),
    )
    assert [found["tasks[0]"], found["tasks[2]"]] == [
        "cycle, each waits for the next: a → b → a",
        "cycle, each waits for the next: x → y → x",
    ]


@pytest.mark.parametrize(
    ("tasks", "place", "said"),
    [
        ((task("a"), task("a")), "tasks[1].name", "'a' is already the name of tasks[0]"),
        ((task("reserve"), task("b", depends_on=("reserwe",))), "tasks[1].depends_on[0]", "did you mean 'reserve'?"),
        ((task("a", after=("a",)),), "tasks[0].after[0]", "waits for itself"),
        ((task("a"), task("b", depends_on=("a",), after=("a",))), "tasks[1].after[0]", "named twice"),
        ((task("a"), task("b", depends_on="a")), "tasks[1].depends_on", "not a list of task names"),
        ((task("a"), task("s", setup=True, depends_on=("a",))), "tasks[1].depends_on[0]", "set-up task 's' cannot wait"),
        ((task("s", setup=True),), "tasks", "every task is a set-up task"),
        ((task("a", role="effects"),), "tasks[0].role", "did you mean 'effect'?"),
        ((task("1a"),), "tasks[0].name", "no task name"),
        ((task("a b"),), "tasks[0].name", "no task name"),
        ((task("a\n"),), "tasks[0].name", "no task name"),
        ((task("x" * 129),), "tasks[0].name", "at most 128"),
        ((task(""),), "tasks[0].name", "no task name"),
        ((task("a", handler="a b"),), "tasks[0].handler", "no handler name"),
        ((task("a", priority="asap"),), "tasks[0].priority", "none of low, normal"),
        ((task("a", max_parallel=-1, map="input"),), "tasks[0].max_parallel", "not a whole number"),
        ((task("a", max_parallel=2),), "tasks[0].max_parallel", "only a task with `map`"),
        ((task("a", setup="no"),), "tasks[0].setup", "neither true nor false"),
        ((task("a", timeouts=Timeouts(heartbeat=-1)),), "tasks[0].timeouts.heartbeat", "negative"),
        ((task("a", timeouts=Timeouts(start_to_close="5s")),), "tasks[0].timeouts.start_to_close", "number of seconds"),
        ((task("a", timeouts=Timeouts(start_to_close=float("nan"))),), "tasks[0].timeouts.start_to_close", "seconds"),
        ((task("a", timeouts=5),), "tasks[0].timeouts", "is not a Timeouts"),
        ((task("a", retry=3),), "tasks[0].retry", "is not a RetryPolicy"),
        ((task("a", retry=RetryPolicy(max_attempts=0)),), "tasks[0].retry.max_attempts", "from 1"),
        ((task("a", retry=RetryPolicy(max_attempts=True)),), "tasks[0].retry.max_attempts", "from 1"),
        ((task("a", retry=RetryPolicy(initial_delay=60)),), "tasks[0].retry.max_delay", "below initial_delay"),
        ((task("a", retry=RetryPolicy(initial_delay=float("inf"))),), "tasks[0].retry.initial_delay", "ten years"),
        ((task("a", retry=RetryPolicy(multiplier=0.5)),), "tasks[0].retry.multiplier", "from 1 to 1000"),
        ((task("a", retry=RetryPolicy(jitter=1.5)),), "tasks[0].retry.jitter", "from 0 to 1"),
        ((task("a", retry=RetryPolicy(retryable="X")),), "tasks[0].retry.retryable", "not a list"),
        ((task("a", retry=RetryPolicy(policy="random")),), "tasks[0].retry.policy", "none of none, fixed"),
        (({"name": "a"},), "tasks[0]", "dict is not a TaskSpec"),
    ],
)  # fmt: skip
def test_wrong_tasks_are_named(tasks: tuple[Any, ...], place: str, said: str) -> None:
    assert said in problems(*tasks)[place]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"workflow_type": ""}, "workflow_type"),
        ({"workflow_type": "a/b"}, "workflow_type"),
        ({"workflow_type": "a\0b"}, "workflow_type"),
        ({"workflow_type": "x" * 129}, "workflow_type"),
        ({"workflow_type": 5}, "workflow_type"),
        ({"version": 0}, "version"),
        ({"version": 2**31}, "version"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"version": 10**5000}, "version"),
        ({"timeout": -1}, "timeout"),
        ({"description": None}, "description"),
        ({"retry": 3}, "retry"),
        ({"retry": RunRetry(max_attempts=0)}, "retry.max_attempts"),
        ({"retry": RunRetry(delay=-1)}, "retry.delay"),
        ({"output": 5}, "output"),
    ],
)
def test_wrong_heads_are_named(fields: dict[str, Any], place: str) -> None:
    assert list(problems(task("a"), **fields)) == [place]


def test_an_empty_definition_is_refused() -> None:
    assert problems() == {"tasks": "the workflow has no tasks"}


def test_all_problems_come_at_once_and_the_message_lists_them() -> None:
    with pytest.raises(InvalidArgument) as caught:
        graph(task("a", role="x", input="tasks.z"), task("a", depends_on=("q",)), version=0)
    assert len(caught.value.context["problems"]) == 5
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems:"
    assert "  version: 0 is not a whole number from 1 to 2147483647" in lines


def test_what_is_no_definition_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match="dict is not a WorkflowDefinition"):
        compile_graph({})


@pytest.mark.parametrize(
    ("tasks", "fields"),
    [
        ((task("a"),), {"description": "\ud800"}),
        ((task("a", handler="\ud800"),), {}),
        ((task("a", input={"\ud800": "input"}),), {}),
        ((task("a", input={"\ud800": "nothing"}),), {}),
        ((task("a", input="'\ud800'"),), {}),
        ((task("a", input="\ud800"),), {}),
        ((task("a", depends_on=("\ud800",)),), {}),
        ((task("a", retry=RetryPolicy(retryable=("\ud800",))),), {}),
        ((task("\ud800"),), {}),
    ],
)
def test_lone_surrogates_are_refused_in_words_that_can_be_sent(tasks: tuple[TaskSpec, ...], fields: Any) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        graph(*tasks, **fields)
    (str(caught.value) + str(caught.value.context)).encode()


def test_field_names_are_text() -> None:
    assert problems(task("a", input={5: "input"})) == {"tasks[0].input": "5 is no name of a field: it is not text"}


def test_the_list_of_problems_is_bounded() -> None:
    with pytest.raises(InvalidDefinition, match="1000 problems") as caught:
        graph(*(task(f"t{number}", depends_on=(f"x{number}",)) for number in range(1000)))
    assert len(caught.value.context["problems"]) == 100
    assert str(caught.value).endswith("and 900 more")


def test_limit_of_text() -> None:
    """What is registered can be read again: `load_definition` has the same limit."""
    long = task("a", input={f"field-{number}": "'" + "x" * 4000 + "'" for number in range(1100)})
    assert "4194304 is the limit" in problems(long)["tasks"]


def test_limit_of_tasks() -> None:
    assert "10001 tasks" in problems(*(task(f"t{number}") for number in range(MAX_TASKS + 1)))["tasks"]


def test_work_is_linear_in_tasks_and_edges() -> None:
    """Counts calls instead of seconds: ten times the chain is at most eleven times the work."""

    def calls(size: int) -> int:
        tasks = [task(f"t{n}", depends_on=(f"t{n - 1}",) if n else (), input="input.x") for n in range(size)]
        count = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(profile)
        try:
            graph(*tasks)
        finally:
            sys.setprofile(None)
        return count

    calls(10)
    assert calls(1000) <= 11 * calls(100)
