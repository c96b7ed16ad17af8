"""What the registry holds, as last seen: a map of keys that takes events late, twice or after a gap without harm.

Two maps, because *down is not dead*: `actual` is what the registry said last, `shown` is what the process acts on.
They differ only while the view is held: after an outage of the registry (or when it comes back empty) leases have
ended that nobody chose to end, so what is missing stays shown until its owner had the time to come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

#: Beyond a lease, how long a registry that came back empty is not believed: with the time to notice it, those who died
#: are shown for less than a lease and two seconds.
WIPED_SECONDS: Final = 1.2
#: How long after any other outage: those who live have registered again by then.
RETURN_SECONDS: Final = 3.0


def wiped_hold(ttl: float, return_time: float = RETURN_SECONDS) -> float:
    """How long a view is held when the registry has come back empty."""
    return max(ttl + WIPED_SECONDS, return_time)


class Kv(NamedTuple):
    """A key's value, the lease it dies with (0: none), and the revision of its last write."""

    value: bytes
    lease: int
    revision: int


Change = Callable[[bytes, Kv | None, Kv | None], None]


class View:
    """The keys of one cluster. `on_shown(key, old, new)` hears of each change of `shown`, `on_actual` of `actual`."""

    def __init__(self, on_shown: Change, on_actual: Change) -> None:
        self.actual: dict[bytes, Kv] = {}
        self.shown: dict[bytes, Kv] = {}
        #: Everything up to this revision is in `actual`. 0: nothing is known yet.
        self.revision = 0
        self.held = False
        #: No event up to this revision is news: it is in the last `reset`.
        self._floor = 0
        self._on_shown = on_shown
        self._on_actual = on_actual
        #: Leases that were ended on purpose: what hangs on them is gone, whatever a late event says.
        self._revoked: set[int] = set()

    def put(self, key: bytes, kv: Kv) -> None:
        """A key was written. Events older than what is held are ignored."""
        old = self.actual.get(key)
        if kv.lease in self._revoked or kv.revision <= (old.revision if old else self._floor):
            return
        self.actual[key] = kv
        self._on_actual(key, old, kv)
        self._show(key, kv)

    def delete(self, key: bytes, revision: int) -> None:
        """A key was deleted, or its lease ended."""
        old = self.actual.get(key)
        if old is None or revision <= old.revision:
            return
        self._drop(key, old, keep_shown=self.held)

    def reached(self, revision: int) -> None:
        """All events up to `revision` have been applied."""
        self.revision = max(self.revision, revision)

    def reset(self, kvs: Mapping[bytes, Kv], revision: int) -> None:
        """The whole content at `revision`. What differs becomes changes like any other, deletions included.

        A revision below what was seen is legal: that registry began anew.
        """
        self.revision = revision
        self._floor = revision
        for key in [key for key in self.actual if key not in kvs]:
            self._drop(key, self.actual[key], keep_shown=self.held)
        for key, kv in kvs.items():
            old = self.actual.get(key)
            if kv.lease in self._revoked or kv == old:
                continue
            self.actual[key] = kv
            self._on_actual(key, old, kv)
            self._show(key, kv)

    def hold(self) -> None:
        """From now on keep showing what goes missing."""
        self.held = True

    def release(self) -> None:
        """What is still missing is really gone."""
        self.held = False
        for key in [key for key in self.shown if key not in self.actual]:
            self._on_shown(key, self.shown.pop(key), None)

    def drop_lease(self, lease: int) -> None:
        """The lease was ended on purpose: its keys go now, held or not."""
        self._revoked.add(lease)
        for key in [key for key, kv in self.actual.items() if kv.lease == lease]:
            self._drop(key, self.actual[key], keep_shown=False)
        for key in [key for key, kv in self.shown.items() if kv.lease == lease]:
            self._on_shown(key, self.shown.pop(key), None)

    def _show(self, key: bytes, kv: Kv) -> None:
        old = self.shown.get(key)
        self.shown[key] = kv
        self._on_shown(key, old, kv)

    def _drop(self, key: bytes, old: Kv, *, keep_shown: bool) -> None:
        del self.actual[key]
        self._on_actual(key, old, None)
        if not keep_shown and key in self.shown:
            self._on_shown(key, self.shown.pop(key), None)
