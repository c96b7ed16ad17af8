"""An event as a NATS message: its subject, headers and body (docs/nats.md is the reference). Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from onexflow.codec.plain import payload, rfc3339
from onexflow.core.ids import derived_uuid
from onexflow.core.payload import JSON, Payload
from onexflow.ports.events import Delivery

#: The first token of every subject.
ROOT: Final = "onexflow"
#: Characters of one part of a subject. A server ends the connection of who sends a line of over 4,096 bytes.
MAX_PART: Final = 150
_HASH: Final = 24
#: What stands before the headers on the wire and after them, and around each.
_HEADERS_FRAME: Final = len("NATS/1.0\r\n\r\n")
_HEADER_FRAME: Final = len(": \r\n")


class Message(NamedTuple):
    """`size` is what the server's `max_payload` is compared with: headers and body."""

    subject: str
    headers: dict[str, str]
    body: bytes
    size: int


def token(name: str) -> str:
    """A name as one token of a subject: letters, digits, `_`, `-` and `~` stand for themselves, all else is percent-encoded.
    A long one is cut, and ends with a hash of the whole."""
    return _bounded(quote(name, safe="").replace(".", "%2E"))


def event_tokens(event_type: str) -> str:
    """An event type as the last tokens of a subject: its dots part tokens, unless one of them would be empty."""
    parts = event_type.split(".")
    if not all(parts):
        return token(event_type)
    return _bounded(".".join(quote(part, safe="") for part in parts))


def _bounded(text: str) -> str:
    if len(text) <= MAX_PART:
        return text
    kept = text[: MAX_PART - _HASH - 1].rstrip(".")
    return f"{kept}~{sha256(text.encode()).hexdigest()[:_HASH]}"


def subjects_of(cluster: str) -> str:
    """The wildcard of all subjects of a cluster's events."""
    return f"{ROOT}.{token(cluster)}.>"


def message_of(delivery: Delivery, cluster: str, stream: str) -> Message:
    """The same message for the same event, always. No stream but `stream` takes it."""
    event = delivery.event
    key = event.key
    subject = ".".join((ROOT, token(cluster), token(key.namespace), token(key.workflow_type), event_tokens(event.type)))
    headers = {
        "Nats-Msg-Id": message_id(delivery, cluster),
        "Nats-Expected-Stream": stream,
        "Onexflow-Cluster": _header(cluster),
        "Onexflow-Namespace": _header(key.namespace),
        "Onexflow-Workflow": _header(key.workflow_type),
        "Onexflow-Instance": str(key.instance_id),
        "Onexflow-Sequence": str(event.sequence),
        "Onexflow-Event": _header(event.type),
    }
    body = msgspec.json.encode(
        {
            "namespace": key.namespace,
            "workflow_type": key.workflow_type,
            "instance_id": str(key.instance_id),
            "sequence": event.sequence,
            "type": event.type,
            "event_id": str(event.event_id),
            "timestamp": rfc3339(event.timestamp),
            "source": event.source,
            "correlation_id": event.correlation_id,
            "causation_id": event.causation_id,
            "correlation_chain": event.correlation_chain,
            "idempotency_key": event.idempotency_key,
            "payload": _raw(event.payload),
            "metadata": _raw(event.metadata),
            "topic": delivery.topic,
            "partition": delivery.partition,
            "partition_key": delivery.partition_key,
            "position": str(delivery.position),
        }
    )
    size = len(body) + _HEADERS_FRAME + sum(len(name) + len(text) + _HEADER_FRAME for name, text in headers.items())
    return Message(subject, headers, body, size)


def message_id(delivery: Delivery, cluster: str) -> str:
    """The event's identity: cluster, namespace, type, instance and number. The last part tells apart what may have the same
    ones: an event of a run and one that was published under the run's name before, and the events of another store that
    has taken the place of this one."""
    event = delivery.event
    of = derived_uuid(f"{event.event_id}:{event.timestamp}").hex[:12]
    names = "/".join(quote(name, safe="") for name in (cluster, event.key.namespace, event.key.workflow_type))
    return f"{names}/{event.key.instance_id}/{event.sequence}/{of}"


def _header(text: str) -> str:
    """Text as a header's value: what is not printable ASCII is percent-encoded, and the percent sign and the blank, too."""
    return quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}")


def _raw(part: Payload) -> object:
    """JSON goes through as it is."""
    return msgspec.Raw(part.data) if part.encoding == JSON else payload(part)
