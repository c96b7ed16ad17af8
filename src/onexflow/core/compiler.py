"""compile_graph: a definition checked as a whole and turned into a graph.

`core.validate` checks each field on its own, `core.edges` links the tasks, `core.rules` compiles the expressions; here
the arrays of the graph are made of what they found. Compiling is O(tasks + dependencies), and with expressions that
reach beyond a task's own dependencies one bit set of ancestors a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from onexflow.core.canonical import canonical_json, hash_of
from onexflow.core.definition import MAX_TEXT, TaskInfo, TaskSpec, WorkflowDefinition
from onexflow.core.edges import Edges, turned
from onexflow.core.errors import InvalidDefinition
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.graph import Graph, InputRule
from onexflow.core.rules import RuleCompiler, TaskRules
from onexflow.core.validate import Problems, check_definition, check_task

_MAIN: Final = frozenset({"running"})
_SETUP: Final = frozenset({"running", "initializing"})
_UNDO: Final = frozenset({"compensating"})
_AUTHORISED: Final = frozenset({"running", "waiting_for_input"})
_UNDER_WAY: Final = _AUTHORISED | {"scheduled"}


def compile_graph(definition: WorkflowDefinition) -> Graph:
    """Check `definition` and compile it.

    Raises InvalidDefinition with every problem and its place in `context["problems"]`.
    """
    given: Any = definition
    if not isinstance(given, WorkflowDefinition):
        raise InvalidDefinition(f"{type(given).__name__} is not a WorkflowDefinition")
    problems = Problems()
    check_definition(definition, problems)
    specs = _specs(definition, problems)
    edges = Edges(specs, _index(specs, problems), problems)
    compiler = RuleCompiler(edges, problems)
    rules = compiler.of_tasks()
    sinks = tuple(task for task, spec in enumerate(specs) if not spec.setup and not edges.children(task))
    output = compiler.output(definition.output, sinks)
    problems.check()
    return _graph(definition, hash_of(_text(definition, problems)), edges, sinks, rules, output)


def _specs(definition: WorkflowDefinition, problems: Problems) -> tuple[TaskSpec, ...]:
    given: tuple[Any, ...] = tuple(definition.tasks)
    wrong = [number for number, task in enumerate(given) if not isinstance(task, TaskSpec)]
    for number in wrong:
        problems.add(f"tasks[{number}]", f"{type(given[number]).__name__} is not a TaskSpec")
    if wrong:
        problems.check()
    return given


def _index(specs: tuple[TaskSpec, ...], problems: Problems) -> dict[str, int]:
    """The tasks by their names, each checked on its own."""
    index: dict[str, int] = {}
    for number, task in enumerate(specs):
        check_task(task, f"tasks[{number}]", problems)
        first = index.setdefault(str(task.name), number)
        if first != number:
            problems.add(f"tasks[{number}].name", f"{task.name!r} is already the name of tasks[{first}]")
    if specs and all(task.setup is True for task in specs):
        problems.add("tasks", "every task is a set-up task: the workflow has nothing to do")
    return index


def _text(definition: WorkflowDefinition, problems: Problems) -> bytes:
    try:
        text = canonical_json(definition)
    except UnicodeEncodeError as error:
        raise InvalidDefinition("the definition has a text with a lone surrogate, which UTF-8 has not") from error
    if len(text) > MAX_TEXT:
        problems.add("tasks", f"the definition's text has {len(text)} bytes; {MAX_TEXT} is the limit")
        problems.check()
    return text


def _graph(
    definition: WorkflowDefinition,
    digest: str,
    edges: Edges,
    sinks: tuple[int, ...],
    rules: list[TaskRules],
    output: InputRule | None,
) -> Graph:
    tasks = range(len(edges.specs))
    setup = tuple(task for task in tasks if edges.specs[task].setup)
    main = tuple(task for task in tasks if not edges.specs[task].setup)
    parents = [len(edges.parents(task)) for task in tasks]
    gate = [int(bool(setup) and not spec.setup) for spec in edges.specs]
    undone = tuple(task for task in tasks if edges.specs[task].compensation is not None)
    none: tuple[tuple[int, ...], ...] = ((),) * len(undone)
    specs = edges.specs + tuple(_undo_spec(edges.specs[task]) for task in undone)
    names = tuple(spec.name for spec in specs)
    return Graph(
        definition=definition,
        hash=digest,
        names=names,
        index={name: task for task, name in enumerate(names)},
        specs=specs,
        infos=tuple(_info(definition.workflow_type, spec) for spec in specs),
        effects=frozenset(task for task, spec in enumerate(specs) if spec.role == "effect"),
        mapped=frozenset(task for task, spec in enumerate(specs) if spec.map),
        timed=frozenset(
            task
            for task, spec in enumerate(specs)
            if spec.timeouts.schedule_to_start or spec.timeouts.schedule_to_close
        ),
        hard_parents=edges.hard + none,
        soft_parents=edges.soft + none,
        hard_children=edges.hard_children + none,
        soft_children=edges.soft_children + none,
        indegree=tuple(parents[task] + gate[task] for task in tasks),
        roots=tuple(task for task in main if not parents[task]),
        setup=setup,
        setup_roots=tuple(task for task in setup if not parents[task]),
        gated=main if setup else (),
        sinks=sinks,
        order=edges.order,
        inputs=tuple(rule.input for rule in rules),
        sources=tuple(_source(edges, task, rules[task].input) for task in tasks) + (None,) * len(undone),
        conditions=tuple(rule.when for rule in rules),
        maps=tuple(rule.map for rule in rules),
        output=output,
        fed_by=edges.fed_by + (None,) * len(undone),
        feeds=turned(() if one is None else (one,) for one in edges.fed_by) + none,
        released=tuple(_released(edges, task) for task in tasks) + none,
        feeding=any(one is not None for one in edges.fed_by),
        gathered=frozenset(task for task in tasks if _is_gathered(edges.specs[task])),
        unlisted=_unlisted(edges, rules, output),
        active=tuple(_active(spec) for spec in edges.specs) + (_UNDO,) * len(undone),
        ending=tuple(_AUTHORISED if spec.role == "effect" else _UNDER_WAY for spec in specs),
        calls=any(spec.role == "orchestrator" for spec in specs),
        undo={task: len(edges.specs) + place for place, task in enumerate(undone)},
        undone=undone,
    )


def _info(workflow_type: str, spec: TaskSpec) -> TaskInfo:
    timeouts = spec.timeouts
    return TaskInfo(
        workflow_type, spec.name, spec.role, spec.handler, timeouts.start_to_close, timeouts.heartbeat, spec.feed
    )


def _is_gathered(spec: TaskSpec) -> bool:
    return bool(spec.map) and spec.role in {"compute", "reducer"} and not spec.max_parallel


def _source(edges: Edges, task: int, rule: InputRule | None) -> int | None:
    spec, parents = edges.specs[task], edges.parents(task)
    if spec.when or spec.map or (rule is None and len(parents) > 1):
        return None
    if rule is None and edges.fed_by[task] is not None:
        return None
    if rule is None:
        return parents[0] if parents else RUN_INPUT
    return rule.whole.source if rule.whole is not None and rule.whole.source != INLINE else None


def _released(edges: Edges, task: int) -> tuple[int, ...]:
    return tuple(child for child in edges.children(task) if edges.fed_by[child] != task)


def _unlisted(edges: Edges, rules: list[TaskRules], output: InputRule | None) -> frozenset[int]:
    feeding = {mapped for mapped in edges.fed_by if mapped is not None}
    if not feeding:
        return frozenset()
    read = set(_read(output))
    for made, *others in rules:
        read.update(_read(made))
        read.update(one for rule in others if rule is not None for one in rule.tasks)
    for task in feeding:
        if any(
            edges.specs[child].input is None and edges.fed_by[child] != task and not edges.specs[child].map
            for child in edges.children(task)
        ):
            read.add(task)
    return frozenset(feeding - read)


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
