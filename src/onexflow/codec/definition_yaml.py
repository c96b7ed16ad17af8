"""YAML of definitions, parsed to plain values: safe types only, no key twice, and no more than a definition needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import yaml

from onexflow.core.errors import InvalidDefinition

#: Nodes of a document with all its aliases written out.
MAX_NODES: Final = 500_000
#: Levels of nesting; a definition needs four.
MAX_DEPTH: Final = 64

_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: bytes) -> Any:
    """Composes first: depth, duplicate keys and the size with all aliases written out are judged before values exist."""
    try:
        _check_depth(yaml.parse(text, Loader=_Loader))
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                raise InvalidDefinition("the definition is empty")
            _check_nodes(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidDefinition(f"not YAML: {error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise InvalidDefinition(f"not YAML: {str(error).splitlines()[0]}") from error
    except (ValueError, OverflowError) as error:  # values such as 2026-13-45
        raise InvalidDefinition(f"not YAML: {error}") from error


def _check_depth(events: Iterable[Any]) -> None:
    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidDefinition("the definition is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_nodes(root: yaml.Node) -> None:
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known is not None:
            return known
        if id(node) in open_nodes:
            raise InvalidDefinition(f"an alias contains itself at line {node.start_mark.line + 1}")
        open_nodes.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            total = 1 + sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total = 1 + sum(size(one) for one in node.value)
        else:
            total = 1
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        if total > MAX_NODES:
            raise InvalidDefinition(f"the definition has more than {MAX_NODES} values with its aliases written out")
        return total

    size(root)


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                line = key.start_mark.line + 1
                raise InvalidDefinition(
                    f"the key {key.value!r} stands twice in one object, line {line}", field=key.value
                )
            seen.add(key.value)
