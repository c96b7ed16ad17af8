"""The published JSON Schema: every good definition fits it, and what it refuses the loader refuses too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow.cli import main
from onexflow.codec import definitions
from onexflow.codec.definition_schema import definition_schema, schema_text
from onexflow.codec.definitions import definition_of, dump_definition, load_definition
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import RetryPolicy, RunRetry, TaskSpec, Timeouts, WorkflowDefinition
from onexflow.core.errors import InvalidDefinition
from onexflow.examples import flight_delays, greet, order_processing

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = definition_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
EXAMPLES = [module.definition() for module in (flight_delays, greet, order_processing)]


def is_loaded(raw: Any) -> bool:
    try:
        compile_graph(definition_of(raw))
    except InvalidDefinition:
        return False
    return True


def test_it_is_a_schema_and_the_published_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert (DOCS / "definition.schema.json").read_text() == schema_text()


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["definition", "schema"]) == 0
    assert capsys.readouterr().out == schema_text()


@pytest.mark.parametrize(
    ("cls", "properties"),
    [
        (WorkflowDefinition, SCHEMA["properties"]),
        (TaskSpec, SCHEMA["$defs"]["task"]["properties"]),
        (RetryPolicy, SCHEMA["$defs"]["retry"]["properties"]),
        (RunRetry, SCHEMA["$defs"]["runRetry"]["properties"]),
        (Timeouts, SCHEMA["$defs"]["timeouts"]["properties"]),
    ],
)
def test_it_has_the_keys_that_the_loader_reads_with_their_defaults(cls: Any, properties: dict[str, Any]) -> None:
    assert set(properties) - {"$schema"} == set(definitions._READERS[cls])
    given = cls(**{name: "effect" for name in ("workflow_type", "name", "role") if name in cls.__struct_fields__})
    for name, kind in properties.items():
        if "default" in kind:
            default = getattr(given, name)
            assert kind["default"] == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("definition", EXAMPLES, ids=lambda definition: definition.workflow_type)
def test_every_example_fits(definition: WorkflowDefinition) -> None:
    VALIDATOR.validate(json.loads(dump_definition(definition)))


@pytest.mark.parametrize(
    "block", re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "definitions.md").read_text(), re.DOTALL | re.MULTILINE)
)
def test_every_block_of_the_documentation_fits(block: str) -> None:
    VALIDATOR.validate(yaml.safe_load(block))


def test_a_json_file_may_name_its_schema() -> None:
    text = b'{"$schema": "definition.schema.json", "workflow_type": "w", "tasks": [{"name": "a", "role": "effect"}]}'
    VALIDATOR.validate(json.loads(text))
    assert b"schema" not in dump_definition(load_definition(text))


TASK = {"name": "a", "role": "effect"}
GOOD = {"workflow_type": "w", "tasks": [TASK]}


@pytest.mark.parametrize(
    "change",
    [
        {"workflow_type": "1w"},
        {"workflow_type": "w" * 129},
        {"version": 0},
        {"version": True},
        {"description": 5},
        {"tasks": []},
        {"tasks": {}},
        {"unknown": 1},
        {"timeout": -1},
        {"timeout": "5s"},
        {"timeout": None},
        {"output": 5},
        {"retry": {"max_attempts": 0}},
        {"retry": {"jitter": 0.1}},
        *(
            {"tasks": [{**TASK, **wrong}]}
            for wrong in (
                {"name": "a.b"},
                {"role": "thinker"},
                {"handler": "a b"},
                {"handler": "h" * 257},
                {"depends_on": "b"},
                {"after": [1]},
                {"input": {"x": 5}},
                {"input": "x" * 4097},
                {"when": True},
                {"map": ["a"]},
                {"max_parallel": -1},
                {"max_parallel": 1.5},
                {"retry": 3},
                {"retry": {"policy": "often"}},
                {"retry": {"max_attempts": 10_001}},
                {"retry": {"multiplier": 0.5}},
                {"retry": {"jitter": 2}},
                {"retry": {"retryable": [""]}},
                {"timeouts": {"heartbeat": 1e12}},
                {"timeouts": {"whenever": 1}},
                {"timeouts": None},
                {"priority": "now"},
                {"setup": "yes"},
                {"allow_failure": None},
            )
        ),
        {"tasks": [{"name": "a"}]},
    ],
    ids=str,
)
def test_both_refuse(change: dict[str, Any]) -> None:
    assert VALIDATOR.is_valid(GOOD)
    assert is_loaded(GOOD)
    assert not VALIDATOR.is_valid({**GOOD, **change})
    assert not is_loaded({**GOOD, **change})


# ---- whatever else: no document that loads is refused by the schema

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 12_000), st.floats(-1, 1e10), st.sampled_from(["", "a", "a-b", "a.b", "x y"]),
    st.just([]), st.just({}), st.just(["a"]), st.just({"x": "input"}),
)  # fmt: skip


def some(properties: dict[str, Any], good: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the keys, mostly with values that could be meant."""
    keys = {name: st.one_of(good.get(name, ODD), good.get(name, ODD), ODD) for name in properties}
    return st.fixed_dictionaries({}, optional={**keys, "x-more": ODD})


SECONDS = st.sampled_from([0, 0.5, 30, 1e9])
RETRY = some(
    SCHEMA["$defs"]["retry"]["properties"],
    {
        "policy": st.sampled_from(["none", "fixed"]),
        "max_attempts": st.integers(1, 5),
        "initial_delay": SECONDS,
        "max_delay": SECONDS,
        "multiplier": st.sampled_from([1, 2.5]),
        "jitter": st.sampled_from([0, 0.2, 1]),
        "retryable": st.just(["E"]),
        "non_retryable": st.just([]),
    },
)
TIMEOUTS = some(SCHEMA["$defs"]["timeouts"]["properties"], dict.fromkeys(Timeouts.__struct_fields__, SECONDS))
GOOD_TASK: dict[str, st.SearchStrategy[Any]] = {
    "handler": st.sampled_from(["h", "", "h/1"]),
    "depends_on": st.just([]),
    "after": st.just([]),
    "input": st.sampled_from(["input", {"x": "input.y"}, None]),
    "when": st.sampled_from(["", "input.x"]),
    "map": st.sampled_from(["", "input.list"]),
    "max_parallel": st.just(0),
    "retry": st.one_of(RETRY, st.none()),
    "timeouts": TIMEOUTS,
    "priority": st.sampled_from(["low", "urgent"]),
    "allow_failure": st.booleans(),
    "setup": st.just(False),
}


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A definition with one thing in it that may be odd."""
    task = {"name": "a", "role": draw(st.sampled_from(["effect", "compute"]))}
    more = draw(st.sampled_from(sorted(GOOD_TASK)))
    task[more] = draw(st.one_of(GOOD_TASK[more], ODD))
    raw: dict[str, Any] = {"workflow_type": "w", "tasks": [task]}
    for name in draw(st.lists(st.sampled_from(sorted(SCHEMA["properties"])), max_size=1)):
        raw[name] = draw(ODD)
    return raw


@settings(max_examples=1500, deadline=None)
@given(documents())
def test_what_the_schema_refuses_the_loader_refuses(raw: Any) -> None:
    if not VALIDATOR.is_valid(raw):
        assert not is_loaded(raw), raw
