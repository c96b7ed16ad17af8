"""EventType: an event type that equals both of the specification's spellings, `task.completed` and `task_completed`."""

from __future__ import annotations

import difflib
from typing import Final, Self, get_args

from onexflow.spi.literals import LiteralWorkflowEventType

_DOTTED: Final[dict[str, str]] = {
    spelling: name for name in get_args(LiteralWorkflowEventType) for spelling in (name, name.replace(".", "_"))
}


class EventType(str):
    """One of the 18 event types. Stored and sent in the dotted form; compares equal to either form.

    Its hash is that of the dotted form, so a *set* or *dict* of underscore names does not find it: use `==`, a list or
    `match`. Raises ValueError for a word that is none of the 18.
    """

    __slots__ = ()

    def __new__(cls, spelling: str) -> Self:
        try:
            return super().__new__(cls, _DOTTED[spelling])
        except KeyError:
            near = difflib.get_close_matches(str(spelling), _DOTTED, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{spelling!r} is no workflow event type{hint}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str.__eq__(self, _DOTTED.get(other, other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    @property
    def underscored(self) -> str:
        """The other spelling."""
        return self.replace(".", "_")
