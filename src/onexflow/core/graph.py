"""Compiled graphs: what a checked definition says, as arrays. One graph is shared by all its runs.

Tasks are known by their index, their place in the definition. `decide` and `evolve` need per task only counters
(`indegree`) and lists of neighbours, so that the work of one step does not grow with the graph. `core.compiler` makes
graphs; `core.mapping` evaluates their expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

from onexflow.core.definition import TaskInfo, TaskSpec, WorkflowDefinition
from onexflow.core.events import INLINE
from onexflow.core.expressions import Expression


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
    #: What workers are told of each.
    infos: tuple[TaskInfo, ...]
    #: Tasks of role effect, and those with `map`.
    effects: frozenset[int]
    mapped: frozenset[int]
    #: Tasks with a timeout that counts from their scheduling.
    timed: frozenset[int]
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
    #: What waits for one parent less when the task has completed: its children, hard and soft, but for its fed reducers,
    #: which began with it.
    released: tuple[tuple[int, ...], ...]
    #: Has it a fed reducer?
    feeding: bool
    #: Mapped tasks whose items' results nothing waits for one by one.
    gathered: frozenset[int]
    #: Mapped tasks that feed, and whose results nothing reads as one list: none is made.
    unlisted: frozenset[int]
    #: States of the run in which attempts of the task may leave.
    active: tuple[frozenset[str], ...]
    #: States of an item in which an attempt of the task may end: that of an effect is authorised first.
    ending: tuple[frozenset[str], ...]
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
