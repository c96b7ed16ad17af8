"""What callers give to the service objects, checked: whatever is wrong raises InvalidArgument, which names the field; where
the value is wrong, and not only its type, it is a ValueError too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.spi.types import to_uuid

#: Characters of a name, and of a key.
MOST_NAME: Final = 255
MOST_KEY: Final = 1020
#: The highest number that is taken: a wire field has 64 bits.
MOST_NUMBER: Final = 2**62


class InvalidValue(InvalidArgument, ValueError):
    """An argument has a value that it cannot have: a ValueError too, as the specification's callers expect."""


def text(given: Any, field: str, *, most: int = MOST_KEY) -> str:
    """Text of printable characters, which may be empty."""
    if not isinstance(given, str):
        raise InvalidValue(f"{field}: text is needed, not {type(given).__name__}", field=field)
    if len(given) > most or not given.isprintable():
        raise InvalidValue(f"{field}: at most {most} printable characters are needed", field=field)
    return str(given)  # of a subclass, the plain text


def storable(given: Any, field: str) -> str:
    """Any text that can be stored and sent."""
    if not isinstance(given, str):
        raise InvalidValue(f"{field}: text is needed, not {type(given).__name__}", field=field)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{field}: {error.reason} at {error.start}", field=field) from None
    return given


def name(given: Any, field: str) -> str:
    """Text that is not blank."""
    if not text(given, field, most=MOST_NAME).strip():
        raise InvalidValue(f"{field}: a name is needed", field=field)
    return str(given)


def whole(given: Any, field: str, least: int = 0, most: int = MOST_NUMBER) -> int:
    """A whole number within bounds."""
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given <= most:
        bounds = f", {least} or above" if most == MOST_NUMBER else f" from {least} to {most}"
        raise InvalidValue(f"{field} must be a whole number{bounds}, not {given!r:.100}", field=field)
    return given


def number(given: Any, field: str, least: float = 0, most: float = MOST_NUMBER) -> float:
    """A number within bounds."""
    if not isinstance(given, int | float) or isinstance(given, bool) or not least <= given <= most:
        bounds = f", {least} or above" if most == MOST_NUMBER else f" between {least} and {most}"
        raise InvalidValue(f"{field} must be a number{bounds}, not {given!r:.100}", field=field)
    return float(given)


def each(given: Any, field: str) -> list[Any]:
    """The members of a list, or of another iterable that is neither text nor a mapping."""
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise InvalidArgument(f"{field}: a list is needed, not {type(given).__name__}", field=field)
    return list(given)


def mapping(given: Any, field: str) -> dict[str, Any]:
    """A dict, or an object like one; {} for None."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"{field}: a dict is needed, not {type(given).__name__}", field=field)
    return dict(given)


def run_key(namespace: str, workflow_type: Any, instance_id: Any) -> RunKey:
    """The name of a run or a stream. Text that is no UUID gets one derived from it."""
    kind = name(workflow_type, "workflow_type")
    if not instance_id or not isinstance(instance_id, UUID | str):
        raise InvalidArgument("instance_id: a UUID is needed", field="instance_id")
    if isinstance(instance_id, str):
        text(instance_id, "instance_id")
    return RunKey(namespace, kind, to_uuid(instance_id))
