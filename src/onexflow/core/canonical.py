"""The canonical text of a definition, and its hash: what tells two definitions of one version apart."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from onexflow.core.definition import TaskSpec, WorkflowDefinition


def canonical_json(definition: WorkflowDefinition) -> bytes:
    """The one text of a definition: keys sorted, defaults left out, whole numbers without a point."""
    return msgspec.json.encode(_plain(definition), order="sorted")


def hash_of(text: bytes) -> str:
    """The hash of a definition whose canonical JSON is `text`: equal exactly for definitions that mean the same."""
    return hashlib.sha256(text).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _plain_struct(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


_DEFAULTS: Final[dict[type, dict[str, Any]]] = {}


def _plain_struct(value: msgspec.Struct) -> dict[str, Any]:
    defaults = _DEFAULTS.get(type(value))
    if defaults is None:
        defaults = _DEFAULTS[type(value)] = {f.encode_name: f.default for f in msgspec.structs.fields(value)}
    plain = {}
    for name, default in defaults.items():
        given = getattr(value, name)
        if given is not default and given != default:
            plain[name] = _plain(given)
    if isinstance(value, TaskSpec) and value.handler == value.name:
        plain.pop("handler", None)
    return plain
