"""Compiled graphs: a definition checked as a whole and turned into arrays. One graph is shared by all its runs.

Tasks are known by their index, their place in the definition. `decide` and `evolve` need per task only counters
(`indegree`) and lists of neighbours, so that the work of one step does not grow with the graph. Expressions and what
they read are compiled here, once (`core.expressions`); `core.mapping` evaluates them.

Compiling is O(tasks + dependencies), and with expressions that reach beyond a task's own dependencies one bit set of
ancestors a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from onexflow.core.canonical import canonical_json, hash_of
from onexflow.core.definition import MAX_TEXT, Compensation, TaskSpec, WorkflowDefinition
from onexflow.core.errors import InvalidDefinition
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.expressions import Expression, ExpressionError, compile_expression
from onexflow.core.validate import Problems, check_definition, check_task

#: Fields of an expression's document. `item` and `index` only exist in the input of a mapped task.
ROOTS: Final = frozenset({"input", "tasks", "run"})
ITEM_ROOTS: Final = ROOTS | {"item", "index"}
#: In the input of a compensation there are these too: of the task that is undone, and why.
UNDO_ROOTS: Final = ROOTS | {"result", "outcome", "reason"}

#: Roles of mapped tasks that can feed a reducer. (An orchestration may call a reducer, and so wait for its slot.)
_FEEDERS: Final = ("effect", "compute")

_MAIN: Final = frozenset({"running"})
_SETUP: Final = frozenset({"running", "initializing"})
_UNDO: Final = frozenset({"compensating"})


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled expression at its place, with the tasks that it reads."""

    place: str
    expression: Expression
    #: Indices of the tasks whose result it reads.
    tasks: tuple[int, ...]
    #: RUN_INPUT or a task's index if it is just that payload, unread; else INLINE.
    source: int = INLINE


