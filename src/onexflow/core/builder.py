"""The Python way to write a workflow definition.

    flow = workflow("order-processing", version=1)
    reserve = flow.effect("reserve-stock", input="input.order")
    price = flow.compute("price", depends_on=[reserve], input={"order": "input.order", "stock": reserve})
    definition = flow.build(output={"total": f"{price.result}.total"})

Where a task's name or an expression is wanted, a task object will do. `build` checks the whole and reports every problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict, Unpack

import msgspec

from onexflow.core.compiler import compile_graph
from onexflow.core.definition import (
    NO_TIMEOUTS,
    Compensation,
    Priority,
    RetryPolicy,
    Role,
    RunRetry,
    TaskSpec,
    Timeouts,
    WorkflowDefinition,
)
from onexflow.core.expressions import task_path


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a workflow that is being built."""

    name: str

    @property
    def result(self) -> str:
        """The expression of this task's result: `tasks.price`, or `tasks."reserve-stock"` where quotes are needed."""
        return task_path(self.name)

    def __str__(self) -> str:
        return self.name


TaskRef = Task | str
#: An expression, an object of expressions, or a task whose result is meant.
InputRef = str | Task | Mapping[str, str | Task]


class TaskOptions(TypedDict, total=False):
    """What may be said of a task beside its name and handler (see `WorkflowBuilder.task`, fields of `TaskSpec`)."""

    input: InputRef | None
    depends_on: TaskRef | Iterable[TaskRef]
    after: TaskRef | Iterable[TaskRef]
    when: str | Task
    map: str | Task
    max_parallel: int
    feed: bool
    retry: RetryPolicy | None
    timeouts: Timeouts
    priority: Priority
    allow_failure: bool
    setup: bool
    compensation: Compensation | str | None


def workflow(
    workflow_type: str,
    version: int = 1,
    *,
    description: str = "",
    retry: RunRetry | None = None,
    timeout: float = 0.0,
) -> WorkflowBuilder:
    """Begin the definition of a workflow. `timeout` is in seconds from a run's start; 0 = never."""
    return WorkflowBuilder(workflow_type, version, description=description, retry=retry, timeout=timeout)


class WorkflowBuilder:
    """Collects tasks. Each of `effect`, `compute`, `reducer` and `orchestrator` adds one and returns it (fields: `TaskSpec`)."""

    def __init__(
        self,
        workflow_type: str,
        version: int = 1,
        *,
        description: str = "",
        retry: RunRetry | None = None,
        timeout: float = 0.0,
    ) -> None:
        self._head = WorkflowDefinition(
            workflow_type=workflow_type, version=version, description=description, retry=retry, timeout=timeout
        )
        self._tasks: list[TaskSpec] = []

    def effect(self, name: str, handler: str | None = None, **options: Unpack[TaskOptions]) -> Task:
        """A task that touches the world: at most one authorised attempt at a time."""
        return self.task(name, "effect", handler, **options)

    def compute(self, name: str, handler: str | None = None, **options: Unpack[TaskOptions]) -> Task:
        """A task that is a pure function of its input: it may run again, or elsewhere, at any time."""
        return self.task(name, "compute", handler, **options)

    def reducer(self, name: str, handler: str | None = None, **options: Unpack[TaskOptions]) -> Task:
        """A task that folds many inputs into one value: all at once, or with `feed=True` as they come."""
        return self.task(name, "reducer", handler, **options)

    def orchestrator(self, name: str, handler: str | None = None, **options: Unpack[TaskOptions]) -> Task:
        """A task that is code calling nodes and workflows, whose calls are made once (docs/onex.md)."""
        return self.task(name, "orchestrator", handler, **options)

    def task(
        self,
        name: str,
        role: Role,
        handler: str | None = None,
        *,
        input: InputRef | None = None,
        depends_on: TaskRef | Iterable[TaskRef] = (),
        after: TaskRef | Iterable[TaskRef] = (),
        when: str | Task = "",
        map: str | Task = "",
        max_parallel: int = 0,
        feed: bool = False,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts = NO_TIMEOUTS,
        priority: Priority = "normal",
        allow_failure: bool = False,
        setup: bool = False,
        compensation: Compensation | str | None = None,
    ) -> Task:
        """A task of the given role, for programs that make definitions. A compensation may be given by its handler's
        name."""
        self._tasks.append(
            TaskSpec(
                name=name,
                role=role,
                handler=handler or "",
                depends_on=_names(depends_on),
                after=_names(after),
                input=_mapping(input),
                when=_expression(when),
                map=_expression(map),
                max_parallel=max_parallel,
                feed=feed,
                retry=retry,
                timeouts=timeouts,
                priority=priority,
                allow_failure=allow_failure,
                setup=setup,
                compensation=Compensation(handler=compensation) if isinstance(compensation, str) else compensation,
            )
        )
        return Task(name)

    def build(self, output: InputRef | None = None) -> WorkflowDefinition:
        """The definition, checked.

        Raises InvalidDefinition with every problem and its place in `context["problems"]`.
        """
        definition = msgspec.structs.replace(self._head, tasks=tuple(self._tasks), output=_mapping(output))
        compile_graph(definition)
        return definition


def _names(tasks: TaskRef | Iterable[TaskRef]) -> tuple[str, ...]:
    if isinstance(tasks, Task | str):
        return (str(tasks),)
    return tuple(one.name if isinstance(one, Task) else one for one in tasks)


def _expression(value: str | Task) -> str:
    return value.result if isinstance(value, Task) else value


def _mapping(value: InputRef | None) -> str | dict[str, str] | None:
    if isinstance(value, Mapping):
        return {name: _expression(one) for name, one in value.items()}
    return None if value is None else _expression(value)
