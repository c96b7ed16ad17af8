"""What holds of every graph and of every retry policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onexflow.codec.definitions import definition_of, dump_definition
from onexflow.codec.payload import CODEC
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import BACKOFFS, RetryPolicy, TaskSpec, WorkflowDefinition
from onexflow.core.errors import InvalidDefinition
from onexflow.core.expressions import ExpressionError, compile_expression, is_true
from onexflow.core.mapping import MappingError, condition, map_items, run_output, task_input
from onexflow.core.payload import NULL, Payload
from onexflow.core.retry import delay


@st.composite
def definitions(draw: st.DrawFn, least: int = 1) -> WorkflowDefinition:
    """Random acyclic graphs, their tasks in random order in the file."""
    size = draw(st.integers(least, 25))
    setups = draw(st.integers(0, min(3, size - 1)))
    tasks = []
    for number in range(size):
        above = draw(st.lists(st.integers(0, number - 1), unique=True, max_size=4)) if number else []
        cut = draw(st.integers(0, len(above)))
        tasks.append(
            TaskSpec(
                name=f"t-{number}",
                role=draw(st.sampled_from(("effect", "compute", "reducer", "orchestrator"))),
                depends_on=tuple(f"t-{one}" for one in above[:cut]),
                after=tuple(f"t-{one}" for one in above[cut:]),
                setup=number < setups,
                input=draw(st.sampled_from([None, "input", *(f'tasks."t-{one}"' for one in above)])),
            )
        )
    return WorkflowDefinition(workflow_type="w", tasks=tuple(draw(st.permutations(tasks))))


@given(definitions())
def test_counters_neighbours_and_order_agree(definition: WorkflowDefinition) -> None:
    graph = compile_graph(definition)
    everyone = range(len(graph))
    for task, spec in enumerate(graph.specs):
        assert graph.index[spec.name] == task
        assert tuple(graph.names[one] for one in graph.hard_parents[task]) == spec.depends_on
        assert tuple(graph.names[one] for one in graph.soft_parents[task]) == spec.after
        assert graph.indegree[task] == len(graph.parents(task)) + (task in graph.gated)
        for child in graph.hard_children[task]:
            assert task in graph.hard_parents[child]
        for child in graph.soft_children[task]:
            assert task in graph.soft_parents[child]
    parents = sum(len(graph.parents(task)) for task in everyone)
    children = sum(len(graph.hard_children[task]) + len(graph.soft_children[task]) for task in everyone)
    assert parents == children
    place = {task: position for position, task in enumerate(graph.order)}
    assert sorted(place) == list(everyone)
    assert all(place[parent] < place[task] for task in everyone for parent in graph.parents(task))
    main = [task for task in everyone if not graph.specs[task].setup]
    assert list(graph.gated) == (main if graph.setup else [])
    assert list(graph.roots) == [task for task in main if not graph.parents(task)]
    assert list(graph.sinks) == [
        task for task in main if not graph.hard_children[task] and not graph.soft_children[task]
    ]


@given(definitions())
def test_counting_down_reaches_every_task_once(definition: WorkflowDefinition) -> None:
    """What the engine does with the arrays: set-up first, then the gate, then the rest."""
    graph = compile_graph(definition)
    left = list(graph.indegree)
    done: list[int] = []

    def run(ready: list[int]) -> None:
        while ready:
            task = ready.pop()
            assert left[task] == 0
            done.append(task)
            for child in graph.hard_children[task] + graph.soft_children[task]:
                left[child] -= 1
                if left[child] == 0:
                    ready.append(child)

    run(list(graph.setup_roots))
    assert sorted(done) == list(graph.setup)
    for task in graph.gated:
        left[task] -= 1
    run([task for task in range(len(graph)) if left[task] == 0 and not graph.specs[task].setup])
    assert sorted(done) == list(range(len(graph)))


@given(definitions())
def test_definitions_survive_being_written(definition: WorkflowDefinition) -> None:
    again = definition_of(json.loads(dump_definition(definition)))
    assert again == definition
    assert compile_graph(again).hash == compile_graph(definition).hash


@given(definitions(least=3), st.data())
def test_a_planted_cycle_is_found_and_named(definition: WorkflowDefinition, data: st.DataObject) -> None:
    graph = compile_graph(definition)
    ancestors: dict[int, set[int]] = {}
    for task in graph.order:
        above = graph.parents(task)
        ancestors[task] = set(above).union(*(ancestors[one] for one in above))
    pairs = sorted((task, above) for task, all_above in ancestors.items() for above in all_above)
    assume(pairs)
    low, high = data.draw(st.sampled_from(pairs))
    assume(not (graph.specs[high].setup and not graph.specs[low].setup))
    tasks = list(definition.tasks)
    wanted = {*tasks[high].depends_on, tasks[low].name}
    tasks[high] = msgspec.structs.replace(
        tasks[high], depends_on=tuple(sorted(wanted - {*tasks[high].after})), input=None
    )
    with pytest.raises(InvalidDefinition) as caught:
        compile_graph(WorkflowDefinition(workflow_type="w", tasks=tuple(tasks)))
    said = [one["problem"] for one in caught.value.context["problems"] if one["problem"].startswith("cycle")]
    assert said
    cycle = said[0].partition(": ")[2].split(" → ")
    assert cycle[0] == cycle[-1]
    by_name = {task.name: task for task in tasks}
    if "more)" not in said[0]:
        assert tasks[high].name in cycle
        for task, parent in pairwise(cycle):
            assert parent in by_name[task].depends_on + by_name[task].after


POLICIES = st.builds(
    RetryPolicy,
    policy=st.sampled_from(BACKOFFS),
    initial_delay=st.floats(0, 1000),
    max_delay=st.floats(1000, 100_000),
    multiplier=st.floats(1, 1000),
    jitter=st.floats(0, 1),
)


@given(POLICIES, st.integers(1, 10_000), st.floats(0, 1))
def test_delays_stay_between_their_bounds(policy: RetryPolicy, attempt: int, jitter: float) -> None:
    longest = delay(policy, attempt, 0.0)
    assert 0 <= delay(policy, attempt, jitter) <= longest <= policy.max_delay
    assert delay(policy, attempt, jitter) >= longest * (1 - policy.jitter) * (1 - 1e-9)


@given(POLICIES, st.integers(1, 9_999))
def test_delays_never_shrink_from_attempt_to_attempt_without_chance(policy: RetryPolicy, attempt: int) -> None:
    assert delay(policy, attempt, 0.0) <= delay(policy, attempt + 1, 0.0)


@given(POLICIES, st.integers(1, 100), st.floats(0, 1), st.floats(0, 1))
def test_more_chance_means_no_longer_delay(policy: RetryPolicy, attempt: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert delay(policy, attempt, high) <= delay(policy, attempt, low)


# ---- expressions

WORDS = st.sampled_from(
    ["input", "tasks", "run", "item", "a", '"b-c"', "x", ".", ".", "[", "]", "[0]", "[*]", "[]", "[?", "(", ")", "{", "}",
     "|", "||", "&&", "!", "==", "`1`", "'s'", "@", "&", ",", ":", "*", "length", "keys", "map", "sort_by", "\n", "\ud800", "é"]
)  # fmt: skip
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b-c", "x", "input"]), inner, max_size=3)
    ),
    max_leaves=8,
)


class Run:
    def __init__(self, input: Any, result: Any) -> None:
        self.input = input if isinstance(input, Payload) else CODEC.encode(input)
        self.run = {"namespace": "n"}
        self._result = CODEC.encode(result)

    def result(self, task: int) -> Payload | None:
        return self._result if task == 0 else None


PAYLOADS = DOCUMENTS | st.binary(max_size=8).map(Payload) | st.just(Payload(b"x", "raw")) | st.just(NULL)


@given(st.lists(WORDS, max_size=12).map("".join), PAYLOADS, DOCUMENTS)
def test_any_text_is_refused_with_a_place_or_evaluates_or_fails_as_a_mapping_error(
    text: str, input: Any, result: Any
) -> None:
    tasks = (
        TaskSpec(name="a", role="compute"),
        TaskSpec(name="b-c", role="compute"),
        TaskSpec(name="t", role="compute", depends_on=("a",), after=("b-c",), input={"f": text}, when=text, map=text),
    )
    try:
        graph = compile_graph(WorkflowDefinition(workflow_type="w", tasks=tasks, output=text))
    except InvalidDefinition as error:
        places = {one["place"] for one in error.context["problems"]}
        assert places <= {"tasks[2].input.f", "tasks[2].when", "tasks[2].map", "output"}
        return
    values = Run(input, result)
    for made in (task_input, condition, map_items):
        assert place_of_failure(partial(made, graph, 2, values, CODEC)).startswith("tasks[2].")
    assert place_of_failure(lambda: run_output(graph, values, CODEC)) in {"tasks[2].", "output"}


def place_of_failure(evaluate: Callable[[], Any]) -> str:
    try:
        evaluate()
    except MappingError as error:
        return error.place
    return "tasks[2]."


@given(st.lists(st.sampled_from(["input", "a", '"b-c"', "x"]), min_size=1, max_size=4), DOCUMENTS)
def test_plain_paths_mean_what_jmespath_means(steps: list[str], document: Any) -> None:
    text = ".".join(steps)
    quick = compile_expression(text)
    slow = compile_expression(f"{text} | @")
    assert quick.parsed is None
    assert slow.parsed is not None
    assert quick.evaluate(document) == slow.evaluate(document)
    assert (quick.roots, quick.tasks) == (slow.roots, slow.tasks)


@given(DOCUMENTS)
def test_truth_is_jmespaths(document: Any) -> None:
    negated = compile_expression("!(a)")
    assert negated.evaluate({"a": document}) is not is_true(document)


@given(st.text(max_size=30))
def test_compiling_any_text_ends_in_an_expression_or_its_error(text: str) -> None:
    with suppress(ExpressionError):
        compile_expression(text)
