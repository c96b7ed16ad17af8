"""Nodes as their callers see them, made of registrations, streams and counts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, get_args

import msgspec

from onexflow.core.address import split_address
from onexflow.core.errors import InvalidArgument
from onexflow.core.turn import SECOND
from onexflow.engine.measures import percentile
from onexflow.engine.sessions import WorkerSession
from onexflow.engine.tally import Tally
from onexflow.ports.nodes import (
    DEFAULT_TTL,
    MAX_DETAILS,
    MAX_TTL,
    MIN_TTL,
    Capability,
    NodeEntry,
    NodeFigures,
    Registration,
)
from onexflow.ports.registry import HealthReport, NodeRecord, role_of
from onexflow.ports.worker_link import ROLES
from onexflow.spi.literals import LiteralHealthStatus, LiteralTaskType

_HEALTHS: Final = get_args(LiteralHealthStatus)
_TYPES: Final = get_args(LiteralTaskType)
_MAX_NAME: Final = 255


class QueueTally(NamedTuple):
    """What a node has done for work queues: of the tasks that are kept. Durations in nanoseconds."""

    running: int
    completed: int
    failed: int
    durations: Sequence[int]


# ---- what is taken


def check(registration: Registration) -> None:
    """Raises InvalidArgument for a registration that cannot be."""
    node = registration.node
    _check_name(node.node_id, "node_id")
    _check_name(registration.incarnation, "incarnation")
    if node.node_id.startswith("$"):
        raise InvalidArgument(f"{node.node_id!r}: ids with $ are the engine's own", field="node_id")
    if node.node_type.partition(":")[0] not in _TYPES:
        raise InvalidArgument(f"node_type {node.node_type!r} is none of {', '.join(_TYPES)}", field="node_type")
    if not 0 <= node.port < 65536:
        raise InvalidArgument(f"port {node.port} is none", field="port")
    if not MIN_TTL <= registration.ttl <= MAX_TTL:
        raise InvalidArgument(f"ttl must be between {MIN_TTL:g} and {MAX_TTL:g} seconds", field="ttl")
    if node.max_concurrent_tasks < 0 or any(one.max_concurrent_tasks < 0 for one in node.capabilities):
        raise InvalidArgument("max_concurrent_tasks must not be negative", field="max_concurrent_tasks")
    for capability in node.capabilities:
        _check_name(capability.name, "capability_name")
    check_health(node.health)
    if (size := len(msgspec.json.encode(node))) > MAX_DETAILS:
        raise InvalidArgument(
            f"the node says {size:,} bytes of itself, the limit is {MAX_DETAILS:,}", field="node_info"
        )


def check_health(health: str) -> None:
    if health not in _HEALTHS:
        raise InvalidArgument(f"{health!r} is no health: {', '.join(_HEALTHS)}", field="health_status")


def _check_name(text: str, field: str) -> None:
    if not text or len(text) > _MAX_NAME or not text.isprintable():
        raise InvalidArgument(f"{field} must have 1 to {_MAX_NAME} characters that can be printed", field=field)


def begun(registration: Registration, started_at: int) -> Registration:
    return msgspec.structs.replace(registration, started_at=started_at)


# ---- guests


def guest_record(registration: Registration, keeper: str, now: int) -> NodeRecord:
    """A guest as the registry holds it."""
    node = registration.node
    return NodeRecord(
        kind="guest",
        node_id=node.node_id,
        incarnation=registration.incarnation,
        address=f"{node.host}:{node.port}" if node.host else "",
        handlers=tuple(dict.fromkeys(capability.name for capability in node.capabilities)),
        slots=node.max_concurrent_tasks,
        version=node.version,
        started_at=registration.started_at,
        keeper=keeper,
        kept_since=now,
        details={"ttl": registration.ttl, "node": msgspec.to_builtins(node)},
    )


def ttl_of(record: NodeRecord) -> float:
    """Seconds that a guest may be silent."""
    ttl = record.details.get("ttl")
    return float(ttl) if isinstance(ttl, int | float) and MIN_TTL <= ttl <= MAX_TTL else DEFAULT_TTL


def guest_entry(record: NodeRecord, report: HealthReport | None, running: int) -> NodeEntry:
    try:
        node = msgspec.convert(record.details.get("node"), NodeEntry)
    except msgspec.ValidationError:  # written by somebody else: what can be read of it
        node = NodeEntry(
            node_id=record.node_id,
            node_type="effect",
            capabilities=tuple(Capability(name=name) for name in record.handlers),
        )
    # Who registers a node and says nothing of its health means that it can be used.
    health = "healthy" if node.health == "unknown" else node.health
    if report is not None and report.incarnation == record.incarnation:
        health = report.health
    return msgspec.structs.replace(
        node,
        node_id=record.node_id,
        health=health,
        incarnation=record.incarnation,
        started_at=record.started_at,
        guest=True,
        current_tasks=running,
    )


# ---- workers


def worker_entry(
    node_id: str, records: Sequence[NodeRecord], session: WorkerSession | None, report: HealthReport | None
) -> NodeEntry:
    """A worker, registered or connected or both: one node, whatever its roles."""
    newest = max(records, key=lambda record: (record.started_at, record.incarnation), default=None)
    incarnation = newest.incarnation if newest is not None else session.incarnation if session is not None else ""
    if session is not None and session.incarnation != incarnation:
        session = None
    records = [record for record in records if record.incarnation == incarnation]
    served = _served(records, session)
    labels = dict(newest.labels if newest is not None else {})
    if session is not None and session.hello is not None:
        labels = {**session.hello.labels, **labels}
    slots = _slots(records, session)
    address = split_address(newest.address or newest.liveness) if newest is not None else None
    host, port = address or ("", 0)
    roles = [role for role in ROLES if role in served]
    return NodeEntry(
        node_id=node_id,
        node_type=roles[0] if roles else "effect",
        host=host,
        port=port,
        environment=labels.get("environment", ""),
        group=labels.get("group", ""),
        version=newest.version if newest is not None else "",
        health=_worker_health(incarnation, records, session, report),
        capabilities=tuple(_capabilities(served, labels, slots)),
        max_concurrent_tasks=sum(slots.values()),
        details={"metadata": {"roles": roles, "labels": labels}},
        incarnation=incarnation,
        started_at=newest.started_at if newest is not None else 0,
        current_tasks=len(session.inflight) if session is not None else 0,
    )


def _worker_health(
    incarnation: str, records: Sequence[NodeRecord], session: WorkerSession | None, report: HealthReport | None
) -> str:
    if report is not None and report.incarnation == incarnation:
        return report.health
    drains = any(record.status == "draining" for record in records) or (session is not None and session.is_draining)
    return "unavailable" if drains else "healthy"


def _served(records: Iterable[NodeRecord], session: WorkerSession | None) -> dict[str, list[str]]:
    """Handlers by role."""
    served: dict[str, list[str]] = {role_of(record.kind): list(record.handlers) for record in records}
    for role, name in session.handler_keys if session is not None else ():
        if name not in served.setdefault(role, []):
            served[role].append(name)
    return served


def _slots(records: Iterable[NodeRecord], session: WorkerSession | None) -> dict[str, int]:
    slots = {role_of(record.kind): record.slots for record in records}
    if session is not None and session.hello is not None:
        slots.update(session.hello.slots)
    return slots


def _capabilities(served: dict[str, list[str]], labels: dict[str, str], slots: dict[str, int]) -> Iterable[Capability]:
    roles_of: dict[str, list[str]] = {}
    for role in ROLES:
        for name in served.get(role, ()):
            roles_of.setdefault(name, []).append(role)
    for name, roles in roles_of.items():
        most = max(slots.get(role, 0) for role in roles)
        yield Capability(name=name, task_types=tuple(roles), node_types=tuple(roles), max_concurrent_tasks=most)
    for name in labels.get("capabilities", "").split(","):
        if name and name not in roles_of:
            roles_of[name] = []
            yield Capability(name=name, max_concurrent_tasks=sum(slots.values()))


# ---- figures


def worker_figures(entry: NodeEntry, tally: Tally | None, queued: QueueTally, heard_at: int) -> NodeFigures:
    if tally is None or tally.incarnation != entry.incarnation:
        tally = Tally(entry.incarnation)
    count = tally.ended + len(queued.durations)
    return NodeFigures(
        node_id=entry.node_id,
        health=entry.health,
        current_tasks=entry.current_tasks + (0 if entry.guest else queued.running),
        max_concurrent_tasks=entry.max_concurrent_tasks,
        completed=tally.completed + queued.completed,
        failed=tally.failed + queued.failed,
        mean=(tally.nanoseconds + sum(queued.durations)) / count / SECOND if count else 0.0,
        last_heartbeat=heard_at,
        **_percentiles([*tally.durations, *queued.durations]),
    )


def guest_figures(entry: NodeEntry, queued: QueueTally, beat_at: int) -> NodeFigures:
    """A guest does tasks of work queues."""
    return worker_figures(entry, None, queued, beat_at)


def _percentiles(durations: Sequence[int]) -> dict[str, Any]:
    ordered = sorted(duration / SECOND for duration in durations)
    if not ordered:
        return {}
    return {name: percentile(ordered, share) for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))}
