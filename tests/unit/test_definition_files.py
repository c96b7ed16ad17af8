"""Definitions as files: strict reading, canonical writing, and a hash that never changes by accident."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.codec.definitions import MAX_YAML, Format, definition_of, dump_definition, load_definition
from onexflow.core.canonical import canonical_json, hash_of
from onexflow.core.definition import RetryPolicy, TaskSpec, Timeouts, WorkflowDefinition
from onexflow.core.errors import InvalidDefinition

GOLDEN = WorkflowDefinition(
    workflow_type="golden",
    version=3,
    tasks=(
        TaskSpec(name="a", role="effect", retry=RetryPolicy(), timeouts=Timeouts()),
        TaskSpec(
            name="b-c",
            role="compute",
            handler="other",
            depends_on=("a",),
            input={"y": "tasks.a", "x": "input.ü"},
            timeouts=Timeouts(heartbeat=2.0, start_to_close=0.5),
            retry=RetryPolicy(policy="fixed", max_attempts=7, retryable=("E",)),
            allow_failure=True,
        ),
    ),
    output='tasks."b-c"',
    timeout=60.0,
)
GOLDEN_TEXT = (
    '{"output":"tasks.\\"b-c\\"","tasks":[{"name":"a","retry":{},"role":"effect"},'
    '{"allow_failure":true,"depends_on":["a"],"handler":"other","input":{"x":"input.ü","y":"tasks.a"},"name":"b-c",'
    '"retry":{"max_attempts":7,"policy":"fixed","retryable":["E"]},"role":"compute",'
    '"timeouts":{"heartbeat":2,"start_to_close":0.5}}],"timeout":60,"version":3,"workflow_type":"golden"}'
)
GOLDEN_HASH = "d6ff9fcd4bfef4185fbba24ad17e741af9c329df2e8113dd5b4c7fd4dcb059de"


def problems(text: str | bytes, format: Format = "yaml") -> dict[str, str]:
    with pytest.raises(InvalidDefinition) as caught:
        load_definition(text.encode() if isinstance(text, str) else text, format)
    return {one["place"]: one["problem"] for one in caught.value.context["problems"]}


def refusal(text: bytes, format: Format = "yaml") -> str:
    with pytest.raises(InvalidDefinition) as caught:
        load_definition(text, format)
    return str(caught.value)


def test_canonical_text_is_frozen() -> None:
    """A change here changes the hash of every stored definition: old runs would not find theirs."""
    assert dump_definition(GOLDEN).decode() == GOLDEN_TEXT
    assert hash_of(canonical_json(GOLDEN)) == GOLDEN_HASH


def test_hash_is_of_the_meaning_of_the_text() -> None:
    text = b"""
    {"version": 3, "workflow_type": "golden", "timeout": 60, "description": "", "output": "tasks.\\"b-c\\"",
     "tasks": [{"role": "effect", "handler": "a", "name": "a", "depends_on": [], "retry": {}},
               {"name": "b-c", "role": "compute", "handler": "other", "depends_on": ["a"], "allow_failure": true,
                "timeouts": {"start_to_close": 0.5, "heartbeat": 2}, "input": {"x": "input.\xc3\xbc", "y": "tasks.a"},
                "retry": {"max_attempts": 7, "policy": "fixed", "retryable": ["E"], "jitter": 0.2}}]}
    """
    assert hash_of(canonical_json(load_definition(text))) == GOLDEN_HASH


def test_a_retry_that_was_asked_for_stays_even_if_it_is_the_default() -> None:
    """It means something: an effect that is not idempotent is tried again only when its definition says so."""
    text = b'{"workflow_type": "w", "tasks": [{"name": "a", "role": "effect", "retry": {}}, {"name": "b", "role": "effect"}]}'
    asked, silent = load_definition(dump_definition(load_definition(text))).tasks
    assert (asked.retry, silent.retry) == (RetryPolicy(), None)


def test_what_was_written_is_read_again() -> None:
    again = load_definition(dump_definition(GOLDEN))
    assert dump_definition(again) == dump_definition(GOLDEN)
    assert load_definition(dump_definition(again)) == again


def test_shape_problems_come_all_at_once_with_near_names() -> None:
    found = problems(
        """
        workflow_type: w
        revision: 2
        x-anchors: {anything: [goes, here]}
        retry: 3
        tasks:
          - {name: a, rol: effect, retry: {max_attempt: 3, initial_delay: 5s, jitter: x, retryable: E}}
          - {name: b, role: effect, depends_on: a, when: yes, setup: 1, timeouts: {heartbeat: 1, x: 2}, handler: null}
          - {name: c, role: effect, input: {k: 5, v: null}, max_parallel: 1.5, after: [1], map: [1], 7: x}
          - 5
        output: [a]
        """
    )
    assert found == {
        "revision": "unknown key 'revision'; did you mean 'version'?",
        "retry": "3 is not an object with keys max_attempts, delay, …",
        "tasks[0].rol": "unknown key 'rol'; did you mean 'role'?",
        "tasks[0].role": "is missing",
        "tasks[0].retry.max_attempt": "unknown key 'max_attempt'; did you mean 'max_attempts'?",
        "tasks[0].retry.initial_delay": "'5s' is not a number; durations are seconds, for example 1.5",
        "tasks[0].retry.jitter": "'x' is not a number",
        "tasks[0].retry.retryable": "'E' is not a list of names; write ['E']",
        "tasks[1].depends_on": "'a' is not a list of names; write ['a']",
        "tasks[1].when": "true is no expression (text); a constant is written in backticks: `5`",
        "tasks[1].setup": "1 is neither true nor false",
        "tasks[1].timeouts.x": "unknown key 'x'",
        "tasks[1].handler": "null is no value; leave the key out",
        "tasks[2].input.k": "5 is no expression (text); a constant is written in backticks: `5`",
        "tasks[2].input.v": "null is no expression (text); a constant is written in backticks: `5`",
        "tasks[2].max_parallel": "1.5 is not a whole number",
        "tasks[2].after[0]": "1 is not text",
        "tasks[2].map": "a list is no expression (text); a constant is written in backticks: `5`",
        "tasks[2].7": "unknown key 7",
        "tasks[3]": "5 is not an object with keys name, role, handler, depends_on, …",
        "output": "a list is no expression (text); a constant is written in backticks: `5`",
    }


@pytest.mark.parametrize("raw", [None, 5, [], "text"])
def test_what_is_no_object(raw: Any) -> None:
    with pytest.raises(InvalidDefinition, match="is not an object with keys workflow_type"):
        definition_of(raw)


def test_missing_type_is_named() -> None:
    assert problems("tasks: []") == {"workflow_type": "is missing"}


def test_null_is_no_name() -> None:
    null = "null is no value; leave the key out"
    found = problems("workflow_type: null\ntasks: [{name: null, role: null}]")
    assert found == {"workflow_type": null, "tasks[0].name": null, "tasks[0].role": null}


def test_anchors_serve_for_shared_parts() -> None:
    text = b"""
    workflow_type: w
    x-retry: &retry {max_attempts: 9}
    tasks:
      - {name: a, role: effect, retry: *retry}
      - {name: b, role: effect, retry: {<<: *retry, jitter: 0}}
    """
    first, second = load_definition(text, "yaml").tasks
    assert first.retry == RetryPolicy(max_attempts=9)
    assert second.retry == RetryPolicy(max_attempts=9, jitter=0)


def bomb() -> bytes:
    lines = [b"x-a: &a [" + b",".join([b"1"] * 10) + b"]"]
    lines.extend(b"x-%c: &%c [%s]" % (one, one, b",".join([b"*%c" % (one - 1)] * 10)) for one in range(98, 108))
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(), "values with its aliases written out"),
        (b"a: &a [*a]", "an alias contains itself at line 1"),
        (b"[" * 500_000, "nested too deeply"),
        (b"workflow_type: w\nworkflow_type: v", "the key 'workflow_type' stands twice in one object, line 2"),
        (b"a: [", "not YAML: .* at line 2, column 1"),
        (b"a: 1\n---\nb: 1", "not YAML: but found another document at line 2"),
        (b"!!python/object/apply:os.system ['true']", "not YAML: could not determine a constructor"),
        (b"a: 2026-13-45", "not YAML: month must be in 1..12"),
        (b"\xff\xfe\xfa", "not YAML: unacceptable character"),
        (b"", "the definition is empty"),
        (b"x" * (MAX_YAML + 1), "1048577 bytes; 1048576 is the limit"),
    ],
    ids=["bomb", "self", "deep", "twice", "open", "two", "python", "date", "bytes", "empty", "size"],
)
def test_hostile_yaml(text: bytes, said: str) -> None:
    with pytest.raises(InvalidDefinition, match=said):
        load_definition(text, "yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 1_000_000, "nested too deeply"),
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b'{"a":\n]', "not JSON: Expecting value at line 2, column 1"),
        (b'{"workflow_type": "a", "workflow_type": "b"}', "the key 'workflow_type' stands twice"),
        (b'{"timeout": NaN}', "not JSON: NaN is no number"),
        (b"\xff", "not JSON: not UTF-8 at byte 0"),
        (b'{"version": ' + b"1" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"workflow_type": "a", "timeout": ' + b"1" * 400 + b"}", "timeout: the number is out of range"),
    ],
    ids=["deep", "empty", "syntax", "twice", "nan", "bytes", "digits", "range"],
)
def test_hostile_json(text: bytes, said: str) -> None:
    assert said in refusal(text, "json")


def test_handler_is_the_tasks_name_unless_said() -> None:
    assert TaskSpec(name="a", role="effect").handler == "a"
    assert TaskSpec(name="a", role="effect", handler="b").handler == "b"