@dataclass(frozen=True, slots=True)
class InputRule:
    """How an input or an output is made: one expression, or an object of them."""

    place: str
    #: Set when the mapping is one expression.
    whole: Rule | None
    fields: tuple[tuple[str, Rule], ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Graph:
    """A valid definition, compiled. Immutable. All tuples by task are in the order of `names`."""

    definition: WorkflowDefinition
    #: SHA-256 of the definition's canonical JSON, in hex.
    hash: str
    names: tuple[str, ...]
    index: dict[str, int]
    specs: tuple[TaskSpec, ...]
    hard_parents: tuple[tuple[int, ...], ...]
    soft_parents: tuple[tuple[int, ...], ...]
    hard_children: tuple[tuple[int, ...], ...]
    soft_children: tuple[tuple[int, ...], ...]
    #: Number of parents, hard and soft; one more for the set-up gate if `gated` holds the task.
    indegree: tuple[int, ...]
    #: Main tasks without parents.
    roots: tuple[int, ...]
    #: Tasks of the set-up, and those of them without parents.
    setup: tuple[int, ...]
    setup_roots: tuple[int, ...]
    #: Main tasks that wait for workflow.started: all of them if there is a set-up, else none.
    gated: tuple[int, ...]
    #: Main tasks without children.
    sinks: tuple[int, ...]
    #: One topological order.
    order: tuple[int, ...]
    inputs: tuple[InputRule | None, ...]
    #: Of a plain task without a condition whose input is the run's or one task's result, unchanged: RUN_INPUT or that
    #: task; else None.
    sources: tuple[int | None, ...]
    conditions: tuple[Rule | None, ...]
    maps: tuple[Rule | None, ...]
    output: InputRule | None
    #: Of a fed reducer the mapped task whose results it gets as they come; else None.
    fed_by: tuple[int | None, ...]
    #: The fed reducers of a mapped task.
    feeds: tuple[tuple[int, ...], ...]
    #: Has it a fed reducer?
    feeding: bool
    #: Mapped tasks that feed, and whose results nothing reads as one list: none is made.
    unlisted: frozenset[int]
    #: States of the run in which attempts of the task may leave.
    active: tuple[frozenset[str], ...]
    #: Has it orchestrations, which call other runs?
    calls: bool
    #: Task → the task that undoes it. Those come behind all tasks of the definition, in every tuple but `indegree`, and
    #: are part of a run only when it is compensated.
    undo: dict[int, int]
    #: The tasks that can be undone, in the order of those that undo them.
    undone: tuple[int, ...]

    def parents(self, task: int) -> tuple[int, ...]:
        """Hard parents, then soft ones."""
        return self.hard_parents[task] + self.soft_parents[task]

    def is_undo(self, task: int) -> bool:
        return task >= len(self.indegree)

    def __len__(self) -> int:
        """Tasks of the definition."""
        return len(self.indegree)


def task_path(name: str) -> str:
    """The expression of a task's result; JMESPath wants quotes around names with `-`."""
    return f'tasks."{name}"' if "-" in name else f"tasks.{name}"


def compile_graph(definition: WorkflowDefinition) -> Graph:
    """Check `definition` and compile it.

    Raises InvalidDefinition with every problem and its place in `context["problems"]`.
    """
    given: Any = definition
    if not isinstance(given, WorkflowDefinition):
        raise InvalidDefinition(f"{type(given).__name__} is not a WorkflowDefinition")
    return _Compiler(definition).compile()


class _Compiler:
    """One compilation: fills arrays, collects problems, and ends with a graph or with all of them."""

    def __init__(self, definition: WorkflowDefinition) -> None:
        self.definition = definition
        self.specs: tuple[TaskSpec, ...] = tuple(definition.tasks)
        self.problems = Problems()
        self.index: dict[str, int] = {}
        self.hard: list[tuple[int, ...]] = []
        self.soft: list[tuple[int, ...]] = []
        self.order: list[int] = []
        self._ancestors: list[int] | None = None
        self._expressions: dict[str, Expression] = {}
        self.fed_by: tuple[int | None, ...] = ()

    def compile(self) -> Graph:
        check_definition(self.definition, self.problems)
        self._check_kinds()
        self._name_tasks()
        self._link()
        self.fed_by = tuple(self._feeder(number) for number in range(len(self.specs)))
        children = _turned(self.hard), _turned(self.soft)
        self._sort(children)
        rules = self._compile_rules()
        sinks = tuple(
            task
            for task, spec in enumerate(self.specs)
            if not spec.setup and not children[0][task] and not children[1][task]
        )
        output = self._mapping(self.definition.output, "output", ROOTS, None, sinks)
        self.problems.check()
        text = self._text()
        return self._graph(hash_of(text), children, sinks, rules, output)

    def _text(self) -> bytes:
        try:
            text = canonical_json(self.definition)
        except UnicodeEncodeError as error:
            raise InvalidDefinition("the definition has a text with a lone surrogate, which UTF-8 has not") from error
        if len(text) > MAX_TEXT:
            self.problems.add("tasks", f"the definition's text has {len(text)} bytes; {MAX_TEXT} is the limit")
            self.problems.check()
        return text

    def _graph(
        self, digest: str, children: _Children, sinks: tuple[int, ...], rules: _Rules, output: InputRule | None
    ) -> Graph:
        tasks = range(len(self.specs))
        setup = tuple(task for task in tasks if self.specs[task].setup)
        main = tuple(task for task in tasks if not self.specs[task].setup)
        parents = [len(self.hard[task]) + len(self.soft[task]) for task in tasks]
        gate = [int(bool(setup) and not spec.setup) for spec in self.specs]
        undone = tuple(task for task in tasks if self.specs[task].compensation is not None)
        undoing = tuple(_undo_spec(self.specs[task]) for task in undone)
        none: tuple[tuple[int, ...], ...] = ((),) * len(undone)
        specs = self.specs + undoing
        names = tuple(spec.name for spec in specs)
        return Graph(
            definition=self.definition,
            hash=digest,
            names=names,
            index={name: task for task, name in enumerate(names)},
            specs=specs,
            hard_parents=tuple(self.hard) + none,
            soft_parents=tuple(self.soft) + none,
            hard_children=children[0] + none,
            soft_children=children[1] + none,
            indegree=tuple(parents[task] + gate[task] for task in tasks),
            roots=tuple(task for task in main if not parents[task]),
            setup=setup,
            setup_roots=tuple(task for task in setup if not parents[task]),
            gated=main if setup else (),
            sinks=sinks,
            order=tuple(self.order),
            inputs=tuple(rule[0] for rule in rules),
            sources=tuple(self._source(task, rules[task][0]) for task in tasks) + (None,) * len(undone),
            conditions=tuple(rule[1] for rule in rules),
            maps=tuple(rule[2] for rule in rules),
            output=output,
            fed_by=self.fed_by + (None,) * len(undone),
            feeds=_turned(() if one is None else (one,) for one in self.fed_by) + none,
            feeding=any(one is not None for one in self.fed_by),
            unlisted=self._unlisted(children, rules, output),
            active=tuple(_active(spec) for spec in self.specs) + (_UNDO,) * len(undone),
            calls=any(spec.role == "orchestrator" for spec in specs),
            undo={task: len(self.specs) + place for place, task in enumerate(undone)},
            undone=undone,
        )

    def _unlisted(self, children: _Children, rules: _Rules, output: InputRule | None) -> frozenset[int]:
        feeding = {mapped for mapped in self.fed_by if mapped is not None}
        if not feeding:
            return frozenset()
        read = set(_read(output))
        for made, *others in rules:
            read.update(_read(made))
            read.update(one for rule in others if rule is not None for one in rule.tasks)
        for task in feeding:
            if any(
                self.specs[child].input is None and self.fed_by[child] != task and not self.specs[child].map
                for child in (*children[0][task], *children[1][task])
            ):
                read.add(task)
        return frozenset(feeding - read)

    def _source(self, task: int, rule: InputRule | None) -> int | None:
        parents = self.hard[task] + self.soft[task]
        if self.specs[task].when or self.specs[task].map or (rule is None and len(parents) > 1):
            return None
        if rule is None and self.fed_by[task] is not None:
            return None
        if rule is None:
            return parents[0] if parents else RUN_INPUT
        return rule.whole.source if rule.whole is not None and rule.whole.source != INLINE else None

    # ---- names and edges

    def _check_kinds(self) -> None:
        given: tuple[Any, ...] = self.specs
        wrong = [number for number, task in enumerate(given) if not isinstance(task, TaskSpec)]
        for number in wrong:
            self.problems.add(f"tasks[{number}]", f"{type(given[number]).__name__} is not a TaskSpec")
        if wrong:
            self.problems.check()

    def _name_tasks(self) -> None:
        for number, task in enumerate(self.specs):
            check_task(task, f"tasks[{number}]", self.problems)
            first = self.index.setdefault(str(task.name), number)
            if first != number:
                self.problems.add(f"tasks[{number}].name", f"{task.name!r} is already the name of tasks[{first}]")
        if self.specs and all(task.setup is True for task in self.specs):
            self.problems.add("tasks", "every task is a set-up task: the workflow has nothing to do")

    def _link(self) -> None:
        for number, task in enumerate(self.specs):
            seen: set[int] = {number}
            self.hard.append(self._parents(number, "depends_on", task.depends_on, seen))
            self.soft.append(self._parents(number, "after", task.after, seen))

    def _parents(self, number: int, field: str, names: Any, seen: set[int]) -> tuple[int, ...]:
        place = f"tasks[{number}].{field}"
        if not isinstance(names, tuple | list):
            self.problems.add(place, f"{names!r} is not a list of task names")
            return ()
        parents: list[int] = []
        for position, name in enumerate(names):
            parent = self.index.get(name) if isinstance(name, str) else None
            here = f"{place}[{position}]"
            if parent is None:
                self.problems.add(here, f"unknown task {name!r}{self.problems.near(name, self.index)}")
            elif parent == number:
                self.problems.add(here, f"{name!r} waits for itself")
            elif parent in seen:
                self.problems.add(here, f"{name!r} is named twice")
            elif self.specs[number].setup and not self.specs[parent].setup:
                self.problems.add(here, f"set-up task {self.specs[number].name!r} cannot wait for {name!r}: it is none")
            else:
                seen.add(parent)
                parents.append(parent)
        return tuple(parents)

    def _feeder(self, number: int) -> int | None:
        """The mapped task that a fed reducer is fed by. None: it is not fed, or wrongly (that is told)."""
        spec, place = self.specs[number], f"tasks[{number}].feed"
        if spec.feed is not True:
            return None
        if spec.role != "reducer":
            self.problems.add(place, f"only a reducer is fed, and this task is of role {spec.role!r}")
            return None
        if spec.map:
            self.problems.add(place, "a task with `map` cannot be fed: it has an input for each of its items")
            return None
        if len(self.hard[number]) != 1:
            self.problems.add(
                place, f"a fed reducer has one task in depends_on, the mapped one; this has {len(self.hard[number])}"
            )
            return None
        feeder = self.specs[self.hard[number][0]]
        if not feeder.map:
            self.problems.add(place, f"{feeder.name!r} has no `map`: it has one result, and nothing to feed with")
            return None
        if feeder.role not in _FEEDERS:
            self.problems.add(
                place,
                f"{feeder.name!r} is of role {feeder.role!r}: what it runs might wait for the slot that the fed reducer "
                f"holds. Only {_listed(_FEEDERS, ' or ')} can feed",
            )
            return None
        return self.hard[number][0]

    def _sort(self, children: _Children) -> None:
        """Kahn's algorithm, the list being its own queue. What it cannot reach lies on a cycle or behind one."""
        waiting = [len(self.hard[task]) + len(self.soft[task]) for task in range(len(self.specs))]
        ready = [task for task, count in enumerate(waiting) if not count]
        for task in ready:
            for child in (*children[0][task], *children[1][task]):
                waiting[child] -= 1
                if not waiting[child]:
                    ready.append(child)
        self.order = ready
        if len(ready) < len(self.specs):
            self._name_cycles({task for task, count in enumerate(waiting) if count})

    def _name_cycles(self, left: set[int]) -> None:
        on_cycle: set[int] = set()
        seen: set[int] = set()
        for start in sorted(left):
            path: list[int] = []
            place: dict[int, int] = {}
            task = start
            while task not in seen:
                seen.add(task)
                place[task] = len(path)
                path.append(task)
                task = next(parent for parent in (*self.hard[task], *self.soft[task]) if parent in left)
            if task in place:
                cycle = path[place[task] :]
                on_cycle.update(cycle)
                names = [self.specs[one].name for one in (*cycle, task)]
                self.problems.add(f"tasks[{task}]", f"cycle, each waits for the next: {_listed(names, ' → ')}")
        if behind := sorted(left - on_cycle):
            names = [self.specs[one].name for one in behind]
            self.problems.add("tasks", f"never begun, for they hang on a cycle: {_listed(names, ', ')}")

    # ---- expressions

    def _compile_rules(self) -> _Rules:
        rules: _Rules = []
        for number, task in enumerate(self.specs):
            place = f"tasks[{number}]"
            parents = self.hard[number] + self.soft[number]
            allowed = ITEM_ROOTS if task.map else ROOTS
            made = self._mapping(task.input, f"{place}.input", allowed, number, parents)
            when = self._rule(task.when, f"{place}.when", ROOTS, number, parents) if task.when else None
            items = self._rule(task.map, f"{place}.map", ROOTS, number, parents) if task.map else None
            rules.append((made, when, items))
        for number, task in enumerate(self.specs):
            if isinstance(task.compensation, Compensation):
                place = f"tasks[{number}].compensation.input"
                near = (number, *self.hard[number], *self.soft[number])
                rules.append((self._mapping(task.compensation.input, place, UNDO_ROOTS, None, near), None, None))
        return rules

    def _mapping(
        self, mapping: Any, place: str, allowed: frozenset[str], task: int | None, parents: tuple[int, ...]
    ) -> InputRule | None:
        if mapping is None:
            return None
        if isinstance(mapping, str):
            rule = self._rule(mapping, place, allowed, task, parents)
            return InputRule(place, rule) if rule else None
        if not isinstance(mapping, dict):
            self.problems.add(place, f"{mapping!r} is neither an expression nor an object of expressions")
            return None
        fields: list[tuple[str, Rule]] = []
        for name, text in mapping.items():
            if not isinstance(name, str):
                self.problems.add(place, f"{name!r} is no name of a field: it is not text")
                continue
            rule = self._rule(text, f"{place}.{name}", allowed, task, parents)
            if rule:
                fields.append((name, rule))
        return InputRule(place, None, tuple(fields))

    def _rule(
        self, text: object, place: str, allowed: frozenset[str], task: int | None, parents: tuple[int, ...]
    ) -> Rule | None:
        """`task` is whose expression it is, None for the run's output, which may read every task."""
        if not isinstance(text, str):
            self.problems.add(place, f"{text!r} is no expression; a constant is written in backticks: `{text!r}`")
            return None
        try:
            expression = self._expressions.get(text) or compile_expression(text)
        except ExpressionError as error:
            self.problems.add(place, str(error))
            return None
        self._expressions[text] = expression
        if expression.everything:
            self.problems.add(place, f"the document itself cannot be used; name {_listed(sorted(allowed), ', ')}")
        for root in sorted(expression.roots - allowed):
            self.problems.add(place, self._root_problem(root, allowed, text))
        used = [self._used(name, place, task) for name in sorted(expression.tasks)]
        if expression.every_task:
            used.extend(self._used(self.specs[one].name, place, task) for one in parents)
        tasks = tuple(dict.fromkeys(one for one in used if one is not None))
        return Rule(place, expression, tasks, _source(expression, tasks))

    def _root_problem(self, root: str, allowed: frozenset[str], text: str) -> str:
        if root in ITEM_ROOTS:
            return f"{root!r} exists only in the input of a task with `map`"
        if root in UNDO_ROOTS:
            return f"{root!r} exists only in the input of a compensation; did you mean 'input.{root}'?"
        hint = f"; did you mean 'input.{root}'?"
        if root in {"true", "false", "null"}:
            hint = f"; a constant is written in backticks: `{root}`"
        elif f'"{root}"' in text:
            hint = f"; a text is written in single quotes: '{root}'"
        elif root in self.index:
            hint = f"; did you mean '{task_path(root)}'?"
        return f"{root!r} is not in the document: expressions begin with {_listed(sorted(allowed), ', ')}{hint}"

    def _used(self, name: str, place: str, task: int | None) -> int | None:
        used = self.index.get(name)
        if used is None:
            self.problems.add(place, f"unknown task {name!r}{self.problems.near(name, self.index)}")
            return None
        if task is not None and used == self.fed_by[task]:
            self.problems.add(
                place, f"{self.specs[task].name!r} begins before {name!r} has ended: its items come by `ctx.items()`"
            )
            return None
        if task is None or used in self.hard[task] or used in self.soft[task] or self._is_ancestor(used, task):
            return used
        whose = self.specs[task].name
        if used == task:
            self.problems.add(place, f"{name!r} cannot read its own result")
        else:
            self.problems.add(place, f"{whose!r} does not wait for {name!r}: name it in depends_on or after")
        return None

    def _is_ancestor(self, used: int, task: int) -> bool:
        if self.specs[used].setup and not self.specs[task].setup:
            return True
        if self._ancestors is None:
            ancestors = self._ancestors = [0] * len(self.specs)
            for one in self.order:
                bits = 0
                for parent in (*self.hard[one], *self.soft[one]):
                    bits |= ancestors[parent] | 1 << parent
                ancestors[one] = bits
        return bool(self._ancestors[task] >> used & 1)


_Children = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
_Rules = list[tuple[InputRule | None, Rule | None, Rule | None]]


def _read(rule: InputRule | None) -> Iterator[int]:
    """The tasks whose result a mapping reads."""
    if rule is not None:
        for one in (rule.whole, *(field for _, field in rule.fields)):
            if one is not None:
                yield from one.tasks


def _active(spec: TaskSpec) -> frozenset[str]:
    """An effect that can be undone may also be run again while its run is compensated: to know how it ended."""
    states = _SETUP if spec.setup else _MAIN
    return states | _UNDO if spec.compensation is not None else states


def _undo_spec(task: TaskSpec) -> TaskSpec:
    """The task that undoes `task`. No task of a definition can have its name."""
    compensation = task.compensation
    assert compensation is not None
    return TaskSpec(
        name=f"{task.name}.undo",
        role="effect",
        handler=compensation.handler,
        input=compensation.input,
        retry=compensation.retry,
        timeouts=compensation.timeouts,
        priority=task.priority,
    )


def _source(expression: Expression, tasks: tuple[int, ...]) -> int:
    if expression.path == ("input",):
        return RUN_INPUT
    if len(expression.path) == 2 and len(tasks) == 1 and not expression.every_task and expression.path[0] == "tasks":
        return tasks[0]
    return INLINE


def _turned(parents: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Children from parents."""
    edges = list(parents)
    children: list[list[int]] = [[] for _ in edges]
    for task, above in enumerate(edges):
        for parent in above:
            children[parent].append(task)
    return tuple(tuple(below) for below in children)


def _listed(names: Sequence[str], separator: str) -> str:
    shown = names if len(names) <= 20 else [*names[:18], f"({len(names) - 19} more)", names[-1]]
    return separator.join(shown)
