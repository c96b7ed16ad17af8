"""The expressions of a definition, compiled, each with the tasks that it reads: those must have ended before it is read."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from onexflow.core.definition import Compensation
from onexflow.core.edges import Edges
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.expressions import Expression, ExpressionError, compile_expression, task_path
from onexflow.core.graph import InputRule, Rule
from onexflow.core.validate import Problems, listed

#: Fields of an expression's document. `item` and `index` only exist in the input of a mapped task.
_ROOTS: Final = frozenset({"input", "tasks", "run"})
_ITEM_ROOTS: Final = _ROOTS | {"item", "index"}
#: In the input of a compensation there are these too: of the task that is undone, and why.
_UNDO_ROOTS: Final = _ROOTS | {"result", "outcome", "reason"}


class TaskRules(NamedTuple):
    """The expressions of one task."""

    input: InputRule | None
    when: Rule | None = None
    map: Rule | None = None


class RuleCompiler:
    """Compiles the expressions of one definition: each text once, every problem told at its place."""

    def __init__(self, edges: Edges, problems: Problems) -> None:
        self._edges = edges
        self._problems = problems
        self._expressions: dict[str, Expression] = {}

    def of_tasks(self) -> list[TaskRules]:
        """Those of every task, and behind them those of the tasks that undo."""
        edges = self._edges
        rules = [self._of_task(number) for number in range(len(edges.specs))]
        for number, task in enumerate(edges.specs):
            if isinstance(task.compensation, Compensation):
                place = f"tasks[{number}].compensation.input"
                near = (number, *edges.parents(number))
                rules.append(TaskRules(self._mapping(task.compensation.input, place, _UNDO_ROOTS, None, near)))
        return rules

    def output(self, mapping: Any, sinks: tuple[int, ...]) -> InputRule | None:
        """How the run's output is made; it may read every task."""
        return self._mapping(mapping, "output", _ROOTS, None, sinks)

    def _of_task(self, number: int) -> TaskRules:
        task, place = self._edges.specs[number], f"tasks[{number}]"
        parents = self._edges.parents(number)
        allowed = _ITEM_ROOTS if task.map else _ROOTS
        made = self._mapping(task.input, f"{place}.input", allowed, number, parents)
        when = self._rule(task.when, f"{place}.when", _ROOTS, number, parents) if task.when else None
        items = self._rule(task.map, f"{place}.map", _ROOTS, number, parents) if task.map else None
        return TaskRules(made, when, items)

    def _mapping(
        self, mapping: Any, place: str, allowed: frozenset[str], task: int | None, parents: tuple[int, ...]
    ) -> InputRule | None:
        if mapping is None:
            return None
        if isinstance(mapping, str):
            rule = self._rule(mapping, place, allowed, task, parents)
            return InputRule(place, rule) if rule else None
        if not isinstance(mapping, dict):
            self._problems.add(place, f"{mapping!r} is neither an expression nor an object of expressions")
            return None
        fields: list[tuple[str, Rule]] = []
        for name, text in mapping.items():
            if not isinstance(name, str):
                self._problems.add(place, f"{name!r} is no name of a field: it is not text")
                continue
            rule = self._rule(text, f"{place}.{name}", allowed, task, parents)
            if rule:
                fields.append((name, rule))
        return InputRule(place, None, tuple(fields))

    def _rule(
        self, text: object, place: str, allowed: frozenset[str], task: int | None, parents: tuple[int, ...]
    ) -> Rule | None:
        """`task` is whose expression it is, None for one that may read every task."""
        if not isinstance(text, str):
            self._problems.add(place, f"{text!r} is no expression; a constant is written in backticks: `{text!r}`")
            return None
        try:
            expression = self._expressions.get(text) or compile_expression(text)
        except ExpressionError as error:
            self._problems.add(place, str(error))
            return None
        self._expressions[text] = expression
        if expression.everything:
            self._problems.add(place, f"the document itself cannot be used; name {listed(sorted(allowed), ', ')}")
        for root in sorted(expression.roots - allowed):
            self._problems.add(place, self._root_problem(root, allowed, text))
        used = [self._used(name, place, task) for name in sorted(expression.tasks)]
        if expression.every_task:
            used.extend(self._used(self._edges.specs[one].name, place, task) for one in parents)
        tasks = tuple(dict.fromkeys(one for one in used if one is not None))
        return Rule(place, expression, tasks, _source(expression, tasks))

    def _root_problem(self, root: str, allowed: frozenset[str], text: str) -> str:
        if root in _ITEM_ROOTS:
            return f"{root!r} exists only in the input of a task with `map`"
        if root in _UNDO_ROOTS:
            return f"{root!r} exists only in the input of a compensation; did you mean 'input.{root}'?"
        hint = f"; did you mean 'input.{root}'?"
        if root in {"true", "false", "null"}:
            hint = f"; a constant is written in backticks: `{root}`"
        elif f'"{root}"' in text:
            hint = f"; a text is written in single quotes: '{root}'"
        elif root in self._edges.index:
            hint = f"; did you mean '{task_path(root)}'?"
        return f"{root!r} is not in the document: expressions begin with {listed(sorted(allowed), ', ')}{hint}"

    def _used(self, name: str, place: str, task: int | None) -> int | None:
        """The index of a task that is read, if it may be."""
        edges = self._edges
        used = edges.index.get(name)
        if used is None:
            self._problems.add(place, f"unknown task {name!r}{self._problems.near(name, edges.index)}")
            return None
        if task is None:
            return used
        whose = edges.specs[task].name
        if used == edges.fed_by[task]:
            self._problems.add(place, f"{whose!r} begins before {name!r} has ended: its items come by `ctx.items()`")
            return None
        if edges.is_before(used, task):
            return used
        if used == task:
            self._problems.add(place, f"{name!r} cannot read its own result")
        else:
            self._problems.add(place, f"{whose!r} does not wait for {name!r}: name it in depends_on or after")
        return None


def _source(expression: Expression, tasks: tuple[int, ...]) -> int:
    if expression.path == ("input",):
        return RUN_INPUT
    if len(expression.path) == 2 and len(tasks) == 1 and not expression.every_task and expression.path[0] == "tasks":
        return tasks[0]
    return INLINE
