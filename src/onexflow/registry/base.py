"""What both registries do alike: hold what this process wants registered, and tell what changed among the others.

Writing is level-triggered: `plan` compares the wanted with the actual and gives the writes that are missing, so a lost
lease, a wiped registry and an answer that never came are all the same case: look again. The adapters only carry the
writes out (`_settle`), keep the lease, and feed the view.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.ports.registry import (
    Assignment,
    HealthReport,
    MemberEvent,
    MemberListener,
    NodeKind,
    NodeRecord,
    ShardAnnouncement,
)
from onexflow.registry import keys
from onexflow.registry.view import Kv, View

_log = structlog.get_logger("onexflow.registry")


class Write(NamedTuple):
    """One write that is missing: it holds only if the key's last write is still `after` (0: the key does not exist)."""

    key: bytes
    value: bytes | None  #: None: delete
    lease: int
    after: int


class BaseRegistry:
    """One process's wishes and its view. Adapters implement `_settle`, and call `plan` for what is to be written."""

    def __init__(self) -> None:
        self.view = View(self._on_shown, self._on_actual)
        self._records: dict[bytes, NodeRecord] = {}
        #: Registered by a call that has not been written yet: it replaces whoever holds the key.
        self._fresh: set[bytes] = set()
        #: Ours, but a later process took the name: not written again until registered anew.
        self._fenced: set[bytes] = set()
        self._announced: dict[bytes, ShardAnnouncement] = {}
        self._assigned: dict[bytes, Assignment] = {}
        self._pins: dict[str, set[bytes]] = {}
        self._unwanted: set[bytes] = set()
        #: Reported by this process, and as shown.
        self._reports: dict[bytes, HealthReport] = {}
        self._healths: dict[bytes, HealthReport] = {}
        #: Keys that may have to be written.
        self._suspects: set[bytes] = set()
        self._members: dict[bytes, NodeRecord] = {}
        self._listeners: dict[int, MemberListener] = {}
        self._listener_id = 0
        #: Each with those who listened when it happened.
        self._events: deque[tuple[MemberEvent, tuple[int, ...]]] = deque()
        self._delivering = False

    # ------------------------------------------------------------------------------------------- the port's methods
    async def register(self, record: NodeRecord) -> None:
        if not record.node_id or not record.incarnation:
            raise InvalidArgument("A node needs an id and an incarnation.", field="node_id")
        key = keys.node_key(record.kind, record.node_id)
        self._records[key] = record
        self._fresh.add(key)
        self._fenced.discard(key)
        self._suspects.add(key)
        await self._settle()

    async def unregister(self, kind: NodeKind, node_id: str) -> None:
        key = keys.node_key(kind, node_id)
        record = self._records.pop(key, None)
        if record is not None:
            self._fresh.discard(key)
            self._suspects.add(key)
            if kind == "guest":  # its lease is ours and goes on: what hangs on it must be taken away by name
                held = self.view.actual.get(key)
                kept = keys.load_node(held.value) if held is not None else record
                if kept is not None and _identity(kept) == _identity(record):
                    self._forget_health(node_id)
            await self._settle()

    def _forget_health(self, node_id: str) -> None:
        key = keys.health_key(node_id)
        self._reports.pop(key, None)
        self._unwanted.add(key)
        self._suspects.add(key)

    def members(self, kind: NodeKind | None = None) -> Sequence[NodeRecord]:
        return tuple(record for record in self._members.values() if kind in {None, record.kind})

    def subscribe(self, listener: MemberListener) -> Callable[[], None]:
        self._listener_id += 1
        number = self._listener_id
        self._listeners[number] = listener

        def stop() -> None:
            self._listeners.pop(number, None)

        return stop

    async def announce(self, shards: Sequence[ShardAnnouncement]) -> None:
        self._suspects.update(self._announced)
        self._announced = {keys.shard_key(item.shard): item for item in shards}
        self._suspects.update(self._announced)
        await self._settle()

    async def announcements(self) -> Sequence[ShardAnnouncement]:
        rows = (keys.load_shard(kv.value) for key, kv in sorted(self.view.shown.items()) if key.startswith(keys.SHARDS))
        return tuple(row for row in rows if row is not None)

    async def assign(self, assignment: Assignment) -> None:
        key = keys.assignment_key(assignment.key)
        self._unpin(key)
        self._assigned[key] = assignment
        self._pins.setdefault(assignment.node_id, set()).add(key)
        self._unwanted.discard(key)
        self._suspects.add(key)
        await self._settle()

    async def unassign(self, key: RunKey) -> None:
        name = keys.assignment_key(key)
        self._unpin(name)
        self._unwanted.add(name)
        self._suspects.add(name)
        await self._settle()

    def _unpin(self, key: bytes) -> None:
        before = self._assigned.pop(key, None)
        if before is not None:
            pins = self._pins[before.node_id]
            pins.discard(key)
            if not pins:
                del self._pins[before.node_id]

    async def assignments(self, node_id: str | None = None) -> Sequence[Assignment]:
        shown = sorted(self.view.shown.items())
        rows = (keys.load_assignment(kv.value) for key, kv in shown if key.startswith(keys.ASSIGNMENTS))
        return tuple(row for row in rows if row is not None and node_id in {None, row.node_id})

    async def report_health(self, report: HealthReport) -> None:
        key = keys.health_key(report.node_id)
        self._reports[key] = report
        self._unwanted.discard(key)
        self._suspects.add(key)
        await self._settle()

    def health_of(self, node_id: str) -> HealthReport | None:
        key = keys.health_key(node_id)
        lives = self._lives(node_id)
        known = (self._healths.get(key), self._reports.get(key))
        found = [report for report in known if report is not None and (not lives or report.incarnation in lives)]
        return max(found, key=lambda report: report.at, default=None)

    def _lives(self, node_id: str) -> set[str]:
        records = (self._members.get(keys.node_key(kind, node_id)) for kind in keys.KINDS)
        return {record.incarnation for record in records if record is not None}

    # ------------------------------------------------------------------------------------------- what is to be written
    def plan(self, lease: int) -> list[Write]:
        """The writes that are missing while `lease` is this process's. Empty: all that is wanted is there.

        Looks only at keys under suspicion: what was asked for, changed, or may have changed unseen (`suspect_all`).
        """
        writes: list[Write] = []
        for key in tuple(self._suspects):
            have = self.view.actual.get(key)
            want = self._wanted(key, lease)
            if want is not None and (have is None or (have.value, have.lease) != want):
                writes.append(Write(key, *want, have.revision if have else 0))
            elif want is None and have is not None and (key in self._unwanted or self._is_leftover(key, have, lease)):
                writes.append(Write(key, None, 0, have.revision))
            else:
                self._suspects.discard(key)
                self._unwanted.discard(key)
                self._fresh.discard(key)
        return writes

    def suspect_all(self) -> None:
        """The lease is another, or something may have gone unseen: look at everything of ours again."""
        for mine in (self._records, self._announced, self._assigned, self._reports, self._unwanted):
            self._suspects.update(mine)

    def _wanted(self, key: bytes, lease: int) -> tuple[bytes, int] | None:
        """What the key should hold, and on which lease; None when it is no affair of ours (any more)."""
        record = self._records.get(key)
        if record is not None:
            return None if self._is_fenced(key, record, lease) else (keys.dump(record), lease)
        shard = self._announced.get(key)
        if shard is not None:
            have = self.view.actual.get(key)
            other = keys.load_shard(have.value) if have is not None and have.lease != lease else None
            superseded = other is not None and other.owner != shard.owner and other.epoch > shard.epoch
            return None if superseded else (keys.dump(shard), lease)
        report = self._reports.get(key)
        if report is not None:
            have = self.view.actual.get(key)
            said = keys.load_health(have.value) if have is not None else None
            later = said is not None and said.incarnation == report.incarnation and said.at > report.at
            owner = 0 if later else self._lease_of(report.node_id, report.incarnation)
            return (keys.dump(report), owner) if owner else None
        assignment = self._assigned.get(key)
        owner = self._lease_of(assignment.node_id) if assignment is not None else 0
        return (keys.dump_assignment(assignment), owner) if assignment is not None and owner else None

    def _is_leftover(self, key: bytes, have: Kv, lease: int) -> bool:
        """Ours, and not wanted any more. Assignments and reports on our lease are those of whoever made them."""
        return have.lease == lease and not key.startswith((keys.ASSIGNMENTS, keys.HEALTH))

    def _is_fenced(self, key: bytes, record: NodeRecord, lease: int) -> bool:
        """Whether another, later process holds the name of this record. A call to `register` comes before it."""
        have = self.view.actual.get(key)
        if have is None or have.lease == lease or key in self._fresh:
            return key in self._fenced
        other = keys.load_node(have.value)
        if other is None or _identity(other) == _identity(record):
            return False
        if _age(other) > _age(record):
            self._fence(key, record, other.incarnation)
        return key in self._fenced

    def _fence(self, key: bytes, record: NodeRecord, by: str) -> None:
        if key not in self._fenced:
            self._fenced.add(key)
            _log.warning("registry.fenced", node_id=record.node_id, kind=record.kind, by=by)

    def _lease_of(self, node_id: str, incarnation: str = "") -> int:
        """The lease of a live node, whatever its roles, in that life if one is named; 0 when it has none."""
        for kind in keys.KINDS:
            have = self.view.actual.get(keys.node_key(kind, node_id))
            if have is None:
                continue
            record = keys.load_node(have.value) if incarnation else None
            if not incarnation or (record is not None and record.incarnation == incarnation):
                return have.lease
        return 0

    async def _settle(self) -> None:
        """Write what is wanted, and return when it is seen in the view, or at once when the registry is away."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------- what changed
    def _on_actual(self, key: bytes, old: Kv | None, new: Kv | None) -> None:
        record = self._records.get(key)
        if record is not None and old is not None and new is not None and key not in self._fresh:
            before, after = keys.load_node(old.value), keys.load_node(new.value)
            if before and after and _identity(before) == _identity(record) != _identity(after):
                self._fence(key, record, after.incarnation)
        if any(key in mine for mine in (self._records, self._announced, self._assigned, self._reports, self._unwanted)):
            self._suspects.add(key)
            self._touched()
        if keys.is_member(key) and (old is None or new is None or old.lease != new.lease):
            node_id = keys.node_id_of(key)
            hanging = set(self._pins.get(node_id, ()))
            if keys.health_key(node_id) in self._reports:
                hanging.add(keys.health_key(node_id))
            if hanging:
                self._suspects.update(hanging)
                self._touched()

    def _touched(self) -> None:
        """Something changed that may have to be written again."""
        raise NotImplementedError

    def _on_shown(self, key: bytes, old: Kv | None, new: Kv | None) -> None:
        if key.startswith(keys.HEALTH):
            self._on_health(key, new)
        if not keys.is_member(key):
            return
        before = self._members.pop(key, None)
        after = keys.load_node(new.value) if new is not None else None
        if new is not None and after is None:
            _log.warning("registry.unreadable", key=key.decode(errors="replace"))
        if after is not None:
            self._members[key] = after
        if before is not None and (after is None or after.incarnation != before.incarnation):
            self._tell(MemberEvent("down", before))
            before = None
        if after is not None and after != before:
            self._tell(MemberEvent("up" if before is None else "changed", after))
        node_id = keys.node_id_of(key)
        report = self._reports.get(keys.health_key(node_id))
        if after is not None and report is not None and report.incarnation not in self._lives(node_id):
            del self._reports[keys.health_key(node_id)]

    def _on_health(self, key: bytes, new: Kv | None) -> None:
        before = self._healths.pop(key, None)
        after = keys.load_health(new.value) if new is not None else None
        if after is not None:
            self._healths[key] = after
        if (before and (before.incarnation, before.health)) == (after and (after.incarnation, after.health)):
            return
        node_id = keys.node_id_of(key)
        for record in [self._members.get(keys.node_key(kind, node_id)) for kind in keys.KINDS]:
            if record is not None:
                self._tell(MemberEvent("changed", record))

    def _tell(self, event: MemberEvent) -> None:
        self._events.append((event, tuple(self._listeners)))
        if not self._delivering:
            self._delivering = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        while self._events:
            event, heard_by = self._events.popleft()
            for listener in [self._listeners[number] for number in heard_by if number in self._listeners]:
                try:
                    listener(event)
                except Exception:  # noqa: BLE001 - a listener's bug must not end the view
                    _log.exception("listener.failed", type=event.type, node_id=event.record.node_id)


def _identity(record: NodeRecord) -> tuple[str, str]:
    """Which life of a node it is, and (of a guest) who keeps its record."""
    return record.incarnation, record.keeper


def _age(record: NodeRecord) -> tuple[int, str, int, str]:
    """The later one of two records counts."""
    return record.started_at, record.incarnation, record.kept_since, record.keeper
