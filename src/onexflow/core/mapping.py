"""Inputs, conditions, items and results from what the run has so far. Pure: payloads in, payloads out.

An expression sees the document `{"input": …, "tasks": {name: result}, "run": {…}}`, in the input of a mapped task also
`item` and `index`. Payloads that are passed on as they are (`input`, `tasks.x`, a field that is just that) are never
decoded. Whatever goes wrong is a MappingError, with the place in the definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from onexflow.core.errors import InvalidArgument
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.expressions import ExpressionError, is_true
from onexflow.core.graph import Graph, InputRule, Rule
from onexflow.core.payload import JSON, NULL, Payload, PayloadCodec
from onexflow.core.state import RunState

#: Most items of one mapped task.
MAX_ITEMS: Final = 100_000
#: Most bytes of one input or output that a mapping makes or passes on, and of all inputs of one mapped task.
MAX_MADE: Final = 6 * 1024 * 1024
MAX_MADE_ITEMS: Final = 64 * 1024 * 1024


class MappingError(ValueError):
    """A mapping cannot be evaluated. The message begins with its place in the definition."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class Values(Protocol):
    """What a run has so far."""

    @property
    def input(self) -> Payload: ...

    @property
    def run(self) -> dict[str, str]:
        """namespace, workflow_type, instance_id, correlation_id."""

    def result(self, task: int) -> Payload | None:
        """The result of a completed task, a JSON array for a mapped one; None if it has not completed."""


def task_input(graph: Graph, task: int, values: Values, codec: PayloadCodec) -> tuple[int, Payload | None]:
    """Where the input of a plain task comes from: (RUN_INPUT or a task's index, None), or (INLINE, the payload).

    Without a mapping: the run's input if the task has no parents, its parent's result if it has one, else the object
    name → result of all its parents; null if it is fed.
    """
    rule = graph.inputs[task]
    if rule is None:
        if graph.fed_by[task] is not None:
            return INLINE, NULL
        parents = graph.parents(task)
        if len(parents) > 1:
            return INLINE, _joined_results(graph, parents, values, f"tasks[{task}]")
        source = parents[0] if parents else RUN_INPUT
    elif rule.whole is not None and rule.whole.source != INLINE:
        source = rule.whole.source
    else:
        return INLINE, _make(graph, rule, values, codec)
    if source != RUN_INPUT and values.result(source) is None:
        return INLINE, NULL
    _check_size(rule.place if rule is not None else f"tasks[{task}]", _payload(source, values))
    return source, None


def passed_on(graph: Graph, task: int, state: RunState) -> int | None:
    """`task_input` of a task that gets the run's input or its parent's result as it is, where nothing is to be said
    about it; None: ask `task_input`."""
    source = graph.sources[task]
    if source is None:
        return None
    payload = state.input if source == RUN_INPUT else state.tasks[source].result
    return None if payload is None or len(payload.data) > MAX_MADE else source


def condition(graph: Graph, task: int, values: Values, codec: PayloadCodec) -> bool:
    """Whether the task is to run, by JMESPath's truth. A task without a condition is."""
    rule = graph.conditions[task]
    return rule is None or is_true(_evaluate(rule, _document(graph, [rule], values, codec)))


def map_items(graph: Graph, task: int, values: Values, codec: PayloadCodec) -> list[Payload]:
    """One input an item of a mapped task: the item itself, or the input mapping evaluated with `item` and `index`."""
    rule = graph.maps[task]
    assert rule is not None, "only mapped tasks have items"
    made = graph.inputs[task]
    if made is None and rule.source != INLINE:
        payload = _payload(rule.source, values)
        if payload.encoding == JSON:
            return _split(rule.place, payload)
    items = _evaluate(rule, _document(graph, [rule], values, codec))
    if not isinstance(items, list):
        raise MappingError(rule.place, f"the value is {_kind(items)}, not a list")
    _check_count(rule.place, len(items))
    if made is None:
        return [_encode(codec, item, rule.place) for item in items]  # together no larger than the list
    document = _document(graph, _read(made, values), values, codec)
    inputs: list[Payload] = []
    size = 0
    for index, item in enumerate(items):
        document["item"], document["index"] = item, index
        inputs.append(_from_document(made, document, values, codec))
        size += len(inputs[-1].data)
        if size > MAX_MADE_ITEMS:
            raise MappingError(made.place, f"the inputs of all items have more than {MAX_MADE_ITEMS} bytes together")
    return inputs


def undo_input(graph: Graph, undo: int, task: int, state: RunState, values: Values, codec: PayloadCodec) -> Payload:
    """The input of the task that undoes `task`: by its mapping, or the object of the input and the result it had."""
    rule, result = graph.inputs[undo], values.result(task) or NULL
    if rule is None:
        item = state.tasks[task].items[0]
        given = (item.input or NULL) if item.source == INLINE else _payload(item.source, values)
        place = f"tasks[{task}].compensation"
        for name, payload in (("input", given), ("result", result)):
            if payload.encoding != JSON:
                raise MappingError(place, f"the {name} is encoded as {payload.encoding!r}: write a mapping without it")
        return _joined(place, (("input", given), ("result", result)))
    if rule.whole is not None and rule.whole.expression.path == ("result",):
        return _check_size(rule.place, result)
    read = _read(rule, values)
    document = _document(graph, read, values, codec)
    error = state.error
    document["outcome"] = state.outcome
    document["reason"] = state.reason if error is None else f"{error.type}: {error.message}"
    if any("result" in one.expression.roots for one in read):
        document["result"] = _decode(codec, result, rule.place, f"the result of {graph.names[task]!r}")
    return _from_document(rule, document, values, codec)


