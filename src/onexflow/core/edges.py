"""Which task waits for which: parents and children of each, and one order of all. Cycles and wrong names are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from onexflow.core.definition import TaskSpec
from onexflow.core.validate import Problems, listed

#: Roles of mapped tasks that can feed a reducer. (An orchestration may call a reducer, and so wait for its slot.)
_FEEDERS: Final = ("effect", "compute")


class Edges:
    """The tasks of a definition, linked. Where there are problems, links are missing: no graph is made of them."""

    def __init__(self, specs: tuple[TaskSpec, ...], index: dict[str, int], problems: Problems) -> None:
        self.specs = specs
        self.index = index
        self._problems = problems
        linked = [self._linked(number) for number in range(len(specs))]
        self.hard = tuple(hard for hard, _ in linked)
        self.soft = tuple(soft for _, soft in linked)
        #: Of a fed reducer the mapped task whose results it gets as they come; else None.
        self.fed_by = tuple(self._feeder(number) for number in range(len(specs)))
        self.hard_children = turned(self.hard)
        self.soft_children = turned(self.soft)
        #: One topological order.
        self.order = self._sorted()
        self._ancestors: list[int] | None = None

    def parents(self, task: int) -> tuple[int, ...]:
        """Hard parents, then soft ones."""
        return self.hard[task] + self.soft[task]

    def children(self, task: int) -> tuple[int, ...]:
        """Hard children, then soft ones."""
        return self.hard_children[task] + self.soft_children[task]

    def is_before(self, used: int, task: int) -> bool:
        """Does `task` wait for `used`, itself or by way of others? Needs a bit set of ancestors a task, made when first asked."""
        if used in self.hard[task] or used in self.soft[task]:
            return True
        if self.specs[used].setup and not self.specs[task].setup:
            return True
        if self._ancestors is None:
            ancestors = self._ancestors = [0] * len(self.specs)
            for one in self.order:
                bits = 0
                for parent in self.parents(one):
                    bits |= ancestors[parent] | 1 << parent
                ancestors[one] = bits
        return bool(self._ancestors[task] >> used & 1)

    def _linked(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The hard and the soft parents of a task."""
        task, seen = self.specs[number], {number}
        hard = self._parents(number, "depends_on", task.depends_on, seen)
        return hard, self._parents(number, "after", task.after, seen)

    def _parents(self, number: int, field: str, names: Any, seen: set[int]) -> tuple[int, ...]:
        place = f"tasks[{number}].{field}"
        if not isinstance(names, tuple | list):
            self._problems.add(place, f"{names!r} is not a list of task names")
            return ()
        parents: list[int] = []
        for position, name in enumerate(names):
            parent = self.index.get(name) if isinstance(name, str) else None
            here = f"{place}[{position}]"
            if parent is None:
                self._problems.add(here, f"unknown task {name!r}{self._problems.near(name, self.index)}")
            elif parent == number:
                self._problems.add(here, f"{name!r} waits for itself")
            elif parent in seen:
                self._problems.add(here, f"{name!r} is named twice")
            elif self.specs[number].setup and not self.specs[parent].setup:
                self._problems.add(
                    here, f"set-up task {self.specs[number].name!r} cannot wait for {name!r}: it is none"
                )
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
            self._problems.add(place, f"only a reducer is fed, and this task is of role {spec.role!r}")
            return None
        if spec.map:
            self._problems.add(place, "a task with `map` cannot be fed: it has an input for each of its items")
            return None
        if len(self.hard[number]) != 1:
            self._problems.add(
                place, f"a fed reducer has one task in depends_on, the mapped one; this has {len(self.hard[number])}"
            )
            return None
        feeder = self.specs[self.hard[number][0]]
        if not feeder.map:
            self._problems.add(place, f"{feeder.name!r} has no `map`: it has one result, and nothing to feed with")
            return None
        if feeder.role not in _FEEDERS:
            self._problems.add(
                place,
                f"{feeder.name!r} is of role {feeder.role!r}: what it runs might wait for the slot that the fed reducer "
                f"holds. Only {listed(_FEEDERS, ' or ')} can feed",
            )
            return None
        return self.hard[number][0]

    def _sorted(self) -> tuple[int, ...]:
        """Kahn's algorithm, the list being its own queue. What it cannot reach lies on a cycle or behind one."""
        waiting = [len(self.hard[task]) + len(self.soft[task]) for task in range(len(self.specs))]
        ready = [task for task, count in enumerate(waiting) if not count]
        for task in ready:
            for child in self.children(task):
                waiting[child] -= 1
                if not waiting[child]:
                    ready.append(child)
        if len(ready) < len(self.specs):
            self._name_cycles({task for task, count in enumerate(waiting) if count})
        return tuple(ready)

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
                task = next(parent for parent in self.parents(task) if parent in left)
            if task in place:
                cycle = path[place[task] :]
                on_cycle.update(cycle)
                names = [self.specs[one].name for one in (*cycle, task)]
                self._problems.add(f"tasks[{task}]", f"cycle, each waits for the next: {listed(names, ' → ')}")
        if behind := sorted(left - on_cycle):
            names = [self.specs[one].name for one in behind]
            self._problems.add("tasks", f"never begun, for they hang on a cycle: {listed(names, ', ')}")


def turned(parents: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Children from parents."""
    edges = list(parents)
    children: list[list[int]] = [[] for _ in edges]
    for task, above in enumerate(edges):
        for parent in above:
            children[parent].append(task)
    return tuple(tuple(below) for below in children)
