"""Inputs, conditions, items and results, and what is said when they cannot be made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onexflow.codec.payload import CODEC
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import TaskSpec, WorkflowDefinition
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.graph import Graph
from onexflow.core.mapping import MappingError, condition, map_items, run_output, task_input
from onexflow.core.payload import NULL, Payload


class Run:
    """Values of a run, which count how often each payload is read."""

    def __init__(self, graph: Graph, input: Any = None, **results: Any) -> None:
        self.graph = graph
        self.input = payload(input)
        self.run = {"namespace": "default", "workflow_type": "w", "instance_id": "id", "correlation_id": "c"}
        self.results = {name.replace("_", "-"): payload(value) for name, value in results.items()}
        self.decoded: list[bytes] = []

    def result(self, task: int) -> Payload | None:
        return self.results.get(self.graph.names[task])

    def decode(self, given: Payload) -> Any:
        self.decoded.append(given.data)
        return CODEC.decode(given)

    def encode(self, value: Any) -> Payload:
        return CODEC.encode(value)

    def input_of(self, name: str) -> Any:
        source, made = task_input(self.graph, self.graph.index[name], self, self)
        if made is None:
            return source
        assert source == INLINE
        return json.loads(made.data)

    def items_of(self, name: str) -> list[Any]:
        return [json.loads(item.data) for item in map_items(self.graph, self.graph.index[name], self, self)]


def payload(value: Any) -> Payload:
    return value if isinstance(value, Payload) else Payload(json.dumps(value).encode())


def task(name: str, **fields: Any) -> TaskSpec:
    return TaskSpec(name=name, role="compute", **fields)


def graph(*tasks: TaskSpec, **fields: Any) -> Graph:
    return compile_graph(WorkflowDefinition(workflow_type="w", tasks=tasks, **fields))


FAN_IN = graph(task("a"), task("b-c"), task("one", depends_on=("a",)), task("two", depends_on=("a",), after=("b-c",)))


def test_default_inputs_are_passed_on_unread() -> None:
    run = Run(FAN_IN, {"x": 1}, a=[1, 2], b_c="text")
    assert run.input_of("a") == RUN_INPUT
    assert run.input_of("one") == 0
    assert run.input_of("two") == {"a": [1, 2], "b-c": "text"}
    assert run.decoded == []


def test_a_parent_that_did_not_complete_counts_as_null() -> None:
    assert Run(FAN_IN, a=5).input_of("two") == {"a": 5, "b-c": None}
    assert task_input(FAN_IN, 2, Run(FAN_IN), CODEC) == (INLINE, NULL)


def test_other_encodings_pass_alone_but_not_in_an_object() -> None:
    run = Run(FAN_IN, a=Payload(b"\xff", "raw"))
    assert run.input_of("one") == 0
    with pytest.raises(MappingError, match=r"tasks\[3\]: the result of 'a' is encoded as 'raw'"):
        run.input_of("two")


def test_only_named_payloads_are_decoded_and_only_once() -> None:
    made = graph(
        task("a"), task("b"), task("big"),
        task("c", depends_on=("a", "b", "big"), input={"x": "tasks.a.x", "y": "tasks.a.y", "in": "input", "b": "tasks.b"}),
    )  # fmt: skip
    run = Run(made, {"order": 1}, a={"x": 1, "y": 2}, b=[3], big={"huge": True})
    assert run.input_of("c") == {"x": 1, "y": 2, "in": {"order": 1}, "b": [3]}
    assert run.decoded == [b'{"x": 1, "y": 2}']


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input.order.id", 7),
        ("input.nothing.at.all", None),
        ('input."odd key"', "odd"),
        ("input.lines[?qty > `1`].sku", ["b"]),
        ("sum(input.lines[].qty)", 4),
        ("{id: input.order.id, who: run.namespace}", {"id": 7, "who": "default"}),
        ("[tasks.a, input.order.id]", ["A", 7]),
        ("tasks.*", ["A"]),
        ("tasks", {"a": "A", "b": None}),
        ("run", {"namespace": "default", "workflow_type": "w", "instance_id": "id", "correlation_id": "c"}),
        ('`{"k": 1}`', {"k": 1}),
        ("tasks.b || 'none'", "none"),
        ("tasks.b || `none`", "none"),
        ("tasks.b || ``", ""),
        ("input.order", {"id": 7}),
        ("input.lines.sku", None),
    ],
)  # fmt: skip
def test_expressions(text: str, expected: Any) -> None:
    made = graph(task("a"), task("b"), task("c", depends_on=("a",), after=("b",), input=text))
    order = {"order": {"id": 7}, "lines": [{"sku": "a", "qty": 1}, {"sku": "b", "qty": 3}], "odd key": "odd"}
    assert Run(made, order, a="A").input_of("c") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, False), (False, False), ("", False), ([], False), ({}, False), (0, True), ("x", True), ([0], True),
     ({"a": None}, True), (True, True), (0.0, True)],
)  # fmt: skip
def test_conditions_follow_jmespaths_truth(value: Any, expected: bool) -> None:
    made = graph(task("a", when="input.x"), task("b", when="input.x || input.x"), task("c"))
    run = Run(made, {"x": value})
    assert condition(made, 0, run, CODEC) is expected
    assert condition(made, 1, run, CODEC) is expected
    assert condition(made, 2, run, CODEC) is True


def test_items_of_a_payload_that_is_the_list_are_cut_out_as_they_are() -> None:
    made = graph(task("a"), task("m", depends_on=("a",), map="tasks.a"))
    run = Run(made, a=Payload(b'[1.50, {"k" : 2}, "x", 123456789012345678901234567890]'))
    items = map_items(made, 1, run, run)
    assert [item.data for item in items] == [b"1.50", b'{"k" : 2}', b'"x"', b"123456789012345678901234567890"]
    assert run.decoded == []


def test_items_of_an_expression() -> None:
    made = graph(task("m", map="input.lines[?qty].sku"))
    assert Run(made, {"lines": [{"sku": "a", "qty": 1}, {"sku": "b"}]}).items_of("m") == ["a"]


def test_items_with_a_mapping_see_item_and_index() -> None:
    made = graph(
        task("a"),
        task("m", depends_on=("a",), map="input.l", input={"i": "item.v", "n": "index", "a": "tasks.a", "in": "input"}),
        task("same", depends_on=("a",), map="input.l", input="tasks.a"),
        task("pair", map="input.l", input="[item.v, index]"),
    )
    run = Run(made, {"l": [{"v": 5}, {"v": 6}]}, a={"big": 1})
    whole = {"l": [{"v": 5}, {"v": 6}]}
    assert run.items_of("m") == [
        {"i": 5, "n": 0, "a": {"big": 1}, "in": whole}, {"i": 6, "n": 1, "a": {"big": 1}, "in": whole}
    ]  # fmt: skip
    assert run.items_of("same") == [{"big": 1}, {"big": 1}]
    assert run.items_of("pair") == [[5, 0], [6, 1]]
    assert b'{"big": 1}' not in run.decoded


def test_no_items() -> None:
    made = graph(task("m", map="input"), task("n", map="input.x", input="item"))
    assert Run(made, []).items_of("m") == []
    assert Run(made, {"x": []}).items_of("n") == []


@pytest.mark.parametrize(
    ("input", "said"),
    [
        ({"x": {"a": 1}}, "the value is an object, not a list"),
        ({"x": None}, "the value is null, not a list"),
        ({"x": "abc"}, "the value is a string, not a list"),
        ({"x": 5}, "the value is a number, not a list"),
        ({"x": True}, "the value is a boolean, not a list"),
        ({}, "the value is null, not a list"),
    ],
)
def test_a_map_over_something_else_is_an_error_with_its_place(input: Any, said: str) -> None:
    made = graph(task("m", map="input.x"))
    with pytest.raises(MappingError) as caught:
        Run(made, input).items_of("m")
    assert (caught.value.place, caught.value.reason) == ("tasks[0].map", said)


@pytest.mark.parametrize("text", ["input", "input.x"])
def test_a_map_has_a_limit(text: str) -> None:
    many = b"[" + b"1," * 100_000 + b"1]"
    run = Run(graph(task("m", map=text)), Payload(many if text == "input" else b'{"x":' + many + b"}"))
    with pytest.raises(MappingError, match=r"tasks\[0\].map: the list has 100001 items; 100000 is the limit"):
        run.items_of("m")


@pytest.mark.parametrize(
    "bad",
    [Payload(b"{"), Payload(b""), Payload(b"\xff"), Payload(b"[" * 100_000), Payload(b"x", "raw"), Payload(b'{"a":1}')],
)
@pytest.mark.parametrize("text", ["input", "input.x"])
def test_maps_of_bad_payloads(bad: Payload, text: str) -> None:
    with pytest.raises(MappingError, match=r"^tasks\[0\]\.map: "):
        Run(graph(task("m", map=text)), bad).items_of("m")


@pytest.mark.parametrize(
    ("text", "input"),
    [
        ("length(input.x)", {"x": 5}),
        ("sort_by(input.x, &k)", {"x": [{"k": 1}, {"k": "a"}]}),
        ("max(input.x)", {"x": ["a", 1]}),
        ("avg(input.x)", {"x": ["a"]}),
        ("to_number(input.x).y[0]", Payload(b"{")),
        ("input.x", Payload(b"\xff")),
        ("input.x", Payload(b"x", "raw")),
        ("&input", {}),
        ("join(',', input.x)", {"x": [1]}),
        ("input.x[::0]", {"x": [1]}),
        ("map(&a, input.x)", {"x": None}),
    ],
)
def test_whatever_goes_wrong_is_a_mapping_error_with_its_place(text: str, input: Any) -> None:
    made = graph(task("a", input={"f": text}), task("b", input=text))
    with pytest.raises(MappingError, match=r"^tasks\[0\]\.input\.f: "):
        Run(made, input).input_of("a")
    with pytest.raises(MappingError, match=r"^tasks\[1\]\.input: "):
        Run(made, input).input_of("b")


DOUBLED = " | ".join(["[@,@]"] * 40)


@pytest.mark.parametrize(
    "text",
    [
        f"[input.n] | {DOUBLED}",
        f"[input.n] | {DOUBLED} | [][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][][]",
        f"[input.n] | {DOUBLED} | to_string(@)",
        f"[input.n] | [{DOUBLED}, {DOUBLED}] | [0] == [1]",
        f"[input.n] | {DOUBLED} | contains(@, `5`)",
        "join(input.text, input.texts)",
        "input.list[*].[`[" + "0," * 1000 + "0]`]",
        "input.list[*].[`[" + "0," * 1000 + "0]`][][]",
        "[" + ",".join(["sort(input.list)"] * 200) + "] && 'x'",
        "[" + ",".join(["input.list[::-1]"] * 200) + "] && 'x'",
        "[" + ",".join(["input.list[?@ > `3`]"] * 150) + "] && 'x'",
        " | ".join(["input.text", *["to_string([@])"] * 200]),
    ],
    ids=["value", "flatten", "to_string", "equal", "contains", "join", "literal", "flat literal", "sort", "slice",
         "filter", "escapes"],
)  # fmt: skip
def test_a_hostile_expression_costs_seconds_at_most(text: str) -> None:
    made = graph(task("a", input={"f": text}))
    run = Run(made, {"n": 1, "text": '"' * 100_000, "texts": ["x"] * 100_000, "list": list(range(100_000))})
    with pytest.raises(MappingError, match="too much work"):
        run.input_of("a")


def test_honest_work_on_a_long_list_is_within_the_budget() -> None:
    made = graph(task("a", input="length(input[?qty > `1` && sku != 'x'].{id: id, n: qty})"))
    assert Run(made, [{"id": n, "qty": n % 3, "sku": "abc"} for n in range(50_000)]).input_of("a") == 16_666


def test_what_mappings_make_has_a_limit() -> None:
    made = graph(
        task("a"), task("b"), task("c", depends_on=("a", "b")), task("m", map="input.l", input={"a": "input.t"}),
        task("n", input={"t": "[input.t, input.t]"}),
    )  # fmt: skip
    big = "x" * 4_000_000
    run = Run(made, {"l": [1] * 20, "t": big}, a=big, b=big)
    with pytest.raises(MappingError, match=r"tasks\[2\]: the object has more than 6291456 bytes"):
        run.input_of("c")
    with pytest.raises(MappingError, match=r"tasks\[3\]\.input: the inputs of all items have more than 67108864 bytes"):
        run.items_of("m")
    with pytest.raises(MappingError, match=r"tasks\[4\]\.input\.t: the value has 8000007 bytes; 6291456 is the limit"):
        run.input_of("n")


def test_a_condition_that_cannot_be_evaluated() -> None:
    made = graph(task("a", when="length(input) > `3`"))
    with pytest.raises(MappingError, match=r"tasks\[0\]\.when: .*length"):
        condition(made, 0, Run(made, 5), CODEC)


def output(made: Graph, **values: Any) -> Any:
    return json.loads(run_output(made, Run(made, values.pop("input", None), **values), CODEC).data)


def test_output_by_default_is_the_only_sink_or_all_of_them() -> None:
    assert output(graph(task("a"), task("b", depends_on=("a",))), a=1, b=2) == 2
    assert output(graph(task("a"), task("b", depends_on=("a",))), a=1) is None
    assert output(graph(task("a"), task("b")), a=1) == {"a": 1, "b": None}


def test_output_mapping() -> None:
    pair = task("a"), task("b", depends_on=("a",))
    assert output(graph(*pair, output="tasks.a"), a=1, b=2) == 1
    assert output(graph(*pair, output="tasks.a"), b=2) is None
    assert output(graph(*pair, output="input"), input=5) == 5
    assert output(graph(*pair, output={"a": "tasks.a.x", "b": "tasks.b"}), a={"x": 1}, b=2) == {"a": 1, "b": 2}
    assert output(graph(*pair, output="keys(tasks)"), a=1, b=2) == ["b"]
    assert output(graph(*pair, output={}), a=1) == {}
    with pytest.raises(MappingError, match=r"^output\.a: "):
        output(graph(*pair, output={"a": "abs(tasks.a)"}), a="x")


def test_raw_output_passes() -> None:
    made = graph(task("a"))
    raw = Payload(b"\xff\x00", "raw")
    assert run_output(made, Run(made, a=raw), CODEC) == raw


def test_field_names_are_escaped() -> None:
    made = graph(task("a", input={'qu"ote\n': "input", "ü": "input.x"}))
    assert Run(made, {"x": 1}).input_of("a") == {'qu"ote\n': {"x": 1}, "ü": 1}


@pytest.mark.parametrize("more", [{}, {"input": "tasks.many"}, {"map": "input", "input": "tasks.many"}])
def test_what_no_message_can_hold_is_not_passed_on(more: dict[str, Any]) -> None:
    """Each result of a mapped task is bounded; all of them together are not."""
    compiled = graph(task("many", map="input"), task("next", **{"depends_on": ("many",)} | more))
    run = Run(compiled, [1, 2], many=["x" * 4_000_000, "y" * 4_000_000])
    read = map_items if "map" in more else task_input
    with pytest.raises(MappingError, match="8000008 bytes; 6291456 is the limit"):
        read(compiled, 1, run, CODEC)
    with pytest.raises(MappingError, match="8000008 bytes"):
        run_output(graph(task("many", map="input")), run, CODEC)