def run_output(graph: Graph, values: Values, codec: PayloadCodec) -> Payload:
    """The run's result: by the output mapping, else the result of the only sink, else the object of all sinks."""
    rule = graph.output
    if rule is not None:
        return _make(graph, rule, values, codec)
    if len(graph.sinks) == 1:
        return _check_size("output", values.result(graph.sinks[0]) or NULL)
    return _joined_results(graph, graph.sinks, values, "output")


# ---- making payloads


def _make(graph: Graph, rule: InputRule, values: Values, codec: PayloadCodec) -> Payload:
    return _from_document(rule, _document(graph, _read(rule, values), values, codec), values, codec)


def _read(rule: InputRule, values: Values) -> list[Rule]:
    """The expressions that must look into payloads."""
    if rule.whole is not None:
        return [rule.whole] if rule.whole.source == INLINE else []
    return [field for _, field in rule.fields if not _passes(field, values)]


def _from_document(rule: InputRule, document: dict[str, Any], values: Values, codec: PayloadCodec) -> Payload:
    if rule.whole is not None:
        if rule.whole.source != INLINE:
            return _check_size(rule.place, _payload(rule.whole.source, values))
        return _encode(codec, _evaluate(rule.whole, document), rule.place)

    def made(field: Rule) -> Payload:
        if _passes(field, values):
            return _payload(field.source, values)
        return _encode(codec, _evaluate(field, document), field.place)

    return _joined(rule.place, ((name, made(field)) for name, field in rule.fields))


def _passes(rule: Rule, values: Values) -> bool:
    """The payload goes into the object as it is, without being read."""
    return rule.source != INLINE and _payload(rule.source, values).encoding == JSON


def _payload(source: int, values: Values) -> Payload:
    return values.input if source == RUN_INPUT else values.result(source) or NULL


def _check_size(place: str, payload: Payload) -> Payload:
    """The results of a mapped task are bounded one by one: together they may be more than a worker can be sent."""
    if len(payload.data) > MAX_MADE:
        raise MappingError(
            place, f"the value has {len(payload.data)} bytes; {MAX_MADE} is the limit: pass on less, or references"
        )
    return payload


def _joined_results(graph: Graph, tasks: Sequence[int], values: Values, place: str) -> Payload:
    results = [(graph.names[task], values.result(task) or NULL) for task in tasks]
    for name, result in results:
        if result.encoding != JSON:
            raise MappingError(
                place,
                f"the result of {name!r} is encoded as {result.encoding!r} and cannot be part of a JSON object; "
                "write a mapping that leaves it out or takes it alone",
            )
    return _joined(place, results)


def _joined(place: str, fields: Iterable[tuple[str, Payload]]) -> Payload:
    """The object of the payloads, each as it is written."""
    parts: list[bytes] = []
    size = 0
    for name, payload in fields:
        parts.append(b"%b:%b" % (msgspec.json.encode(name), payload.data))
        size += len(parts[-1])
        if size > MAX_MADE:
            raise MappingError(place, f"the object has more than {MAX_MADE} bytes; pass on less, or references")
    return Payload(b"{%b}" % b",".join(parts))


def _split(place: str, payload: Payload) -> list[Payload]:
    """The items of a JSON array, each as it is written."""
    try:
        items = msgspec.json.decode(payload.data, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise MappingError(place, "the value is not a list") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MappingError(place, f"the value is no JSON: {error}") from error
    _check_count(place, len(items))
    return [Payload(bytes(item)) for item in items]


def _check_count(place: str, count: int) -> None:
    if count > MAX_ITEMS:
        raise MappingError(place, f"the list has {count} items; {MAX_ITEMS} is the limit")


# ---- reading values


def _document(graph: Graph, rules: Sequence[Rule], values: Values, codec: PayloadCodec) -> dict[str, Any]:
    """Only what the rules name, so that nothing else is decoded."""
    document: dict[str, Any] = {"run": values.run}
    tasks: dict[str, Any] = {}
    for rule in rules:
        roots = rule.expression.roots
        if "input" in roots and "input" not in document:
            document["input"] = _decode(codec, values.input, rule.place, "the run's input")
        for task in rule.tasks:
            name = graph.names[task]
            if name not in tasks:
                result = values.result(task)
                tasks[name] = None if result is None else _decode(codec, result, rule.place, f"the result of {name!r}")
    document["tasks"] = tasks
    return document


def _evaluate(rule: Rule, document: dict[str, Any]) -> Any:
    try:
        return rule.expression.evaluate(document)
    except ExpressionError as error:
        raise MappingError(rule.place, str(error)) from error


def _decode(codec: PayloadCodec, payload: Payload, place: str, what: str) -> Any:
    try:
        return codec.decode(payload)
    except InvalidArgument as error:
        raise MappingError(place, f"{what} cannot be read: {error}") from error


def _encode(codec: PayloadCodec, value: Any, place: str) -> Payload:
    try:
        payload = codec.encode(value)
    except InvalidArgument as error:
        raise MappingError(place, str(error)) from error
    if len(payload.data) > MAX_MADE:
        raise MappingError(place, f"the value has {len(payload.data)} bytes; {MAX_MADE} is the limit")
    return payload


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, dict) else "a string"
