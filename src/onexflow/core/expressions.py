"""JMESPath expressions: compiled once at registration, with what they use, so that evaluation decodes only that.

The document of an expression is `{"input": …, "tasks": {name: result}, "run": {…}, "item": …, "index": …}`. Most
expressions are plain paths (`input.order.id`); these are walked here, which is many times quicker than the general
interpreter and means the same.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, Final

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions

from onexflow.core.definition import MAX_EXPRESSION
from onexflow.core.evaluation import evaluate

_IDENTIFIER: Final = r'(?:[A-Za-z_][A-Za-z0-9_]*|"[^"\\]+")'
_PLAIN: Final = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*", re.ASCII)
_STEP: Final = re.compile(_IDENTIFIER, re.ASCII)


class ExpressionError(ValueError):
    """The expression cannot be read, or cannot be evaluated on this document."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression."""

    text: str
    #: The steps of a plain path, else empty.
    path: tuple[str, ...]
    #: Fields of the document that it reads: `input`, `tasks`, `run`, `item`, `index`, and any wrong ones.
    roots: frozenset[str]
    #: Names of the tasks whose result it reads.
    tasks: frozenset[str]
    #: It uses `tasks` as a whole (`tasks.*`, `keys(tasks)`).
    every_task: bool
    #: It uses the document itself (`@`).
    everything: bool
    #: The syntax tree if it is not a plain path.
    parsed: Any

    def evaluate(self, document: Any) -> Any:
        """The value on `document`. Raises ExpressionError."""
        if self.parsed is None:
            for step in self.path:
                document = document.get(step) if isinstance(document, dict) else None
            return document
        try:
            return evaluate(self.parsed, document)
        except RecursionError:
            raise ExpressionError("the expression or its data is nested too deeply") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ExpressionError(_first_line(error)) from error


def is_true(value: Any) -> bool:
    """JMESPath's truth: null, false, and empty strings, lists and objects are false. Zero is true."""
    return value is not None and value is not False and not (isinstance(value, str | list | dict) and not value)


def task_path(name: str) -> str:
    """The expression of a task's result; JMESPath wants quotes around names with `-`."""
    return f'tasks."{name}"' if "-" in name else f"tasks.{name}"


def compile_expression(text: str) -> Expression:
    """Raises ExpressionError with the reason when `text` is no expression."""
    text = text.strip()
    if len(text.encode(errors="replace")) > MAX_EXPRESSION:
        raise ExpressionError(f"the expression is longer than {MAX_EXPRESSION} bytes")
    if _PLAIN.fullmatch(text):
        return _plain(text)
    try:
        with warnings.catch_warnings():  # a text in backticks without quotes is old style, and means what it says
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            compiled = jmespath.compile(text)
        uses = _Uses()
        uses.escape(uses.visit(compiled.parsed, _ROOT))
    except RecursionError:
        raise ExpressionError("the expression is nested too deeply") from None
    except JMESPathError as error:
        raise ExpressionError(_first_line(error) + _hint(str(error))) from error
    except (LookupError, TypeError, ValueError) as error:
        raise ExpressionError(f"not a JMESPath expression: {_first_line(error)}") from error
    return Expression(
        text=text,
        path=(),
        roots=frozenset(uses.roots),
        tasks=frozenset(uses.tasks),
        every_task=uses.every_task,
        everything=uses.everything,
        parsed=compiled.parsed,
    )


def _hint(message: str) -> str:
    if "Unknown token '-'" in message:
        return ' (a name with "-" needs quotes: tasks."reserve-stock")'
    return " (a number is written in backticks: `5`)" if "(NUMBER)" in message else ""


def _plain(text: str) -> Expression:
    path = tuple(step.strip('"') for step in _STEP.findall(text))
    tasks = path[0] == "tasks"
    return Expression(
        text=text,
        path=path,
        roots=frozenset(path[:1]),
        tasks=frozenset(path[1:2]) if tasks else frozenset(),
        every_task=tasks and len(path) == 1,
        everything=False,
        parsed=None,
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


# What the current value is while the tree is walked: the document, its `tasks`, or anything else.
_ROOT: Final = 0
_TASKS: Final = 1
_OTHER: Final = 2

_CHAINS: Final = frozenset({"subexpression", "pipe", "index_expression"})
_PROJECTIONS: Final = frozenset({"projection", "value_projection", "filter_projection"})


class _Uses:
    """Walks a syntax tree and notes which parts of the document it reads. When in doubt, it notes more."""

    def __init__(self) -> None:
        self.roots: set[str] = set()
        self.tasks: set[str] = set()
        self.every_task = False
        self.everything = False

    def escape(self, scope: int) -> None:
        """The value itself is used, not one field of it."""
        if scope == _ROOT:
            self.everything = True
        elif scope == _TASKS:
            self.every_task = True

    def visit(self, node: Any, scope: int) -> int:
        """Note what `node` reads when the current value is `scope`; what its own value is."""
        kind: str = node["type"]
        children: list[Any] = node["children"]
        if kind == "field":
            return self._field(node["value"], scope)
        if kind in {"current", "identity"}:
            return scope
        if (kind in _CHAINS or kind in _PROJECTIONS) and kind != "pipe" and children[0]["type"] == "not_expression":
            raise ExpressionError("`!a.b` is read as `(!a).b`, which is always null: write `!(a.b)`")
        if kind in _CHAINS:
            for child in children:
                scope = self.visit(child, scope)
            return scope
        if kind in _PROJECTIONS:
            self.escape(self.visit(children[0], scope))
            for child in children[1:]:
                self.visit(child, _OTHER)
            return _OTHER
        if kind == "expref":
            self.visit(children[0], _OTHER)
            return _OTHER
        if kind == "function_expression":
            _check_function(node["value"], len(children))
        for child in children if kind not in {"literal", "index", "slice"} else ():
            self.escape(self.visit(child, scope))
        return _OTHER

    def _field(self, name: str, scope: int) -> int:
        if scope == _TASKS:
            self.tasks.add(name)
        elif scope == _ROOT:
            self.roots.add(name)
            return _TASKS if name == "tasks" else _OTHER
        return _OTHER


def _check_function(name: str, given: int) -> None:
    known = Functions.FUNCTION_TABLE.get(name)
    if known is None:
        raise ExpressionError(f"unknown function {name}()")
    signature = known["signature"]
    variadic = bool(signature) and signature[-1].get("variadic", False)
    if given < len(signature) or (given > len(signature) and not variadic):
        least = "at least " if variadic else ""
        raise ExpressionError(f"{name}() takes {least}{len(signature)} argument(s), not {given}")
