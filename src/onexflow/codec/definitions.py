"""Definitions as JSON and YAML: read strictly, written canonically.

Reading judges the shape: known keys, kinds of values, sizes. What the values mean is judged by
`core.compiler.compile_graph`. Both report every problem with its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from onexflow.core.canonical import canonical_json
from onexflow.core.definition import (
    MAX_TEXT,
    Compensation,
    RetryPolicy,
    RunRetry,
    TaskSpec,
    Timeouts,
    WorkflowDefinition,
)
from onexflow.core.errors import InvalidDefinition
from onexflow.core.validate import Problems

#: Bytes of a YAML file; of a JSON file: `core.definition.MAX_TEXT`.
MAX_YAML: Final = 1024 * 1024

Format = Literal["json", "yaml"]
Reader = Callable[[Any, str, Problems], Any]


def load_definition(text: bytes, format: Format = "json") -> WorkflowDefinition:
    """The definition that `text` describes.

    Raises InvalidDefinition with every problem of its shape in `context["problems"]`.
    """
    limit = MAX_YAML if format == "yaml" else MAX_TEXT
    if len(text) > limit:
        raise InvalidDefinition(f"the definition has {len(text)} bytes; {limit} is the limit")
    try:
        raw = _yaml(text) if format == "yaml" else _parse_json(text)
    except RecursionError:
        raise InvalidDefinition("the definition is nested too deeply") from None
    return definition_of(raw)


def _yaml(text: bytes) -> Any:
    from onexflow.codec.definition_yaml import parse_yaml  # orchestrators and clients read JSON alone

    return parse_yaml(text)


def definition_of(raw: Any) -> WorkflowDefinition:
    """The definition that plain values (as read from JSON or YAML) describe. Raises as `load_definition`."""
    problems = Problems()
    definition = _read(WorkflowDefinition, raw, "", problems)
    problems.check()
    assert isinstance(definition, WorkflowDefinition)
    return definition


def dump_definition(definition: WorkflowDefinition) -> bytes:
    """Canonical JSON: keys sorted, defaults left out. Its SHA-256 is the definition's hash."""
    return canonical_json(definition)


# ---- shape


def _read(cls: type[msgspec.Struct], raw: Any, place: str, problems: Problems) -> msgspec.Struct | None:
    if not isinstance(raw, dict):
        problems.add(place, f"{_shown(raw)} is not an object{_wanted(cls)}")
        return None
    readers = _READERS[cls]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        here = f"{place}.{key}" if place else str(key)
        reader = readers.get(key) if isinstance(key, str) else None
        if cls is WorkflowDefinition and (str(key).startswith("x-") or key == "$schema"):
            continue  # a place for YAML anchors, as in compose files; and what editors of JSON read
        if reader is None:
            problems.add(here, f"unknown key {_shown(key)}{problems.near(key, readers)}")
        elif value is not None or key in _NULLABLE:
            values[key] = None if value is None else reader(value, here, problems)
        else:
            problems.add(here, "null is no value; leave the key out")
    for name in cls.__struct_fields__[: _REQUIRED.get(cls, 0)]:
        if name not in raw:
            problems.add(f"{place}.{name}" if place else name, "is missing")
        values.setdefault(name, "")  # also where it stands as null
    return cls(**values)


def _wanted(cls: type[msgspec.Struct]) -> str:
    return f" with keys {', '.join(list(_READERS[cls])[:4])}, …"


def _text(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.add(place, f"{_shown(value)} is not text")
    return value


def _expression(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.add(place, f"{_shown(value)} is no expression (text); a constant is written in backticks: `5`")
    return value


def _integer(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        problems.add(place, f"{_shown(value)} is not a whole number")
    return value


def _number(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        problems.add(place, f"{_shown(value)} is not a number")
        return value
    try:
        return float(value)
    except OverflowError:
        problems.add(place, "the number is out of range")
        return 0.0


def _seconds(value: Any, place: str, problems: Problems) -> Any:
    if isinstance(value, str):
        problems.add(place, f"{_shown(value)} is not a number; durations are seconds, for example 1.5")
        return value
    return _number(value, place, problems)


def _flag(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, bool):
        problems.add(place, f"{_shown(value)} is neither true nor false")
    return value


def _names(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, list):
        problems.add(place, f"{_shown(value)} is not a list of names; write [{_shown(value)}]")
        return ()
    return tuple(_text(name, f"{place}[{index}]", problems) for index, name in enumerate(value))


def _mapping(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, dict):
        return _expression(value, place, problems)
    return {
        _text(name, f"{place}.{name}", problems): _expression(one, f"{place}.{name}", problems)
        for name, one in value.items()
    }


def _tasks(value: Any, place: str, problems: Problems) -> Any:
    if not isinstance(value, list):
        problems.add(place, f"{_shown(value)} is not a list of tasks")
        return ()
    return tuple(_read(TaskSpec, one, f"{place}[{index}]", problems) for index, one in enumerate(value))


def _part(cls: type[msgspec.Struct]) -> Reader:
    return lambda value, place, problems: _read(cls, value, place, problems)


def _compensation(value: Any, place: str, problems: Problems) -> Any:
    """By its handler's name alone, or as an object."""
    if isinstance(value, str):
        return Compensation(handler=value)
    return _read(Compensation, value, place, problems)


_READERS: Final[dict[type[msgspec.Struct], dict[str, Reader]]] = {
    WorkflowDefinition: {
        "workflow_type": _text, "version": _integer, "description": _text, "tasks": _tasks, "output": _mapping,
        "retry": _part(RunRetry), "timeout": _seconds,
    },
    TaskSpec: {
        "name": _text, "role": _text, "handler": _text, "depends_on": _names, "after": _names, "input": _mapping,
        "when": _expression, "map": _expression, "max_parallel": _integer, "feed": _flag, "retry": _part(RetryPolicy),
        "timeouts": _part(Timeouts), "priority": _text, "allow_failure": _flag, "setup": _flag,
        "compensation": _compensation,
    },
    Compensation: {
        "handler": _text, "input": _mapping, "retry": _part(RetryPolicy), "timeouts": _part(Timeouts),
    },
    RetryPolicy: {
        "policy": _text, "max_attempts": _integer, "initial_delay": _seconds, "max_delay": _seconds,
        "multiplier": _number, "jitter": _number, "retryable": _names, "non_retryable": _names,
    },
    RunRetry: {"max_attempts": _integer, "delay": _seconds},
    Timeouts: {
        "schedule_to_start": _seconds, "start_to_close": _seconds, "schedule_to_close": _seconds,
        "heartbeat": _seconds,
    },
}  # fmt: skip
#: How many of the first fields must be there.
_REQUIRED: Final[dict[type[msgspec.Struct], int]] = {WorkflowDefinition: 1, TaskSpec: 2, Compensation: 1}
_NULLABLE: Final = frozenset({"input", "output", "retry"})


def _shown(value: Any) -> str:
    """Short, whatever the value is: never the text of a whole nested value."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) > 10**30:
        return "this huge number"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


# ---- text


def _parse_json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InvalidDefinition(f"the key {twice!r} stands twice in one object", field=twice)
        return found

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidDefinition(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise InvalidDefinition(f"not JSON: not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise InvalidDefinition(f"not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise InvalidDefinition(f"not JSON: {name} is no number")
