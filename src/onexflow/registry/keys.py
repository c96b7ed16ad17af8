"""What the keys are called, and what their values hold. The prefix `/onexflow/<cluster>/` is the adapter's affair.

    incarnation                          this registry's life: created once, so that a wiped etcd is noticed
    nodes/<role>/<node>                  NodeRecord of a worker in one of its roles      } on the lease of the process
    nodes/guest/<node>                   NodeRecord of a guest, by who keeps it          }
    orchestrators/<node>                 NodeRecord of an orchestrator                   }
    shards/<n>                           ShardAnnouncement                               }
    assignments/<namespace>/<type>/<id>  Assignment, on the lease of the node it names
    health/<node>                        HealthReport, on the lease of the node it names

Values are JSON, one object each; names are percent-encoded.
"""

from __future__ import annotations

from typing import Final, get_args
from urllib.parse import quote, unquote
from uuid import UUID

import msgspec

from onexflow.core.ids import RunKey
from onexflow.ports.registry import Assignment, HealthReport, NodeKind, NodeRecord, ShardAnnouncement

INCARNATION: Final = b"incarnation"
SHARDS: Final = b"shards/"
ASSIGNMENTS: Final = b"assignments/"
HEALTH: Final = b"health/"
MEMBERS: Final = (b"nodes/", b"orchestrators/")
KINDS: Final[tuple[NodeKind, ...]] = get_args(NodeKind)


class _AssignmentRow(msgspec.Struct, frozen=True):
    """An assignment as stored: a run's key by the names of its parts."""

    namespace: str
    workflow_type: str
    instance_id: UUID
    node_id: str
    assigned_at: int = 0
    epoch: int = 0


_encode = msgspec.json.Encoder(order="deterministic").encode
_node = msgspec.json.Decoder(NodeRecord)
_shard = msgspec.json.Decoder(ShardAnnouncement)
_assignment = msgspec.json.Decoder(_AssignmentRow)
_report = msgspec.json.Decoder(HealthReport)


def node_key(kind: NodeKind, node_id: str) -> bytes:
    name = quote(node_id, safe="")
    return (f"orchestrators/{name}" if kind == "orchestrator" else f"nodes/{kind}/{name}").encode()


def shard_key(shard: int) -> bytes:
    return SHARDS + b"%05d" % shard


def assignment_key(key: RunKey) -> bytes:
    parts = (quote(key.namespace, safe=""), quote(key.workflow_type, safe=""), str(key.instance_id))
    return ASSIGNMENTS + "/".join(parts).encode()


def health_key(node_id: str) -> bytes:
    return HEALTH + quote(node_id, safe="").encode()


def is_member(key: bytes) -> bool:
    return key.startswith(MEMBERS)


def node_id_of(key: bytes) -> str:
    """The node of a member's key, or of its health's."""
    return unquote(key.rpartition(b"/")[2].decode(errors="replace"))


def dump(value: NodeRecord | ShardAnnouncement | HealthReport) -> bytes:
    return _encode(value)


def dump_assignment(value: Assignment) -> bytes:
    key = value.key
    row = _AssignmentRow(
        key.namespace, key.workflow_type, key.instance_id, value.node_id, value.assigned_at, value.epoch
    )
    return _encode(row)


def load_node(raw: bytes) -> NodeRecord | None:
    """The record; None when the value is not one (somebody else wrote it)."""
    try:
        return _node.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def load_shard(raw: bytes) -> ShardAnnouncement | None:
    try:
        return _shard.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def load_health(raw: bytes) -> HealthReport | None:
    try:
        return _report.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def load_assignment(raw: bytes) -> Assignment | None:
    try:
        row = _assignment.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    key = RunKey(row.namespace, row.workflow_type, row.instance_id)
    return Assignment(key=key, node_id=row.node_id, assigned_at=row.assigned_at, epoch=row.epoch)
