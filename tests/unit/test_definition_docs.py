"""Every block of docs/definitions.md works, and its tables name every key and default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from onexflow.codec.definitions import MAX_YAML, load_definition
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import (
    MAX_EXPRESSION,
    MAX_TASKS,
    MAX_TEXT,
    Compensation,
    RetryPolicy,
    RunRetry,
    TaskSpec,
    Timeouts,
    WorkflowDefinition,
)
from onexflow.core.mapping import MAX_ITEMS, MAX_MADE, MAX_MADE_ITEMS

TEXT = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_are_valid(block: str) -> None:
    compile_graph(load_definition(block.encode(), "yaml"))


def test_python_and_yaml_examples_are_the_same_workflow() -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python")[0], namespace)
    assert namespace["definition"] == load_definition(blocks("yaml")[0].encode(), "yaml")


def row(key: str) -> str:
    found = re.search(rf"^\| `{key}`.*$", TEXT, re.MULTILINE)
    assert found, key
    return found[0]


@pytest.mark.parametrize("cls", [WorkflowDefinition, TaskSpec, Compensation, RetryPolicy, Timeouts])
def test_tables_name_every_key(cls: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(cls):
        row(field.name)


def test_defaults_and_limits_are_the_documented_ones() -> None:
    for field in msgspec.structs.fields(RetryPolicy):
        if isinstance(field.default, int | float):
            assert row(field.name).endswith(f"| {field.default:g} |"), field.name
    assert f"rounds in all (default {RunRetry().max_attempts})" in row("retry")
    assert (MAX_TASKS, MAX_EXPRESSION, MAX_ITEMS) == (10_000, 4096, 100_000)
    assert (MAX_TEXT, MAX_YAML, MAX_MADE, MAX_MADE_ITEMS) == (4 << 20, 1 << 20, 6 << 20, 64 << 20)


def test_every_section_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\(#([a-z-]+)\)", TEXT):
        assert re.search(rf"^#+ {target.replace('-', ' ')}$", TEXT, re.MULTILINE | re.IGNORECASE), target
