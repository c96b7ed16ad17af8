"""Evaluates JMESPath with a budget: no expression, on whatever data, holds up the shard's loop or its memory.

A few dozen characters can ask for a value of 2⁴⁰ nodes (`[@,@] | [@,@] | …`), and an honest filter on a long list for
minutes. So every step and every element that a function looks at costs, and so does the size of the value that comes
out, written out without sharing.
"""

from __future__ import annotations

from typing import Any, Final

from jmespath.visitor import TreeInterpreter

#: Units of work of one evaluation: a million steps, about a second.
WORK: Final = 4_000_000
_STEP: Final = 4
#: Characters of text are quickly copied: as many cost one unit.
_TEXT: Final = 16
_WEIGHTY: Final = (str, list, dict)
#: Functions that look into their arguments, not only at their elements.
_DEEP: Final = frozenset({"to_string", "contains", "join"})


class TooMuchWorkError(ValueError):
    """The budget is used up."""

    def __init__(self) -> None:
        super().__init__("the expression asks for too much work on this data: let a compute task do it")


def evaluate(parsed: Any, document: Any) -> Any:
    """The value of a syntax tree on `document`. Raises TooMuchWorkError, and what JMESPath raises."""
    interpreter = _Interpreter()
    value = interpreter.visit(parsed, document)
    interpreter.weigh(value)
    return value


class _Interpreter(TreeInterpreter):
    def __init__(self) -> None:
        super().__init__()
        self._left = WORK

    def spend(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise TooMuchWorkError

    def weigh(self, value: Any) -> None:
        """Spend the size of `value` with all that is in it, shared parts as often as they occur."""
        boxes = [value]
        while boxes:
            one = boxes.pop()
            if isinstance(one, str):
                self.spend(1 + len(one) // _TEXT)
            elif isinstance(one, list):
                self.spend(_STEP + len(one))
                boxes.extend(inner for inner in one if isinstance(inner, _WEIGHTY))
            elif isinstance(one, dict):
                self.spend(_STEP + 2 * len(one) + sum(map(len, one)) // _TEXT)
                boxes.extend(inner for inner in one.values() if isinstance(inner, _WEIGHTY))

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self.spend(_STEP)
        return super().visit(node, *args, **kwargs)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        name = node["value"]
        given = [self.visit(child, value) for child in node["children"]]
        for argument in given:
            if name in _DEEP:
                self.weigh(argument)
            elif isinstance(argument, list | dict):
                self.spend(len(argument))
        if name == "join" and isinstance(given[0], str) and isinstance(given[1], list):
            self.spend(len(given[0]) * len(given[1]) // _TEXT)
        return super().visit_function_expression(_on_values(node, given), value)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        given = [self.visit(child, value) for child in node["children"]]
        for side in given:
            self.weigh(side)
        return super().visit_comparator(_on_values(node, given), value)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if isinstance(base, list):
            self.spend(len(base) + sum(len(inner) for inner in base if isinstance(inner, list)))
        return super().visit_flatten(_on_values(node, [base]), value)

    def visit_slice(self, node: Any, value: Any) -> Any:
        if isinstance(value, list):
            self.spend(len(value))
        return super().visit_slice(node, value)


def _on_values(node: Any, values: list[Any]) -> Any:
    """`node` with its children evaluated already."""
    return {**node, "children": [{"type": "literal", "value": value, "children": []} for value in values]}
