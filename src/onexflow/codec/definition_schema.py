"""The JSON Schema of definition files, for editors: what it refuses, the loader refuses too, with a better word.

docs/definition.schema.json is made of it (scripts/gen-docs); `onexflow definition schema` prints it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from onexflow.core.definition import (
    BACKOFFS,
    MAX_ATTEMPTS,
    MAX_EXPRESSION,
    MAX_NAME,
    MAX_SECONDS,
    MAX_TASKS,
    PRIORITIES,
    ROLES,
    RetryPolicy,
    RunRetry,
    TaskSpec,
    Timeouts,
)

Schema = dict[str, Any]

_MAX_VERSION: Final = 2**31 - 1
_MAX_HANDLER: Final = 256


def schema_text() -> str:
    """The schema as it stands in docs/."""
    return json.dumps(definition_schema(), indent=2, ensure_ascii=False) + "\n"


def definition_schema() -> Schema:
    """The JSON Schema (2020-12) of a workflow definition."""
    workflow = {
        "$schema": {"description": "Where this schema is, for editors of JSON files."},
        "workflow_type": _name("Name of the workflow.", "_.-"),
        "version": _integer("A changed workflow gets a new version.", 1, _MAX_VERSION, default=1),
        "description": {"type": "string", "description": "For people.", "default": ""},
        "tasks": {
            "type": "array",
            "items": {"$ref": "#/$defs/task"},
            "minItems": 1,
            "maxItems": MAX_TASKS,
            "description": "What is to be done.",
        },
        "output": _mapping("The run's result: an expression, or an object of expressions."),
        "retry": _nullable("runRetry", "A failed run goes back to its failed tasks."),
        "timeout": _seconds("Seconds from the start until the run times out; 0: never.", 0),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onexflow workflow definition",
        "description": "A definition file in YAML or JSON: see docs/definitions.md. All durations are seconds.",
        **_object(workflow, "workflow_type", "tasks"),
        "patternProperties": {"^x-": {"description": "Left alone: a place for YAML anchors."}},
        "$defs": {
            "task": _object(_task(), "name", "role"),
            "compensation": _object(_compensation(), "handler"),
            "retry": _object(_retry()),
            "runRetry": _object(_run_retry()),
            "timeouts": _object(_timeouts()),
            "expression": {
                "type": "string",
                "maxLength": MAX_EXPRESSION,
                "description": "JMESPath. A constant is written in backticks: `5`.",
            },
        },
    }


def _task() -> Schema:
    spec = TaskSpec(name="", role="effect")
    return {
        "name": _name("Name of the task, unique in its workflow.", "_-"),
        "role": _choice("What runs it, and so what is promised about it.", ROLES),
        "handler": {
            "type": "string",
            "maxLength": _MAX_HANDLER,
            "pattern": r"^[^\s\x00-\x1f\x7f]*$",
            "description": "Name of the handler on the workers. Default: the task's name.",
        },
        "depends_on": _names("Tasks that must complete first."),
        "after": _names("Tasks that must have ended first, in whatever way."),
        "input": _mapping("What the handler gets: an expression, or an object of expressions."),
        "when": _expression("The task is skipped when this is false."),
        "map": _expression("Expression of a list: the task runs once an item."),
        "max_parallel": _integer("Items of a map that may be in flight at a time; 0: no limit.", 0, default=0),
        "feed": _flag("This reducer gets the results of the mapped task that it depends on as they come."),
        "retry": _nullable("retry", "When it is tried again."),
        "timeouts": {"$ref": "#/$defs/timeouts"},
        "priority": _choice("Who goes first when workers are scarce.", PRIORITIES, spec.priority),
        "allow_failure": _flag("A failure of this task does not fail the run."),
        "setup": _flag("Runs before every task that is not set-up."),
        "compensation": {
            "anyOf": [_handler("Name of the handler."), {"$ref": "#/$defs/compensation"}],
            "description": "The effect that undoes this one when the run is cancelled, fails or times out.",
        },
    }


def _compensation() -> Schema:
    return {
        "handler": _handler("Name of the handler on the workers."),
        "input": _mapping("What it gets. Default: the object of the task's `input` and `result`."),
        "retry": _nullable("retry", "When it is tried again."),
        "timeouts": {"$ref": "#/$defs/timeouts"},
    }


def _handler(description: str) -> Schema:
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": _MAX_HANDLER,
        "pattern": r"^[^\s\x00-\x1f\x7f]*$",
        "description": description,
    }


def _retry() -> Schema:
    policy = RetryPolicy()
    return {
        "policy": _choice("How the delays grow.", BACKOFFS, policy.policy),
        "max_attempts": _integer("Attempts in all, the first included.", 1, MAX_ATTEMPTS, policy.max_attempts),
        "initial_delay": _seconds("Seconds before the second attempt.", policy.initial_delay),
        "max_delay": _seconds("No delay is longer.", policy.max_delay),
        "multiplier": _number("Growth of an exponential delay.", 1, 1000, policy.multiplier),
        "jitter": _number("Part of each delay that is left to chance.", 0, 1, policy.jitter),
        "retryable": _names("Names of the only error classes that are tried again.", filled=True),
        "non_retryable": _names("Names of error classes that never are.", filled=True),
    }


def _run_retry() -> Schema:
    policy = RunRetry()
    return {
        "max_attempts": _integer("Rounds in all, the first included.", 1, MAX_ATTEMPTS, policy.max_attempts),
        "delay": _seconds("Seconds between the rounds.", policy.delay),
    }


def _timeouts() -> Schema:
    meanings = {
        "schedule_to_start": "The wait for a worker, in seconds.",
        "start_to_close": "One attempt, in seconds.",
        "schedule_to_close": "All attempts and the waits between them, in seconds.",
        "heartbeat": "Longest silence of a running attempt, in seconds.",
    }
    return {name: _seconds(meanings[name], getattr(Timeouts(), name)) for name in Timeouts.__struct_fields__}


# ---- kinds of value


def _object(properties: Schema, *required: str) -> Schema:
    kind: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**kind, "required": list(required)} if required else kind


def _name(description: str, signs: str) -> Schema:
    return {
        "type": "string",
        "pattern": f"^[A-Za-z][A-Za-z0-9{signs}]*$",
        "maxLength": MAX_NAME,
        "description": description,
    }


def _choice(description: str, values: tuple[str, ...], default: str | None = None) -> Schema:
    kind: Schema = {"enum": list(values), "description": description}
    return kind if default is None else {**kind, "default": default}


def _integer(description: str, low: int, high: int | None = None, default: int = 0) -> Schema:
    limits = {"minimum": low} if high is None else {"minimum": low, "maximum": high}
    return {"type": "integer", **limits, "description": description, "default": default}


def _number(description: str, low: float, high: float, default: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, "description": description, "default": default}


def _seconds(description: str, default: float) -> Schema:
    return _number(description, 0, MAX_SECONDS, default)


def _flag(description: str) -> Schema:
    return {"type": "boolean", "description": description, "default": False}


def _names(description: str, *, filled: bool = False) -> Schema:
    item: Schema = {"type": "string", "minLength": 1} if filled else {"type": "string"}
    return {"type": "array", "items": item, "description": description, "default": []}


def _expression(description: str) -> Schema:
    return {"$ref": "#/$defs/expression", "description": description}


def _mapping(description: str) -> Schema:
    kinds: list[Schema] = [
        {"$ref": "#/$defs/expression"},
        {"type": "object", "additionalProperties": {"$ref": "#/$defs/expression"}},
        {"type": "null"},
    ]
    return {"anyOf": kinds, "description": description}


def _nullable(name: str, description: str) -> Schema:
    return {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}], "description": description}
